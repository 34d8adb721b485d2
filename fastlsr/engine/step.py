"""One training step: normalise, network, targets, loss, backward, class means, optimizer; no host synchronisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastlsr.data.augment import scale_rows
from fastlsr.data.soft_labels import SampleLabels
from fastlsr.labels.class_means import ClassMeans
from fastlsr.labels.losses import pair_divergence, redrawn, soft_target_cross_entropy
from fastlsr.labels.methods import Phase
from fastlsr.labels.targets import Targets
from fastlsr.models import Penultimate, features_and_templates

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@torch.library.custom_op("fastlsr::normalise", mutates_args=())
def _normalise(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """float32 [B, 3, H, W], channels-last: images * scale + shift, for uint8 images and float32[3] on the CPU.

    An operation of its own, since both torch and inductor are slow at uint8 in channels of three: several passes, or
    one without SIMD code.
    """
    batch, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
    out = torch.empty(rows.shape)
    scale_rows(rows.numpy(), scale.repeat(width).numpy(), shift.repeat(width).numpy(), out.numpy())
    return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


@_normalise.register_fake
def _(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)


class Classifier(nn.Module):
    """A network that takes uint8 images: it normalises them on the device, under autocast, and answers logits.

    Args:
        model: from float [B, 3, H, W] to logits [B, K].
        mean, std: per channel, of pixels in [0, 1].
        precision: "bf16", "fp16" or "fp32".
        channels_last: memory format of images and weights.
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], *, precision: str, channels_last: bool
    ):
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.format)
        self.dtype = AUTOCAST[precision]
        spread = [s or 1.0 for s in std]  # a constant channel is only shifted
        scale = [1 / (255 * s) for s in spread]
        shift = [-m / s for m, s in zip(mean, spread, strict=True)]
        self.register_buffer("scale", torch.tensor(scale), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def around(self, model: nn.Module) -> Classifier:
        """A classifier with this one's normalisation and precision around another model."""
        other = copy.copy(self)
        other._modules = {"model": model}
        return other

    def normalised(self, images: Tensor) -> Tensor:
        """float32 [B, 3, H, W], (images / 255 - mean) / std, of uint8 [B, 3, H, W]."""
        if images.device.type == "cpu":
            return _normalise(images, self.scale, self.shift)
        return images * self.scale[:, None, None] + self.shift[:, None, None]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K], in the autocast type, of uint8 [B, 3, H, W]."""
        return self._under_autocast(self.model, images)

    def penultimate(self, images: Tensor) -> Penultimate:
        """`models.features_and_templates` of uint8 [B, 3, H, W]."""
        return self._under_autocast(lambda normalised: features_and_templates(self.model, normalised), images)

    def _under_autocast(self, function: Callable[[Tensor], Any], images: Tensor) -> Any:
        normalised = self.normalised(images).contiguous(memory_format=self.format)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return function(normalised)


class Totals:
    """Sums over an epoch, kept on the device and read without waiting for it.

    Attributes:
        values: float64[5]: sum of the losses, correct predictions, samples, steps done, and the first step whose
            loss was not finite, counted from 1 (0: none).
    """

    def __init__(self, device: torch.device):
        self.values = torch.zeros(5, dtype=torch.float64, device=device)
        self._host = torch.zeros(5, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._copied: torch.cuda.Event | None = None
        self._late = EpochTotals()

    def reset(self) -> None:
        """Begins an epoch: all sums are 0."""
        self.values.zero_()
        self._late, self._copied = EpochTotals(), None

    def update(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch: float32[B] losses, logits [B, K], int64[B] labels."""
        loss_sum, correct, seen, steps, bad_step = self.values.unbind()
        batch_loss = losses.sum(dtype=torch.float64)
        steps = steps + 1
        bad_step = torch.where((bad_step == 0) & ~batch_loss.isfinite(), steps, bad_step)
        correct = correct + (logits.argmax(1) == labels).sum()
        self.values.copy_(torch.stack([loss_sum + batch_loss, correct, seen + len(labels), steps, bad_step]))

    def read(self) -> EpochTotals:
        """The sums so far. This waits for the device: for the end of an epoch."""
        return EpochTotals(*self.values.tolist())

    def read_late(self) -> EpochTotals:
        """The sums as of an earlier call of this, without waiting for the device: for inside an epoch."""
        if self.values.device.type != "cuda":
            return self.read()
        if self._copied is not None and self._copied.query():
            self._late, self._copied = EpochTotals(*self._host.tolist()), None
        if self._copied is None:  # else the copy before is still on its way into the same memory
            self._host.copy_(self.values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        return self._late


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


class MovingAverage:
    """An exponential moving average of a model's weights and buffers, at first equal to them.

    Args:
        decay: weight of the past at each update; whole numbers, such as counters, are copied instead.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model. torch's own AveragedModel would wait for the device here."""
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        fractional, whole = [], []
        for pair in pairs:
            (fractional if pair[0].is_floating_point() else whole).append(pair)
        torch._foreach_lerp_(*map(list, zip(*fractional, strict=True)), 1 - self.decay)
        for mine, other in whole:
            mine.copy_(other)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what a checkpoint kept."""
        self.model.load_state_dict(state)


class TrainStep:
    """Trains on a batch; `compute` is the part that torch.compile may fuse.

    Args:
        network: in training mode.
        targets, means: what the loss reads, and what the step adds its logits to (None where no phase learns).
        teacher: soft labels by sample, or None.
        phases: those of the run; what none of them asks for is not computed.
        compile: whether to compile.

    Attributes:
        former: the network of the generation before, in evaluation mode, or None.
        label_seed: int64 scalar on the device that stands for (seed, epoch) where labels are redrawn.
    """

    def __init__(
        self,
        network: Classifier,
        optimizer: torch.optim.Optimizer,
        targets: Targets,
        means: ClassMeans | None,
        *,
        teacher: SampleLabels | None = None,
        phases: Sequence[Phase] = (),
        compile: bool,
    ):
        device = targets.mix.device
        self.network, self.optimizer, self.targets, self.means = network, optimizer, targets, means
        self.teacher, self.former = teacher, None
        self.redraws = any(phase.redraw for phase in phases)
        self.penalises = any(phase.penalty for phase in phases)
        self.paired = any(phase.pair_weight for phase in phases)
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
        if self.paired:  # the second half holds a peer for each sample of the first
            (images, peers), labels, index = images.chunk(2), labels.chunk(2)[0], index.chunk(2)[0]
        logits = self.network(images)
        redraw, penalty, pair_weight, pair_temperature = self.targets.extra.unbind()
        table, key = self._soft_labels(images, index)
        losses, gradients = soft_target_cross_entropy(
            logits,
            redrawn(labels, index, redraw, logits.shape[1], self.label_seed) if self.redraws else labels,
            self.targets.mix,
            table,
            self.scale,
            key=key,
            penalty=penalty if self.penalises else None,
        )
        if self.paired:
            with torch.no_grad():
                peer_logits = self.network(peers)
            more = pair_divergence(logits, peer_logits, pair_weight, pair_temperature, self.scale)
            losses, gradients = losses + more[0], gradients + more[1]
        self.totals.update(losses, logits.detach(), labels)
        if self.means is not None:
            self.means.update(logits, labels, index)
        return logits, gradients

    def _soft_labels(self, images: Tensor, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(table, key): the soft labels that the phases of this run read, and which rows of them these samples have."""
        if self.former is not None:
            with torch.no_grad():
                rows = self.former(images).float().softmax(1)
        elif self.teacher is not None:
            rows = self.teacher.rows(index)
        else:
            return self.targets.table, None
        return rows, torch.arange(len(index), device=index.device)

    def accumulate(self, images: Tensor, labels: Tensor, index: Tensor, *, samples: int) -> None:
        """Adds a batch's gradient, as its share of a mean over `samples` samples."""
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
