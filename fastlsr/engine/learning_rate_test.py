"""The learning-rate range test (Smith 2017): the loss of a short training whose rate rises from step to step."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastlsr.config import Config
from fastlsr.drawing import BLUE, DASHES, GREY, INK, panels, save_figure, style
from fastlsr.engine.runtime import choose_device, set_up_torch
from fastlsr.engine.session import Session
from fastlsr.engine.totals import EpochTotals
from fastlsr.errors import InputError
from fastlsr.files import check_can_be_written, replace_text
from fastlsr.labels.plan import Plan
from fastlsr.ranks import read_ranks
from fastlsr.runs import run_folder
from fastlsr.terminal import tracked

STEPS = 200
LOWEST, HIGHEST = 1e-4, 1e2  # times optim.lr
SMOOTHING = 0.9  # weight of the past in the smoothed loss
DIVERGED = 4.0  # times the lowest smoothed loss: the test ends


@dataclass(frozen=True)
class RisingRate:
    """Factors of the peak learning rate that rise by equal ratios, in the place of a `Schedule`."""

    steps_per_epoch: int

    def factor(self, step: int) -> float:
        """Factor of the peak learning rate at 0-based optimizer step `step`."""
        return LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))


@dataclass(frozen=True)
class RangeTest:
    """What the test has measured.

    Attributes:
        rates: optim.lr of each step; factors of the method's first phase (first_lr) come on top.
        losses: mean training loss of each step's samples, nats, before the step.
        smoothed: their exponential moving average, without its bias towards 0.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest over the logarithm of the rate, before its lowest."""
        lowest = max(2, int(np.argmin(self.smoothed)) + 1)
        return self.rates[int(np.argmin(np.gradient(np.array(self.smoothed[:lowest]))))]

    def lowest(self) -> float:
        """The rate at which the smoothed loss is lowest."""
        return self.rates[int(np.argmin(self.smoothed))]


def smooth(losses: Sequence[float]) -> list[float]:
    """The exponential moving average of the losses, without its bias towards 0 (Adam's correction)."""
    average, averages = 0.0, []
    for count, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        averages.append(average / (1 - SMOOTHING**count))
    return averages


def find_learning_rate(config: Config, plan: Plan) -> None:
    """Runs the test, prints the rates that it shows, and writes the picture beside the configured run's folder.

    Raises:
        InputError: for a configuration that cannot be trained, or under torchrun.
    """
    if read_ranks().world_size > 1:
        raise InputError("--find-lr is for one process, not for torchrun")
    run = run_folder(config).path
    folder = run.with_name(f"{run.name}-find-lr")
    check_can_be_written(folder)
    device = choose_device(config.train.device)
    set_up_torch(device, config.train)
    measured = run_range_test(config, plan, device, print)
    print(
        f"the loss falls fastest at optim.lr={measured.steepest():.2g} and is lowest at {measured.lowest():.2g}, of "
        f"{len(measured.rates)} steps from {measured.rates[0]:.2g} to {measured.rates[-1]:.2g}; a schedule's peak is "
        "usually taken between the two"
    )
    print(f"written: {', '.join(map(str, write_range_test(measured, folder)))}")


def run_range_test(config: Config, plan: Plan, device: torch.device, report: Callable[[str], None]) -> RangeTest:
    """The losses of a run's first phase at rising rates, until they diverge; the same each time on the same machine.

    Raises:
        InputError: for a configuration that cannot be trained, or has no learning rate to start from.
    """
    if not config.optim.lr:
        raise InputError("optim.lr=0: the range test tries multiples of it")
    phase = replace(plan.phases[0], epochs=STEPS, learns=None, peers=0)
    session = Session(config, Plan((phase,), STEPS), device, report=report)
    session.schedule = rising = RisingRate(session.schedule.steps_per_epoch)
    losses: list[float] = []
    for loss in tracked(itertools.islice(_step_losses(session), STEPS), "rising learning rate", steps=STEPS):
        losses.append(loss)
        if not loss <= DIVERGED * min(smooth(losses)):  # also where it is not finite
            break
    losses = [loss for loss in losses if math.isfinite(loss)]
    if len(losses) < 3:
        raise InputError(f"optim.lr={config.optim.lr:g}: the loss is not finite from the first steps on")
    return RangeTest([config.optim.lr * rising.factor(step) for step in range(len(losses))], losses, smooth(losses))


def _step_losses(session: Session) -> Iterator[float]:
    """The mean training loss of each optimizer step's samples, without end."""
    while True:
        before = EpochTotals()
        with contextlib.closing(session.batches()) as batches:
            for batch in batches:
                if session.train_batch(*batch):
                    now = session.totals.read()
                    yield (now.loss_sum - before.loss_sum) / (now.seen - before.seen)
                    before = now
        session.end_epoch()


@style()
def write_range_test(measured: RangeTest, folder: Path) -> list[Path]:
    """Writes the picture and the numbers as learning_rate.svg, .png and .json; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / "learning_rate.json"
    marks = {"steepest": measured.steepest(), "lowest": measured.lowest()}
    replace_text(numbers, json.dumps({**marks, **asdict(measured)}, indent=1) + "\n")
    figure, (axes,) = panels(width=5.6)
    axes.plot(measured.rates, measured.losses, color=GREY, alpha=0.4, linewidth=0.8, label="loss of a step")
    axes.plot(measured.rates, measured.smoothed, color=BLUE, label="smoothed")
    for (name, rate), line in zip(marks.items(), DASHES[1:], strict=False):
        axes.axvline(rate, color=INK, linestyle=line, linewidth=1, label=f"{name}: {rate:.2g}")
    low, high = min(measured.smoothed), measured.smoothed[0]
    axes.set(xscale="log", xlabel="optim.lr", ylabel="training loss, nats")
    axes.set_ylim(low - 0.2 * (high - low), high + 0.8 * (high - low))
    axes.legend(loc="upper left", ncols=2)
    return [numbers, *save_figure(figure, folder / "learning_rate")]
