"""Whether confidence is the share that is right: reliability diagrams and calibration errors, by setting.

    python -m fastlsr.analyze calibration RUN ...

Of the evaluation split's logits, as the network gives them ("raw") and with their temperature scaled ("scaled"): each
half of the split is divided by the temperature that has the least NLL on the other half.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from fastlsr.analysis import Finding, aligned
from fastlsr.drawing import INK, method_colour, panels, style
from fastlsr.engine.trained import TrainedRun
from fastlsr.inference.predictions import evaluation_logits_of
from fastlsr.logits import EvaluationLogits
from fastlsr.metrics import ECE_BINS
from fastlsr.scores import SCORES, Predictions, reliability, temperature_scaled
from fastlsr.trials import grouped, mean_and_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("nll", "brier", "ece", "adaptive_ece", "classwise_ece")
_KINDS = ("raw", "scaled")
_LEVEL = 0.95  # of the intervals
_COLUMNS = 3  # of panels
_LEAST_SHARE = 0.005  # of the samples, from which on a bin's accuracy is drawn


def analyze(runs: Sequence[TrainedRun]) -> Finding:
    """NLL, Brier score, calibration errors and reliability of each run, and of each setting.

    A bin's interval, at 95%, is Wilson's over its samples for a setting of one run, and Student's over the runs' shares
    of correct predictions for one of several. The latter takes the split as given: it tells how much training varies.
    """
    groups = grouped([run.config for run in runs], [run.position.epochs for run in runs])
    measured = [_measured(kept) for kept in evaluation_logits_of(runs, "calibration")]
    settings = {
        label: {"method": runs[members[0]].config.method.name, "runs": len(members)}
        | {kind: _of_setting([measured[at][kind] for at in members]) for kind in _KINDS}
        for label, members in groups.items()
    }
    of_runs = [_of_run(run, each) for run, each in zip(runs, measured, strict=True)]
    with style():
        picture = _picture(settings)
    numbers = {"level": _LEVEL, "settings": settings, "runs": of_runs}
    return Finding(numbers, _text(settings, of_runs, groups), picture)


def _measured(kept: EvaluationLogits) -> dict[str, Any]:
    """The raw and the scaled predictions of a run, and the two temperatures."""
    scaled, temperatures = temperature_scaled(kept.logits, kept.labels, kept.index)
    return {"raw": Predictions(kept.logits, kept.labels), "scaled": scaled, "temperatures": temperatures}


def _of_run(run: TrainedRun, measured: Mapping[str, Any]) -> dict[str, Any]:
    about = {"run": str(run.folder.path), "seed": run.config.train.seed, "epoch": run.position.epochs}
    figures = {kind: {name: SCORES[name].value(measured[kind]) for name in FIGURES} for kind in _KINDS}
    return about | {"temperatures": measured["temperatures"]} | figures


def _of_setting(repeats: Sequence[Predictions]) -> dict[str, Any]:
    """The scores of each run, and the bins of all."""
    figures = {name: [SCORES[name].value(each) for each in repeats] for name in FIGURES}
    return figures | {"bins": reliability_bins([reliability(each) for each in repeats])}


def reliability_bins(tables: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """A row for each bin that holds samples of a run: the mean over those runs, and the interval of `accuracy`.

    "share" is the mean share of samples over all runs. There is no interval ("low" and "high" are None) where only one
    of several runs has samples.

    Args:
        tables: float64[3, 15] of each run, as `scores.reliability` gives it.
    """
    rows = []
    for b in range(ECE_BINS):
        filled = [table[:, b] for table in tables if table[0, b]]
        if not filled:
            continue
        accuracies = [correct / samples for samples, _, correct in filled]
        low, high = wilson_interval(filled[0][2], filled[0][0]) if len(tables) == 1 else student_interval(accuracies)
        rows.append({
            "from": b / ECE_BINS, "to": (b + 1) / ECE_BINS, "runs": len(filled),
            "share": statistics.fmean(table[0, b] / table[0].sum() for table in tables),
            "confidence": statistics.fmean(confidence / samples for samples, confidence, _ in filled),
            "accuracy": statistics.fmean(accuracies), "low": low, "high": high,
        })  # fmt: skip
    return rows


def wilson_interval(correct: float, samples: float) -> tuple[float, float]:
    """Wilson's interval of a share of `samples` that is right."""
    interval = stats.binomtest(int(correct), int(samples)).proportion_ci(_LEVEL, method="wilson")
    return interval.low, interval.high


def student_interval(shares: Sequence[float]) -> tuple[float | None, float | None]:
    """Student's interval of the mean of shares, cut off at 0 and 1; (None, None) for fewer than two."""
    if len(shares) < 2:
        return None, None
    mean, reach = statistics.fmean(shares), stats.t.ppf((1 + _LEVEL) / 2, len(shares) - 1)
    reach *= statistics.stdev(shares) / math.sqrt(len(shares))
    return max(0.0, mean - reach), min(1.0, mean + reach)


def _text(settings: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[int]]) -> str:
    """Two lines for each setting: mean ± std over its runs, raw and scaled."""
    rows = [["", "n", "", "temperature", *(SCORES[name].title for name in FIGURES)]]
    for label, setting in settings.items():
        temperatures = [statistics.fmean(runs[at]["temperatures"]) for at in groups[label]]
        for kind, first in zip(_KINDS, ("1", mean_and_std(temperatures)), strict=True):
            figures = [mean_and_std(setting[kind][name]) for name in FIGURES]
            rows.append([label, str(setting["runs"]), kind, first, *figures])
    return aligned(rows)


def _picture(settings: Mapping[str, Any]) -> Figure:
    """A reliability diagram for each setting: accuracy over confidence, with the share of samples at the bottom."""
    columns = min(len(settings), _COLUMNS)
    figure, axes = panels(math.ceil(len(settings) / columns), columns, width=3.0, height=3.1)
    for panel, (label, setting) in zip(axes, settings.items(), strict=False):
        _draw(panel, label, setting)
    for panel in axes[len(settings) :]:
        panel.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw(panel: Axes, label: str, setting: Mapping[str, Any]) -> None:
    panel.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    colour = method_colour(setting["method"])
    _draw_shares(panel, setting["raw"]["bins"], color=colour, alpha=0.35)
    _draw_shares(panel, setting["scaled"]["bins"], color="none", edgecolor=colour, linewidth=0.6)
    _draw_accuracies(panel, setting["raw"]["bins"], colour, linestyle="-", fillstyle="full", label="as trained")
    _draw_accuracies(
        panel, setting["scaled"]["bins"], colour, linestyle="--", fillstyle="none", label="temperature scaled"
    )
    before, after = (statistics.fmean(setting[kind]["ece"]) for kind in _KINDS)
    panel.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share correct (bars: of samples)", aspect="equal")
    runs = f", {setting['runs']} runs" if setting["runs"] > 1 else ""
    panel.set_title(f"{label}{runs}\nECE {before:.3f}, scaled {after:.3f}")


def _draw_shares(panel: Axes, bins: Sequence[Mapping[str, Any]], **look: Any) -> None:
    left, shares = ([each[key] for each in bins] for key in ("from", "share"))
    panel.bar(left, shares, 1 / ECE_BINS, align="edge", **look)


def _draw_accuracies(panel: Axes, bins: Sequence[Mapping[str, Any]], colour: str, **look: Any) -> None:
    drawn = [each for each in bins if each["share"] >= _LEAST_SHARE and each["low"] is not None]
    x, y, low, high = ([each[key] for each in drawn] for key in ("confidence", "accuracy", "low", "high"))
    told = [np.nan if each["runs"] == 2 else 1.0 for each in drawn]  # of two runs they would cross the whole panel
    reach = np.multiply(told, np.subtract(y, low)), np.multiply(told, np.subtract(high, y))
    panel.errorbar(x, y, reach, color=colour, marker="o", markersize=4, elinewidth=0.9, linewidth=1, **look)
