"""The papers' analyses and their kin: a kind is one file here, with one function.

    def analyze(run: TrainedRun, *, classes: str, samples: int = 100) -> Finding: ...

Its first parameter says what it takes: `run` one run, `runs` one or more (a list); without either it takes none. The
keyword arguments are its options; the command reads them by their annotations, str, int, float or bool. In a plugin a
kind is such a function with the name of the kind, decorated with `@analysis`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastlsr.plugins import register

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Finding:
    """What an analysis found.

    Attributes:
        numbers: all of them, as JSON has it; whole tables and curves, too.
        text: what a terminal shows of it.
        picture: drawn with `fastlsr.drawing`; None where there is nothing to draw.
    """

    numbers: dict[str, Any]
    text: str
    picture: Figure | None = None


OWN_KINDS: dict[str, Callable[..., Finding]] = {}  # of plugins


def analysis(function: Callable[..., Finding]) -> Callable[..., Finding]:
    """Makes a plugin's function a kind of analysis under its name."""
    register(OWN_KINDS, "kind of analysis", function.__name__, function)
    return function


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A line for each row of a table; its first column is flush left, the others are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    first = widths[0]
    return "\n".join(f"{row[0]:{first}}{line[first:]}".rstrip() for row, line in zip(rows, lines, strict=True))
