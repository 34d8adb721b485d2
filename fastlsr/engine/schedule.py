"""The learning rate as a pure function of the step, and the SGD that it drives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastlsr.config import Optim
from fastlsr.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Factor of the peak learning rate at each optimizer step.

    Attributes:
        optim: the options.
        epochs: of the run, or of each of its generations.
        steps_per_epoch: optimizer steps in each.

    Raises:
        InputError: if the milestones are none, or Nesterov's momentum is.
    """

    optim: Optim
    epochs: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if self.optim.schedule == "multistep":
            parse_milestones(self.optim.milestones)
        if self.optim.nesterov and not self.optim.momentum:
            raise InputError("optim.nesterov=true needs optim.momentum above 0")

    def factor(self, step: int) -> float:
        """Factor in [0, 1] of the peak learning rate at 0-based optimizer step `step`."""
        epoch = step / self.steps_per_epoch
        return self._warmup(step) * self._decay(epoch)

    def _warmup(self, step: int) -> float:
        steps = self.optim.warmup_epochs * self.steps_per_epoch
        return min(1.0, (step + 1) / steps) if steps else 1.0

    def _decay(self, epoch: float) -> float:
        if self.optim.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.optim.gamma ** sum(epoch >= boundary for boundary in self.boundaries())

    def boundaries(self) -> list[int]:
        """The epochs, inside the run, at which the learning rate is multiplied by gamma."""
        if self.optim.schedule == "step":
            return list(range(self.optim.step_epochs, self.epochs, self.optim.step_epochs))
        return parse_milestones(self.optim.milestones) if self.optim.schedule == "multistep" else []

    def milestones(self) -> list[tuple[int, float]]:
        """(epoch, factor at its first step) wherever the rate takes a new course, from epoch 0 on."""
        cosine = [self.epochs // 2, self.epochs - 1] if self.optim.schedule == "cosine" else []
        epochs = sorted({0, math.ceil(self.optim.warmup_epochs), *self.boundaries(), *cosine})
        return [(e, self.factor(e * self.steps_per_epoch)) for e in epochs if e < self.epochs]


def parse_milestones(text: str) -> list[int]:
    """Increasing epochs from a text such as "80,120".

    Raises:
        InputError: for anything else.
    """
    try:
        epochs = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        epochs = []
    if not epochs or epochs != sorted(set(epochs)) or epochs[0] < 1:
        raise InputError(f"optim.milestones={text!r}: expected increasing epochs such as 80,120")
    return epochs


def build_optimizer(model: nn.Module, head: Iterable[nn.Parameter], optim: Optim) -> torch.optim.SGD:
    """Fused SGD over the model, its classifier's parameters `head` at `lr` and the others at `backbone_lr`.

    Each parameter group keeps its peak rate under "peak_lr". Without `decay_norm_bias`, parameters of one dimension
    (biases, scales and shifts of normalisations, layer scales) are groups of their own, without weight decay.
    """
    head_ids = {id(parameter) for parameter in head}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    backbone = [parameter for parameter in parameters if id(parameter) not in head_ids]
    classifier = [parameter for parameter in parameters if id(parameter) in head_ids]
    groups = [
        {"params": backbone, "peak_lr": optim.backbone_lr or optim.lr},
        {"params": classifier, "peak_lr": optim.lr},
    ]
    if not optim.decay_norm_bias:
        groups = [part for group in groups for part in _without_decay_of_norm_bias(group)]
    optimizer = torch.optim.SGD(
        groups,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
        fused=True,
    )
    # SGD would make its buffers in the first step, uninitialised; when fp16's scaler skips that one, they stay so.
    for parameter in parameters if optim.momentum else []:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _without_decay_of_norm_bias(group: dict[str, Any]) -> list[dict[str, Any]]:
    weights = [parameter for parameter in group["params"] if parameter.ndim > 1]
    others = [parameter for parameter in group["params"] if parameter.ndim <= 1]
    return [{**group, "params": weights}, {**group, "params": others, "weight_decay": 0.0}]


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
