"""Soft labels by class, learned from sums that the training step itself adds up on the device.

COLAM (Alg. 1, Eq. 6) averages the logits of a class, online label smoothing (Zhang et al. 2021) the predictions for its
correctly classified samples. A deviation from both papers where the means come from the training step: the
network is in training mode there, the images are augmented, and the weights move during the epoch.

Another table that is learned by class is one more subclass of `ClassMeans`, and a line in `LEARNERS`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastlsr import rng
from fastlsr.labels.plan import CORRECT, EXTRA_PASS, IN_PASS


class ClassMeans:
    """COLAM's soft labels: softmax(mean logits / T) over the members of each class.

    Attributes:
        logit_sum: float32[K, K], row c the sum over the members of class c seen so far.
        count: float32[K], how many those were (exact up to 2**24).
        member: float32[N], 1 for samples that count and 0 for those that do not. It is all 0 outside a stage's last
            epoch, which is how a compiled step collects or not without being compiled twice.
        missing: what befell the classes without a member, for a message.
        advice: what may help where the soft labels are too uniform, for a message.
    """

    missing = "had no sample to learn from; each keeps its former soft label"
    advice = "longer stages?"

    def __init__(self, classes: int, samples: int, *, device: torch.device):
        self.logit_sum = torch.zeros(classes, classes, device=device)
        self.count = torch.zeros(classes, device=device)
        self.member = torch.zeros(samples, device=device)

    def initial(self) -> Tensor:
        """float32[K, K]: the soft labels before any were learned: the one-hot labels."""
        return torch.eye(len(self.count), device=self.count.device)

    def start(self, member: Tensor) -> None:
        """Clears all sums and counts the samples of float32[N] `member` from now on."""
        self.logit_sum.zero_()
        self.count.zero_()
        self.member.copy_(member)

    def stop(self) -> None:
        """Counts no sample from now on; the sums stay."""
        self.member.zero_()

    def update(self, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds the members among a batch.

        Args:
            logits: [B, K], any floating type; no gradient goes through them.
            labels, index: int64[B]; the index is the sample's.
        """
        values, counts = self._contribution(logits.detach().float(), labels)
        weight = self.member[index] if counts is None else self.member[index] * counts
        # Not a product: a sample that does not count must not leave a NaN behind.
        values = torch.where(weight[:, None] > 0, values, 0.0)
        self.logit_sum.scatter_add_(0, labels[:, None].expand_as(values), values)
        self.count.scatter_add_(0, labels, weight)

    def _contribution(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(float32[B, K] to add, bool[B] which samples count; None: all)."""
        return logits, None

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """The tensors that add up over devices."""
        return self.logit_sum, self.count

    def soft_labels(self, temperature: float, former: Tensor) -> Tensor:
        """float32[K, K]: the learned rows; a class without a member keeps its row of float32[K, K] `former`."""
        return torch.where(self.seen[:, None], (self._means() / temperature).softmax(1), former)

    @property
    def seen(self) -> Tensor:
        """bool[K]: the classes that have a member."""
        return self.count > 0

    def _means(self) -> Tensor:
        return self.logit_sum / self.count.clamp(min=1)[:, None]

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that a run can resume inside a collecting epoch."""
        return {"logit_sum": self.logit_sum, "count": self.count, "member": self.member}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copies a checkpoint's tensors into those that the compiled step holds."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


class CorrectMeans(ClassMeans):
    """Online label smoothing's soft labels: the mean prediction over the correctly classified members of each class.

    A class without any gets 1/K, as in the authors' code.
    """

    missing = "had no correctly classified sample; each gets 1/K"
    advice = "a longer run?"

    def initial(self) -> Tensor:
        """float32[K, K]: 1/K."""
        return torch.full_like(self.logit_sum, 1 / len(self.count))

    def _contribution(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        return logits.softmax(1), logits.argmax(1) == labels

    def soft_labels(self, temperature: float, former: Tensor) -> Tensor:
        """float32[K, K]: the mean predictions; 1/K for a class without a member."""
        return torch.where(self.seen[:, None], self._means(), self.initial())


LEARNERS: dict[str, type[ClassMeans]] = {IN_PASS: ClassMeans, EXTRA_PASS: ClassMeans, CORRECT: CorrectMeans}


def choose_peers(labels: np.ndarray, peers: int, *, seed: int, stage: int) -> np.ndarray:
    """float32[N] membership: 1 for `peers` random samples of each class (all of a smaller class), else 0.

    A pure function of (labels, peers, seed, stage); `peers` = 0 takes every sample. COLAM Sect. 5.3.

    Args:
        labels: int[N].
    """
    if not peers:
        return np.ones(len(labels), dtype=np.float32)
    shuffled = rng.generator(rng.Stream.PEERS, seed, stage).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ordered = labels[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    member = np.zeros(len(labels), dtype=np.float32)
    member[by_class[rank < peers]] = 1
    return member
