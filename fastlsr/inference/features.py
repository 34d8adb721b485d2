"""The penultimate features of a trained run's network, and its class templates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlsr.data.loader import Loader
from fastlsr.engine.trained import TrainedRun
from fastlsr.terminal import tracked


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
def split_features(
    run: TrainedRun, loader: Loader, name: str, chosen: Tensor | None = None, *, quiet: bool = False
) -> Features:
    """The features of the samples of a loader, whose images may be others than the run's.

    Args:
        name: of the split, for the progress that is shown.
        chosen: int64, the index of one or more samples to take alone, which saves the network the others; None: all.
        quiet: whether no progress is shown.

    Raises:
        InputError: if the network's logits are not linear in the inputs of its classifier.
    """
    network = run.network(loader.resolution)
    parts, batches, title = [], loader.epoch(0), f"{run.config.run_name()}: features, {name}"
    for batch in batches if quiet else tracked(batches, title, steps=len(loader)):
        images, labels, index = batch.images, batch.labels, batch.index
        if chosen is not None:
            taken = torch.isin(index, chosen.to(index.device))
            if not taken.any():
                continue
            images, labels, index = images[taken], labels[taken], index[taken]
        found = network.penultimate(images)
        parts.append((found.features.float().cpu(), labels.clone().cpu(), index.clone().cpu()))
    values, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return Features(values, labels, index, found.templates.float().cpu(), found.bias.float().cpu())
