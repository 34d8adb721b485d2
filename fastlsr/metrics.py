"""The figures of an evaluation, each defined once: name, unit, meaning, sums and value. Loads no torch.

A metric is one function here. It appears by that in a run's rows, in its last and best row on the terminal, among
the metrics of sweeps, and in docs/run-folder.md.

    @metric("%", "share of samples whose label has the highest logit", best=max, value=percent)
    def top1(logits: Tensor, labels: Tensor) -> Tensor: ...

The function returns the sums of a batch, `value` the figure from the sums of all batches. Sums add up over batches and
devices, so that no figure depends on how a split was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastlsr.plugins import register

if TYPE_CHECKING:
    from torch import Tensor

ECE_BINS = 15
Best = Callable[..., Any]  # max or min


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation.

    Attributes:
        name: the keys of a row are test/NAME and val/NAME.
        unit: of the figure, "" where it has none.
        meaning: a phrase for a table of metrics.
        best: `max` or `min`: which of two figures is the better one.
        format: how a terminal shows it, as for `format`.
        sums: float64[S] of a batch, from its logits float32[B, K] and labels int64[B]; of any one device.
        value: the figure, from the sums of all batches and the number of samples.
    """

    name: str
    unit: str
    meaning: str
    best: Best
    format: str
    sums: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor, float], float]


METRICS: dict[str, Metric] = {}


def mean(sums: Tensor, samples: float) -> float:
    """The first sum over the samples."""
    return sums[0].item() / samples


def percent(sums: Tensor, samples: float) -> float:
    """The first sum over the samples, in percent; rounded to float32 first, as every run has logged accuracies."""
    return 100 * (sums[0] / samples).float().item()


def metric(
    unit: str, meaning: str, *, best: Best, format: str = ".4f", value: Callable[[Tensor, float], float] = mean
) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Callable[[Tensor, Tensor], Tensor]]:
    """Makes a function of (logits, labels) a metric of its name."""

    def entered(sums: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        name = sums.__name__
        register(METRICS, "metric", name, Metric(name, unit, meaning, best, format, sums, value))
        return sums

    return entered


@metric("nats", "hard cross-entropy at temperature 1, whatever the training targets are", best=min)
def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """float64[1]: the sum of -log softmax(logits)[label]."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, reduction="sum").double()[None]


@metric("%", "share of samples whose label has the highest logit", best=max, format=".2f", value=percent)
def top1(logits: Tensor, labels: Tensor) -> Tensor:
    """float64[1]: how many labels have the highest logit."""
    return _among_highest(logits, labels, 1)


@metric("%", "share of samples whose label is among the five highest logits", best=max, format=".2f", value=percent)
def top5(logits: Tensor, labels: Tensor) -> Tensor:
    """float64[1]: how many labels are among the five highest logits."""
    return _among_highest(logits, labels, 5)


def _among_highest(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    highest = logits.topk(min(count, logits.shape[1])).indices
    return (highest == labels[:, None]).any(1).sum().double()[None]


def _calibration_error(sums: Tensor, samples: float) -> float:
    _, confidence, correct = sums.view(3, ECE_BINS)
    return ((confidence - correct).abs().sum() / samples).item()


@metric("", "expected calibration error over 15 equal bins of confidence", best=min, value=_calibration_error)
def ece(logits: Tensor, labels: Tensor) -> Tensor:
    """float64[3 * 15]: samples, sum of confidences, and correct predictions of each of the `confidence_bins`."""
    import torch

    confidence, predicted = logits.softmax(1).max(1)
    bins = confidence_bins(confidence)
    columns = torch.ones_like(confidence), confidence, predicted == labels
    sums = confidence.new_zeros(3, ECE_BINS, dtype=torch.float64)
    for row, column in zip(sums, columns, strict=True):
        row.scatter_add_(0, bins, column.double())
    return sums.flatten()


def confidence_bins(confidence: Tensor) -> Tensor:
    """int64[B]: the bin, 0 to 14, of each confidence float32[B]; bin b holds (b/15, (b + 1)/15] (Guo et al. 2017).

    A confidence of 1 is thus in the last bin. Edges are rounded to float32, too: a confidence that is b/15 to float32's
    precision, as 1/15 of 15 equal logits, is in the bin below. NaN is in the last bin, so that it shows in the error.
    """
    import torch

    return torch.bucketize(confidence, torch.arange(1, ECE_BINS, device=confidence.device) / ECE_BINS)
