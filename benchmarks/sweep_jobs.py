"""How many trials an hour does a sweep finish on a CPU, by its own choice of jobs and one after the other?

    python benchmarks/sweep_jobs.py [--trials 4] [--epochs 6] [--images 6400] [--rounds 3]

`fastlsr.sweep` over seeds, ResNet-8 in batches of 128 on random images of CIFAR's shape, from its start to its end,
trials' starts and evaluations included, in turns:

    chosen      without --jobs
    in a row    --jobs 1: each trial has all cores
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml
from cifar import options, write_random
from timing import at_least, busy_seconds, in_turns, print_tables

CONTENDERS = {"chosen": [], "in a row": ["--jobs=1"]}
BAR = at_least(1.5)


def write_sweep(folder: Path, given: argparse.Namespace, number: int) -> Path:
    """The sweep's file for runs in a folder of their own."""
    chosen = options(folder, model__name="resnet8", data__batch_size=128, train__epochs=given.epochs,
                     train__device="cpu", run__dir=folder / f"runs {number}")  # fmt: skip
    parameters = {name: {"value": value} for name, value in chosen.items()}
    parameters["train.seed"] = {"values": list(range(given.trials))}
    command = ["${env}", "python", "-m", "fastlsr.train", "${args}"]
    path = folder / f"seeds_{number}.yaml"
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters}))
    return path


class Sweeps:
    """Sweeps that begin anew each time; `others` has the cores that other programs used meanwhile."""

    def __init__(self, folder: Path, given: argparse.Namespace):
        self.folder, self.given, self.number = folder, given, 0
        self.others: dict[str, list[float]] = {name: [] for name in CONTENDERS}

    def run(self, name: str) -> float:
        """Seconds of a whole sweep."""
        self.number += 1
        path = write_sweep(self.folder, self.given, self.number)
        start, before = time.perf_counter(), of_others()
        command = [sys.executable, "-m", "fastlsr.sweep", str(path), *CONTENDERS[name]]
        subprocess.run(command, check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - start
        self.others[name].append((of_others() - before) / seconds)
        return seconds


def of_others() -> float:
    """Processor seconds so far of all programs but this one and those that it started, which have ended."""
    return busy_seconds() - sum(os.times()[:4])


def row(name: str, seconds: list[float], in_a_row: list[float], others: list[float], trials: int) -> dict[str, str]:
    """Trials an hour, and how many times as many as one after the other; medians, with the least and the most."""
    rates = [3600 * trials / each for each in seconds]
    ratios = [other / own for own, other in zip(seconds, in_a_row, strict=True)]
    times = statistics.median(ratios)
    verdict = (
        {"bar": str(BAR), "met": "yes" if BAR.met(times) else "NO"} if name == "chosen" else {"bar": "", "met": ""}
    )
    return {
        "jobs": name,
        "trials an hour": f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})",
        "times as many": f"{times:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        **verdict,
        "used by others, cores": f"{statistics.median(others):.2f} (to {max(others):.2f})",
        "n": f"{len(seconds)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_random(Path(name), train=given.images, test=1024)
        sweeps = Sweeps(Path(name), given)
        turns = {each: partial(sweeps.run, each) for each in CONTENDERS}
        seconds = in_turns(turns, rounds=given.rounds, warm=0)

        def rows() -> Iterator[dict[str, str]]:
            for each, taken in seconds.items():
                yield row(each, taken, seconds["in a row"], sweeps.others[each], given.trials)

        print_tables(rows())


if __name__ == "__main__":
    main()
