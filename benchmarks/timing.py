"""Interleaved timing, ratios with their spread, and the output of a benchmark.

A benchmark is a script that prints a table and, on its last line, one JSON object: each ratio under its key, the
lowest and highest of each ratio over the rounds under `spread`, the required ratios under `bars`, and where it ran.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fastlsr.cores import cores

PACKAGES = ("torch", "torchvision", "ffcv", "numba", "numpy", "timm", "pillow", "opencv-python")
TICKS = os.sysconf("SC_CLK_TCK")  # a second of /proc's processor times


def descendants(process: int) -> list[int]:
    """Ids of the processes that a process has started, and of those that they have, parents first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = list(parents.get(process, []))
    for each in found:
        found += parents.get(each, [])
    return found


def end_with_descendants(number: int, _frame: FrameType | None) -> None:
    """Ends this process, after those that it has started, also halted ones and those in sessions of their own.

    By an exception, so that temporary folders are removed.
    """
    for process in descendants(os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    sys.exit(128 + number)


# Each benchmark imports this file. A test that imports one keeps its own handler.
if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:
    signal.signal(signal.SIGTERM, end_with_descendants)


@dataclass(frozen=True)
class Bar:
    """The required value of a ratio: at least or at most `limit`."""

    limit: float
    at_most: bool = False

    def met(self, value: float) -> bool:
        """Whether the value meets the bar."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


def at_least(limit: float) -> Bar:
    """A lower bound."""
    return Bar(limit)


def at_most(limit: float) -> Bar:
    """An upper bound."""
    return Bar(limit, at_most=True)


def in_turns(
    contenders: Mapping[str, Callable[[], float | None]], *, rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """Contender -> seconds of each round. A round runs each contender once; the first `warm` rounds are not counted.

    The order rotates by one each round and is reversed in every other, so that no contender always follows the same
    one. If a contender returns a number, this is its time.
    """
    names, seconds = list(contenders), {name: [] for name in contenders}
    for number in range(warm + rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            own = contenders[name]()
            taken = time.perf_counter() - started if own is None else own
            if number >= warm:
                seconds[name].append(taken)
    return seconds


@dataclass
class Report:
    """The figures of one benchmark.

    Args:
        bars: key of a ratio -> its required value.
        work: the size of the benchmark, such as {"images": 1000}, for the JSON object.
    """

    bars: Mapping[str, Bar]
    work: dict[str, object] = field(default_factory=dict)
    _ratios: dict[str, float | None] = field(default_factory=dict)
    _spread: dict[str, list[float]] = field(default_factory=dict)

    def table(self, title: str, seconds: Mapping[str, list[float]], *, unit: str, units: float = 1.0) -> None:
        """Prints each contender's median and spread, as seconds and as `units` (such as images) a second."""
        print(f"\n{title}")
        for name, taken in seconds.items():
            median = statistics.median(taken)
            print(f"  {name:28} {median:9.4f} s ({min(taken):.4f} to {max(taken):.4f}, n = {len(taken)})"
                  f" {units / median:12,.0f} {unit}/s")  # fmt: skip

    def ratio(self, key: str, over: list[float], under: list[float]) -> None:
        """Adds median(over) / median(under), with the lowest and highest ratio of any round."""
        rounds = [a / b for a, b in zip(over, under, strict=True)]
        self.value(key, statistics.median(over) / statistics.median(under), rounds=rounds)

    def value(self, key: str, value: float | None, *, rounds: Sequence[float] = ()) -> None:
        """Adds a figure, with its lowest and highest value over the `rounds`; None if it was not measured."""
        self._ratios[key] = None if value is None else round(value, 4)
        if rounds:
            self._spread[key] = [round(min(rounds), 4), round(max(rounds), 4)]

    def finish(self) -> None:
        """Prints each figure with its bar, and the JSON object."""
        print()
        for key, value in self._ratios.items():
            bar = self.bars.get(key)
            spread = "({} to {})".format(*self._spread[key]) if key in self._spread else ""
            verdict = "" if bar is None or value is None else f"bar {bar}: {'met' if bar.met(value) else 'NOT met'}"
            print(f"  {key:24} {'not measured' if value is None else value!s:12} {spread:22} {verdict}")
        bars = {key: str(bar) for key, bar in self.bars.items()}
        print(json.dumps({**self._ratios, "spread": self._spread, "bars": bars, "work": self.work, **where()}))


def busy_seconds() -> float:
    """Seconds of all cores' time in which they worked, since the machine was started."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS


def print_tables(*tables: Iterable[Mapping[str, str]]) -> None:
    """Prints tables in Markdown, given as rows of column -> text, each row as it comes; and all in the JSON object."""
    printed = []
    for rows in tables:
        printed.append([])
        for row in rows:
            if not printed[-1]:
                print(f"\n| {' | '.join(row)} |\n|{' ---: |' * len(row)}")
            print(f"| {' | '.join(row.values())} |", flush=True)
            printed[-1].append(dict(row))
    print(f"\n{json.dumps({'tables': printed, **where()})}", flush=True)


def where() -> dict[str, object]:
    """Device, versions and commit."""
    folder = Path(__file__).parents[1]
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    versions = {name: _version(name) for name in PACKAGES}
    return {"device": f"{_processor()}, {cores()} cores", "python": platform.python_version(), "versions": versions,
            "commit": commit or "none"}  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # opencv comes under several names, for one
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
