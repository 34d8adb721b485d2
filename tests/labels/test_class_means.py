"""In-pass class means are those of a plain loop over the same logits."""

import numpy as np
import pytest
import torch

from fastlsr.labels.class_means import ClassMeans, choose_peers

CPU = torch.device("cpu")


def collected(logits, labels, member, batch=7, dtype=torch.float32):
    means = ClassMeans(logits.shape[1], len(logits), device=CPU)
    means.start(member)
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    for index in order.split(batch):
        means.update(logits[index].to(dtype), labels[index], index)
    return means


def problem(samples=60, classes=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, classes, generator=generator) * 4
    return logits, torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_labels_are_the_softmax_of_a_plain_loops_means(temperature):
    logits, labels = problem()
    member = torch.from_numpy(choose_peers(labels.numpy(), 4, seed=3, stage=1))
    means = collected(logits, labels, member)
    table = means.soft_labels(temperature, former=torch.eye(5))
    for label in range(5):
        rows = [logits[i].double() for i in range(60) if labels[i] == label and member[i]]
        expected = (sum(rows) / len(rows) / temperature).softmax(0)
        torch.testing.assert_close(table[label].double(), expected, rtol=1e-5, atol=1e-6)
    assert means.seen.all()
    torch.testing.assert_close(table.sum(1), torch.ones(5))


def test_low_precision_logits_are_added_up_in_float32():
    logits, labels = torch.full((4096, 2), 0.1), torch.zeros(4096, dtype=torch.int64)
    means = collected(logits, labels, torch.ones(4096), batch=64, dtype=torch.bfloat16)
    assert means.logit_sum[0, 0].item() == pytest.approx(4096 * torch.tensor(0.1).bfloat16().item(), rel=1e-5)


def test_a_class_without_a_sample_keeps_its_former_row_and_is_named():
    logits, labels = problem()
    labels[labels == 2] = 1
    former = torch.rand(5, 5).softmax(1)
    means = collected(logits, labels, torch.ones(60))
    table = means.soft_labels(1.0, former=former)
    assert (
        means.seen.tolist() == [True, True, False, True, True]
        and torch.equal(table[2], former[2])
        and table.isfinite().all()
    )


def test_outside_a_stages_last_epoch_nothing_is_added_not_even_a_nan():
    logits, labels = problem()
    means = collected(logits, labels, torch.ones(60))
    before = means.logit_sum.clone()
    means.stop()
    means.update(torch.full((7, 5), torch.nan), labels[:7], torch.arange(7))
    assert torch.equal(means.logit_sum, before) and means.count.sum() == 60


def test_starting_again_forgets():
    logits, labels = problem()
    means = collected(logits, labels, torch.ones(60))
    means.start(torch.ones(60))
    assert not means.logit_sum.any() and not means.count.any()


def test_peers_are_k_of_each_class_or_all_of_a_smaller_one():
    labels = np.array([0] * 30 + [1] * 3 + [2] * 12)
    member = choose_peers(labels, 5, seed=0, stage=2)
    assert [int(member[labels == c].sum()) for c in range(3)] == [5, 3, 5]
    assert choose_peers(labels, 0, seed=0, stage=2).all()


def test_peers_are_a_function_of_seed_and_stage():
    labels = np.repeat(np.arange(4), 50)
    chosen = {key: choose_peers(labels, 5, seed=key[0], stage=key[1]).tobytes() for key in [(0, 0), (0, 1), (1, 0)]}
    assert len(set(chosen.values())) == 3
    assert choose_peers(labels, 5, seed=0, stage=1).tobytes() == chosen[0, 1]


def test_peers_are_not_the_first_samples_of_an_epochs_order():
    from fastlsr.data.order import shuffled

    labels = np.repeat(np.arange(10), 500)
    member = choose_peers(labels, 5, seed=0, stage=3)
    positions = np.flatnonzero(member[shuffled(5000, seed=0, epoch=3)])
    assert 1500 < positions.mean() < 3500


def test_every_sample_is_a_peer_equally_often():
    labels = np.repeat(np.arange(2), 20)
    times = sum(choose_peers(labels, 5, seed=0, stage=stage) for stage in range(400))
    assert times.sum() == 400 * 10 and abs(times - 100).max() < 45  # 5 standard deviations
