"""The scores of kept logits against hand-worked values, plain loops, `fastlsr.metrics` and torchmetrics."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from torchmetrics.classification import MulticlassCalibrationError

from fastlsr import scores
from fastlsr.metrics import ECE_BINS, METRICS
from fastlsr.scores import SCORES, Predictions


def problem(samples=257, classes=8, seed=0, scale=2.0):
    """(logits float32, labels) of which some are right."""
    random = np.random.default_rng(seed)
    logits = (scale * random.standard_normal((samples, classes))).astype(np.float32)
    return logits, random.integers(classes, size=samples)


def predictions(*probabilities, labels):
    """Predictions with the rows' probabilities."""
    return Predictions(np.log(np.asarray(probabilities, dtype=np.float64)), np.asarray(labels))


def sure(confidence, right):
    """Predictions of two classes whose first has this probability, above a half, and is right or wrong."""
    p = np.asarray(confidence, dtype=np.float64)
    return Predictions(np.stack([np.log(p), np.log1p(-p)], 1), np.where(right, 0, 1))


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("name", ["nll", "ece"])
def test_nll_and_ece_are_those_that_a_run_logs(name, classes, scale):
    logits, labels = problem(classes=classes, scale=scale)
    metric = METRICS[name]
    logged = metric.value(metric.sums(torch.from_numpy(logits), torch.from_numpy(labels)), len(labels))
    assert SCORES[name].value(Predictions(logits, labels)) == pytest.approx(logged, rel=1e-6)


def test_ece_is_torchmetrics_where_no_confidence_is_1():
    """1 has a bin of its own in torchmetrics 1.9."""
    logits, labels = problem()
    theirs = MulticlassCalibrationError(8, n_bins=ECE_BINS)(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    assert scores.ece(Predictions(logits, labels)) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("b", range(1, ECE_BINS))
def test_a_probability_at_an_edge_is_in_the_bin_below_and_the_next_float_in_the_one_above(b):
    edge = np.float32(b) / np.float32(ECE_BINS)
    around = np.array([np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.float32(1))])
    assert scores._bins(around).tolist() == [b - 1, b - 1, b]


def test_brier_by_hand():
    """(0.3^2 + 0.2^2 + 0.1^2 + 0.6^2 + 0.8^2 + 0.2^2) / 2."""
    two = predictions([0.7, 0.2, 0.1], [0.6, 0.2, 0.2], labels=[0, 1])
    assert scores.brier(two) == pytest.approx((0.14 + 1.04) / 2, rel=1e-6)


@pytest.mark.parametrize(("logits", "figure"), [([50.0, 0.0], 0), ([0.0, 50.0], 2), ([0.0, 0.0], 0.5)])
def test_brier_goes_from_0_to_2_and_is_1_less_1_by_k_for_equal_probabilities(logits, figure):
    assert scores.brier(Predictions(np.array([logits]), np.array([0]))) == pytest.approx(figure, abs=1e-6)


def test_adaptive_ece_by_hand():
    """30 samples, two in each bin: one wrong and one right at confidences of 0.6 and more."""
    confidence = np.linspace(0.6, 0.89, 30)
    right = np.arange(30) % 2 == 0
    by_hand = np.mean([abs((confidence[b] + confidence[b + 1]) / 2 - 0.5) for b in range(0, 30, 2)])
    assert scores.adaptive_ece(sure(confidence, right)) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("samples", [7, 15, 257])
def test_adaptive_ece_is_that_of_a_plain_loop(samples):
    logits, labels = problem(samples)
    each = Predictions(logits, labels)
    order = sorted(range(samples), key=lambda at: each.confidence[at])
    error = 0.0
    for b in range(ECE_BINS):  # as numpy cuts: the first samples % 15 bins hold one more
        size = samples // ECE_BINS + (b < samples % ECE_BINS)
        inside, order = order[:size], order[size:]
        error += abs(sum(float(each.confidence[at]) - (logits[at].argmax() == labels[at]) for at in inside)) / samples
    assert scores.adaptive_ece(each) == pytest.approx(error, rel=1e-6)


def test_a_tie_over_several_adaptive_bins_is_shared_by_them():
    """0.6 of those at 0.8 are right: off by 0.2 in ten bins, in whatever order they come; the five at 0.9 by 0.9."""
    confidence, right = np.repeat([0.8, 0.9], [20, 10]), np.arange(30) < 12
    assert scores.adaptive_ece(sure(confidence, right)) == pytest.approx((20 * 0.2 + 10 * 0.9) / 30, rel=1e-6)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
def test_classwise_ece_is_that_of_a_plain_loop(classes, scale):
    logits, labels = problem(classes=classes, scale=scale)
    p = Predictions(logits, labels).probabilities
    error = 0.0
    for k, b in itertools.product(range(classes), range(ECE_BINS)):
        low, high = np.float32(b / ECE_BINS), np.float32((b + 1) / ECE_BINS)
        inside = (p[:, k] > low) & (p[:, k] <= high) | (b == 0) & (p[:, k] == 0)
        if inside.any():
            error += inside.mean() * abs((labels[inside] == k).mean() - p[inside, k].astype(np.float64).mean())
    assert scores.classwise_ece(Predictions(logits, labels)) == pytest.approx(error / classes, rel=1e-6)


def test_two_classes_have_the_classwise_ece_of_either():
    """0.8 and 0.2 where half of the labels are the first: off by 0.3 each."""
    assert scores.classwise_ece(sure(np.full(10, 0.8), np.arange(10) < 5)) == pytest.approx(0.3, rel=1e-6)


def test_aurc_by_hand():
    """In the order of confidence right, wrong, right: risks 0, 1/2, 1/3."""
    assert scores.aurc(sure([0.7, 0.9, 0.8], [True, True, False])) == pytest.approx(1000 * (0 + 1 / 2 + 1 / 3) / 3)


def test_aurc_is_that_of_a_plain_loop():
    logits, labels = problem()
    each = Predictions(logits, labels)
    order = np.argsort(-each.confidence)
    risks = [np.mean(logits[order[:taken]].argmax(1) != labels[order[:taken]]) for taken in range(1, len(order) + 1)]
    assert len(np.unique(each.confidence)) == len(labels)
    assert scores.aurc(each) == pytest.approx(1000 * np.mean(risks), rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
def test_the_risk_of_equally_confident_samples_is_its_mean_over_all_their_orders(samples):
    confidence, correct = (np.array(column) for column in zip(*samples, strict=True))
    risks = [
        np.cumsum(~correct[list(order)]) / np.arange(1, len(order) + 1)
        for order in itertools.permutations(range(len(correct)))
        if (np.diff(confidence[list(order)]) <= 0).all()
    ]
    coverage, risk = scores.risk_coverage(confidence, correct)
    np.testing.assert_allclose(risk, np.mean(risks, 0), atol=1e-12)
    np.testing.assert_allclose(coverage, np.arange(1, len(correct) + 1) / len(correct))


def test_predictions_that_round_to_certainty_keep_their_order():
    """Both probabilities are 1 in float32; the less sure one is wrong, so that the risks are 0 and 1/2."""
    each = Predictions(np.array([[30.0, 0.0], [40.0, 0.0]], np.float16), np.array([1, 0]))
    assert each.confidence.tolist() == [1, 1]
    assert scores.aurc(each) == 250


@pytest.mark.parametrize("name", SCORES)
@given(seed=st.integers(0, 99), levels=st.sampled_from([1, 2, 4]))
def test_no_score_depends_on_the_order_of_the_samples_or_on_what_is_added_to_a_samples_logits(name, seed, levels):
    logits, labels = problem(60, 3, seed)
    logits = np.round(levels * logits) / levels  # so that many confidences are equal
    random = np.random.default_rng(seed)
    order, more = random.permutation(60), random.integers(-8, 9, (60, 1))
    score = SCORES[name].value
    figure = score(Predictions(logits, labels))
    assert score(Predictions(logits[order], labels[order])) == pytest.approx(figure, rel=1e-5, abs=1e-7)
    assert score(Predictions(logits + more, labels)) == pytest.approx(figure, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_extreme_logits_have_finite_scores_and_certain_right_ones_the_best(name, classes, kind):
    logits, labels = problem(classes=classes, scale=9000.0)
    assert np.isfinite(SCORES[name].value(Predictions(logits.astype(kind), labels)))
    perfect = 30000 * np.eye(classes, dtype=kind)[labels]
    assert SCORES[name].value(Predictions(perfect, labels)) == 0


def test_reliability_counts_every_sample_once():
    each = Predictions(*problem())
    samples, confidence, correct = scores.reliability(each)
    assert samples.sum() == 257
    assert correct.sum() == each.correct.sum()
    assert confidence.sum() == pytest.approx(each.confidence.sum(dtype=np.float64))


def drawn(temperature, samples=40_000, classes=5, seed=1):
    """(logits, labels, index): labels drawn from softmax(logits / temperature)."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((samples, classes))
    labels = (z + random.gumbel(size=z.shape)).argmax(1)
    return (temperature * z).astype(np.float32), labels, np.arange(samples)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_applied_is_recovered(temperature):
    """The curvature of this problem gives a standard error of 0.7%."""
    logits, labels, index = drawn(temperature)
    assert scores.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)
    scaled, fitted = scores.temperature_scaled(logits, labels, index)
    assert fitted == pytest.approx([temperature] * 2, rel=0.04)
    assert scores.ece(scaled) < 0.01


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_temperature_of_multiplied_logits_is_multiplied(factor):
    logits, labels, _ = drawn(1.3, samples=500)
    once = scores.fit_temperature(logits, labels)
    assert scores.fit_temperature(factor * logits, labels) == pytest.approx(factor * once, rel=1e-4)


def test_no_temperature_beside_the_fitted_one_has_a_lower_cross_entropy():
    logits, labels, _ = drawn(2.0, samples=300)
    best = scores.fit_temperature(logits, labels)
    losses = [scores.nll(Predictions(logits / (best * factor), labels)) for factor in (0.98, 1.0, 1.02)]
    assert min(losses) == losses[1]


def test_all_right_stays_at_temperature_one_and_all_wrong_goes_to_the_hottest():
    logits, _ = problem()
    assert scores.fit_temperature(logits, logits.argmax(1)) == 1
    assert scores.fit_temperature(logits, logits.argmin(1)) == 100
    assert scores.fit_temperature(np.zeros((4, 3)), np.zeros(4, dtype=int)) == 1


def test_scaling_leaves_what_is_predicted():
    logits, labels, index = drawn(3.0, samples=999)
    assert (scores.temperature_scaled(logits, labels, index)[0].correct == (logits.argmax(1) == labels)).all()


@pytest.mark.parametrize("parity", [0, 1])
def test_neither_the_temperature_nor_the_norm_of_a_half_sees_its_labels(parity):
    logits, labels, index = drawn(3.0, samples=400)
    own, other = index % 2 == parity, np.where(index % 2 == parity, (labels + 1) % 5, labels)
    scaled, changed = (scores.temperature_scaled(logits, each, index)[0] for each in (labels, other))
    assert (scaled.logits[own] == changed.logits[own]).all()
    assert (scaled.logits[~own] != changed.logits[~own]).any()
    ranks, of_changed = (scores.normalised_confidence(logits, each, index)[0] for each in (labels, other))
    assert (rankdata(ranks[own]) == rankdata(of_changed[own])).all()


def test_a_file_of_even_positions_alone_is_left_as_it_is():
    logits, labels, index = drawn(3.0, samples=100)
    scaled, temperatures = scores.temperature_scaled(logits, labels, 2 * index)
    assert temperatures[0] == 1
    assert (scaled.logits == logits).all()
    confidence, norms = scores.normalised_confidence(logits, labels, 2 * index)
    assert norms[0] is None
    assert (np.argsort(confidence) == np.argsort(scaled.log_confidence)).all()


def test_the_largest_normalised_logit_by_hand():
    """(4, 1, 1) less its mean is (2, -1, -1)."""
    logits = np.array([[4.0, 1.0, 1.0]])
    by_hand = {0: 2, 1: 2 / 4, 2: 2 / 6**0.5, 3: 2 / 10 ** (1 / 3)}
    assert {p: scores.max_logit_norm(logits, p).item() for p in by_hand} == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("p", scores.NORMS)
def test_normalised_logits_are_finite_and_have_no_scale(p):
    logits, _ = problem()
    once = scores.max_logit_norm(logits, p)
    if p:
        np.testing.assert_allclose(scores.max_logit_norm(7 * logits + 3, p), once, rtol=1e-4)
    assert np.isfinite(scores.max_logit_norm(np.array([[65504, -65504], [1, 1]], np.float16), p)).all()
    assert scores.max_logit_norm(np.ones((1, 4)), p).item() == 0


def test_a_rank_is_the_share_of_smaller_values_with_half_of_the_equal_ones():
    assert scores._ranks(np.array([3.0, 1.0, 1.0, 2.0])).tolist() == [0.875, 0.25, 0.25, 0.625]


def test_normalising_mends_an_order_that_scale_has_broken():
    """Right ones are clear but of small logits, wrong ones between two classes but of large logits."""
    random = np.random.default_rng(0)
    right = np.arange(100) % 3 > 0
    shape = np.where(right[:, None], [3.0, 0, 0, 0], [3.0, 2.5, 0, 0])
    scale = np.where(right, 1, 8) * random.uniform(0.9, 1.1, 100)
    logits, labels = shape * scale[:, None], np.where(right, 0, 1)
    raw = scores.aurc(Predictions(logits, labels))
    confidence, norms = scores.normalised_confidence(logits, labels, np.arange(100))
    mended, perfect = (scores.area_under_risk(each, right) for each in (confidence, right.astype(float)))
    assert None not in norms
    assert mended == pytest.approx(perfect, rel=0.02)
    assert mended < raw / 2


def test_the_highest_probability_is_kept_where_no_norm_orders_better():
    """Two classes: each norm from 1 on makes all equal, and the difference of the logits orders as they do."""
    logits, labels, index = drawn(2.0, samples=200, classes=2)
    _, norms = scores.normalised_confidence(logits, labels, index)
    assert norms == [None, None]


def test_where_both_halves_choose_the_raw_confidence_normalising_changes_nothing():
    rng = np.random.default_rng(0)
    margins = rng.uniform(0, 6, 400)
    labels = (rng.random(400) > 1 / (1 + np.exp(-margins))).astype(int)
    logits = np.stack([margins / 2, -margins / 2], 1)
    confidence, norms = scores.normalised_confidence(logits, labels, np.arange(400))
    predictions = scores.Predictions(logits, labels)
    assert norms == [None, None], "of two classes, no norm orders samples better"
    np.testing.assert_array_equal(confidence, predictions.log_confidence)
