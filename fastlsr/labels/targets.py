"""The targets of the phase under way, as device tensors that a phase change writes in place."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlsr.labels.methods import Phase


class Targets:
    """q = hard * onehot(y) + uniform * 1/K + soft * S[y], held so that no phase change recompiles a step.

    Attributes:
        mix: float32[4] on the device: hard, uniform, soft, 1/temperature.
        table: float32[K, K], rows summing to 1, keyed by label; it starts as the identity (hard labels). None for
            a method none of whose phases reads it, so that the loss need not either.
    """

    def __init__(self, classes: int, *, table: bool, device: torch.device):
        self.classes = classes
        self.mix = torch.tensor([1.0, 0.0, 0.0, 1.0], device=device)
        self.table = torch.eye(classes, device=device) if table else None

    def enter(self, phase: Phase) -> None:
        """Writes a phase's weights and temperature over those of the phase before."""
        values = [phase.hard, phase.uniform, phase.soft, 1 / phase.temperature]
        self.mix.copy_(torch.tensor(values, dtype=torch.float32))

    def dense(self, labels: Tensor) -> Tensor:
        """float32[B, K] targets of int64[B] labels, rows summing to 1. The loss never builds these."""
        hard, uniform, soft, _ = self.mix
        rows = hard * torch.nn.functional.one_hot(labels, self.classes) + uniform / self.classes
        return rows if self.table is None else rows + soft * self.table[labels]

    def mean_entropy(self, class_counts: Tensor) -> float:
        """Mean entropy, in nats, of the targets of a split with float[K] images in each class."""
        rows = self.dense(torch.arange(self.classes, device=self.mix.device)).double()
        entropy = torch.special.entr(rows).sum(1).cpu()
        return float((entropy * class_counts).sum() / class_counts.sum())

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: `mix`, and `table` where there is one."""
        return {"mix": self.mix} | ({} if self.table is None else {"table": self.table})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Writes a checkpoint's tensors into the ones the compiled step holds."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
