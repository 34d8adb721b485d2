"""The soft labels that a run learns by itself: collected in the last epoch of a phase, made at its end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlsr.data.loader import Batch, Loader
from fastlsr.engine import distributed
from fastlsr.engine.classifier import Classifier
from fastlsr.labels.class_means import LEARNERS, choose_peers
from fastlsr.labels.plan import EXTRA_PASS, Plan

# Passes batches on, and may end the pass by raising.
Watch = Callable[[Generator[Batch, None, None]], Iterator[Batch]]


@dataclass(frozen=True)
class LearnedLabels:
    """The soft labels that a phase learned.

    Attributes:
        stage: number of the phase, from 1.
        soft_labels: float32[K, K], on the CPU.
        count: float32[K], on the CPU: the samples behind each row.
        missing: the labels of classes without a sample.
        what_is_missing, advice: as `ClassMeans.missing` and `ClassMeans.advice`.
    """

    stage: int
    soft_labels: Tensor
    count: Tensor
    missing: list[int]
    what_is_missing: str
    advice: str


class LabelLearner:
    """Learns soft labels by class for a plan that has such phases.

    Args:
        train: the batches that are trained on.
        plain: the same samples, not augmented, where a phase learns from an extra pass; else None.
        seed: the run's.

    Attributes:
        means: the sums that the training step adds to.
        learned: float32[K, K]: the newest soft labels.
    """

    def __init__(self, plan: Plan, train: Loader, plain: Loader | None, *, seed: int, device: torch.device):
        kind = LEARNERS[next(iter(plan.learns))]  # all phases that learn have one and the same
        self._plan, self._train, self._plain, self._seed = plan, train, plain, seed
        self.means = kind(len(train.manifest.classes), train.manifest.count, device=device)
        self.learned = self.means.initial()

    def begin_epoch(self, epoch: int) -> None:
        """Starts collecting where the training steps of this epoch are to be learned from."""
        number, phase, _ = self._plan.at(epoch)
        if phase.learns and phase.learns != EXTRA_PASS and self._plan.ends(epoch):
            self.means.start(self.members(number))

    def end_epoch(self, epoch: int, network: Classifier, watch: Watch) -> LearnedLabels | None:
        """The soft labels of the phase that ends with this epoch; None if none ends, or it learns none."""
        number, phase, _ = self._plan.at(epoch)
        if not phase.learns or not self._plan.ends(epoch):
            return None
        if phase.learns == EXTRA_PASS:
            self.means.start(self.members(number))
            self._extra_pass(network, watch)
        self.means.stop()
        for sums in self.means.sums:
            distributed.sum_(sums)
        self.learned = self.means.soft_labels(phase.temperature, former=self.learned)
        missing = torch.nonzero(~self.means.seen)[:, 0].tolist()
        copies = self.learned.cpu().contiguous(), self.means.count.cpu()
        return LearnedLabels(number + 1, *copies, missing, self.means.missing, self.means.advice)

    def members(self, number: int) -> Tensor:
        """float32[N]: 1 for the samples of the training file that phase `number`, from 0, learns from, else 0."""
        labels, indices = self._train.labels, self._train.indices
        member = torch.zeros(len(labels))
        chosen = choose_peers(labels[indices], self._plan.phases[number].peers, seed=self._seed, stage=number)
        member[torch.from_numpy(indices)] = torch.from_numpy(chosen)
        return member

    @torch.inference_mode()
    def _extra_pass(self, network: Classifier, watch: Watch) -> None:
        """Goes over every training sample once, in evaluation mode (COLAM Alg. 1, lines 10-14)."""
        assert self._plain is not None
        network.eval()
        for images, labels, index in watch(self._plain.epoch(0)):
            if len(images):  # of several ranks, one may have none
                self.means.update(network(images), labels, index)
        network.train()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: "means" and "learned"."""
        return {"means": self.means.state_dict(), "learned": self.learned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what a checkpoint kept."""
        self.means.load_state_dict(state["means"])
        self.learned = state["learned"].to(self.learned.device)
