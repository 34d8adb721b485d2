"""What a sweep will run: its trials with their commands, configurations and folders, and which of them are finished."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastlsr.cli import read_arguments
from fastlsr.config import Config, differences, load
from fastlsr.data.manifest import digest_of
from fastlsr.data.splits import data_digests
from fastlsr.errors import InputError
from fastlsr.labels.methods import make_plan
from fastlsr.ranks import check_batch_divides
from fastlsr.runs import RunFolder, Summary, run_folder
from fastlsr.sweep.file import Sweep, Values

_NAMES = ("data.dir", "run.dir", "run.name")  # parameters that decide no number


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that can run: its 1-based number, its values, its command, and what the trainer makes of that.

    Attributes:
        same: numbers of later trials that are this very run, and are not run again.
    """

    number: int
    values: Values
    command: list[str]
    config: Config
    folder: RunFolder
    same: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items())

    @property
    def same_runs(self) -> str:
        """A line on the trials that are this very run."""
        numbers = ", ".join(map(str, self.same))
        return f"the same run as trial {self.number}, with all that its method uses: trial {numbers}"


@dataclass(frozen=True)
class RejectedTrial:
    """A trial that the trainer would reject: its number, and the line that the trainer would print."""

    number: int
    line: str


def plan_trials(sweep: Sweep, count: int | None, *, ranks: int = 1) -> tuple[list[PlannedTrial], list[RejectedTrial]]:
    """The first `count` trials, or all: those that can run, each run only once, and those that cannot.

    Args:
        ranks: of each trial.

    Raises:
        InputError: if none can run, two of different options share a folder, or two with the same options do not.
    """
    planned: dict[Path, PlannedTrial] = {}
    by_options: dict[tuple[Any, ...], PlannedTrial] = {}
    rejected = []
    for number, values in enumerate(sweep.combinations(count), start=1):
        command = by_module(sweep.command_of(values))
        try:
            config = trainer_config(command)
            check_batch_divides(config.data.batch_size, ranks)
            command = on_ranks(command, ranks)
            trial = PlannedTrial(number, values, command, config, run_folder(config))
        except InputError as error:
            rejected.append(RejectedTrial(number, str(error)))
            continue
        other = planned.setdefault(trial.folder.path, trial)
        if other is not trial:
            other.same.append(number)
        changed = differences(trial.config, other.config)
        if changed:
            raise InputError(
                f"trials {other.number} and {number} differ in {', '.join(changed)} and share the folder "
                f"{trial.folder.path}; leave run.name out"
            )
        alike = by_options.setdefault(tuple(config.decisive().items()), trial)
        if names := [name for name in _NAMES if alike.values.get(name) != values.get(name)]:
            raise InputError(
                f"trials {alike.number} and {number} differ in {' and '.join(names)} alone, which makes neither a "
                "setting nor a repeat; sweep data.dataset or train.seed instead"
            )
    if not planned:
        raise InputError(rejected[0].line)
    return list(planned.values()), rejected


def by_module(command: Sequence[str]) -> list[str]:
    """A command with `python -m fastlsr.train` for `fastlsr train`, which is the same."""
    names = [Path(word).name for word in command]
    at = next((at for at, pair in enumerate(pairwise(names)) if pair == ("fastlsr", "train")), None)
    if at is None:
        return list(command)
    python = [] if list(command[:at])[-1:] == ["-m"] else ["python", "-m"]
    return [*command[:at], *python, "fastlsr.train", *command[at + 2 :]]


def trainer_config(command: Sequence[str]) -> Config:
    """The configuration that the trainer in a command makes of its words.

    Raises:
        InputError: if there is no trainer in it, or the trainer would reject its words.
    """
    path, overrides = trainer_arguments(command)
    config = load(path, overrides)
    make_plan(config.method, config.train.epochs)
    return config


def trainer_arguments(command: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(config file or "", overrides) of the trainer in a command.

    Raises:
        InputError: if there is no trainer in it, or a word of its is no option.
    """
    starts = [at + 1 for at, word in enumerate(command) if word == "fastlsr.train" or word.endswith("fastlsr/train.py")]
    if not starts:
        raise InputError(f"the command does not start fastlsr.train: {shlex.join(command)}")
    path, overrides, _ = read_arguments(command[starts[0] :])
    return path, overrides


def on_ranks(command: Sequence[str], ranks: int) -> list[str]:
    """A command that starts the trainer by Python, by torchrun instead; one rank, or torchrun's own command, stays.

    Raises:
        InputError: if it starts it in another way.
    """
    names = [Path(word).name for word in command]
    if ranks == 1 or {"torchrun", "torch.distributed.run"} & set(names):
        return list(command)
    starts = [at for at, name in enumerate(names) if name.startswith("python")]
    if not starts:
        raise InputError(f"--devices-per-trial={ranks}: the command starts no python: {shlex.join(command)}")
    # --standalone: each trial has a free port of its own. Python's own options, such as -u, stay before it.
    trainer = next(
        at for at in range(starts[0] + 1, len(command)) if command[at] == "-m" or not command[at].startswith("-")
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*command[:trainer], *torchrun, *command[trainer:]]


def finished_run(trial: PlannedTrial) -> tuple[Summary | None, str]:
    """(summary, ""), if the folder holds a finished run of these very options, data and teacher; else (None, reason).

    The reason is "" where there is nothing to explain: the run has not begun, or is not finished.
    """
    try:
        summary = trial.folder.finished_summary()
        reason = _mismatch(trial) if summary else ""
    except (InputError, OSError) as error:  # a damaged file; a data set or a teacher that is not there
        return None, str(error)
    return (None, reason) if reason else (summary, "")


def _mismatch(trial: PlannedTrial) -> str:
    """Why the run in a trial's folder is not this trial's; "" if it is."""
    made_of = trial.folder.read_environment()
    changed = differences(trial.config, trial.folder.read_config())
    if changed:
        return f"{trial.folder.path} holds a run with other values of {', '.join(changed)}"
    if made_of.get("data") != data_digests(trial.config):
        return f"{trial.folder.path} holds a run on other data of the same name"
    teacher = made_of.get("teacher")
    if teacher and teacher != _digest_read_once(trial.config.method.teacher):
        return f"{trial.folder.path} holds a run with another teacher: {trial.config.method.teacher} has changed"
    return ""


@functools.cache
def _digest_read_once(teacher: str) -> str:
    return digest_of(Path(teacher))  # all trials have the same one: it is read once


def plan_text(planned: Sequence[PlannedTrial], rejected: Sequence[RejectedTrial]) -> str:
    """A paragraph for each trial: its values, its command, its folder, and whether it is finished."""
    lines = [f"trial {trial.number}: rejected: {trial.line}" for trial in rejected]
    for trial in planned:
        summary, _ = finished_run(trial)
        begun = "there, not known to be finished" if trial.folder.path.exists() else "to do"
        state = "finished" if summary else begun
        lines += [
            f"trial {trial.number}: {trial}",
            *([f"  {trial.same_runs}"] if trial.same else []),
            f"  {shlex.join(trial.command)}",
            f"  {trial.folder.path} ({state})",
        ]
    return "\n".join(lines)
