"""The figures of a run that a report shows: key, title, digits, and which direction is better."""

from __future__ import annotations

from dataclasses import dataclass

from fastlsr.metrics import METRICS
from fastlsr.report.collect import SCALED, TEMPERATURE
from fastlsr.scores import SCORES


@dataclass(frozen=True)
class ReportColumn:
    """One figure of a run.

    Attributes:
        key: in `ReportedRun.figures`.
        title: in the head of a table.
        meaning: a phrase, with the unit.
        decimals: at most so many are shown.
        sign: 1 where higher is better, -1 where lower is, 0 where neither.
    """

    key: str
    title: str
    meaning: str
    decimals: int
    sign: int


ACCURACIES = tuple(
    ReportColumn(name, title, f"{METRICS[name].meaning}, in %", 2, 1)
    for name, title in (("top1", "top-1"), ("top5", "top-5"))
)
RAW = tuple(
    ReportColumn(
        name,
        score.title + " x1000" * (score.unit == "10^-3"),
        score.meaning + (f", in {score.unit}" if score.unit else ""),
        int(score.format[1:-1]),
        -1,
    )
    for name, score in SCORES.items()
)
TEMPERATURES = ReportColumn(TEMPERATURE, "T", "temperature fitted, mean of two halves of the samples", 2, 0)
SCALED_SCORES = tuple(
    ReportColumn(SCALED + each.key, each.title, f"{each.meaning}; after temperature scaling", each.decimals, -1)
    for each in RAW
)
COLUMNS = {each.key: each for each in (*ACCURACIES, *RAW, TEMPERATURES, *SCALED_SCORES)}


def full_title(key: str) -> str:
    """The title of a figure where its table does not tell raw from scaled: "NLL after temperature scaling"."""
    return COLUMNS[key].title + " after temperature scaling" * key.startswith(SCALED)
