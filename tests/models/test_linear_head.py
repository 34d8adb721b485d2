"""The linear head is scikit-learn's logistic regression, with the penalty that is best on the samples held out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from fastlsr.models import linear_head
from fastlsr.models.linear_head import PENALTIES, fit_linear_head

CLASSES, SAMPLES = 5, 600


def problem(*, dtype=torch.float32, noise=1.0):
    """(features, labels, held_out): overlapping clusters; features of many scales, not centred, one constant."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    centres = torch.randn(CLASSES, 8, generator=generator)
    features = centres[labels] + noise * torch.randn(SAMPLES, 8, generator=generator)
    features = torch.cat([features * 10.0 ** torch.arange(-3, 5).div(2) + 3, torch.full((SAMPLES, 1), 0.7)], 1)
    return features.to(dtype), labels, torch.arange(SAMPLES) % 10 < 2


def fitted(features, labels, held_out):
    return fit_linear_head(features, labels, held_out, classes=CLASSES)


@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_it_is_scikit_learn_s_logistic_regression(monkeypatch, penalty):
    monkeypatch.setattr(linear_head, "PENALTIES", (penalty,))
    features, labels, held_out = problem()
    x = StandardScaler().fit_transform(features.double().numpy())
    theirs = LogisticRegression(C=1 / (penalty * SAMPLES), tol=1e-8, max_iter=10000).fit(x, labels.numpy())
    ours = fitted(features, labels, held_out)(features).softmax(1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(x), atol=2e-3)


def test_neither_the_blocks_nor_half_precision_change_it(monkeypatch):
    features, labels, held_out = problem(dtype=torch.float16)
    whole = fitted(features.float(), labels, held_out)(features)
    monkeypatch.setattr(linear_head, "_BLOCK_VALUES", 9 * 250)
    parts = fitted(features, labels, held_out)(features)
    torch.testing.assert_close(parts.softmax(1), whole.softmax(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("noise", [0.5, 2.0, 50.0])
def test_its_penalty_does_best_on_what_was_held_out(monkeypatch, noise):
    features, labels, held_out = problem(noise=noise)
    chosen = fitted(features, labels, held_out).l2
    losses = {}
    for penalty in PENALTIES:
        monkeypatch.setattr(linear_head, "PENALTIES", (penalty,))
        kept = ~held_out
        standard = StandardScaler().fit(features.double().numpy())
        x = torch.from_numpy(standard.transform(features.double().numpy()))
        theirs = LogisticRegression(C=1 / (penalty * int(kept.sum())), tol=1e-6, max_iter=10000)
        theirs.fit(x[kept].numpy(), labels[kept].numpy())
        predicted = torch.from_numpy(theirs.predict_log_proba(x[held_out].numpy()))
        losses[penalty] = functional.nll_loss(predicted, labels[held_out]).item()
    assert losses[chosen] == pytest.approx(min(losses.values()), abs=1e-4)


def test_features_without_information_take_the_strongest_penalty():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(SAMPLES, 50, generator=generator), torch.arange(SAMPLES) % CLASSES
    head = fitted(features, labels, torch.arange(SAMPLES) % 10 == 0)
    assert head.l2 == PENALTIES[0]
    assert (head(features).softmax(1) - 1 / CLASSES).abs().max() < 0.2
