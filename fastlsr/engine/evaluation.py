"""Metrics of a network over a split: every sample exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from fastlsr.data.loader import Batch
from fastlsr.engine import distributed
from fastlsr.labels.targets import Targets
from fastlsr.logits import EvaluationLogits
from fastlsr.metrics import METRICS


class CollectedLogits:
    """The logits of an evaluation, collected batch by batch on the device, as float16."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Adds float32[B, K] logits of a batch, whose memory is used again."""
        half = torch.finfo(torch.float16)
        self._parts.append((logits.clamp(half.min, half.max).half(), batch.labels.clone(), batch.index.clone()))

    def on_host(self, *, epoch: int, data: str) -> EvaluationLogits:
        """Those of all ranks by ascending index, of a network trained for `epoch` epochs on the file of digest `data`.

        Waits for the device. The main rank alone has all of them; the others get their own.
        """
        own = tuple(torch.cat(column).cpu().numpy() for column in zip(*self._parts, strict=True))
        logits, labels, index = map(np.concatenate, zip(*(distributed.gather(own) or [own]), strict=True))
        order = np.argsort(index)
        return EvaluationLogits(logits[order], labels[order], index[order], epoch=epoch, data=data)


@torch.inference_mode()
def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    targets: Targets,
    collect: CollectedLogits | None = None,
) -> dict[str, float]:
    """The loss and the figures of `fastlsr.metrics`, by name.

    `loss`, in nats, is the training objective of the phase that `targets` is in, computed on these samples: the one-hot
    label stands for soft labels that are not by class, no label is redrawn, and there are no pairs.

    Args:
        forward: uint8 images [B, 3, H, W] to logits [B, K], in evaluation mode.
        batches: a whole epoch of the split, or this rank's part of it. Ranks exchange nothing before its end.
        collect: where the logits are added, too.
    """
    objective, device = targets.by_class().objective, targets.mix.device
    one, nothing = torch.ones((), device=device), torch.zeros(0, targets.classes, device=device)
    loss_and_samples = torch.zeros(2, dtype=torch.float64, device=device)
    sums: dict[str, Tensor] = {}
    for batch in batches:
        logits = forward(batch.images).float() if len(batch.images) else nothing
        losses, _ = objective(logits, batch.labels, one)
        loss = losses.sum(dtype=torch.float64)
        loss_and_samples += torch.stack([loss, torch.full_like(loss, len(logits))])
        for name, metric in METRICS.items():
            more = metric.sums(logits, batch.labels)
            sums[name] = sums[name] + more if name in sums else more
        if collect:
            collect.add(batch, logits)
    loss, samples = distributed.sum_(loss_and_samples).tolist()
    figures = {name: METRICS[name].value(distributed.sum_(total).cpu(), samples) for name, total in sums.items()}
    return {"loss": loss / samples, **figures}
