"""Batch normalisation over several ranks: statistics of each rank's own samples, or of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from fastlsr.engine import distributed

BatchNorm = nn.modules.batchnorm._BatchNorm


class SyncBatchNormOnCPU(BatchNorm):
    """What torch's SyncBatchNorm, which needs a GPU, is there: mean and variance are those of all ranks' samples."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any

    def forward(self, input: Tensor) -> Tensor:
        """The normalised [B, C, ...]; B may be 0 on some ranks."""
        if not self.training:
            return super().forward(input)
        values = input.transpose(0, 1).flatten(1).float()  # [C, samples of this rank]
        count = _over_ranks(values.new_tensor(values.shape[1]))
        mean = _over_ranks(values.sum(1)) / count
        centred = values - mean[:, None]
        variance = _over_ranks(centred.square().sum(1)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centred * torch.rsqrt(variance + self.eps)[:, None]
        if self.affine:
            normalised = normalised * self.weight[:, None] + self.bias[:, None]
        channels_first = normalised.unflatten(1, (input.shape[0], *input.shape[2:]))
        return channels_first.transpose(0, 1).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class SyncBatchNormActOnCPU(SyncBatchNormOnCPU):
    """The same for timm's batch norms with a dropout and an activation of their own."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """The activations [B, C, ...]."""
        return cast(Tensor, self.act(self.drop(super().forward(input))))


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks; so is its gradient, since every rank's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return distributed.sum_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return distributed.sum_(gradients[0].clone())


def _over_ranks(tensor: Tensor) -> Tensor:
    return cast(Tensor, _SumOverRanks.apply(tensor))


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Replaces the batch norms inside the model by synchronised ones with the same parameters and statistics."""
    for name, module in model.named_children():
        if device.type != "cpu":
            setattr(model, name, convert_sync_batchnorm(module))
        elif isinstance(module, BatchNorm):
            setattr(model, name, _synchronised_on_cpu(module))
        else:
            synchronise(module, device)


def _synchronised_on_cpu(norm: BatchNorm) -> SyncBatchNormOnCPU:
    kind = SyncBatchNormActOnCPU if hasattr(norm, "act") else SyncBatchNormOnCPU
    synchronised = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    synchronised._parameters, synchronised._buffers = norm._parameters, norm._buffers  # which an optimizer may hold
    synchronised._modules = norm._modules
    return synchronised.train(norm.training)


def is_synchronised(model: nn.Module) -> bool:
    """Whether the model's forward pass exchanges statistics, so that all ranks must take part in it."""
    return any(isinstance(module, (SyncBatchNormOnCPU, nn.SyncBatchNorm)) for module in model.modules())


class BatchCounters:
    """The `num_batches_tracked` of a network's batch norms, added to by one operation a step instead of one a layer.

    With a fixed momentum they decide nothing; a launch for each of them is a tenth of those of ResNet-18's step.
    """

    def __init__(self, network: nn.Module):
        self._norms = [
            norm for norm in network.modules()
            if isinstance(norm, BatchNorm) and not isinstance(norm, SyncBatchNormOnCPU)
            and norm.momentum is not None and norm.num_batches_tracked is not None
        ]  # fmt: skip

    @contextmanager
    def added_together(self, passes: int) -> Iterator[None]:
        """Inside, so many forward passes leave the counters alone, which are added to at the end."""
        norms = [norm for norm in self._norms if norm.training]
        counters = [cast(Tensor, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.num_batches_tracked = None
        try:
            yield
        finally:
            for norm, counter in zip(norms, counters, strict=True):
                norm.num_batches_tracked = counter
        if counters:
            torch._foreach_add_(counters, passes)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """float32[C] each: the running means and variances of the model's batch norms."""
    norms = (module for module in model.modules() if isinstance(module, BatchNorm))
    return [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
