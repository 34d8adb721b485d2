"""The figures of the two papers' tables, as data. None of them was measured with this program.

The rows of `papers.csv` are the figures printed in

    tsla    Towards Understanding Label Smoothing: Tables 1 to 3
    colam   COLAM: Co-Learning of Deep Neural Networks and Soft Labels via Alternating Minimization: Tables 1 to 5

Accuracies are in percent here; COLAM's Table 4 prints them as fractions.
"""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass
from importlib import resources

_NAMES = {"baseline": "hard"}  # TSLA's name for it -> method.name
_METHOD = re.compile(r"(?P<name>\w+)(\((?P<drop_epoch>\d+)\))?(;smoothing=(?P<smoothing>[\d.]+))?")


@dataclass(frozen=True)
class QuotedFigure:
    """One figure of a table of a paper.

    Attributes:
        paper: "tsla" or "colam".
        table: its number in the paper.
        dataset: as `data.dataset`.
        model: as `model.name`, without timm's prefix and tag.
        method: as the paper's table has it, such as "tsla(120);smoothing=0.2"; `options` has it as options.
        metric: "top1" or "top5" in percent, or "template_distance:A|B", "template_distance:average".
        mean: the figure.
        std: its standard deviation, None where the paper prints none.
    """

    paper: str
    table: int
    dataset: str
    model: str
    method: str
    metric: str
    mean: float
    std: float | None

    @property
    def options(self) -> dict[str, str]:
        """`section.key` to value: the options that select the method; smoothing only where the table varies it."""
        found = _METHOD.fullmatch(self.method)
        assert found is not None, self.method
        given = {f"method.{key}": value for key, value in found.groupdict().items() if value}
        return given | {"method.name": _NAMES.get(found["name"], found["name"])}

    def __str__(self) -> str:
        """The figure with the paper's digits, as "78.69 ± 0.23"."""
        digits = 2 if self.metric in ("top1", "top5") else 3
        return f"{self.mean:.{digits}f}" + (f" ± {self.std:.{digits}f}" if self.std is not None else "")


@functools.cache
def quoted_figures() -> tuple[QuotedFigure, ...]:
    """Every figure of both papers' tables, in the order of the file."""
    text = resources.files(__package__).joinpath("papers.csv").read_text(encoding="utf-8")
    return tuple(
        QuotedFigure(
            row["paper"],
            int(row["table"]),
            row["dataset"],
            row["model"],
            row["method"],
            row["metric"],
            float(row["mean"]),
            float(row["std"]) if row["std"] else None,
        )
        for row in csv.DictReader(text.splitlines())
    )
