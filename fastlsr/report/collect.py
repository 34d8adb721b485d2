"""Run folders as a report reads them: settings with their runs, scores and curves, and what could not be used."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastlsr.config import Config, Train, load
from fastlsr.cores import cores
from fastlsr.errors import InputError
from fastlsr.files import is_in_use
from fastlsr.labels.methods import make_plan
from fastlsr.labels.plan import Plan
from fastlsr.logits import EvaluationLogits, read_logits
from fastlsr.runs import (
    KINDS,
    MARKS,
    Kind,
    Row,
    RunFolder,
    Summary,
    best_key,
    best_of,
    check_best_by,
    has_begun,
    is_whole,
    keys,
    runs_below,
)
from fastlsr.scores import SCORES, Predictions, nll, reliability, risk_by_percent, temperature_scaled
from fastlsr.trials import REPEATS, Setting, Trial, ordered, read_trial, setting_labels, settings_of, varying

SCALED = "scaled/"  # in front of a score's name: after temperature scaling
TEMPERATURE = "temperature"  # a run's figure: the mean of the two that were fitted, each on a half
UNFINISHED = ("running", "stopped")  # what `SetAside` calls a run that may still finish

_OF_ROWS = ("top1", "top5", "nll", "ece")  # figures that a row has, of the logits as they were before float16
_FILES = (*MARKS, "config.yaml", "summary.json")  # that a report reads, or a run replaces
_MOST_THREADS = 8  # each holds some float32 copies of a run's logits: 200 MB for one of ImageNet's
_SOURCES = ("train_data", "test_data", "teacher")  # of the digests in `Trial.data` here
_SOURCES_WITH_VAL = ("train_data", "val_data", "test_data", "teacher")


@dataclass(frozen=True)
class ReportedRun:
    """One finished run.

    Attributes:
        trial: its options, summary and folder; its `data` has the teacher's digest as a third one where there is one.
        rows: of its epochs.
        figures: of the last and of the best epoch: "top1", "top5" and the names of `scores.SCORES`, of these also with
            `SCALED` in front, and `TEMPERATURE`. What needs logits is missing where the run kept none. They are of the
            test split: a run that `selects_on_val` has none of an epoch whose weights it did not keep to the end.
        hours: that its epochs took.
        reliability: float64[3, 15] of the last epoch, as `scores.reliability`; None without logits.
        risk: float64[100], of the last epoch, as `scores.risk_by_percent`; None without logits.
    """

    trial: Trial
    rows: Sequence[Row]
    figures: dict[Kind, dict[str, float]]
    hours: float
    reliability: np.ndarray | None
    risk: np.ndarray | None

    @property
    def repeat(self) -> tuple[int, int]:
        """(seed, fold): runs of two settings that share it saw the same images in the same order."""
        return self.trial.config.train.seed, self.trial.config.data.fold


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

    def numbers(self, kind: Kind, figure: str) -> list[float]:
        """The figure, a key of `ReportedRun.figures`, of each run that has it."""
        return [run.figures[kind][figure] for run in self.runs if figure in run.figures[kind]]


@dataclass(frozen=True)
class SetAside:
    """A folder that is not in the tables, or only in part of them.

    Attributes:
        path: the folder.
        what: "broken" (unreadable), "mixed" (its files are not of one run), "running", "stopped", "copy" (of another
            folder's run), "no run", or "incomplete" (in the tables, but not with all figures).
        reason: a line.
    """

    path: Path
    what: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """All that a report shows.

    Attributes:
        settings: methods in the order in which their first runs were given, those of one by their options.
        aside: folders that are not, or not wholly, in the tables.
        common: `section.key` to value of the options that all settings share.
        varying: `section.key` names in which settings differ.
    """

    settings: tuple[ReportedSetting, ...]
    aside: tuple[SetAside, ...]
    common: dict[str, object]
    varying: tuple[str, ...]


def load_plugins_of(folders: Iterable[Path]) -> None:
    """Loads the runs' plugins, before threads read what they register; one that fails is reported with its run."""
    for folder in folders:
        with contextlib.suppress(InputError, OSError, UnicodeDecodeError):
            if "\nplugin:" in (folder / "config.yaml").read_text(encoding="utf-8"):
                RunFolder(folder).read_config()


def collect(paths: Sequence[Path], *, only: Sequence[str] = (), unfinished: bool = False) -> Collection:
    """What the folders hold; what an unchanged folder gave before is not computed again.

    Args:
        paths: run folders, and folders of run folders.
        only: options that a finished run must have, as "data.dataset=digits".
        unfinished: whether runs may still finish, so that there need be no finished one yet.

    Raises:
        InputError: if a path does not exist, there is neither a finished nor an unfinished run among them, or no
            finished one has the options.
    """
    folders = list({folder.resolve(): folder for path in paths for folder in runs_below(path)}.values())
    load_plugins_of(folders)
    with ThreadPoolExecutor(min(cores(), _MOST_THREADS)) as pool:
        readings = list(pool.map(_look_at, folders))
    runs = {run.trial.folder.path: run for run, _ in readings if run}
    aside = [each for _, found in readings for each in found]
    if not (runs or unfinished or any(each.what in UNFINISHED for each in aside)):
        first = f" ({aside[0].path}: {aside[0].what}, {aside[0].reason})" if aside else ""
        raise InputError(f"there is no run in {', '.join(map(str, paths))}{first}")
    if only:
        chosen = choose(runs, only)
        if runs and not chosen:
            raise InputError(f"--only {' '.join(only)}: none of {len(runs)} runs has it")
        runs = chosen
    settings = settings_of(run.trial for run in runs.values())
    settings = [settings[at] for at in ordered([setting.trials[0].config for setting in settings])]
    aside += [
        SetAside(copy.folder.path, "copy", f"its options, seed and data are those of {_twin(copy, setting)}")
        for setting in settings
        for copy in setting.copies
    ]
    differing = tuple(varying(settings))
    options = [setting.trials[0].config.decisive() for setting in settings]
    alike = set.intersection(*(set(each.items()) for each in options)) if options else set()
    common = {key: value for key, value in (options[0] if options else {}).items()
              if (key, value) in alike and key not in REPEATS}  # fmt: skip
    return Collection(tuple(_reported(settings, runs)), tuple(aside), common, differing)


def choose(runs: Mapping[Path, ReportedRun], only: Sequence[str]) -> dict[Path, ReportedRun]:
    """The runs that have all of the options `only`, "section.key=value".

    Raises:
        InputError: for an option that there is not, or a value that it does not take.
    """
    if wrong := [each for each in only if "=" not in each]:
        raise InputError(f"--only {wrong[0]}: expected KEY=VALUE, as data.dataset=digits")
    wanted = {key: load(overrides={key: text}).flat()[key] for key, _, text in (each.partition("=") for each in only)}
    return {path: run for path, run in runs.items() if wanted.items() <= run.trial.config.flat().items()}


def _twin(copy: Trial, setting: Setting) -> Path:
    repeat = copy.config.train.seed, copy.config.data.fold
    return next(t.folder.path for t in setting.trials if (t.config.train.seed, t.config.data.fold) == repeat)


def _reported(settings: Sequence[Setting], runs: Mapping[Path, ReportedRun]) -> Iterator[ReportedSetting]:
    for label, setting in zip(_labels(settings), settings, strict=True):
        repeats = sorted((runs[trial.folder.path] for trial in setting.trials), key=lambda run: run.repeat)
        config = repeats[0].trial.config
        yield ReportedSetting(label, config, make_plan(config.method, config.train.epochs), tuple(repeats))


def _labels(settings: Sequence[Setting]) -> list[str]:
    """A label of each setting; those of equal options on other data, or with another teacher, show their digests."""
    names = setting_labels([setting.trials[0].config for setting in settings])
    labels = []
    for name, setting in zip(names, settings, strict=True):
        same = [other.trials[0].data for other, its in zip(settings, names, strict=True) if its == name]
        sources = _SOURCES_WITH_VAL if setting.trials[0].config.data.selects_on_val else _SOURCES
        digests = itertools.zip_longest(sources, setting.trials[0].data, *same, fillvalue="")
        shown = [f" {name}={own[:6] or 'unknown'}" for name, own, *others in digests if set(others) != {own}]
        labels.append(name + "".join(shown))
    return labels


def _look_at(path: Path) -> tuple[ReportedRun | None, list[SetAside]]:
    """(the finished run, what is wrong with the folder) of one folder."""
    run, what, reason = _read(path, _stamp(path))
    if not run and path.is_dir() and is_in_use(path):
        what = "running"
    return run, [SetAside(path, what, reason)] if what else []


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of each file of a run that a report may read; equal as long as nothing was written."""
    stamp = []
    logits = [RunFolder(path).logits(kind, at_end=at_end) for kind in KINDS for at_end in (False, True)]
    for file in (*(path / name for name in _FILES), *logits):
        with contextlib.suppress(OSError):  # it is not there
            state = file.stat()
            stamp.append((file.name, state.st_mtime_ns, state.st_size))
    return tuple(stamp)


@functools.lru_cache(maxsize=10_000)
def _read(path: Path, stamp: object) -> tuple[ReportedRun | None, str, str]:
    """(the finished run, what is wrong, why) of the folder in the state of its files that `stamp` tells from others."""
    if not path.is_dir():
        return None, "no run", "it is a file"
    if not os.access(path, os.R_OK | os.X_OK):
        return None, "broken", "it cannot be read"
    if not has_begun(path):
        return None, "no run", "it has none of a run's files"
    folder = RunFolder(path)
    try:
        trial = read_trial(folder)
        plan = make_plan(trial.config.method, trial.config.train.epochs)
        check_best_by(trial.config.train)
        rows = folder.read_rows() if trial.summary or (path / "metrics.jsonl").exists() else []
    except InputError as error:
        return None, "broken", str(error)
    if trial.summary is None:
        return None, "stopped", f"after {len(rows)} of {plan.epochs} epochs"
    if problem := _misfit(rows, trial.summary, trial.config.train, plan):
        return None, "mixed", problem
    teacher = folder.read_environment().get("teacher")
    return _finished(replace(trial, data=(*trial.data, *([teacher] if teacher else []))), rows)


def _misfit(rows: Sequence[Row], summary: Summary, train: Train, plan: Plan) -> str:
    """In which way a finished run's rows, summary and options are not of one run; "" if they are."""
    epochs = [row.get("epoch") for row in rows]
    missing = f"metrics.jsonl does not have the rows of the {plan.epochs} epochs that config.yaml requests"
    if not rows or epochs != list(range(1, min(len(rows), plan.epochs) + 1)):
        return missing
    key = best_key(rows[0], train.best_by)
    if any(not _is_finite(row.get(key)) for row in rows):
        return f"metrics.jsonl has rows without {key}"
    if not is_whole(rows, train, epochs=plan.epochs, last_phase=plan.at(plan.epochs - 1).first):
        return missing
    if odd := [key for row in rows for key in keys() if not isinstance(row.get(key), int | float | None)]:
        return f"metrics.jsonl has a {odd[0]} that is no number"
    expected: dict[Kind, Row] = {"last": rows[-1], "best": best_of(rows, train.best_by)}
    for kind, row in expected.items():
        if json.dumps(row, sort_keys=True) != json.dumps(summary[kind], sort_keys=True):  # texts, as NaN is not itself
            return f"the {kind} row of summary.json is not that of metrics.jsonl"
    return ""


def _finished(trial: Trial, rows: Sequence[Row]) -> tuple[ReportedRun | None, str, str]:
    """As `_read`, of a finished run whose rows fit."""
    assert trial.summary is not None
    of_kind: dict[Kind, Row] = {"last": trial.summary["last"], "best": trial.summary["best"]}
    requested = trial.config.run.logits
    scored: dict[int, _Scored] = {}  # by epoch, since the last one may be the best
    what, reasons = "", list[str]()
    judged = {kind: row for kind, row in of_kind.items() if trial.was_judged(kind)}
    for kind, row in judged.items():
        if requested not in (kind, "both") or row["epoch"] in scored:
            continue
        try:
            scored[row["epoch"]] = _scored(trial, kind, row)
        except _OfAnotherRun as error:
            what, reasons = "mixed", [*reasons, str(error)]
        except InputError as error:
            what, reasons = what or "incomplete", [*reasons, str(error)]
    missing = [kind for kind, row in judged.items() if row["epoch"] not in scored]
    if missing and not reasons:
        what, reasons = "incomplete", [f"run.logits={requested} kept no logits of the {' and '.join(missing)} epoch"]
    figures = {kind: _figures_of(row, scored.get(row["epoch"])) if kind in judged else {}
               for kind, row in of_kind.items()}  # fmt: skip
    last = scored.get(of_kind["last"]["epoch"])
    hours = sum(row.get("seconds") or 0.0 for row in rows) / 3600
    curves = (last.reliability, last.risk) if last else (None, None)
    return ReportedRun(trial, rows, figures, hours, *curves), what, "; ".join(reasons)


class _OfAnotherRun(InputError):
    """A file is whole, but does not belong to the others."""


@dataclass(frozen=True)
class _Scored:
    figures: dict[str, float]
    reliability: np.ndarray
    risk: np.ndarray


def _scored(trial: Trial, kind: Kind, row: Row) -> _Scored:
    """What the kept logits of a row's epoch give.

    Raises:
        InputError: if there are none, or they are damaged.
        _OfAnotherRun: if they are not of this row.
    """
    path = trial.folder.logits(kind, at_end=trial.config.data.selects_on_val)
    kept = read_logits(path)
    predictions = Predictions(kept.logits.astype(np.float32), kept.labels)  # numpy is slow in float16
    if problem := _misfit_of_logits(kept, predictions, row, trial):
        raise _OfAnotherRun(f"logits/{path.name} {problem}; it is not used")
    scaled, temperatures = temperature_scaled(predictions.logits, kept.labels, kept.index)
    figures = {name: score.value(predictions) for name, score in SCORES.items()}
    figures |= {SCALED + name: score.value(scaled) for name, score in SCORES.items()}
    figures[TEMPERATURE] = sum(temperatures) / len(temperatures)
    risk = risk_by_percent(predictions.log_confidence, predictions.correct)
    return _Scored(figures, reliability(predictions), risk)


def _misfit_of_logits(kept: EvaluationLogits, predictions: Predictions, row: Row, trial: Trial) -> str:
    """Why kept logits are not those of the row's epoch; "" if they are."""
    if kept.epoch != row["epoch"]:
        return f"is of epoch {kept.epoch}, its row of epoch {row['epoch']}"
    at = 2 if trial.config.data.selects_on_val else 1
    if trial.data and kept.data not in trial.data[at : at + 1]:
        return f"is of other data ({kept.data[:6]}) than environment.json has"
    logged, found = row.get("test/nll"), nll(predictions)
    if isinstance(logged, int | float) and abs(found - logged) > 0.01 + 0.02 * logged:  # float16 has 3 digits
        return f"has NLL {found:.4f}, its row {logged:.4f}"
    return ""


def _figures_of(row: Row, scored: _Scored | None) -> dict[str, float]:
    """The figures of a row, and those of its epoch's logits that it lacks."""
    own = {name: row[f"test/{name}"] for name in _OF_ROWS if _is_finite(row.get(f"test/{name}"))}
    if scored:
        count = scored.reliability[0].sum()
        own |= {name: _as_share(own[name], count) for name in ("top1", "top5") if name in own}
    return {**(scored.figures if scored else {}), **own}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _as_share(percent: float, count: float) -> float:
    """The percentage without the float32 rounding of a row, which would break ties of exact tests."""
    exact = 100 * round(percent / 100 * count) / count
    return exact if math.isclose(exact, percent, rel_tol=1e-6) else percent
