"""Run folders as a report reads them: settings with their runs, scores and curves, and what could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastlsr.config import Config
from fastlsr.labels.plan import Plan
from fastlsr.runs import Kind, Row
from fastlsr.trials import Trial

SCALED = "scaled/"  # in front of a score's name: after temperature scaling


@dataclass(frozen=True)
class ReportedRun:
    """One finished run.

    Attributes:
        trial: its options, summary and folder.
        rows: of its epochs.
        figures: of the last and of the best epoch: "top1", "top5" and the names of `scores.SCORES`, of these also with
            `SCALED` in front. What needs logits is missing where the run kept none.
        hours: that its epochs took.
        reliability: float64[3, 15] of the last epoch, as `scores.reliability`; None without logits.
        risk: float64[100], the selective risk of the last epoch at coverage 1%, 2% .. 100%; None without logits.
    """

    trial: Trial
    rows: Sequence[Row]
    figures: dict[Kind, dict[str, float]]
    hours: float
    reliability: np.ndarray | None
    risk: np.ndarray | None


@dataclass(frozen=True)
class ReportedSetting:
    """One or more finished runs that differ in seed and fold alone.

    Attributes:
        label: short and unique in the report, as "lsr smoothing=0.2".
        config: of its first run.
        plan: of its method.
        runs: in the order of seed, then fold.
    """

    label: str
    config: Config
    plan: Plan
    runs: tuple[ReportedRun, ...]


@dataclass(frozen=True)
class SetAside:
    """A folder that is not in the tables, or only in part of them.

    Attributes:
        path: the folder.
        what: "broken", "running", "stopped", "copy", "no run" or "incomplete" (in the tables, but not with all figures).
        reason: a line.
    """

    path: Path
    what: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """All that a report shows.

    Attributes:
        settings: in the order in which their first runs were given.
        aside: folders that are not, or not wholly, in the tables.
        common: `section.key` to value of the options that all settings share.
        varying: `section.key` names in which settings differ.
    """

    settings: tuple[ReportedSetting, ...]
    aside: tuple[SetAside, ...]
    common: dict[str, object]
    varying: tuple[str, ...]


def collect(paths: Sequence[Path]) -> Collection:
    """What the folders hold.

    Raises:
        InputError: if there is no finished run among them.
    """
    raise NotImplementedError
