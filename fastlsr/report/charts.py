"""What the figures of a report are made of: a setting's numbers along x, panels, legends, CSV.

matplotlib is loaded when the first figure is drawn.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlsr.drawing import line_styles, panels, style
from fastlsr.report.collect import ReportedSetting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 8  # in one panel
_LEGEND_WIDTH = 64  # letters, of which a line takes seven


@dataclass(frozen=True)
class ReportFigure:
    """One figure of a report.

    Attributes:
        name: of its files, without ending.
        group: the heading that it stands under.
        title: short and unique in the report.
        caption: one to three sentences on what is shown.
        figure: the drawing.
        csv: the numbers that are drawn, with a header.
    """

    name: str
    group: str
    title: str
    caption: str
    figure: Figure
    csv: str


@dataclass(frozen=True)
class Line:
    """A setting's numbers along x, over its runs.

    Attributes:
        setting: whose they are.
        x: float64[X].
        values: float64[R, X], NaN where a run has none.
        marks: values of x that are marked.
    """

    setting: ReportedSetting
    x: np.ndarray
    values: np.ndarray
    marks: Sequence[float] = ()

    @cached_property
    def count(self) -> np.ndarray:
        """int64[X]: runs with a number."""
        return np.isfinite(self.values).sum(0)

    @cached_property
    def mean(self) -> np.ndarray:
        """float64[X]: over these runs."""
        return np.nansum(self.values, 0) / np.where(self.count, self.count, np.nan)

    @cached_property
    def std(self) -> np.ndarray:
        """float64[X]: sample standard deviation (n - 1); NaN for fewer than two runs."""
        squares = np.nansum((self.values - self.mean) ** 2, 0)
        return np.sqrt(squares / np.where(self.count > 1, self.count - 1, np.nan))

    @cached_property
    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), float64[X] each: mean ± std; for two runs the lower and the higher; NaN for one."""
        half = np.where(self.count == 2, self.std / math.sqrt(2), self.std)  # |a - b| / 2 is std / sqrt(2)
        return self.mean - half, self.mean + half

    @property
    def half_band(self) -> np.ndarray:
        """float64[X]: half of the band's width; 0 where there is none."""
        return np.nan_to_num(self.band[1] - self.mean)

    def thinned(self, points: int) -> Line:
        """The line at so many evenly chosen x, or at all if it has no more, and at its marks."""
        if len(self.x) <= points:
            return self
        even = np.linspace(0, len(self.x) - 1, points).round().astype(int)
        kept = np.union1d(even, np.flatnonzero(np.isin(self.x, self.marks)))
        return Line(self.setting, self.x[kept], self.values[:, kept], self.marks)


def make_figure(
    name: str, group: str, title: str, caption: str, draw: Callable[[Axes], None], numbers: str, *, height: float = 3.0
) -> ReportFigure:
    """A figure of one panel with its legend below, where it hides no line."""
    import matplotlib

    figure, (axes,) = panels(width=4.6, height=height)
    with style(), matplotlib.rc_context({"text.parse_math": False}):  # a label may have dollar signs
        draw(axes)
        axes.set_title(title, loc="left")
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = max(1, min(4, len(labels), _LEGEND_WIDTH // (max(map(len, labels)) + 7)))
            labels = [textwrap.fill(label, _LEGEND_WIDTH - 7) for label in labels]
            lines = max(label.count("\n") + 1 for label in labels)
            figure.set_figheight(height + 0.17 * lines * -(-len(labels) // columns))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
    return ReportFigure(name, group, title, caption, figure, numbers)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV; numbers with six digits, nothing for one that is not finite."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return str(value)


def split_by_method(settings: Sequence[ReportedSetting]) -> list[tuple[list[str], list[int]]]:
    """(methods, indices of settings) of each panel; a method is wholly in one, and the only `hard` setting in each.

    A panel holds no more than eight settings, unless one method alone has more.
    """
    names = [setting.config.method.name for setting in settings]
    everywhere = [at for at, name in enumerate(names) if name == "hard"]
    if len(settings) <= MOST_LINES:
        return [(list(dict.fromkeys(names)), list(range(len(settings))))] if settings else []
    everywhere = everywhere if len(everywhere) == 1 else []
    parts: list[tuple[list[str], list[int]]] = []
    for method in dict.fromkeys(names):
        own = [at for at, name in enumerate(names) if name == method and at not in everywhere]
        with_room = next((part for part in parts if len(part[1]) + len(own) <= MOST_LINES), None)
        if own and with_room:
            with_room[0].append(method)
            with_room[1].extend(own)
        elif own:
            parts.append(([method], [*everywhere, *own]))
    return parts


def part_names(methods: Sequence[str], parts: Sequence[object]) -> tuple[str, str]:
    """What the name and the title of one of these parts of a figure end with."""
    return (f"-{'-'.join(methods)}", f": {', '.join(methods)}") if len(parts) > 1 else ("", "")


def looks_of(settings: Sequence[ReportedSetting]) -> list[dict[str, Any]]:
    """Label, colour and dashes, as `Axes.plot` takes them, of the settings of one panel.

    The settings of a method of which there are more than eight get thin lines and one label for all.
    """
    methods = [setting.config.method.name for setting in settings]
    looks = []
    for setting, method, line in zip(settings, methods, line_styles(methods), strict=True):
        if (count := methods.count(method)) > MOST_LINES:
            line = {"color": line["color"], "linewidth": 0.7, "alpha": 0.5}
            first = setting is settings[methods.index(method)]
            looks.append({"label": f"{method}: {count} settings" if first else "_nolegend_", **line})
        else:
            looks.append({"label": setting.label, "linewidth": 1.2, **line})
    return looks


def band_words(lines: Iterable[Line]) -> str:
    """What the lines and their bands are, for a caption."""
    runs = {len(line.values) for line in lines}
    if runs <= {1}:
        return "one run each"
    words = ["the mean over the runs of a setting"]
    words += ["the band is ± one standard deviation"] if max(runs, default=0) > 2 else ["the band goes"]
    words += ["from the lower to the higher run where there are two"] if 2 in runs else []
    words += ["none where there is one"] if 1 in runs else []
    return ", ".join(words).replace("goes, ", "goes ")


def at_end(setting: ReportedSetting, figure: str) -> Line:
    """A figure after the last epoch, as a line of one point."""
    numbers = [[run.figures["last"].get(figure, math.nan)] for run in setting.runs]
    return Line(setting, np.zeros(1), np.array(numbers, float))
