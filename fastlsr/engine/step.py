"""One training step: network, objective, gradients, class means, optimizer; the host never waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastlsr.data.soft_labels import SampleLabels
from fastlsr.engine import distributed
from fastlsr.engine.batchnorm import BatchCounters, is_synchronised
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.totals import Totals
from fastlsr.labels.class_means import ClassMeans
from fastlsr.labels.losses import redrawn
from fastlsr.labels.targets import Targets


class TrainStep:
    """Trains on a batch; `compute` is the part that torch.compile may fuse.

    Of several ranks each trains on its part of the batch, and all make the same step: that on the whole batch.

    Args:
        network: in training mode.
        targets: the objective's weights and tables; what no phase of its plan asks for is not computed.
        means: what the step adds its logits to, or None where no phase learns.
        teacher: soft labels by sample, or None.
        clip_norm: largest norm of the gradient over all parameters; 0: any.
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
        clip_norm: float = 0.0,
        compile: bool,
    ):
        device = targets.mix.device
        self.network, self.optimizer, self.targets, self.means = network, optimizer, targets, means
        self._replica = distributed.replicated(network)
        self._settled = False
        self._synchronises = is_synchronised(network)
        self.counters = BatchCounters(network)
        self.teacher, self.clip_norm = teacher, clip_norm
        self.former: Classifier | None = None
        self.label_seed = torch.zeros((), dtype=torch.int64, device=device)
        self.totals = Totals(device)
        self.scale = torch.ones((), device=device)  # of the gradients: ranks / samples, times fp16's own
        self._share, self._samples = torch.ones((), device=device), 0
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
        logits = self._replica(images)
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

    def accumulate(self, images: Tensor, labels: Tensor, index: Tensor, *, samples: int, exchange: bool = True) -> None:
        """Adds a batch's gradient, as its share of a mean over `samples` samples.

        Args:
            images: uint8 [B, 3, H, W]; labels, index: int64 [B]; all on the device. Of several ranks, this one's part
                of the batch, which may be empty.
            samples: of all ranks together, in all batches whose gradients are added up.
            exchange: whether ranks add up their gradients now, as they must before `update`.
        """
        self.weigh(samples)
        self.scale.copy_(self.scaler.scale(self._share))
        if not self._settled:
            self._settle(images)
        with self._exchanging(exchange):
            if len(images) or self._synchronises:
                with self.counters.added_together(2 if self.targets.plan.pairs else 1):
                    logits, gradients = self.compute(images, labels, index)
                logits.backward(gradients)
            else:  # the batch is too small for all ranks
                self.totals.steps[0] += 1
                if exchange:
                    self._add_nothing(images)

    def weigh(self, samples: int) -> None:
        """Sets the device's share of each sample in a mean over so many, of all ranks together."""
        if samples != self._samples:
            self._share.fill_(distributed.world_size() / samples)  # the mean over ranks divides by them
            self._samples = samples

    def _exchanging(self, exchange: bool) -> AbstractContextManager[None]:
        if exchange or not isinstance(self._replica, DistributedDataParallel):
            return nullcontext()
        return self._replica.no_sync()

    def _add_nothing(self, images: Tensor) -> None:
        """Takes part in an exchange of gradients with gradients that are 0."""
        self.network.eval()  # batch norm's statistics stay
        logits = self._replica(images.new_zeros(1, *images.shape[1:]))
        logits.backward(torch.zeros_like(logits))
        self.network.train()

    def _settle(self, images: Tensor) -> None:
        """Makes the order in which gradients are added over ranks the one that it stays.

        DDP arranges them anew after its first backward pass. Else a resumed run would add up in another order than the
        one that was stopped, and differ in the last bits.
        """
        if isinstance(self._replica, DistributedDataParallel):
            self._add_nothing(images)
            self.optimizer.zero_grad(set_to_none=True)
        self._settled = True

    def update(self) -> None:
        """Moves the weights by the gradients added up, and clears those."""
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
