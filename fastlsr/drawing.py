"""How figures look, here and in reports: one style, and one colour for a method everywhere. Loads no torch."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlsr.files import replace_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import ArrayLike

# Any two are more than 30 apart in CIELAB for readers with full colour vision, protanopia and deuteranopia, and each
# can be seen on white and on black. Okabe and Ito's set begins with black, which a dark page hides.
GREY, SKY, BLUE, BROWN, YELLOW, GREEN, MAUVE = (
    "#5a5a5a", "#78a5ff", "#3c5a96", "#964b00", "#d2a500", "#5ac378", "#c3a5c3"
)  # fmt: skip
INK = "#777777"  # of text and axes: it can be read on white and on black, and a page finds it to put its own in
# No more than seven can be told apart: some share the colour of a method of their kind, and differ in dashes.
METHOD_COLOURS = {
    "hard": GREY, "disturb_label": GREY, "lsr": SKY, "lsr_pre": SKY, "tsla": BLUE, "tsla_pre": BLUE, "colam": BROWN,
    "online": YELLOW, "label_refinery": YELLOW, "cs_kd": GREEN, "confidence_penalty": GREEN, "table": MAUVE,
}  # fmt: skip
# Of settings of one colour, as `Axes.plot` takes them.
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)),
    (0, (10, 3)), (0, (2.5, 1.5)), (0, (8, 1.5, 1, 1.5, 1, 1.5)), (0, (12, 2, 3, 2)),
)  # fmt: skip
_LETTERS, _LETTERS_OF_LINE = 13, 7  # of a legend: in an inch, and as wide as a line with its gaps
MOST_NAMES, MOST_VALUES = 20, 10  # classes that a heat map names, and whose values it prints
_LEAST_WEIGHT = 1e-3  # of soft labels: those below have the darkest colour and are not told apart

_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "grid.linewidth": 0.6, "lines.linewidth": 1.4, "legend.frameon": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "svg.fonttype": "none", "svg.hashsalt": "fastlsr",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """The style of titles, legends and texts made within, which `panels` cannot set; also a decorator, `@style()`."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def panels(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels, each width x height inches, and its axes in reading order.

    Text, axes and grid are grey on no background, so that one picture can be read on a light and on a dark page.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def heat_map(axes: Axes, values: ArrayLike, names: Sequence[str], **limits: Any) -> AxesImage:
    """A table of classes as colours, the first row at the top; for a colour bar.

    Args:
        values: [K, K]. Few enough are printed in their cells.
        names: of the K classes, along both axes where they are few enough to be read.
        limits: `vmin` and `vmax`, or a `norm`, as for `Axes.imshow`.
    """
    import numpy as np

    table = np.asarray(values)
    image = axes.imshow(table, cmap="cividis", **limits)  # dark to light for colour-blind readers, too
    axes.grid(visible=False)
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= MOST_VALUES:
        shades = np.asarray(image.norm(table))
        for (row, column), value in np.ndenumerate(table):
            text, colour = f"{value:.2f}".lstrip("0"), "white" if shades[row, column] < 0.5 else "black"
            axes.text(column, row, text, color=colour, size=6, ha="center", va="center")
    return image


def weight_scale() -> LogNorm:
    """Of weights of soft labels, for `heat_map`: logarithmic, for what a label lends is small beside what it keeps."""
    from matplotlib.colors import LogNorm

    return LogNorm(_LEAST_WEIGHT, 1, clip=True)


def weight_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes]) -> None:
    """Draws the colour bar of heat maps with `weight_scale`."""
    bar = figure.colorbar(image, ax=axes, label="weight", extend="min", shrink=0.6, aspect=30)
    bar.ax.grid(visible=False)


def table_picture(table: ArrayLike, names: Sequence[str]) -> np.ndarray:
    """Soft labels by class as a picture, uint8 [H, W, 3]; arguments as of `heat_map`."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, axes = panels(width=5.0, height=4.4)
    with style():
        weight_bar(figure, heat_map(axes[0], table, names, norm=weight_scale()), axes)
        axes[0].set(xlabel="weight of", ylabel="label of")
        figure.set(facecolor="white", dpi=150)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def method_colour(method: str) -> str:
    """The colour of a method, everywhere; a fixed one for those that have none of their own."""
    colours = list(METHOD_COLOURS.values())
    return METHOD_COLOURS.get(method) or colours[zlib.crc32(method.encode()) % len(colours)]


def line_styles(methods: Sequence[str]) -> list[dict[str, Any]]:
    """Colour and dashes, as `Axes.plot` takes them, of settings of methods; dashes tell equal colours apart."""
    seen: Counter[str] = Counter()
    styles: list[dict[str, Any]] = []
    for colour in map(method_colour, methods):
        styles.append({"color": colour, "linestyle": DASHES[seen[colour] % len(DASHES)]})
        seen[colour] += 1
    return styles


def draw_band(axes: Axes, x: ArrayLike, curves: Sequence[ArrayLike], label: str, line: Mapping[str, Any]) -> None:
    """Draws the mean of one or more curves over `x`, and a band of one sample standard deviation if there are several.

    Args:
        curves: each as long as `x`.
        line: its style, of `line_styles`.
    """
    import numpy as np

    values = np.array(curves, dtype=float)
    mean = values.mean(0)
    axes.plot(x, mean, label=label, **line)
    if np.asarray(x).dtype.kind == "i":
        axes.locator_params(axis="x", integer=True)  # no half epochs
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=line["color"], alpha=0.15, linewidth=0)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Draws the legend of what `axes` shows below all panels, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    fitting = int(figure.get_figwidth() * _LETTERS) // (max(map(len, labels)) + _LETTERS_OF_LINE)
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), fitting, 4)))


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
