"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from fastlsr.config import Optim
from fastlsr.errors import InputError


class LearningRate(Protocol):
    """Factors of the peak learning rate, step by step."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in each epoch."""

    def factor(self, step: int) -> float:
        """Factor of the peak learning rate at 0-based optimizer step `step`."""


@dataclass(frozen=True)
class Schedule:
    """Factor of the peak learning rate at each optimizer step.

    Attributes:
        optim: the options.
        epochs: of the run, or of each of its generations.
        steps_per_epoch: optimizer steps in each.

    Raises:
        InputError: if the milestones are none, or there is no way from `lr` down to `min_lr`.
    """

    optim: Optim
    epochs: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if self.optim.schedule == "multistep":
            parse_milestones(self.optim.milestones, self.epochs)
        if self.optim.min_lr and self.optim.schedule != "cosine":
            raise InputError(f"optim.min_lr is an option of optim.schedule=cosine, not of {self.optim.schedule}")
        if self.optim.min_lr > self.optim.lr:
            raise InputError(f"optim.min_lr={self.optim.min_lr:g} lies above optim.lr={self.optim.lr:g}")

    def factor(self, step: int) -> float:
        """Factor in [0, 1] of the peak learning rate at 0-based optimizer step `step`."""
        epoch = step / self.steps_per_epoch
        return self._warmup(step) * self._decay(epoch)

    def _warmup(self, step: int) -> float:
        steps = self.optim.warmup_epochs * self.steps_per_epoch
        return min(1.0, (step + 1) / steps) if steps else 1.0

    def _decay(self, epoch: float) -> float:
        if self.optim.schedule == "cosine":
            lowest = self.optim.min_lr / self.optim.lr if self.optim.min_lr else 0.0
            # At 0 this is the cosine to the bit.
            return lowest + (1 - lowest) * (0.5 * (1 + math.cos(math.pi * epoch / self.epochs)))
        return self.optim.gamma ** sum(epoch >= boundary for boundary in self.boundaries())

    def boundaries(self) -> list[int]:
        """The epochs, in or after the run, at which the learning rate is multiplied by gamma."""
        if self.optim.schedule == "step":
            return list(
                range(self.optim.step_epochs, max(self.epochs, self.optim.step_epochs + 1), self.optim.step_epochs)
            )
        return parse_milestones(self.optim.milestones, self.epochs) if self.optim.schedule == "multistep" else []

    def milestones(self) -> list[tuple[int, float]]:
        """(epoch, factor at its first step) wherever the rate takes a new course, from epoch 0 on."""
        cosine = [self.epochs // 2, self.epochs - 1] if self.optim.schedule == "cosine" else []
        epochs = sorted({0, math.ceil(self.optim.warmup_epochs), *self.boundaries(), *cosine})
        return [(e, self.factor(e * self.steps_per_epoch)) for e in epochs if e < self.epochs]


def parse_milestones(text: str, epochs: int) -> list[int]:
    """Increasing epochs from a text such as "80,120", or "0.5,0.75" for fractions of `epochs`, which are rounded.

    Raises:
        InputError: for anything else.
    """
    try:
        found = [_milestone(part.strip(), epochs) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or found != sorted(set(found)) or found[0] < 1:
        raise InputError(
            f"optim.milestones={text!r}: expected increasing epochs such as 80,120, or fractions of the run, 0.5,0.75"
        )
    return found


def _milestone(text: str, epochs: int) -> int:
    if "." not in text:
        return int(text)
    fraction = float(text)
    if not 0 < fraction < 1:
        raise ValueError
    return round(fraction * epochs)
