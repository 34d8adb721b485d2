"""The order of an epoch: a pure function of (seed, epoch), whatever the threads and whenever the run was resumed.

FFCV's own orders draw from RNG(seed + epoch): epoch 1 of seed 0 would be epoch 0 of seed 1.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from fastlsr.rng import Stream, generator

Order = Callable[..., np.ndarray]  # (*, seed, epoch) -> int64[n], a permutation of 0..n-1

_GROUP_BATCHES = 16  # how many batches the pages that quasi_random keeps in memory hold, about


def sequential(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64[count]: 0, 1, 2, ... in every epoch."""
    return np.arange(count, dtype=np.int64)


def shuffled(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64[count]: a uniformly random permutation, a function of (seed, epoch) alone."""
    return generator(Stream.ORDER, seed, epoch).permutation(count)


def page_wise(pages: np.ndarray, *, group: int, seed: int, epoch: int) -> np.ndarray:
    """int64[N]: a permutation that needs `group` pages of the file at a time, for files larger than the memory.

    The pages are shuffled and cut into groups of `group`; the samples of a group are shuffled together.

    Args:
        pages: int[N], the page each sample lies on.
    """
    random = generator(Stream.ORDER, seed, epoch)
    names, page = np.unique(pages, return_inverse=True)
    group_of_page = random.permutation(len(names)) // group
    return np.lexsort((random.random(len(pages)), group_of_page[page]))


def peers_of(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """int64[N]: for each sample another of its class, or itself where there is no other; a permutation.

    A function of (labels, seed, epoch): the members of a class form a random circle, and each one's peer is the next.

    Args:
        labels: int[N].
    """
    shuffled_samples = generator(Stream.PAIRS, seed, epoch).permutation(len(labels))
    circle = shuffled_samples[np.argsort(labels[shuffled_samples], kind="stable")]
    ordered = labels[circle]
    following = np.arange(1, len(labels) + 1)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    following[last] = np.searchsorted(ordered, ordered[last])  # back to the first of the class
    peers = np.empty(len(labels), dtype=np.int64)
    peers[circle] = circle[following]
    return peers


def epoch_order(kind: str, pages: np.ndarray, batch_size: int) -> Order:
    """The order `kind` (random, quasi_random or sequential) of a loader's n samples.

    Args:
        pages: int[n], the page of the file that each sample lies on.
    """
    if kind == "random":
        return partial(shuffled, len(pages))
    if kind == "sequential":
        return partial(sequential, len(pages))
    if kind == "quasi_random":
        return partial(page_wise, pages, group=_pages_in_group(pages, batch_size))
    raise ValueError(f"unknown order {kind!r}")


def _pages_in_group(pages: np.ndarray, batch_size: int) -> int:
    samples_per_page = len(pages) / len(np.unique(pages))
    return max(1, round(_GROUP_BATCHES * batch_size / samples_per_page))
