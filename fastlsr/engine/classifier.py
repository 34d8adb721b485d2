"""A network as the trainer uses it: from uint8 images to logits, its normalisation and autocast, and its average."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastlsr.data.augment import scale_rows
from fastlsr.labels.losses import on_cpu
from fastlsr.models import Penultimate, features_and_templates

Result = TypeVar("Result")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


# Not `torch.library.custom_op`, whose first call imports dynamo: 1.5 s of what does not compile.
_library = torch.library.Library("fastlsr", "DEF")
_library.define("normalise(Tensor images, Tensor scale, Tensor shift) -> Tensor")


@torch.library.impl(_library, "normalise", "CPU")
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


@torch.library.register_fake("fastlsr::normalise", lib=_library)
def _(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)


class Classifier(nn.Module):
    """A network that takes uint8 images, normalises them on the device and returns logits under autocast.

    Args:
        model: from float [B, 3, H, W] to logits [B, K].
        mean, std: per channel, of pixels in [0, 1].
        precision: "bf16", "fp16" or "fp32".
        channels_last: memory format of images and weights.

    Attributes:
        mode: what the model computes in, besides autocast.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], *, precision: str, channels_last: bool
    ):
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model.to(memory_format=self.format)
        self.dtype = AUTOCAST[precision]
        self.mode: AbstractContextManager[object] = nullcontext()
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
        if on_cpu(images):
            return torch.ops.fastlsr.normalise(images, self.scale, self.shift)
        return images * self.scale[:, None, None] + self.shift[:, None, None]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K], in the autocast type, of uint8 [B, 3, H, W]."""
        return self._under_autocast(self.model, images)

    def penultimate(self, images: Tensor) -> Penultimate:
        """`models.features_and_templates` of uint8 [B, 3, H, W]."""
        return self._under_autocast(lambda normalised: features_and_templates(self.model, normalised), images)

    def _under_autocast(self, function: Callable[[Tensor], Result], images: Tensor) -> Result:
        normalised = self.normalised(images).contiguous(memory_format=self.format)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32), self.mode:
            return function(normalised)


class MovingAverage:
    """An exponential moving average of a model's weights and buffers, at first equal to them.

    Args:
        decay: weight of the past at each update; whole numbers, such as counters, are copied instead.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        # Listed once: a state_dict takes as long as the update. Both models keep their tensors.
        pairs = [*zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)]
        floating, whole = ([pair for pair in pairs if pair[0].is_floating_point() == is_it] for is_it in (True, False))
        self._averages, self._weights = ([pair[side] for pair in floating] for side in (0, 1))
        self._copies, self._counters = ([pair[side] for pair in whole] for side in (0, 1))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model. torch's own AveragedModel would wait for the device here."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)
        if self._copies:
            torch._foreach_copy_(self._copies, self._counters)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what a checkpoint kept."""
        self.model.load_state_dict(state)
