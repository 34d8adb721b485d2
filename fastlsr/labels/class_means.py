"""Class means of what the network says, added up on the device by the training step itself.

COLAM (Alg. 1, Eq. 6) averages the logits of a class, online label smoothing (Zhang et al. 2021) the predictions of its
samples that were classified correctly. A deviation from both texts where the means come from the training step: the
network is in training mode there, the images are augmented, and the weights move during the epoch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class ClassMeans:
    """Running sums by class, over the samples that are members.

    Attributes:
        correct_only: whether softmax(logits) of correctly classified samples is summed, instead of all logits.
        logit_sum: float32[K, K], row c the sum of class c's members seen so far.
        count: float32[K], how many those were (exact up to 2**24).
        member: float32[N], 1 for samples that count and 0 for those that do not. It is all 0 outside a stage's last
            epoch, which is how a compiled step collects or not without being compiled twice.
    """

    def __init__(self, classes: int, samples: int, *, correct_only: bool = False, device: torch.device):
        self.correct_only = correct_only
        self.logit_sum = torch.zeros(classes, classes, device=device)
        self.count = torch.zeros(classes, device=device)
        self.member = torch.zeros(samples, device=device)

    def start(self, member: Tensor) -> None:
        """Forgets all sums and counts the samples of float32[N] `member` from now on."""
        self.logit_sum.zero_()
        self.count.zero_()
        self.member.copy_(member)

    def stop(self) -> None:
        """Counts no sample from now on; the sums stay."""
        self.member.zero_()

    def update(self, logits: Tensor, labels: Tensor, index: Tensor) -> None:
        """Adds the members' logits [B, K] to the rows of their int64[B] labels; `index` is int64[B], the samples."""
        weight, values = self.member[index], logits.detach().float()
        if self.correct_only:
            weight, values = weight * (values.argmax(1) == labels), values.softmax(1)
        # Not a product: a sample that does not count must not leave a NaN behind.
        values = torch.where(weight[:, None] > 0, values, 0.0)
        self.logit_sum.scatter_add_(0, labels[:, None].expand_as(values), values)
        self.count.scatter_add_(0, labels, weight)

    def soft_labels(self, temperature: float, former: Tensor) -> tuple[Tensor, list[int]]:
        """(table, missing): float32[K, K] rows softmax(mean logits / T), or mean predictions, and the classes that had
        no member.

        Those keep their row of `former`, float32[K, K].
        """
        rows = self.logit_sum / self.count.clamp(min=1)[:, None]
        if not self.correct_only:
            rows = (rows / temperature).softmax(1)
        seen = self.count > 0
        return torch.where(seen[:, None], rows, former), torch.nonzero(~seen)[:, 0].tolist()

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, so that a run can resume inside a collecting epoch."""
        return {"logit_sum": self.logit_sum, "count": self.count, "member": self.member}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Writes a checkpoint's tensors into the ones the compiled step holds."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def choose_peers(labels: np.ndarray, peers: int, *, seed: int, stage: int) -> np.ndarray:
    """float32[N] membership: 1 for `peers` random samples of each class (all of a smaller class), else 0.

    A pure function of (labels, peers, seed, stage); `peers` = 0 takes every sample. COLAM Sect. 5.3.

    Args:
        labels: int[N].
    """
    if not peers:
        return np.ones(len(labels), dtype=np.float32)
    # Not [seed, stage]: that is the stream of an epoch's order, and the peers would be that epoch's first samples.
    generator = np.random.Generator(np.random.Philox(key=[seed, (1 << 32) + stage]))
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ordered = labels[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    member = np.zeros(len(labels), dtype=np.float32)
    member[by_class[rank < peers]] = 1
    return member
