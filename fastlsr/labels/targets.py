"""The targets and the objective of the phase under way, held in device tensors that a phase change writes in place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fastlsr.labels.losses import TERMS, soft_target_cross_entropy
from fastlsr.labels.plan import LEARNED, TEACHER_CLASS, Phase, Plan


class Targets:
    """q = hard * onehot(y) + uniform * 1/K + soft * S, and what else the objective is made of.

    Attributes:
        mix: float32[4] on the device: hard, uniform, soft, 1/temperature.
        scalars: float32 scalars on the device: "redraw" and "penalty" as in `Phase`, and of each further term T of the
            plan "T.weight" and its numbers, "T.NAME".
        table: float32[K, K], rows summing to 1, keyed by label; it starts as the identity (hard labels). None for
            a plan none of whose phases reads one, so that the loss need not either.
    """

    def __init__(self, classes: int, plan: Plan, *, device: torch.device):
        self.classes, self.plan = classes, plan
        self.mix = torch.tensor([1.0, 0.0, 0.0, 1.0], device=device)
        self.scalars = {name: torch.tensor(value, device=device) for name, value in self._numbers(None).items()}
        self.table: Tensor | None = None
        if plan.sources & {LEARNED, TEACHER_CLASS}:
            self.table = torch.eye(classes, device=device)
        self.redraws = any(phase.redraw for phase in plan.phases)
        self.penalises = any(phase.penalty for phase in plan.phases)

    def _numbers(self, phase: Phase | None) -> dict[str, float]:
        """What `scalars` hold in a phase; in none, every weight is 0."""
        numbers = {"redraw": phase.redraw if phase else 0.0, "penalty": phase.penalty if phase else 0.0}
        there = {term.name: term for term in phase.terms} if phase else {}
        for name, any_of_it in self.plan.terms.items():
            term = there.get(name)
            numbers[f"{name}.weight"] = term.weight if term else 0.0
            numbers |= {f"{name}.{key}": value for key, value in (term or any_of_it).numbers.items()}
        return numbers

    def enter(self, phase: Phase) -> None:
        """Writes a phase's weights, temperatures and terms over those of the phase before."""
        mix = [phase.hard, phase.uniform, phase.soft, 1 / phase.temperature]
        self.mix.copy_(torch.tensor(mix, dtype=torch.float32))
        for name, value in self._numbers(phase).items():
            self.scalars[name].fill_(value)

    def objective(
        self,
        logits: Tensor,
        labels: Tensor,
        scale: Tensor,
        *,
        soft_labels: Tensor | None = None,
        peer_logits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(losses float32[B], gradients [B, K]): the phase's objective, and `scale` times its derivatives by logits.

        Args:
            logits: [B, K], any floating type.
            labels: int64[B].
            scale: float32 scalar.
            soft_labels: float32[B, K], those of the samples where they are not by class.
            peer_logits: [B, K] of a peer of each sample; without them terms that compare pairs are left out.
        """
        rows = None if soft_labels is None else torch.arange(len(labels), device=labels.device)
        losses, gradients = soft_target_cross_entropy(
            logits,
            labels,
            self.mix,
            self.table if soft_labels is None else soft_labels,
            scale,
            key=rows,
            penalty=self.scalars["penalty"] if self.penalises else None,
        )
        for name, term in self.plan.terms.items():
            if term.pairs and peer_logits is None:
                continue
            numbers = {key: self.scalars[f"{name}.{key}"] for key in ("weight", *term.numbers)}
            more = TERMS[name](logits, labels, peer_logits, scale, **numbers)
            losses, gradients = losses + more[0], gradients + more[1]
        return losses, gradients

    def mix_by_class(self) -> Tensor:
        """float32[4]: `mix`, but with the weight of soft labels that are not by class given to the one-hot label."""
        hard, uniform, soft, inverse_temperature = self.mix.unbind()
        if self.table is not None:
            return self.mix
        return torch.stack([hard + soft, uniform, torch.zeros_like(soft), inverse_temperature])

    def by_class(self) -> Targets:
        """Targets for samples without soft labels of their own: the one-hot label stands for those (`mix_by_class`)."""
        other = copy.copy(self)
        other.mix = self.mix_by_class()
        return other

    def dense(self, labels: Tensor, soft_labels: Tensor | None = None) -> Tensor:
        """float32[B, K] targets of int64[B] labels, rows summing to 1. The loss never builds these.

        Args:
            soft_labels: float32[B, K], those of the samples where they are not by class; without them the one-hot
                label stands for those.
        """
        hard, uniform, soft, _ = self.mix_by_class() if soft_labels is None else self.mix
        rows = hard * torch.nn.functional.one_hot(labels, self.classes) + uniform / self.classes
        if soft_labels is None and self.table is not None:
            soft_labels = self.table[labels]
        return rows if soft_labels is None else rows + soft * soft_labels

    def mean_entropy(self, class_counts: Tensor) -> float:
        """Mean entropy, in nats, of the targets of a split with float64[K] images in each class."""
        # Without a table all classes have the same; with one a few rows at a time, so that it is not held again.
        classes = torch.arange(1 if self.table is None else self.classes, device=self.mix.device)
        parts = [torch.special.entr(self.dense(few).double()).sum(1) for few in classes.split(256)]
        entropy = torch.cat(parts).cpu()
        return float((entropy * class_counts).sum() / class_counts.sum())

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps besides the position: `table`, where there is one."""
        return {} if self.table is None else {"table": self.table}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies a checkpoint's table into the one that the compiled step holds."""
        if self.table is not None:
            self.table.copy_(state["table"])
