"""The soft labels that runs learned, stage by stage: python -m fastlsr.analyze soft_labels RUN ...

Row a of a stage's table is the label of class a; what it has off the diagonal, it lends to the other classes. A network
that fits its training set learns labels whose peaks are their own classes. One that does not passes its doubts on: from
stage to stage the labels get softer and lose peaks, they blur. One run shows its tables; several show, by setting, how
well the network fitted when the first labels were learned, and what became of the labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastlsr.analysis import Finding, aligned
from fastlsr.data.soft_labels import stage_labels
from fastlsr.data.superclasses import SUPERCLASS
from fastlsr.drawing import (
    MOST_NAMES,
    draw_band,
    heat_map,
    legend_below,
    line_styles,
    panels,
    style,
    weight_bar,
    weight_scale,
)
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError
from fastlsr.trials import grouped, mean_and_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 6  # stages in the picture and in the text
_COLUMNS = 3  # of the picture, at most
_SOFTER = 0.02  # of the largest entropy: by less, labels do not count as softer
_PAIRS = 10  # of each stage, in the numbers
_PAIRS_OF_TEXT = 4


@dataclass(frozen=True)
class Stage:
    """What a phase learned.

    Attributes:
        number: of the phase, from 1.
        epoch: whole epochs trained when it ended.
        table: float64[K, K], rows summing to 1.
    """

    number: int
    epoch: int
    table: Tensor


def learned_stages(run: TrainedRun) -> list[Stage]:
    """The stages with soft labels that ended before the run's checkpoint, in order.

    Raises:
        InputError: if there is none, or a table cannot be read.
    """
    phases = run.plan.phases
    ends = itertools.accumulate(phase.epochs for phase in phases)
    learning = [(n, end) for n, (phase, end) in enumerate(zip(phases, ends, strict=True), 1) if phase.learns]
    if not learning:
        raise InputError(f"{run.folder.path} has no soft labels: method {run.config.method.name} learns none by class")
    ended = [(number, end) for number, end in learning if end <= run.position.epochs]
    if not ended:
        raise InputError(f"{run.folder.path} has no soft labels yet: its first stage ends after epoch {learning[0][1]}")
    read = [stage_labels(run.folder.soft_labels(number), len(run.classes)).double() for number, _ in ended]
    return [Stage(*place, table) for place, table in zip(ended, read, strict=True)]


def mean_entropy(table: Tensor) -> float:
    """The mean entropy of the rows of float[K, K], in nats."""
    return torch.special.entr(table).sum(1).mean().item()


def own_peaks(table: Tensor) -> int:
    """How many rows of float[K, K] have their largest value at their own class."""
    return int((table.argmax(1) == torch.arange(len(table))).sum())


def lending_pairs(table: Tensor, count: int) -> list[tuple[int, int, float]]:
    """(a, b, weight) of the `count` pairs that lend each other most, from the most: weight = (S[a, b] + S[b, a]) / 2.

    Args:
        table: S, float[K, K].
    """
    a, b = torch.triu_indices(len(table), len(table), offset=1)
    weights, order = ((table[a, b] + table[b, a]) / 2).sort(descending=True, stable=True)
    return [(int(a[at]), int(b[at]), weight.item()) for weight, at in zip(weights[:count], order[:count], strict=True)]


def share_inside(table: Tensor, groups: Sequence[str]) -> float:
    """The share of the weight off the diagonal of float[K, K] that stays inside the groups of its classes, in percent.

    NaN where no weight is off the diagonal. Of labels that spread their weight evenly it is what chance gives.

    Args:
        groups: K names, of the group of each class.
    """
    same = torch.tensor([[one == other for other in groups] for one in groups])
    lent = table.clone().fill_diagonal_(0)
    total = lent.sum()
    return (100 * lent[same].sum() / total).item() if total else math.nan


def analyze(runs: Sequence[TrainedRun]) -> Finding:
    """Of one run by stage: the entropy, the peaks, the accuracy when it ended, the pairs that lend each other most.

    On classes of CIFAR-100, also how much of the weight off the diagonal stays inside the superclass, and how much does
    in labels that are spread evenly. Of several runs: entropy and peaks by setting; runs without soft labels are left
    out, and counted.

    Raises:
        InputError: if no run has soft labels, or they cannot be read.
    """
    with style():
        return _of_one(runs[0]) if len(runs) == 1 else _of_several(runs)


def _of_one(run: TrainedRun) -> Finding:
    stages = learned_stages(run)
    groups = [SUPERCLASS.get(name, "") for name in run.classes]
    known = all(groups) and len(set(groups)) > 1
    found = []
    for stage, figures in zip(stages, _figures(run, stages), strict=True):
        inside = {"inside_superclass": _finite(share_inside(stage.table, groups))} if known else {}
        files = {"file": str(run.folder.soft_labels(stage.number)), "pairs": _named(run.classes, stage.table)}
        found.append(figures | files | inside)
    numbers: dict[str, Any] = {"classes": run.classes, "most_entropy": math.log(len(run.classes)), "stages": found}
    if known:
        numbers["inside_superclass_by_chance"] = share_inside(torch.ones(len(groups), len(groups)), groups)
    shown = _spread(len(stages))
    return Finding(numbers, _text(numbers, shown), _picture(run.classes, [stages[at] for at in shown]))


def _figures(run: TrainedRun, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Of each stage, entropy and peaks of its table, and the accuracies of the row when it ended."""
    rows = {row["epoch"]: row for row in run.folder.read_rows()}
    return [
        {
            "stage": stage.number,
            "epoch": stage.epoch,
            "entropy": mean_entropy(stage.table),
            "peaks": own_peaks(stage.table),
            **{key: rows.get(stage.epoch, {}).get(key) for key in ("train/top1", "test/top1")},
        }
        for stage in stages
    ]


def _of_several(runs: Sequence[TrainedRun]) -> Finding:
    learning = [run for run in runs if any(phase.learns for phase in run.plan.phases)]
    if not learning:
        raise InputError("none of the runs has soft labels: their methods learn none by class")
    found = [
        {"run": str(run.folder.path), "seed": run.config.train.seed, "classes": len(run.classes),
         "stages": (stages := _figures(run, learned_stages(run))), "blurred": blurred(stages, len(run.classes))}
        for run in learning
    ]  # fmt: skip
    groups = grouped([run.config for run in learning], [run.position.epochs for run in learning])
    settings = {
        label: {"method": learning[members[0]].config.method.name, "runs": [found[at] for at in members]}
        for label, members in groups.items()
    }
    left_out = len(runs) - len(learning)
    numbers = {"without_soft_labels": left_out, "settings": settings}
    return Finding(numbers, _text_of_settings(settings, left_out), _curves(settings))


def blurred(stages: Sequence[Mapping[str, Any]], classes: int) -> bool:
    """Whether labels of so many classes got softer from the first of the stages to the last, or lost peaks."""
    softer = stages[-1]["entropy"] - stages[0]["entropy"] > _SOFTER * math.log(classes)
    return softer or stages[-1]["peaks"] < classes


def _named(classes: Sequence[str], table: Tensor) -> list[dict[str, Any]]:
    """The pairs that lend most: both ways, what the label of the first gives to the second, and the other way round."""
    return [
        {"classes": [classes[a], classes[b]], "weight": weight, "lent": [table[a, b].item(), table[b, a].item()]}
        for a, b, weight in lending_pairs(table, _PAIRS)
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _spread(count: int) -> list[int]:
    """At most six of `count` positions: the first, the last, and others between at even distances."""
    return sorted({round(at) for at in torch.linspace(0, count - 1, min(count, _SHOWN)).tolist()})


def _text(numbers: dict[str, Any], shown: Sequence[int]) -> str:
    """A table of stages, what it means, and the pairs of each stage."""
    classes, chance = len(numbers["classes"]), numbers.get("inside_superclass_by_chance")
    head = "stage  epoch  entropy  own peaks  train top1  test top1"
    lines = [head + ("  inside superclass" if chance is not None else "")]
    stages = [numbers["stages"][at] for at in shown]
    for each in stages:
        line = f"{each['stage']:5}  {each['epoch']:5}  {each['entropy']:7.3f}  {each['peaks']:4} of {classes:<3}"
        line += "".join(f"{_percent(each[key]):>{wide}}" for key, wide in (("train/top1", 11), ("test/top1", 11)))
        lines.append(line + (f"  {_percent(each['inside_superclass']):>17}" if chance is not None else ""))
    lines.append(f"entropy in nats, at most {numbers['most_entropy']:.3f}; accuracies in percent, when the stage ended")
    if chance is not None:
        lines.append(
            f"inside superclass: percent of the weight off the diagonal; spread evenly it would be {chance:.1f}"
        )
    lines += [_verdict(numbers), "", "classes that lend each other most, the mean of both ways:"]
    for each in stages:
        pairs = [f"{'-'.join(pair['classes'])} {pair['weight']:.3f}" for pair in each["pairs"][:_PAIRS_OF_TEXT]]
        lines.append(f"stage {each['stage']}: {', '.join(pairs)}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdict(numbers: dict[str, Any]) -> str:
    """A line on whether the labels blur: whether they get softer from the first stage to the last, or lose peaks."""
    first, last, classes = numbers["stages"][0], numbers["stages"][-1], len(numbers["classes"])
    signs = f"entropy {first['entropy']:.3f} to {last['entropy']:.3f} nats, {last['peaks']} of {classes} own peaks"
    if not blurred(numbers["stages"], classes):
        return f"no sign that the labels blur: {signs}"
    fit = f", with {first['train/top1']:.0f}% of the training set fitted" if first["train/top1"] is not None else ""
    return (
        f"warning: the labels blur: {signs}; the first were learned after epoch {first['epoch']}{fit}. "
        "A network that fits better learns sharper ones: longer stages, less augmentation, a larger network"
    )


def _text_of_settings(settings: Mapping[str, Any], left_out: int) -> str:
    """A line for each setting: mean ± std over its runs."""
    heads = ["", "n", "stages", "train top-1", "entropy first", "last", "own peaks last", "test top-1", "blurred"]
    rows = [heads]
    for label, setting in settings.items():
        ends = [(run["stages"][0], run["stages"][-1]) for run in setting["runs"]]
        columns = [
            [first["train/top1"] for first, _ in ends], [first["entropy"] for first, _ in ends],
            [last["entropy"] for _, last in ends], [last["peaks"] for _, last in ends],
            [last["test/top1"] for _, last in ends],
        ]  # fmt: skip
        figures = [mean_and_std([number for number in column if number is not None]) for column in columns]
        count = f"{sum(run['blurred'] for run in setting['runs'])} of {len(ends)}"
        rows.append([label, str(len(ends)), str(len(setting["runs"][0]["stages"])), *figures, count])
    notes = [
        "train top-1: when the first labels were learned; test top-1: when the last were; entropy in nats",
        "blurred: the labels got softer from the first stage to the last, or lost peaks of their own classes",
    ]
    if left_out:
        notes.append(f"left out, since their methods learn no soft labels by class: {left_out} of the runs")
    return "\n".join([aligned(rows), *notes])


def _curves(settings: Mapping[str, Any]) -> Figure:
    """The entropy by stage of each setting, and that of the last labels against how well the first network fitted."""
    figure, (stages, fit) = panels(1, 2, width=4.0, height=3.0)
    lines = line_styles([setting["method"] for setting in settings.values()])
    for number, ((label, setting), line) in enumerate(zip(settings.items(), lines, strict=True)):
        curves = [[stage["entropy"] for stage in run["stages"]] for run in setting["runs"]]
        epochs = [stage["epoch"] for stage in setting["runs"][0]["stages"]]
        marker = "os^Dv<>P"[number % 8]
        draw_band(
            stages, epochs, curves, label, line | ({"marker": marker, "markersize": 4} if len(epochs) < 20 else {})
        )
        ends = [(run["stages"][0]["train/top1"], run["stages"][-1]["entropy"]) for run in setting["runs"]]
        known = [end for end in ends if end[0] is not None]
        if known:
            fit.plot(*zip(*known, strict=True), marker, color=line["color"], markersize=5, alpha=0.8)
    stages.set(xlabel="epoch at which a stage ends", ylabel="entropy of labels, nats")
    fit.set(xlabel="train top-1 when the first labels were learned, %", ylabel="entropy, last labels, nats")
    for panel in (stages, fit):
        panel.margins(y=0.08)
        panel.set_ylim(0, panel.get_ylim()[1])
    legend_below(figure, stages)
    return figure


def _picture(classes: Sequence[str], stages: Sequence[Stage]) -> Figure:
    """Heat maps, at most three in a row, on a logarithmic scale: what a label lends is small beside what it keeps."""
    rows = math.ceil(len(stages) / _COLUMNS)
    columns = math.ceil(len(stages) / rows)
    side = max(2.4, 0.15 * min(len(classes), MOST_NAMES) + 1.2)
    figure, axes = panels(rows, columns, width=side, height=side + 0.7)
    scale = weight_scale()
    for panel in axes[len(stages) :]:
        panel.set_axis_off()
    for at, (panel, stage) in enumerate(zip(axes, stages, strict=False)):
        image = heat_map(panel, stage.table, classes, norm=scale)
        panel.set_title(f"stage {stage.number}, {mean_entropy(stage.table):.2f} nats")
        panel.set_xlabel("weight of")
        panel.set_ylabel("" if at % columns else "label of")
        if at % columns:
            panel.set_yticklabels([])
    weight_bar(figure, image, axes)
    return figure
