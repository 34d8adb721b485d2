"""How figures look, here and in reports: one style, and one colour for a method everywhere. Loads no torch."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlsr.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which most colour-blind readers can tell apart; their yellow is too light for lines.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#e69f00", "#56b4e9", "#009e73", "#0072b2", "#d55e00", "#cc79a7"
)  # fmt: skip
GREY = "#7f7f7f"  # of `hard`
INK = "#777777"  # of text and axes: it can be read on white and on black, and a page finds it to put its own in
METHOD_COLOURS = {
    "hard": GREY, "lsr": SKY, "tsla": BLUE, "colam": VERMILION, "online": ORANGE, "cs_kd": GREEN,
    "label_refinery": PURPLE, "confidence_penalty": "#8c6d31", "disturb_label": "#b07aa1", "lsr_pre": "#76b7b2",
    "tsla_pre": "#3b6ea8", "table": "#9c755f",
}  # fmt: skip
# Of settings of one method, as `Axes.plot` takes them.
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)),
    (0, (10, 3)), (0, (2.5, 1.5)), (0, (8, 1.5, 1, 1.5, 1, 1.5)), (0, (12, 2, 3, 2)),
)  # fmt: skip

_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "grid.linewidth": 0.6, "lines.linewidth": 1.4, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "svg.fonttype": "none", "svg.hashsalt": "fastlsr",
}  # fmt: skip


def style() -> AbstractContextManager[None]:
    """A context in which artists get this look as they are made: legends, colour bars and texts need it."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def panels(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, each width x height inches, and its axes in reading order.

    Text, axes and grid are grey on no background, so that one picture can be read on a light and on a dark page.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def method_colour(method: str) -> str:
    """The colour of a method, everywhere; a fixed one for those that have none of their own."""
    return METHOD_COLOURS.get(method) or list(METHOD_COLOURS.values())[zlib.crc32(method.encode()) % 12]


def line_styles(methods: Sequence[str]) -> list[dict[str, Any]]:
    """Colour and dashes, as `Axes.plot` takes them, for settings of these methods; those of one differ in dashes."""
    seen: dict[str, int] = {}
    styles: list[dict[str, Any]] = []
    for method in methods:
        at = seen[method] = seen.get(method, -1) + 1
        styles.append({"color": method_colour(method), "linestyle": DASHES[at % len(DASHES)]})
    return styles


def svg(figure: Figure) -> str:
    """The figure as an SVG document without prolog; the same figure gives the same text."""
    text = io.StringIO()
    with style():
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    document = text.getvalue()
    return document[document.index("<svg") :]


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes STEM.svg and STEM.png, 200 dots an inch on white; returns their paths."""
    # Laid out once, for good: matplotlib would do it anew, and draw twice, for each file.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    picture, vector = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with style():
        replace_file(picture, lambda path: figure.savefig(path, format="png", dpi=200, facecolor="white"))
    replace_file(vector, lambda path: path.write_text(svg(figure), encoding="utf-8"))
    return [vector, picture]
