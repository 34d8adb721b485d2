"""How long does a training step on the CPU take while other processes compute on the same cores?

    python benchmarks/shared_cores.py [--model resnet8] [--neighbours 0,1,2,4] [--rounds 9] [--steps 3]

Steps of `fastlsr.train` (ResNet-8, batches of 128 images of CIFAR's shape, as many threads as cores), in turns:

    in parts    bf16; each thread takes the weights' gradients of a part of the batch, as the trainer does
    whole       bf16; the weights' gradients as torch has oneDNN take them, as the trainer did before
    fp32        in float32

beside 0, 1, 2 and 4 neighbours: processes of one thread that compute all the time. A turn is some steps, and its time
their mean. While one lasts, programs other than this one and its neighbours may use 0.1 cores at most, else it is
taken again; what they used is printed. All figures are medians over the rounds, with the least and the most.
"""

from __future__ import annotations

import fastlsr  # isort: skip  # noqa: F401  before torch: it says how torch's threads wait for one another

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from cifar import options, write_random
from sessions import begin
from timing import TICKS, Bar, at_most, busy_seconds, in_turns, print_tables

from fastlsr.engine.convolutions import IN_PARTS, WHOLE

CONTENDERS = {"in parts": ("bf16", IN_PARTS), "whole": ("bf16", WHOLE), "fp32": ("fp32", WHOLE)}
SLOWER = at_most(3)  # in parts, beside two neighbours, against quiet
QUIET = at_most(1.05)  # in parts against whole
OTHERS, TRIES = 0.1, 5  # cores that other programs may use, and how often a turn is taken
BUSY = "while True: sum(range(100000))"


@contextmanager
def neighbours(number: int) -> Iterator[list[int]]:
    """Ids of so many processes that compute, which end with the block."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        time.sleep(0.3)  # until they compute
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds_of(process: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Turns:
    """Takes a contender's turns, and notes how many cores other programs used during those that count."""

    def __init__(self, processes: Sequence[int]):
        self.processes = [os.getpid(), *processes]
        self.others: list[float] = []

    def take(self, step: Callable[[], None], steps: int) -> float:
        """Mean seconds of some steps in a row, of a turn that others left alone, or of the last try."""
        for _ in range(TRIES):
            before, start = self.of_others(), time.perf_counter()
            for _ in range(steps):
                step()
            seconds = time.perf_counter() - start
            others = (self.of_others() - before) / seconds
            if others <= OTHERS:
                break
        self.others.append(max(0.0, others))
        return seconds / steps

    def of_others(self) -> float:
        """Processor seconds so far of all programs but this one and its neighbours."""
        return busy_seconds() - sum(map(seconds_of, self.processes))


def trainer_step(folder: Path, model: str, batch: int, contender: str) -> Callable[[], None]:
    """A training step on a batch that stays in memory."""
    precision, how = CONTENDERS[contender]
    chosen = options(folder, model__name=model, data__batch_size=batch, train__precision=precision, train__device="cpu")
    with mock.patch("fastlsr.engine.session.choose_weight_gradients", return_value=how):
        session = begin(chosen)
    images, labels, index = (part.clone() for part in next(session.batches()))

    def step() -> None:
        session.step.accumulate(images, labels, index, samples=len(images))
        session.step.update()

    return step


def shown(seconds: Sequence[float]) -> str:
    """Milliseconds: the median, and the least and the most."""
    middle, least, most = (1000 * each for each in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{middle:.0f} ({least:.0f} to {most:.0f})"


def figure(name: str, over: Sequence[float], under: Sequence[float], bar: Bar | None = None) -> dict[str, str]:
    """A row: the median of a round's ratios, the least and the most of them, and its bar."""
    ratios = [one / other for one, other in zip(over, under, strict=True)]
    ratio = statistics.median(ratios)
    return {"figure": name, "value": f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})", "bar": str(bar or ""),
            "met": ("yes" if bar.met(ratio) else "NO") if bar else ""}  # fmt: skip


def measured(
    steps: Mapping[str, Callable[[], None]], counts: Sequence[int], given: argparse.Namespace
) -> Iterator[tuple[int, dict[str, list[float]], dict[str, str]]]:
    """(neighbours, contender -> seconds of a step in each round, row) for each number of neighbours."""
    for count in counts:
        with neighbours(count) as processes:
            turns = Turns(processes)
            takers = {name: partial(turns.take, step, given.steps) for name, step in steps.items()}
            seconds = in_turns(takers, rounds=given.rounds)
        used = f"{statistics.median(turns.others):.2f} (to {max(turns.others):.2f})"
        times = {f"{name}, ms": shown(taken) for name, taken in seconds.items()}
        yield count, seconds, {"neighbours": f"{count}", **times, "used by others, cores": used, "n": f"{given.rounds}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--neighbours", default="0,1,2,4")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of a turn")
    given = parser.parse_args()
    counts = [int(word) for word in given.neighbours.split(",")]
    with tempfile.TemporaryDirectory() as name:
        write_random(Path(name), train=given.batch, test=given.batch)
        steps = {each: trainer_step(Path(name), given.model, given.batch, each) for each in CONTENDERS}
        found: dict[int, dict[str, list[float]]] = {}

        def rows() -> Iterator[dict[str, str]]:
            for count, seconds, row in measured(steps, counts, given):
                found[count] = seconds
                yield row

        def figures() -> Iterator[dict[str, str]]:
            for count, seconds in found.items():
                beside = f"beside {count}" if count else "quiet"
                bar = None if count else QUIET
                yield figure(f"in parts / whole, {beside}", seconds["in parts"], seconds["whole"], bar)
                yield figure(f"in parts / fp32, {beside}", seconds["in parts"], seconds["fp32"])
                if count and 0 in found:
                    bar = SLOWER if count == 2 else None
                    yield figure(f"in parts, {beside} / quiet", seconds["in parts"], found[0]["in parts"], bar)

        print_tables(rows(), figures())


if __name__ == "__main__":
    main()
