"""The targets of the phase under way, as device tensors that a phase change writes in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlsr.labels.methods import LEARNED, TEACHER_CLASS, Phase


class Targets:
    """q = hard * onehot(y) + uniform * 1/K + soft * S, held so that no phase change recompiles a step.

    Attributes:
        mix: float32[4] on the device: hard, uniform, soft, 1/temperature.
        extra: float32[4]: probability of redrawing a label, weight of the entropy, weight and 1/temperature of the
            divergence between a pair.
        table: float32[K, K], rows summing to 1, keyed by label; it starts as the identity (hard labels). None for
            a method none of whose phases reads one, so that the loss need not either.
    """

    def __init__(self, classes: int, phases: Sequence[Phase], *, device: torch.device):
        self.classes = classes
        self.mix = torch.tensor([1.0, 0.0, 0.0, 1.0], device=device)
        self.extra = torch.tensor([0.0, 0.0, 0.0, 1.0], device=device)
        reads = any(phase.source in (LEARNED, TEACHER_CLASS) for phase in phases)
        self.table = torch.eye(classes, device=device) if reads else None

    def enter(self, phase: Phase) -> None:
        """Writes a phase's weights and temperatures over those of the phase before."""
        mix = [phase.hard, phase.uniform, phase.soft, 1 / phase.temperature]
        extra = [phase.redraw, phase.penalty, phase.pair_weight, 1 / phase.pair_temperature]
        self.mix.copy_(torch.tensor(mix, dtype=torch.float32))
        self.extra.copy_(torch.tensor(extra, dtype=torch.float32))

    def mix_by_class(self) -> Tensor:
        """float32[4]: `mix`, but with the weight of soft labels that are not by class given to the one-hot label."""
        hard, uniform, soft, inverse_temperature = self.mix.unbind()
        if self.table is not None:
            return self.mix
        return torch.stack([hard + soft, uniform, torch.zeros_like(soft), inverse_temperature])

    def dense(self, labels: Tensor, soft_labels: Tensor | None = None) -> Tensor:
        """float32[B, K] targets of int64[B] labels, rows summing to 1. The loss never builds these.

        Args:
            soft_labels: float32[B, K], those of the samples where they are not by class; without them they stand as
                the one-hot label.
        """
        hard, uniform, soft, _ = self.mix_by_class() if soft_labels is None else self.mix
        rows = hard * torch.nn.functional.one_hot(labels, self.classes) + uniform / self.classes
        if soft_labels is None and self.table is not None:
            soft_labels = self.table[labels]
        return rows if soft_labels is None else rows + soft * soft_labels

    def mean_entropy(self, class_counts: Tensor) -> float:
        """Mean entropy, in nats, of the targets of a split with float[K] images in each class."""
        # Without a table all classes have the same; with one a few rows at a time, so that it is not held again.
        classes = torch.arange(1 if self.table is None else self.classes, device=self.mix.device)
        parts = [torch.special.entr(self.dense(few).double()).sum(1) for few in classes.split(256)]
        entropy = torch.cat(parts).cpu()
        return float((entropy * class_counts).sum() / class_counts.sum())

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: `mix`, `extra`, and `table` where there is one."""
        return {"mix": self.mix, "extra": self.extra} | ({} if self.table is None else {"table": self.table})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Writes a checkpoint's tensors into the ones the compiled step holds."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
