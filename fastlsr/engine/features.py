"""The penultimate features of a trained run's network, and its class templates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlsr.data.loader import Loader
from fastlsr.engine.log import tracked
from fastlsr.engine.trained import TrainedRun


@dataclass(frozen=True)
class Features:
    """What a network makes of a split, on the CPU.

    Attributes:
        values: float32[N, D], the inputs of its classifier; logits = values @ templates.T + bias.
        labels: int64[N].
        index: int64[N], each sample's position in the `.beton` file.
        templates: float32[K, D].
        bias: float32[K].
    """

    values: Tensor
    labels: Tensor
    index: Tensor
    templates: Tensor
    bias: Tensor

    @property
    def logits(self) -> Tensor:
        """float32[N, K]."""
        return torch.addmm(self.bias, self.values, self.templates.T)


@torch.inference_mode()
def split_features(run: TrainedRun, loader: Loader, name: str) -> Features:
    """The features of all samples of a loader that belongs to the run.

    Args:
        name: of the split, for the progress that is shown.

    Raises:
        InputError: if the network's logits are not linear in the inputs of its classifier.
    """
    network = run.network(loader.resolution)
    parts = []
    for batch in tracked(loader.epoch(0), f"{run.config.run_name()}: features, {name}", steps=len(loader)):
        found = network.penultimate(batch.images)
        parts.append((found.features.float().cpu(), batch.labels.clone().cpu(), batch.index.clone().cpu()))
    values, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return Features(values, labels, index, found.templates.float().cpu(), found.bias.float().cpu())
