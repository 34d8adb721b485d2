"""The figures of a report, each with the numbers behind it. matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlsr.drawing import INK, method_colour
from fastlsr.report.charts import (
    MOST_LINES,
    Line,
    ReportFigure,
    at_end,
    band_words,
    csv_text,
    looks_of,
    make_figure,
    part_names,
    split_by_method,
)  # fmt: skip
from fastlsr.report.collect import Collection, ReportedSetting
from fastlsr.report.columns import COLUMNS, full_title
from fastlsr.report.comparisons import Comparison
from fastlsr.runs import columns
from fastlsr.trials import REPEATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_POINTS = 200  # of a line; a longer one is thinned,
_MOST_OF_ALL = 8000  # and all the more where there are many, so that files stay small
CHANGES = "changes"  # the gid of the dots that mark changes of a method's targets
_MOST_TICKS = 12  # of values of an option
_TICK = 2  # matplotlib's TICKUP: from the axis upward
DIFFERENCE = "difference"  # and that of the dots of mean differences
_MOST_DIFFERENCES = 24  # in one figure
_MOST_CHANGES = 20  # of targets in a run that are marked: `online` would have one after each epoch
_CURVES = (("test/top1", "Test top-1"), ("test/nll", "Test NLL"), ("val/top1", "Validation top-1"),
           ("val/nll", "Validation NLL"), ("train/top1", "Train top-1"),
           ("target_entropy", "Entropy of the training targets"))  # fmt: skip
_UNITS = {column.key: column.unit for column in columns()}


def curve_figures(settings: Sequence[ReportedSetting]) -> list[ReportFigure]:
    """Accuracies, loss and target entropy against the epoch (TSLA Figs. 1 to 3, COLAM Fig. 1a)."""
    points = max(50, min(_MOST_POINTS, _MOST_OF_ALL // max(1, len(settings))))
    figures = []
    for key, title in _CURVES:
        # Where epochs are evaluated on a validation split, one of them alone has figures of the test split: no curve.
        drawn = [s for s in settings if not (key.startswith("test/") and s.config.data.selects_on_val)]
        lines = [curve(setting, key).thinned(points) for setting in drawn]
        lines = [line for line in lines if line.count.any()]
        if key == "target_entropy" and not any(line.mean[line.count > 0].any() for line in lines):
            continue  # hard labels throughout
        marks = " A dot, and a tick below, mark each change of a method's targets." if _marked(lines) else ""
        caption = f"{title} after each epoch: {band_words(lines)}.{marks}{_cut_off(lines)}"
        figures += _line_figures(key.replace("/", "-"), "Curves", title, caption, lines, "epoch", _UNITS[key])
    return figures


def _cut_off(lines: Sequence[Line]) -> str:
    """A sentence on what the axes leave out, and on means that are of some runs alone; "" where there is neither."""
    low, high = _limits(lines) or (-math.inf, math.inf)
    outside = any(((line.mean < low) | (line.mean > high)).any() for line in lines)
    fewer = any(np.ptp(line.count) for line in lines)
    return (" Early epochs that are far off are cut." if outside else "") + (
        " Where some runs are shorter, the mean is that of the others." if fewer else ""
    )


def _marked(lines: Sequence[Line]) -> bool:
    """Whether changes of targets are marked on one of the lines, which are no crowd."""
    methods = [line.setting.config.method.name for line in lines]
    return any(line.marks and methods.count(name) <= MOST_LINES for line, name in zip(lines, methods, strict=True))


def curve(setting: ReportedSetting, key: str) -> Line:
    """A column of the rows against the epoch; a change of targets is marked at the last epoch before it."""
    epochs = max((row["epoch"] for run in setting.runs for row in run.rows), default=0)
    values = np.full((len(setting.runs), epochs), np.nan)
    for run, line in zip(setting.runs, values, strict=True):
        for row in run.rows:
            line[row["epoch"] - 1] = math.nan if row.get(key) is None else row[key]
    values[~np.isfinite(values)] = np.nan
    return Line(setting, np.arange(1.0, epochs + 1), values, _changes(setting))


def _changes(setting: ReportedSetting) -> tuple[int, ...]:
    """The epochs after which the targets change; () where they do so too often to be marked."""
    ends = tuple(itertools.accumulate(phase.epochs for phase in setting.plan.phases))[:-1]
    return ends if len(ends) <= _MOST_CHANGES else ()


def risk_figures(settings: Sequence[ReportedSetting]) -> list[ReportFigure]:
    """Selective risk against coverage."""
    lines = []
    for setting in settings:
        risks = [run.risk for run in setting.runs if run.risk is not None]
        if risks:
            lines.append(Line(setting, np.linspace(1, 100, len(risks[0])), 100 * np.stack(risks)))
    caption = (
        "Errors among the predictions that are kept when the least confident are left out, after the last epoch: "
        f"{band_words(lines)}. Lower is better; the area below is AURC."
    )
    return _line_figures(
        "risk-coverage", "Calibration and risk", "Risk and coverage", caption, lines, "coverage (%)", "risk (%)"
    )


def _line_figures(
    name: str, group: str, title: str, caption: str, lines: Sequence[Line], x: str, y: str
) -> list[ReportFigure]:
    """One figure of all lines, or several with equal axes where one would hold too many."""
    parts = split_by_method([line.setting for line in lines])
    limits = _limits(lines)
    figures = []
    for methods, indices in parts:
        part = [lines[at] for at in indices]

        def draw(axes: Axes, part: Sequence[Line] = part) -> None:
            for line, look in zip(part, looks_of([line.setting for line in part]), strict=True):
                _draw_line(axes, line, look)
            axes.set(xlabel=x, ylabel=y, ylim=limits)

        suffix, of = part_names(methods, parts)
        figures.append(make_figure(name + suffix, group, title + of, caption, draw, _lines_csv(x, part)))
    return figures


def _draw_line(axes: Axes, line: Line, look: dict[str, Any]) -> None:
    axes.plot(line.x, line.mean, **look)
    if "alpha" not in look:
        axes.fill_between(line.x, *line.band, color=look["color"], alpha=0.15, linewidth=0)
        marked = np.flatnonzero(np.isin(line.x, line.marks))
        axes.plot(line.x[marked], line.mean[marked], "o", color=look["color"], markersize=4, gid=CHANGES)
        foot: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "in_layout": False}
        axes.plot(line.x[marked], np.zeros(len(marked)), color=look["color"], marker=_TICK, linestyle="", **foot)


def _limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """The range of y of the means after the first tenth of x and of the bands' ends; what starts far off is cut."""
    later = [line.mean[line.x >= line.x[-1] / 10] for line in lines]
    values = np.concatenate([*later, *(np.stack(line.band)[:, -1] for line in lines)]) if lines else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    margin = 0.05 * (values.max() - values.min()) or 0.1
    return float(values.min() - margin), float(values.max() + margin)


def _lines_csv(x: str, lines: Sequence[Line]) -> str:
    xs = sorted({float(value) for line in lines for value in line.x})
    header, columns = [x], [xs]
    for line in lines:
        at = {float(value): position for position, value in enumerate(line.x)}
        for what, numbers in (("mean", line.mean), ("std", line.std), ("n", line.count))[
            : 3 if len(line.values) > 1 else 1
        ]:
            header.append(f"{line.setting.label}: {what}" if len(line.values) > 1 else line.setting.label)
            columns.append([float(numbers[at[value]]) if value in at else math.nan for value in xs])
    return csv_text([header, *zip(*columns, strict=True)])


def reliability_figures(settings: Sequence[ReportedSetting]) -> list[ReportFigure]:
    """Accuracy against confidence, in bins, over all runs of a setting together."""
    drawn = [(setting, bins) for setting in settings if (bins := _bins(setting)) is not None]
    rows: list[Sequence[Any]] = [("setting", "bin", "samples", "mean confidence", "accuracy")]
    rows += [(setting.label, at, *point) for setting, bins in drawn for at, point in enumerate(bins.T, 1)]
    figures = []
    parts = split_by_method([setting for setting, _ in drawn])
    for methods, indices in parts:
        part = [drawn[at] for at in indices]

        def draw(axes: Axes, part: Sequence[tuple[ReportedSetting, np.ndarray]] = part) -> None:
            axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
            for (_, bins), look in zip(part, looks_of([setting for setting, _ in part]), strict=True):
                shown = bins[0] >= _FEWEST * bins[0].sum()
                samples, confidence, accuracy = bins[:, shown]
                axes.plot(100 * confidence, 100 * accuracy, **look)
                if "alpha" not in look:
                    sizes = 60 * samples / samples.sum()
                    axes.scatter(100 * confidence, 100 * accuracy, s=sizes, color=look["color"], linewidth=0)
            axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))

        suffix, of = part_names(methods, parts)
        labels = {setting.label for setting, _ in part}
        numbers = csv_text([rows[0], *(row for row in rows[1:] if row[0] in labels)])
        figures.append(
            make_figure("reliability" + suffix, "Calibration and risk", "Reliability" + of, _RELIABILITY, draw, numbers)
        )
    return figures


_FEWEST = 0.005  # of all predictions: bins with fewer are not drawn
_RELIABILITY = (
    "Accuracy of the predictions in each of 15 equal bins of confidence after the last epoch, without temperature "
    "scaling, over all runs of a setting together; the larger the dot, the more predictions, and bins with less than "
    f"{_FEWEST:.1%} of them are left out. Calibrated predictions lie on the diagonal, overconfident ones below it."
)


def _bins(setting: ReportedSetting) -> np.ndarray | None:
    """float64[3, bins]: samples, mean confidence and accuracy of each bin, over all runs; NaN in an empty one."""
    of_runs = [run.reliability for run in setting.runs if run.reliability is not None]
    if not of_runs:
        return None
    samples, confidence, correct = np.sum(of_runs, axis=0)
    divisor = np.where(samples > 0, samples, np.nan)
    return np.stack([samples, confidence / divisor, correct / divisor])


def report_figures(
    collection: Collection, comparisons: Sequence[Comparison], unfinished: Sequence[ReportedSetting] = ()
) -> list[ReportFigure]:
    """All figures that the settings have numbers for, in the order of a page; of unfinished ones the curves."""
    settings = collection.settings
    return [
        *difference_figures(settings, comparisons),
        *curve_figures([*settings, *unfinished]),
        *option_figures(settings),
        *risk_figures(settings),
        *reliability_figures(settings),
        *cost_figures(settings),
    ]


def difference_figures(settings: Sequence[ReportedSetting], comparisons: Sequence[Comparison]) -> list[ReportFigure]:
    """Mean differences that have an interval, a figure for each column that is compared."""
    colours = {setting.label: method_colour(setting.config.method.name) for setting in settings}
    figures = []
    for key in dict.fromkeys(each.column for each in comparisons):
        own = [each for each in comparisons if each.column == key and each.interval]
        if not own:
            continue
        title, better = full_title(key), {1: "right", -1: "left"}.get(COLUMNS[key].sign)
        smallest = sorted(range(len(own)), key=lambda at: own[at].p)[:_MOST_DIFFERENCES]
        shown = [own[at] for at in sorted(smallest)]
        caption = (
            f"Mean difference in {title} at the last epoch over equal seeds, with its 95% bootstrap interval. "
            "Filled: the test decides, after Holm's correction over all comparisons; open: it does not."
            + (f" The first setting is the better one to the {better} of zero." if better else "")
            + (f" Of {len(own)} comparisons, the {len(shown)} with the smallest p." if len(shown) < len(own) else "")
        )
        rows: list[Sequence[Any]] = [("one", "other", "n", "mean", "low", "high", "p", "p after Holm", "decided")]
        for each in shown:
            numbers = (each.mean, *(each.interval or ()), each.p, each.p_holm, each.decided)
            rows.append((each.one, each.other, len(each.differences), *numbers))

        def draw(axes: Axes, shown: Sequence[Comparison] = shown, title: str = title) -> None:
            for at, each in enumerate(shown):
                axes.vlines(0, at - 0.25, at + 0.3, color=INK, linewidth=0.8)  # in pieces, so that it crosses no label
                colour = colours.get(each.one, INK)
                mean = each.mean or 0.0
                axes.plot(each.interval or (), [at, at], color=colour, linewidth=1.4)
                face = colour if each.decided else "none"
                axes.plot([mean], [at], "o", color=colour, markerfacecolor=face, markersize=6, gid=DIFFERENCE)
                label = f"{each.one} \N{MINUS SIGN} {each.other}"
                axes.text(0, at - 0.3, label, transform=axes.get_yaxis_transform(), fontsize=8)
            axes.set(yticks=[], ylim=(len(shown) - 0.5, -0.8), xlabel=f"difference in {title}")
            axes.spines["left"].set_visible(False)

        height = 0.8 + 0.36 * len(shown)
        name = f"differences-{key.replace('/', '-')}"
        figures.append(make_figure(name, "Differences", title, caption, draw, csv_text(rows), height=height))
    return figures


def option_figures(settings: Sequence[ReportedSetting]) -> list[ReportFigure]:
    """Accuracy against the numeric options of a method that vary: a line for one, a heat map for two (COLAM Fig. 4)."""
    figures = []
    for method in dict.fromkeys(setting.config.method.name for setting in settings):
        own = [setting for setting in settings if setting.config.method.name == method]
        keys = varying_numbers(own)
        points = {tuple(_value(setting, key) for key in keys): setting for setting in own}
        if len(points) == len(own) and len(keys) == 1:
            figures.append(_option_line(method, keys[0], {at[0]: setting for at, setting in points.items()}))
        elif len(points) == len(own) and len(keys) == 2:
            figures.append(_heat_map(method, keys, points))
    return figures


def varying_numbers(settings: Sequence[ReportedSetting]) -> list[str]:
    """The `section.key` names in which the settings differ; () where one of them is no number."""
    options = [setting.config.decisive() for setting in settings]
    keys = [key for key in options[0] if key not in REPEATS and len({each[key] for each in options}) > 1]
    return keys if not any(isinstance(each[key], str | bool) for each in options for key in keys) else []


def _value(setting: ReportedSetting, key: str) -> float:
    """An option as a number on an axis: of what stands for another number, that one."""
    value = setting.config.flat()[key]
    if (key, value) == ("method.drop_epoch", -1):
        return setting.plan.phases[0].epochs
    return math.inf if (key, value) == ("method.peers", 0) else value


def _value_name(value: float) -> str:
    return "all" if math.isinf(value) else f"{value:g}"


def _option_line(method: str, key: str, points: dict[float, ReportedSetting]) -> ReportFigure:
    values = sorted(points)
    lines = [at_end(points[value], "top1") for value in values]
    even = math.isinf(values[-1])
    x = list(range(len(values))) if even else values

    def draw(axes: Axes) -> None:
        means, halves = [line.mean[0] for line in lines], [line.half_band[0] for line in lines]
        axes.errorbar(x, means, halves, color=method_colour(method), marker="o", markersize=4, capsize=3)
        if not even and values[0] > 0 and values[-1] >= 10 * values[0]:
            axes.set_xscale("log")
        if len(values) <= _MOST_TICKS:
            axes.set_xticks(x, [_value_name(value) for value in values])
            axes.minorticks_off()
        axes.set(xlabel=key, ylabel="Test top-1 (%)")

    caption = f"Test top-1 of {method} after the last epoch against {key}: {band_words(lines).replace('band', 'bar')}."
    rows = [(key, "mean", "std", "n"), *((_value_name(value), line.mean[0], line.std[0], line.count[0])
                                         for value, line in zip(values, lines, strict=True))]  # fmt: skip
    return make_figure(f"option-{method}", "Options", f"{method}: {key}", caption, draw, csv_text(rows))


def _heat_map(method: str, keys: Sequence[str], points: dict[tuple[float, ...], ReportedSetting]) -> ReportFigure:
    across, down = (sorted({at[axis] for at in points}) for axis in range(2))
    means = np.full((len(down), len(across)), np.nan)
    rows: list[Sequence[Any]] = [(*keys, "mean", "std", "n")]
    for (x, y), setting in sorted(points.items(), key=lambda item: item[0]):
        line = at_end(setting, "top1")
        means[down.index(y), across.index(x)] = line.mean[0]
        rows.append((_value_name(x), _value_name(y), line.mean[0], line.std[0], line.count[0]))

    def draw(axes: Axes) -> None:
        cells = axes.pcolormesh(means, cmap="cividis", edgecolors="face", linewidth=0.3)
        for values, set_ticks in ((across, axes.set_xticks), (down, axes.set_yticks)):
            labelled = range(0, len(values), -(-len(values) // _MOST_TICKS))
            set_ticks([at + 0.5 for at in labelled], [_value_name(values[at]) for at in labelled])
        axes.set(xlabel=keys[0], ylabel=keys[1])
        axes.grid(False)
        middle = (np.nanmin(means) + np.nanmax(means)) / 2
        for (y, x), mean in np.ndenumerate(means if means.size <= 100 else means[:0]):
            if math.isfinite(mean):
                shade = "#000000" if mean > middle else "#ffffff"
                axes.text(x + 0.5, y + 0.5, f"{mean:.1f}", ha="center", va="center", color=shade, fontsize=8)
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.colorbar(cells, ax=axes, label="Test top-1 (%)", fraction=0.06, drawedges=False)

    caption = f"Test top-1 of {method} after the last epoch, the mean over the runs of a setting; empty: not run."
    title = f"{method}: {keys[0]} and {keys[1]}"
    return make_figure(f"heat-map-{method}", "Options", title, caption, draw, csv_text(rows))


def cost_figures(settings: Sequence[ReportedSetting]) -> list[ReportFigure]:
    """Accuracy against the hours that a run took."""
    if len(settings) < 2:
        return []
    points = []
    for setting in settings:
        hours = Line(setting, np.zeros(1), np.array([[run.hours] for run in setting.runs]))
        points.append((hours, at_end(setting, "top1")))
    caption = (
        "Test top-1 after the last epoch against the hours that the run's epochs took, as it ran: "
        f"{band_words([accuracy for _, accuracy in points]).replace('band', 'bar')}."
    )
    limit = 1.08 * max(float(hours.values.max()) for hours, _ in points)
    ends = np.array([accuracy.mean + side * accuracy.half_band for _, accuracy in points for side in (-1, 1)])
    margin = 0.05 * float(np.nanmax(ends) - np.nanmin(ends)) or 1.0
    low, high = float(np.nanmin(ends)) - margin, float(np.nanmax(ends)) + margin
    figures = []
    parts = split_by_method(settings)
    for methods, indices in parts:
        part = [points[at] for at in indices]

        def draw(axes: Axes, part: Sequence[tuple[Line, Line]] = part) -> None:
            methods: list[str] = []
            for (hours, accuracy), look in zip(part, looks_of([each.setting for each, _ in part]), strict=True):
                marker = "os^Dv<>P"[methods.count(hours.setting.config.method.name) % MOST_LINES]
                methods.append(hours.setting.config.method.name)
                axes.errorbar(
                    hours.mean, accuracy.mean, accuracy.half_band, hours.half_band, markersize=6, elinewidth=1,
                    fmt="." if "alpha" in look else marker, label=look["label"], color=look["color"],
                )  # fmt: skip
            axes.set(xlabel="hours", ylabel="Test top-1 (%)", xlim=(0, limit), ylim=(low, high))

        rows: list[Sequence[Any]] = [("setting", "hours", "hours std", "top1", "top1 std", "n")]
        rows += [(x.setting.label, x.mean[0], x.std[0], y.mean[0], y.std[0], y.count[0]) for x, y in part]
        suffix, of = part_names(methods, parts)
        figures.append(make_figure("cost" + suffix, "Cost", "Accuracy and time" + of, caption, draw, csv_text(rows)))
    return figures
