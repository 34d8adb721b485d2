"""Sums over an epoch of training, on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlsr.engine import distributed


@dataclass(frozen=True)
class EpochTotals:
    """What `Totals` held, on the host."""

    loss_sum: float = 0.0
    correct: float = 0.0
    seen: float = 0.0
    steps: float = 0.0
    bad_step: float = 0.0

    @property
    def loss(self) -> float:
        """Mean training objective, in nats."""
        return self.loss_sum / max(self.seen, 1)

    @property
    def top1(self) -> float:
        """Accuracy on the training batches, in percent."""
        return 100 * self.correct / max(self.seen, 1)

    def since(self, former: EpochTotals) -> EpochTotals:
        """The sums over what came after `former`, sums of the same epoch."""
        loss_sum, correct, seen = (
            self.loss_sum - former.loss_sum,
            self.correct - former.correct,
            self.seen - former.seen,
        )
        return EpochTotals(loss_sum, correct, seen, self.steps - former.steps, self.bad_step)


class Totals:
    """Sums over an epoch, read without waiting for the device.

    Attributes:
        values: float64[5] on the device: `sums` and `steps`, which are views of it.
        sums: float64[3]: sum of the losses, correct predictions, samples. These add up over devices.
        steps: float64[2]: steps done, and the first step whose loss was not finite, counted from 1 (0: none). These do
            not.
        logged: the sums when figures of this epoch were logged last.
    """

    def __init__(self, device: torch.device):
        self.values = torch.zeros(5, dtype=torch.float64, device=device)
        self.sums, self.steps = self.values[:3], self.values[3:]
        self._host = torch.zeros(5, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._copied: torch.cuda.Event | None = None
        self._late = self.logged = EpochTotals()

    def reset(self) -> None:
        """Begins an epoch: all sums are 0."""
        self.values.zero_()
        self._late = self.logged = EpochTotals()
        self._copied = None

    def update(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: float32[B] losses, logits [B, K], int64[B] labels."""
        loss_sum, correct, seen, steps, bad_step = self.values.unbind()
        batch_loss = losses.sum(dtype=torch.float64)
        steps = steps + 1
        bad_step = torch.where((bad_step == 0) & ~batch_loss.isfinite(), steps, bad_step)
        correct = correct + (logits.argmax(1) == labels).sum()
        self.values.copy_(torch.stack([loss_sum + batch_loss, correct, seen + len(labels), steps, bad_step]))

    def read(self) -> EpochTotals:
        """The sums so far, over all devices. Waits for the device: for the end of an epoch."""
        return EpochTotals(*distributed.sum_(self.sums.clone()).tolist(), *self.steps.tolist())

    def read_late(self) -> EpochTotals:
        """This device's sums as of an earlier call, without waiting for the device: for inside an epoch."""
        if self.values.device.type != "cuda":
            return EpochTotals(*self.values.tolist())
        if self._copied is not None and self._copied.query():
            self._late, self._copied = EpochTotals(*self._host.tolist()), None
        if self._copied is None:  # else the copy before is still on its way into the same memory
            self._host.copy_(self.values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return self._late
