"""What abstaining buys: risk-coverage curves by setting, with the confidence as trained and with logits normalised.

    python -m fastlsr.analyze selective RUN ...

A selective classifier leaves out the samples that it is least sure of; its risk is the share of errors among the rest.
"raw" confidence is the highest softmax probability. Label smoothing is reported to harm its order, and normalising the
logits of the trained network to mend it (Xia et al. 2025, arXiv 2403.14715). "normalised" confidence is MaxLogit-pNorm
(Cattelan and Silva 2024, arXiv 2305.15508): the largest of a sample's logits, centred and divided by their p-norm,
where p = 0 .. 9, or the raw confidence, is what orders the other half of the split best; see
`scores.normalised_confidence`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlsr.analysis import Finding, aligned
from fastlsr.drawing import INK, draw_band, legend_below, line_styles, panels, style
from fastlsr.engine.trained import TrainedRun
from fastlsr.inference.predictions import evaluation_logits_of
from fastlsr.logits import EvaluationLogits
from fastlsr.scores import Predictions, area_under_risk, normalised_confidence, risk_by_percent
from fastlsr.trials import grouped, mean_and_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = ("raw", "normalised")


def analyze(runs: Sequence[TrainedRun]) -> Finding:
    """AURC, excess AURC and the risk at each percent of coverage of each run, raw and normalised.

    AURC, times 1000, falls with the error of the network, whatever its confidence; what is above the least that its
    errors allow, the AURC of an order that has all errors last, is the excess (Geifman et al. 2019's E-AURC).
    """
    groups = grouped([run.config for run in runs], [run.position.epochs for run in runs])
    all_kept = evaluation_logits_of(runs, "selective")
    found = [_of_run(run, kept) for run, kept in zip(runs, all_kept, strict=True)]
    settings = {
        label: {"method": found[members[0]]["method"], "runs": [found[at] for at in members]}
        for label, members in groups.items()
    }
    with style():
        picture = _picture(settings)
    return Finding({"settings": settings}, _text(settings), picture)


def _of_run(run: TrainedRun, kept: EvaluationLogits) -> dict[str, Any]:
    predictions = Predictions(kept.logits, kept.labels)
    normalised, norms = normalised_confidence(kept.logits, kept.labels, kept.index)
    correct = predictions.correct
    return {
        "run": str(run.folder.path), "method": run.config.method.name, "seed": run.config.train.seed,
        "epoch": run.position.epochs, "error": 1 - float(correct.mean()), "norms": norms,
        "raw": of_confidence(predictions.log_confidence, correct), "normalised": of_confidence(normalised, correct),
    }  # fmt: skip


def of_confidence(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """AURC and its excess, times 1000, and the risk at each percent of coverage.

    Args:
        confidence: float[N].
        correct: bool[N].
    """
    area, least = area_under_risk(confidence, correct), area_under_risk(correct.astype(float), correct)
    return {"aurc": area, "excess": area - least, "risk": risk_by_percent(confidence, correct).tolist()}


def _text(settings: Mapping[str, Any]) -> str:
    """A line for each setting: mean ± std over its runs."""
    rows = [["", "n", "error", "AURC raw", "normalised", "gain", "excess raw", "normalised"]]
    for label, setting in settings.items():
        runs = setting["runs"]
        columns = [[each["error"] for each in runs], *(_column(runs, kind, "aurc") for kind in _KINDS)]
        columns.append([each["raw"]["aurc"] - each["normalised"]["aurc"] for each in runs])
        columns += [_column(runs, kind, "excess") for kind in _KINDS]
        rows.append([label, str(len(runs)), *map(mean_and_std, columns)])
    return f"{aligned(rows)}\nAURC and excess x 1000; gain: raw - normalised, of a run"


def _column(runs: Sequence[Mapping[str, Any]], kind: str, key: str) -> list[float]:
    return [each[kind][key] for each in runs]


def _picture(settings: Mapping[str, Any]) -> Figure:
    """The curves, raw and normalised, and the excess of their areas."""
    figure, axes = panels(1, 3, width=3.6, height=3.2)
    coverage = np.arange(1, 101)
    styles = line_styles([setting["method"] for setting in settings.values()])
    for panel, kind in zip(axes, _KINDS, strict=False):
        for (label, setting), line in zip(settings.items(), styles, strict=True):
            draw_band(panel, coverage, [each[kind]["risk"] for each in setting["runs"]], label, line)
        panel.set(title={"raw": "highest probability", "normalised": "normalised logits"}[kind], xlabel="coverage, %")
    axes[1].sharey(axes[0])
    axes[0].set(ylabel="risk: share of errors", ylim=(0, None))
    _draw_areas(axes[2], settings, styles)
    legend_below(figure, axes[0])
    return figure


def _draw_areas(panel: Axes, settings: Mapping[str, Any], styles: Sequence[Mapping[str, Any]]) -> None:
    """Bars for the mean excess of a setting, raw and (pale) normalised, and a dot for each run."""
    for at, (setting, line) in enumerate(zip(settings.values(), styles, strict=True)):
        for kind, shift, opacity in zip(_KINDS, (-0.2, 0.2), (1.0, 0.4), strict=True):
            values = _column(setting["runs"], kind, "excess")
            panel.barh(at + shift, statistics.fmean(values), 0.36, color=line["color"], alpha=opacity)
            panel.scatter(
                values, [at + shift] * len(values), s=9, color=INK, edgecolors="white", linewidths=0.5, zorder=3
            )
    panel.set_yticks(range(len(settings)), list(settings))
    panel.set(title="excess AURC (pale: normalised)", xlabel="10⁻³", ylim=(len(settings) - 0.4, -0.6))
    panel.grid(visible=False, axis="y")
