"""What came out of a sweep: its settings, ranked by its metric, as a table, and the command of the best one."""

from __future__ import annotations

import difflib
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rich.markup import escape
from rich.table import Table

from fastlsr.errors import InputError
from fastlsr.metrics import METRICS
from fastlsr.runs import Summary, best_meaning, keys
from fastlsr.sweep.file import Sweep
from fastlsr.sweep.plan import PlannedTrial, trainer_config
from fastlsr.trials import REPEATS, Setting, Trial, mean_and_std, settings_of

_NEAR = 0.8  # of `difflib`: test/acc is not near test/ece
_SPLITS = {"": "test", "eval": "test", "valid": "val", "validation": "val", "dev": "val", "training": "train"}
# What else the metrics are called, in lower case and without - _ and @.
_ALIASES = {
    **dict.fromkeys(("acc", "accuracy", "acc1", "top1acc", "top1accuracy"), "top1"),
    **dict.fromkeys(("acc5", "top5acc", "top5accuracy"), "top5"),
    **dict.fromkeys(("crossentropy", "ce", "logloss"), "nll"),
    **dict.fromkeys(("calibrationerror", "calibration"), "ece"),
}


class Outcome(NamedTuple):
    """A setting of a sweep, and the first of its planned trials, whose values and command stand for all."""

    setting: Setting
    first: PlannedTrial


def outcomes_of(planned: Sequence[PlannedTrial], summaries: Mapping[int, Summary]) -> list[Outcome]:
    """The settings of planned trials, in order, with the summaries, by trial number, of those that are finished."""
    settings = settings_of(Trial(each.config, summaries.get(each.number), each.folder) for each in planned)
    by_folder = {each.folder: each for each in planned}
    return [Outcome(setting, by_folder[setting.trials[0].folder]) for setting in settings]


def metric_of(sweep: Sweep) -> tuple[Literal["last", "best"], str]:
    """(row, key) that the sweep's metric means: best/test/top1, as in W&B's summary, or test/top1 of the last row."""
    row, _, key = sweep.metric.partition("/")
    if row == "best":
        return "best", key
    return "last", key if row == "last" else sweep.metric


def check_metric(sweep: Sweep) -> None:
    """Checks that the sweep's metric is one that runs have.

    Raises:
        InputError: if it is not; names the nearest, if better is the same direction for both.
    """
    _, key = metric_of(sweep)
    if key not in keys():
        prefix, near = sweep.metric.removesuffix(key), _near_key(key, maximize=sweep.maximize)
        hint = f"did you mean {prefix}{near}?" if near else f"there are {', '.join(keys())}"
        raise InputError(f"metric: {sweep.metric} is none of a run's; {hint}")


def _near_key(key: str, *, maximize: bool) -> str:
    """The column that a name which is none probably means, or ""; never one of which the other direction is better."""
    split, _, name = re.sub(r"^(train|test|eval|val|valid)_", r"\1/", key).rpartition("/")
    split, name = _SPLITS.get(split.lower(), split), _ALIASES.get(re.sub(r"[-_@ ]", "", name.lower()), name)
    higher = {"images_per_second", *(metric.name for metric in METRICS.values() if metric.best is max)}
    same = [each for each in keys() if (each.rpartition("/")[2] in higher) == maximize]
    close = difflib.get_close_matches(f"{split}/{name}" if split else name, same, 1, cutoff=_NEAR)
    return close[0] if close else ""


def check_metric_is_evaluated(sweep: Sweep, planned: Sequence[PlannedTrial]) -> None:
    """Checks that the trials evaluate the split that the sweep's metric is of.

    Raises:
        InputError: if a metric of val/ is requested and a trial has no validation split.
    """
    _, key = metric_of(sweep)
    if key.startswith("val/") and not all(trial.config.data.selects_on_val for trial in planned):
        raise InputError(f"metric: {sweep.metric} is one of runs with data.val=val, which not all trials are")


def ranked(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes from the best mean of the sweep's metric to the worst, then those without any number."""
    row, key = metric_of(sweep)
    sign = -1 if sweep.maximize else 1

    def rank(outcome: Outcome) -> tuple[bool, float]:
        numbers = outcome.setting.numbers(row, key)
        return not numbers, sign * statistics.fmean(numbers) if numbers else 0.0

    return sorted(outcomes, key=rank)


def sweep_table(sweep: Sweep, outcomes: Sequence[Outcome]) -> Table:
    """A row for each setting: the values that vary, how many trials finished, mean ± std of the metric; best first."""
    _, key = metric_of(sweep)
    values = [outcome.first.values for outcome in outcomes]
    varying = [name for name in values[0] if name not in REPEATS and len({str(each[name]) for each in values}) > 1]
    table = Table()
    for name in varying:
        table.add_column(name)
    for name in ("n", "last", "best"):
        table.add_column(name, justify="right")
    for setting, first in ranked(sweep, outcomes):
        done, all_trials = sum(trial.summary is not None for trial in setting.trials), len(setting.trials)
        table.add_row(
            *(escape(str(first.values[name])) for name in varying),
            str(done) if done == all_trials else f"{done} of {all_trials}",
            mean_and_std(setting.numbers("last", key)),
            mean_and_std(setting.numbers("best", key)),
        )
    return table


def table_legend(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """What the numbers of `sweep_table` are."""
    _, key = metric_of(sweep)
    configs = [each.first.config for each in outcomes]
    chosen = " or ".join(sorted({best_meaning(each.train.best_by, each.data.evaluated_split) for each in configs}))
    return (
        f"{key}, mean ± std over {' and '.join(REPEATS)}; last: of the last epoch; best: of the epoch with the "
        f"{chosen}, as read on the evaluation split"
    )


def selection_text(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """The setting with the best mean over its folds and seeds, as a line and as the command that trains with it.

    Raises:
        InputError: if no setting has the metric of all its trials, and of every fold.
    """
    row, key = metric_of(sweep)
    complete = [outcome for outcome in outcomes
                if len(outcome.setting.numbers(row, key)) == len(outcome.setting.trials)
                and outcome.setting.has_all_folds()]  # fmt: skip
    if not complete:
        raise InputError(f"--select: no setting has {key} of all its trials and folds")
    best = ranked(sweep, complete)[0]
    numbers = best.setting.numbers(row, key)
    lines = []
    if len(complete) < len(outcomes):
        lines.append(f"warning: {len(outcomes) - len(complete)} settings lack trials or folds and were not considered")
    data = best.first.config.data
    if not data.folds and not data.selects_on_val:
        lines.append("warning: without data.val=val or data.folds the selection is made on the evaluation split itself")
    if data.selects_on_val and key.startswith("test/"):
        lines.append(f"warning: the selection is made on the test split; metric {key.replace('test/', 'val/')} is not")
    goal = "highest" if sweep.maximize else "lowest"
    lines.append(f"selected: {goal} mean {key} ({row}) {mean_and_std(numbers)}, n = {len(numbers)}")
    if key.startswith("val/") and (tested := best.setting.numbers(row, of_test := key.replace("val/", "test/"))):
        lines.append(f"its {of_test} ({row}), which was not selected on: {mean_and_std(tested)}, n = {len(tested)}")
    return "\n".join([*lines, shlex.join(command_without_folds(sweep, best.first))])


def command_without_folds(sweep: Sweep, trial: PlannedTrial) -> list[str]:
    """The command of a trial's setting on the whole training split, with the default seed."""
    dropped = {*REPEATS, "data.folds", "run.name"}
    kept = {name: value for name, value in trial.values.items() if name not in dropped}
    words = [word for word in sweep.command_of(kept) if not word.startswith(tuple(f"--{name}=" for name in dropped))]
    words = words[1:] if words[0] == "/usr/bin/env" else words
    config = trainer_config(words)
    words = words + [f"--data.{name}=0" for name in ("folds", "fold") if getattr(config.data, name)]
    # What was held out as a fold is trained on now; there is no validation split beside it.
    return words + ["--data.val=test"] * (trial.config.data.folds > 0 and config.data.selects_on_val)
