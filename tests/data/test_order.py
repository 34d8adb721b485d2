"""The order of an epoch as a pure function of (seed, epoch)."""

import numpy as np
import pytest

from fastlsr.data.order import page_wise, peers_of, sequential, shuffled

PAGES = np.repeat(np.arange(10), 7)  # 10 pages of 7 samples


def in_pages(count: int, **key) -> np.ndarray:
    return page_wise(PAGES[:count], group=3, **key)


@pytest.mark.parametrize("order", [shuffled, in_pages, sequential])
def test_an_order_holds_every_sample_once(order):
    assert sorted(order(70, seed=3, epoch=5)) == list(range(70))


@pytest.mark.parametrize("order", [shuffled, in_pages])
def test_an_order_depends_on_nothing_but_seed_and_epoch(order):
    first = order(70, seed=3, epoch=5)
    np.random.seed(0)
    order(70, seed=4, epoch=6)
    assert np.array_equal(first, order(70, seed=3, epoch=5))


@pytest.mark.parametrize("order", [shuffled, in_pages])
def test_neighbouring_seeds_and_epochs_share_no_order(order):
    """FFCV's own orders draw from RNG(seed + epoch)."""
    orders = {tuple(order(70, seed=seed, epoch=epoch)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_each_sample_is_equally_likely_at_each_place():
    counts = np.zeros((8, 8))
    for epoch in range(2000):
        counts[np.arange(8), shuffled(8, seed=1, epoch=epoch)] += 1
    chi_square = ((counts - 250) ** 2 / 250).sum()
    assert chi_square < 85  # 49 degrees of freedom: the 99.9th percentile


def test_orders_and_peers_share_no_draw():
    one_class = np.zeros(70, dtype=np.int64)
    circles = {tuple(peers_of(one_class, seed=0, epoch=epoch)) for epoch in range(8)}
    assert len(circles) == 8
    for epoch in range(8):
        order = shuffled(70, seed=0, epoch=epoch)
        circle = np.empty(70, dtype=np.int64)
        circle[order] = np.roll(order, -1)  # the peers, if the order's own draw had made the circle
        assert tuple(circle) not in circles


def test_page_wise_needs_few_pages_at_a_time():
    order = page_wise(PAGES, group=3, seed=0, epoch=0)
    groups = [set(PAGES[order[start : start + 21]]) for start in (0, 21, 42)]
    assert [len(group) for group in groups] == [3, 3, 3]
    assert not groups[0] & groups[1]


def test_page_wise_mixes_the_pages_of_a_group():
    order = page_wise(PAGES, group=10, seed=0, epoch=0)
    assert len(set(PAGES[order[:20]])) > 5
