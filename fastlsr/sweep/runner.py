"""The trials of a sweep: what they are, their processes, and what came out of them."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fastlsr.cli import read_arguments
from fastlsr.config import Config, differences, load
from fastlsr.data.manifest import digest_of
from fastlsr.data.splits import data_digests
from fastlsr.errors import InputError
from fastlsr.labels.methods import make_plan
from fastlsr.sweep.file import Sweep, Values

REPEATS = ("train.seed", "data.fold")  # trials that differ in nothing else are repeats of one setting
# The keys of a run's rows (`training.run_epoch`): what a sweep's metric can be.
METRICS = (
    "epoch", "phase", "lr", "train/loss", "train/top1", "test/loss", "test/nll", "test/top1", "test/top5", "test/ece",
    "images_per_second", "data_wait", "target_entropy", "seconds", "peak_memory_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One trial: its 1-based number, its values, its command, and the configuration that the trainer makes of it."""

    number: int
    values: Values
    command: list[str]
    config: Config

    @property
    def folder(self) -> Path:
        """The folder of its run."""
        return Path(self.config.run.dir) / self.config.run_name()

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items())


@dataclass(frozen=True)
class Refused:
    """A trial that the trainer would refuse: its number, its values, and the line that it would say."""

    number: int
    values: Values
    line: str


@dataclass(frozen=True)
class Setting:
    """The trials that are repeats of each other, and the summaries of those that are finished."""

    trials: list[Trial]
    summaries: list[dict[str, Any]]

    def numbers(self, kind: str, metric: str) -> list[float]:
        """The metric in the rows `kind` ("last" or "best") of all finished trials that have it."""
        return [summary[kind][metric] for summary in self.summaries if summary[kind].get(metric) is not None]

    def has_all_folds(self) -> bool:
        """Whether each seed's trials hold out every fold once; also where nothing is held out."""
        folds: dict[int, list[int]] = {}
        for trial in self.trials:
            folds.setdefault(trial.config.train.seed, []).append(trial.config.data.fold)
        count = self.trials[0].config.data.folds
        return not count or all(sorted(each) == list(range(count)) for each in folds.values())


def refuse_metric(sweep: Sweep) -> None:
    """None.

    Raises:
        InputError: if the sweep's metric is none that a run has (names the nearest).
    """
    _, metric = row_and_metric(sweep)
    if metric not in METRICS:
        close = difflib.get_close_matches(metric, METRICS, 1)
        hint = (
            f"did you mean {sweep.metric.removesuffix(metric)}{close[0]}?"
            if close
            else f"there are {', '.join(METRICS)}"
        )
        raise InputError(f"metric: {sweep.metric} is none of a run's; {hint}")


def plan(sweep: Sweep, count: int | None) -> tuple[list[Trial], list[Refused]]:
    """(trials, refused): the first `count` trials, or all, each run only once, and those that cannot run.

    Raises:
        InputError: if none can run, or two of different options would be trained in one folder.
    """
    trials: dict[Path, Trial] = {}
    refused = []
    for number, values in enumerate(sweep.trials(count), start=1):
        command = sweep.command_of(values)
        try:
            trial = Trial(number, values, command, trainer_config(command))
        except InputError as error:
            refused.append(Refused(number, values, str(error)))
            continue
        other = trials.setdefault(trial.folder, trial)
        changed = differences(trial.config, other.config)
        if changed:
            raise InputError(
                f"trials {other.number} and {number} differ in {', '.join(changed)} and share the folder "
                f"{trial.folder}; leave run.name out"
            )
    if not trials:
        raise InputError(refused[0].line)
    return list(trials.values()), refused


def trainer_config(command: Sequence[str]) -> Config:
    """The configuration that the trainer in a command makes of its words.

    Raises:
        InputError: if no trainer is in it, or it would refuse them.
    """
    starts = [at + 1 for at, word in enumerate(command) if word == "fastlsr.train" or word.endswith("fastlsr/train.py")]
    if not starts:
        raise InputError(f"the command does not start fastlsr.train: {shlex.join(command)}")
    path, overrides, _ = read_arguments(command[starts[0] :])
    config = load(path, overrides)
    make_plan(config.method, config.train.epochs)
    return config


def finished(trial: Trial) -> dict[str, Any] | None:
    """The summary of a trial's run, if the folder holds a finished one of these very options, data and teacher."""
    try:
        names = ("summary.json", "environment.json")
        summary, made_of = (json.loads((trial.folder / name).read_text(encoding="utf-8")) for name in names)
        same = not differences(trial.config, load(trial.folder / "config.yaml"))
        same = same and data_digests(trial.config) == made_of["data"]
        same = same and (not made_of["teacher"] or _digest(trial.config.method.teacher) == made_of["teacher"])
    except (OSError, ValueError, InputError):
        return None
    return summary if summary["finished"] and same else None


@functools.cache
def _digest(teacher: str) -> str:
    return digest_of(Path(teacher))  # of every trial: read once


class Runner:
    """Trials on their way: what waits, what runs, what came out.

    Attributes:
        summaries: trial number to the summary of its finished run.
        failed: numbers of the trials that failed.
    """

    def __init__(self, sweep: Sweep, trials: Sequence[Trial], folder: Path, *, jobs: int, lock: int):
        self.summaries: dict[int, dict[str, Any]] = {}
        self.failed: list[int] = []
        self._sweep, self._folder, self._jobs, self._lock = sweep, folder, min(jobs, len(trials)), lock
        self._waiting = deque(trials)
        self._last = trials[-1].number
        self._running: set[asyncio.subprocess.Process] = set()
        self._signal = 0

    async def run(self) -> int:
        """The signal that ended it, or 0; runs all trials, `jobs` at a time."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        devices = cuda_devices() if self._jobs > 1 else []
        await asyncio.gather(*(self._work(slot, devices) for slot in range(self._jobs)))
        return self._signal

    def _stop(self, number: int) -> None:
        self._signal = self._signal or number
        for process in self._running:  # each is a session of its own, so that a terminal's Ctrl-C reaches it once
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _work(self, slot: int, devices: Sequence[str]) -> None:
        while self._waiting and not self._signal:
            trial = self._waiting.popleft()
            summary = finished(trial)
            if summary:
                self._keep(trial, summary, "was finished before")
                continue
            log = self._folder / f"trial_{trial.number:03d}.log"
            self._say(trial, f"started: {trial}, log {log}")
            start = time.monotonic()
            code = await self._run(trial, log, environment(trial.config, slot, self._jobs, devices))
            summary = finished(trial)
            if summary:
                self._keep(trial, summary, f"finished after {time.monotonic() - start:.0f} s")
            elif self._signal:
                self._say(trial, "stopped; the same sweep goes on with it")
            else:
                self.failed.append(trial.number)
                self._say(trial, f"failed with {_code(code)}; the last line of {log}: {_last_line(log)}")

    async def _run(self, trial: Trial, log: Path, variables: dict[str, str]) -> int:
        """The exit code of a trial's process."""
        with open(log, "ab") as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *trial.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=variables,
                    start_new_session=True,
                    pass_fds=(self._lock,),
                )
            except OSError as error:
                output.write(f"{error}\n".encode())
                return 127
        self._running.add(process)
        if self._signal:  # it came while the process was being started
            process.send_signal(self._signal)
        code = await process.wait()
        self._running.remove(process)
        return code

    def _keep(self, trial: Trial, summary: dict[str, Any], what: str) -> None:
        self.summaries[trial.number] = summary
        kind, metric = row_and_metric(self._sweep)
        named = [f"{row} {mean_and_std([summary[row][metric]])}" for row in ("last", "best")
                 if summary[row].get(metric) is not None]  # fmt: skip
        self._say(trial, f"{what}: {metric} {', '.join(named) or 'no number'}, {trial.folder}")

    def _say(self, trial: Trial, text: str) -> None:
        print(f"trial {trial.number}/{self._last} {text}", flush=True)


def cuda_devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    import torch  # takes seconds, and only several jobs ask

    return [str(number) for number in range(torch.cuda.device_count())]


def environment(config: Config, slot: int, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    """A trial's environment variables: the sweep's, this Python first in PATH, and its share where others run, too.

    Args:
        config: the trial's; one that names its CUDA device sees all of them.
        slot: which of the `jobs` simultaneous trials it is, from 0.
        devices: CUDA devices, shared out in turn.
    """
    variables = dict(os.environ)
    variables["PATH"] = os.pathsep.join(filter(None, (str(Path(sys.executable).parent), variables.get("PATH"))))
    variables.setdefault("PYTHONUNBUFFERED", "1")  # so that the log can be followed, and has its end if it is killed
    if jobs > 1:
        share = str(max(1, len(os.sched_getaffinity(0)) // jobs))
        variables.setdefault("OMP_NUM_THREADS", share)
        variables.setdefault("NUMBA_NUM_THREADS", share)
        if devices and config.train.device in ("auto", "cuda"):
            variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return variables


def _code(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(empty)")


def row_and_metric(sweep: Sweep) -> tuple[str, str]:
    """("last" or "best", key of a row) that the sweep's metric means; W&B's summary names them best/test/top1."""
    kind, _, key = sweep.metric.partition("/")
    return (kind, key) if kind in ("last", "best") else ("last", sweep.metric)


def settings_of(trials: Sequence[Trial], summaries: dict[int, dict[str, Any]]) -> list[Setting]:
    """The trials, in order, grouped into those that differ in seed and fold only."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        key = json.dumps({name: value for name, value in trial.values.items() if name not in REPEATS}, default=str)
        groups.setdefault(key, []).append(trial)
    return [
        Setting(group, [summaries[trial.number] for trial in group if trial.number in summaries])
        for group in groups.values()
    ]


def ranked(sweep: Sweep, settings: Sequence[Setting]) -> list[Setting]:
    """The settings from the best mean of the sweep's metric to the worst; last those without any number."""
    kind, metric = row_and_metric(sweep)
    sign = -1 if sweep.maximize else 1
    with_numbers = [setting for setting in settings if setting.numbers(kind, metric)]
    without = [setting for setting in settings if not setting.numbers(kind, metric)]
    return sorted(with_numbers, key=lambda one: sign * statistics.fmean(one.numbers(kind, metric))) + without


def mean_and_std(numbers: Sequence[float]) -> str:
    """As 98.05 ± 0.31, the standard deviation with n - 1; without it for a single number."""
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):#.4g}".rstrip(".")
    return f"{mean} ± {statistics.stdev(numbers):#.2g}".rstrip(".") if len(numbers) > 1 else mean


def results_table(sweep: Sweep, settings: Sequence[Setting]) -> Table:
    """A row a setting: the values that vary, how many trials finished, and mean ± std of the metric, best first."""
    _, metric = row_and_metric(sweep)
    trials = [trial for setting in settings for trial in setting.trials]
    varying = [name for name in trials[0].values if name not in REPEATS
               and len({str(trial.values[name]) for trial in trials}) > 1]  # fmt: skip
    table = Table()
    for name in varying:
        table.add_column(name)
    for name in ("n", "last", "best"):
        table.add_column(name, justify="right")
    for setting in ranked(sweep, settings):
        done, planned = len(setting.summaries), len(setting.trials)
        values = [str(setting.trials[0].values[name]) for name in varying]
        numbers = [mean_and_std(setting.numbers(kind, metric)) for kind in ("last", "best")]
        table.add_row(*values, str(done) if done == planned else f"{done} of {planned}", *numbers)
    return table


def legend(sweep: Sweep) -> str:
    """What the numbers of `results_table` are."""
    _, metric = row_and_metric(sweep)
    return (
        f"{metric}, mean ± std over {' and '.join(REPEATS)}; last: of the last epoch; best: of the epoch with the "
        "highest test top-1, as read on the evaluation split"
    )


def selection(sweep: Sweep, settings: Sequence[Setting]) -> str:
    """The setting with the best mean over its folds and seeds, as a line and as the command that trains with it.

    Raises:
        InputError: if no setting has the metric of all its trials, and of every fold.
    """
    kind, metric = row_and_metric(sweep)
    whole = [setting for setting in settings
             if len(setting.numbers(kind, metric)) == len(setting.trials) and setting.has_all_folds()]  # fmt: skip
    if not whole:
        raise InputError(f"--select: no setting has {metric} of all its trials and folds")
    best = ranked(sweep, whole)[0]
    numbers = best.numbers(kind, metric)
    lines = []
    if len(whole) < len(settings):
        lines.append(f"warning: {len(settings) - len(whole)} settings lack trials or folds and were not considered")
    if not best.trials[0].config.data.folds:
        lines.append("warning: without data.folds the selection is made on the evaluation split itself")
    goal = "highest" if sweep.maximize else "lowest"
    lines.append(f"selected: {goal} mean {metric} ({kind}) {mean_and_std(numbers)}, n = {len(numbers)}")
    return "\n".join([*lines, shlex.join(command_without_folds(sweep, best.trials[0]))])


def command_without_folds(sweep: Sweep, trial: Trial) -> list[str]:
    """The command of a trial's setting on the whole training split, with the default seed."""
    dropped = {*REPEATS, "data.folds", "run.name"}
    kept = {name: value for name, value in trial.values.items() if name not in dropped}
    words = [word for word in sweep.command_of(kept) if not word.startswith(tuple(f"--{name}=" for name in dropped))]
    words = words[1:] if words[0] == "/usr/bin/env" else words
    config = trainer_config(words)
    return words + [f"--data.{name}=0" for name in ("folds", "fold") if getattr(config.data, name)]
