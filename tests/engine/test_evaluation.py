"""Evaluation is hard cross-entropy at temperature 1 over every sample, whatever the training targets are."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fastlsr.data.loader import Batch
from fastlsr.engine.evaluation import evaluate
from fastlsr.labels.plan import Phase, Plan
from fastlsr.labels.targets import Targets

CPU = torch.device("cpu")


def problem(samples=53, classes=8):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    return logits, torch.randint(classes, (samples,), generator=generator)


HARD = Phase(1)


def measured(logits, labels, phase=HARD, batch=10):
    targets = Targets(logits.shape[1], Plan((phase,), 1), device=CPU)
    targets.enter(phase)
    parts = zip(logits.split(batch), labels.split(batch), torch.arange(len(labels)).split(batch), strict=True)
    return evaluate(lambda images: images, [Batch(*part) for part in parts], targets)


def plain_ece(logits, labels, bins=15):
    confidence, predicted = logits.softmax(1).max(1)
    confidence, correct = confidence.numpy(), (predicted == labels).numpy()
    error = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


def test_metrics_are_those_of_a_plain_loop_over_every_sample_once():
    logits, labels = problem()
    metrics = measured(logits, labels)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1).numpy()
    assert metrics["nll"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert metrics["top1"] == pytest.approx(100 * np.mean(ranks < 1), rel=1e-6)
    assert metrics["top5"] == pytest.approx(100 * np.mean(ranks < 5), rel=1e-6)
    assert metrics["ece"] == pytest.approx(plain_ece(logits, labels), rel=1e-5)


def test_nll_is_hard_whatever_the_phase_and_loss_is_the_phases_objective():
    logits, labels = problem()
    hard, smooth = measured(logits, labels), measured(logits, labels, Phase(1, hard=0.6, uniform=0.4, temperature=2.0))
    assert smooth["nll"] == hard["nll"] == pytest.approx(hard["loss"], rel=1e-6)
    expected = functional.cross_entropy(logits / 2, labels, label_smoothing=0.4).item()
    assert smooth["loss"] == pytest.approx(expected, rel=1e-6)


def test_the_penalty_of_a_phase_is_part_of_its_loss():
    logits, labels = problem()
    metrics = measured(logits, labels, Phase(1, penalty=0.5))
    entropy = torch.special.entr(logits.softmax(1)).sum(1).mean().item()
    assert metrics["loss"] == pytest.approx(metrics["nll"] - 0.5 * entropy, rel=1e-6)


@pytest.mark.parametrize("batch", [1, 52, 53, 100])
def test_the_size_of_the_batches_does_not_matter(batch):
    logits, labels = problem()
    assert measured(logits, labels, batch=batch) == pytest.approx(measured(logits, labels), rel=1e-6)


def test_two_classes_have_a_top5_of_all():
    logits, labels = problem(classes=2)
    assert measured(logits, labels)["top5"] == 100
