"""Figures of kept logits that a run's rows lack: proper scores, calibration, selective classification. Loads no torch.

Of one set of predictions, before and after temperature scaling. A score is one function here; by that it appears in
reports and in docs/reports.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastlsr.metrics import ECE_BINS

NORMS = tuple(range(10))  # that `normalised_confidence` chooses from
_TEMPERATURES = (0.01, 100.0)  # the range that is searched


@dataclass(frozen=True)
class Predictions:
    """A network's predictions on N samples of K classes.

    Attributes:
        logits: float[N, K], finite.
        labels: int64[N].
    """

    logits: np.ndarray
    labels: np.ndarray

    @cached_property
    def log_probabilities(self) -> np.ndarray:
        """float32[N, K]: log softmax; the highest one of a row keeps its digits where its probability rounds to 1."""
        shifted = self.logits.astype(np.float32)
        shifted -= shifted.max(1, keepdims=True)
        others = np.exp(shifted)
        others[np.arange(len(others)), self._predicted] = 0
        shifted -= np.log1p(others.sum(1, keepdims=True))
        return shifted

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32[N, K]: softmax."""
        return np.exp(self.log_probabilities)

    @cached_property
    def correct(self) -> np.ndarray:
        """bool[N]: whether the label has the highest logit, the first of equal ones."""
        return self._predicted == self.labels

    @cached_property
    def log_confidence(self) -> np.ndarray:
        """float32[N]: the logarithm of the highest probability; tells apart what is so sure that it rounds to 1."""
        return self.log_probabilities.max(1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """float32[N]: the highest probability."""
        return np.exp(self.log_confidence)

    @cached_property
    def _predicted(self) -> np.ndarray:
        return self.logits.argmax(1)


@dataclass(frozen=True)
class Score:
    """One figure of predictions; lower is better.

    Attributes:
        name: its key in tables and files.
        title: its name in the head of a table.
        unit: "" where it has none.
        meaning: a phrase for a table of scores.
        format: how a table shows it, as for `format`.
        value: the figure.
    """

    name: str
    title: str
    unit: str
    meaning: str
    format: str
    value: Callable[[Predictions], float]


SCORES: dict[str, Score] = {}


def score(
    title: str, unit: str, meaning: str, *, format: str = ".4f"
) -> Callable[[Callable[[Predictions], float]], Callable[[Predictions], float]]:
    """Makes a function of `Predictions` a score of its name."""

    def register(value: Callable[[Predictions], float]) -> Callable[[Predictions], float]:
        name = value.__name__
        SCORES[name] = Score(name, title, unit, meaning, format, value)
        return value

    return register


@score("NLL", "nats", "hard cross-entropy at temperature 1")
def nll(predictions: Predictions) -> float:
    """Mean of -log p(label)."""
    rows = np.arange(len(predictions.labels))
    return float(-predictions.log_probabilities[rows, predictions.labels].mean(dtype=np.float64))


@score("Brier", "", "mean squared distance of the probabilities from the one-hot label, 0 to 2")
def brier(predictions: Predictions) -> float:
    """Mean of sum_k (p_k - [k = label])^2 (Brier 1950)."""
    p = predictions.probabilities
    own = p[np.arange(len(p)), predictions.labels]
    squares = np.einsum("nk,nk->n", p, p)
    return float((squares - 2 * own + 1).mean(dtype=np.float64))


@score("ECE", "", "expected calibration error over 15 equal bins of confidence")
def ece(predictions: Predictions) -> float:
    """Sum over bins of |sum of confidences - correct predictions| / N (Guo et al. 2017)."""
    _, confidence, correct = reliability(predictions)
    return float(np.abs(confidence - correct).sum() / len(predictions.labels))


def reliability(predictions: Predictions) -> np.ndarray:
    """float64[3, 15]: samples, sum of confidences and correct predictions in each bin (b/15, (b + 1)/15]."""
    bins = _bins(predictions.confidence)
    columns = np.ones(len(bins)), predictions.confidence, predictions.correct
    return np.stack([np.bincount(bins, weights=column, minlength=ECE_BINS) for column in columns])


@score("adaptive ECE", "", "the same over 15 bins of equally many samples")
def adaptive_ece(predictions: Predictions) -> float:
    """ECE with bins that hold equally many samples, to one, in the order of confidence (Nguyen and O'Connor 2015).

    Where a bin ends among samples of equal confidence, each part has their share of correct ones, so that no tie
    depends on the file's order.
    """
    confidence, correct, sizes = _by_value(predictions.confidence, predictions.correct)
    gaps = np.repeat(confidence - correct, sizes)
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, ECE_BINS)) / len(gaps))


@score("classwise ECE", "", "calibration error of each class's probability, over 15 equal bins; the mean over classes")
def classwise_ece(predictions: Predictions) -> float:
    """Mean over classes of the ECE of p_k against [k = label] (Nixon et al. 2019's static error, Kull et al. 2019)."""
    p, labels = predictions.probabilities, predictions.labels
    cells = _bins(p)
    cells += ECE_BINS * np.arange(p.shape[1])
    mass = np.bincount(cells.ravel(), weights=p.ravel(), minlength=ECE_BINS * p.shape[1])
    hits = np.bincount(cells[np.arange(len(p)), labels], minlength=len(mass))
    return float(np.abs(mass - hits).sum() / p.size)


@score("AURC", "10^-3", "area under the risk-coverage curve, times 1000", format=".2f")
def aurc(predictions: Predictions) -> float:
    """1000 x the mean of the selective risk over all coverages 1/N .. 1 (Geifman et al. 2019).

    The confidence is the highest probability, ordered by its logarithm.
    """
    return area_under_risk(predictions.log_confidence, predictions.correct)


def area_under_risk(confidence: np.ndarray, correct: np.ndarray) -> float:
    """1000 x the mean risk of `risk_coverage`, whatever the confidence is."""
    return float(1000 * risk_coverage(confidence, correct)[1].mean())


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, risk), float64[N] each: the share of errors among the share of samples with the highest confidence.

    Samples of equal confidence count as in random order, in expectation, so that no tie depends on the file's order.

    Args:
        confidence: float[N]; any score that is higher where the prediction is trusted more.
        correct: bool[N].
    """
    _, errors, sizes = _by_value(-confidence, ~correct)
    taken = np.arange(1, len(correct) + 1)
    return taken / len(correct), np.cumsum(np.repeat(errors, sizes)) / taken


def risk_by_percent(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """float64[100]: the risk of `risk_coverage` where 1, 2 .. 100% of the samples are covered, or just above."""
    _, risk = risk_coverage(confidence, correct)
    return risk[-(-np.arange(1, 101) * len(risk) // 100) - 1]


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature from 0.01 to 100 that minimises the mean cross-entropy of logits / T (Guo et al. 2017).

    The cross-entropy is convex in b = 1/T, with the slope  mean(E_p[z] - z_label),  p = softmax(b z). Where it has no
    slope at T = 1, that is the temperature; and where all predictions are right, which has no minimum.
    """
    shifted = logits.astype(np.float32)
    shifted -= shifted.max(1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels].mean(dtype=np.float64)

    p = np.empty_like(shifted)  # allocated once: fresh memory takes longer than the arithmetic

    def slope(log_temperature: float) -> float:
        np.exp(np.multiply(shifted, np.float32(np.exp(-log_temperature)), out=p), out=p)
        expected = np.einsum("nk,nk->n", p, shifted) / p.sum(1)
        return float(expected.mean(dtype=np.float64) - own)

    if slope(0.0) == 0:
        return 1.0  # so it is for every temperature where all logits of a sample are equal
    low, high = np.log(_TEMPERATURES)
    if slope(low) <= 0:  # still falling where b is largest: one wrong prediction in the other half would cost all
        return 1.0
    if slope(high) >= 0:
        return float(_TEMPERATURES[1])
    from scipy.optimize import brentq  # takes half a second, which --help has not

    return float(np.exp(brentq(slope, low, high, xtol=1e-5)))


def temperature_scaled(logits: np.ndarray, labels: np.ndarray, index: np.ndarray) -> tuple[Predictions, list[float]]:
    """(predictions, the two temperatures): each half of the samples scaled by the temperature fitted on the other.

    Args:
        logits: float[N, K].
        labels: int64[N].
        index: int64[N]; the halves are the even and the odd positions in the file.
    """
    odd = index % 2 == 1
    temperatures = [fit_temperature(logits[half], labels[half]) if half.any() else 1.0 for half in (odd, ~odd)]
    divisor = np.where(odd, temperatures[1], temperatures[0]).astype(np.float32)
    return Predictions(logits.astype(np.float32) / divisor[:, None], labels), temperatures


def max_logit_norm(logits: np.ndarray, p: int) -> np.ndarray:
    """float32[N]: max_k c_k / |c|_p, where c are a sample's logits less their mean (Cattelan and Silva 2024).

    With p = 0 it is max_k c_k, not divided. Equal logits have 0.

    Args:
        logits: float[N, K], finite.
    """
    centred = logits.astype(np.float32)
    centred -= centred.mean(1, keepdims=True)
    highest = centred.max(1)
    if not p:
        return highest
    largest = np.maximum(np.abs(centred).max(1), np.finfo(np.float32).tiny)  # its powers would overflow
    return highest / largest / np.maximum(np.linalg.norm(centred / largest[:, None], ord=p, axis=1), 1)


def normalised_confidence(
    logits: np.ndarray, labels: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, list[int | None]]:
    """(confidence float64[N], the two norms): `max_logit_norm` with the p that orders the other half best.

    Of p = 0 .. 9 and the highest probability (None) that one is taken for a half which has the least AURC on the other
    half; the halves are those of `temperature_scaled`. If both halves have the same one, that is the confidence of all
    samples. Different ones differ in scale: then a sample's confidence is its rank in its half, from 0 to 1, so that
    each coverage takes the same share of both halves.

    Args:
        logits: float[N, K].
        labels: int64[N].
        index: int64[N]; the halves are the even and the odd positions in the file.
    """
    predictions, odd = Predictions(logits, labels), index % 2 == 1
    choices = {None: predictions.log_confidence} | {p: max_logit_norm(logits, p) for p in NORMS}
    norms, ranks = [], np.empty(len(labels))
    for half in (odd, ~odd):
        areas = {p: area_under_risk(each[half], predictions.correct[half]) for p, each in choices.items() if half.any()}
        norms.append(min(areas, key=lambda p: areas[p], default=None))
        ranks[~half] = _ranks(choices[norms[-1]][~half])
    return (choices[norms[0]].astype(float) if norms[0] == norms[1] else ranks), norms


def _ranks(values: np.ndarray) -> np.ndarray:
    """float64[N]: the share of values that are smaller, with half of the equal ones."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return ((np.cumsum(sizes) - sizes / 2) / len(values))[group]


def _by_value(values: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the different values, ascending; the share of marks, bool[N], at each; how many samples have it)."""
    different, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return different, np.bincount(group, weights=marks) / sizes, sizes


def _bins(probability: np.ndarray) -> np.ndarray:
    """int: the bin, 0 to 14, of each probability; bin b holds (b/15, (b + 1)/15], as `metrics.confidence_bins`."""
    bins = probability * np.float32(ECE_BINS)
    np.subtract(np.ceil(bins, out=bins), 1, out=bins)
    return np.clip(bins, 0, ECE_BINS - 1, out=bins).astype(np.intp)
