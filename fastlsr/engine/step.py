"""One training step: network, objective, gradients, class means, optimizer; the host never waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlsr.data.soft_labels import SampleLabels
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.totals import Totals
from fastlsr.labels.class_means import ClassMeans
from fastlsr.labels.losses import redrawn
from fastlsr.labels.targets import Targets


class TrainStep:
    """Trains on a batch; `compute` is the part that torch.compile may fuse.

    Args:
        network: in training mode.
        targets: the objective's weights and tables; what no phase of its plan asks for is not computed.
        means: what the step adds its logits to, or None where no phase learns.
        teacher: soft labels by sample, or None.
        compile: whether to compile.

    Attributes:
        former: the network of the generation before, in evaluation mode, or None.
        label_seed: int64 scalar on the device that stands for (seed, epoch) where labels are redrawn.
        totals: sums over the batches since they were reset.
    """

    def __init__(
        self,
        network: Classifier,
        optimizer: torch.optim.Optimizer,
        targets: Targets,
        means: ClassMeans | None,
        *,
        teacher: SampleLabels | None = None,
        compile: bool,
    ):
        device = targets.mix.device
        self.network, self.optimizer, self.targets, self.means = network, optimizer, targets, means
        self.teacher = teacher
        self.former: Classifier | None = None
        self.label_seed = torch.zeros((), dtype=torch.int64, device=device)
        self.totals = Totals(device)
        self.scale = torch.ones((), device=device)  # of the gradients: 1 / samples, times fp16's own
        self._share, self._samples = torch.ones((), device=device), 1
        self.scaler = torch.amp.GradScaler(device.type, enabled=network.dtype == torch.float16)
        # Static shapes: the ragged last batch gets a graph of its own instead of a slower dynamic one.
        self.compute: Callable[..., tuple[Tensor, Tensor]] = (
            torch.compile(self._compute, dynamic=False) if compile else self._compute
        )

    def _compute(self, images: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, gradients): [B, K] each, the gradients those of the loss times `scale`."""
        peers = None
        if self.targets.plan.pairs:  # the second half holds a peer for each sample of the first
            (images, peers), labels, index = images.chunk(2), labels.chunk(2)[0], index.chunk(2)[0]
        logits = self.network(images)
        soft_labels = self._soft_labels(images, index)
        trained_on = labels
        if self.targets.redraws:
            redraw = self.targets.scalars["redraw"]
            trained_on = redrawn(labels, index, redraw, logits.shape[1], self.label_seed)
        peer_logits = None
        if peers is not None:
            with torch.no_grad():
                peer_logits = self.network(peers)
        losses, gradients = self.targets.objective(
            logits, trained_on, self.scale, soft_labels=soft_labels, peer_logits=peer_logits
        )
        self.totals.update(losses, logits.detach(), labels)
        if self.means is not None:
            self.means.update(logits, labels, index)
        return logits, gradients

    def _soft_labels(self, images: Tensor, index: Tensor) -> Tensor | None:
        """float32[B, K]: soft labels of a batch where they are not by class; else None."""
        if self.former is not None:
            with torch.no_grad():
                return self.former(images).float().softmax(1)
        return None if self.teacher is None else self.teacher.rows(index)

    def accumulate(self, images: Tensor, labels: Tensor, index: Tensor, *, samples: int) -> None:
        """Adds a batch's gradient, as its share of a mean over `samples` samples.

        Args:
            images: uint8 [B, 3, H, W]; labels, index: int64 [B]; all on the device.
        """
        if samples != self._samples:
            self._share.fill_(1 / samples)
            self._samples = samples
        self.scale.copy_(self.scaler.scale(self._share))
        logits, gradients = self.compute(images, labels, index)
        logits.backward(gradients)

    def update(self) -> None:
        """Moves the weights by the gradients added up, and clears those."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
