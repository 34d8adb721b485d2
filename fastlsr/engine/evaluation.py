"""Metrics of a network over a split: always hard labels at temperature 1, every sample exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional

from fastlsr.data.loader import Batch
from fastlsr.labels.losses import soft_target_cross_entropy
from fastlsr.labels.targets import Targets

ECE_BINS = 15


@torch.inference_mode()
def evaluate(forward: Callable[[Tensor], Tensor], batches: Iterable[Batch], targets: Targets) -> dict[str, float]:
    """Metrics by name: `loss` and `nll` in nats, `top1` and `top5` in percent, `ece` in [0, 1].

    `nll` is hard cross-entropy at temperature 1; `loss` is the training objective of the phase that `targets` is in,
    computed on these samples: soft labels that are not by class stand as the one-hot label, no label is redrawn, and
    there are no pairs. `ece` is the expected calibration error over 15 equal bins of confidence.

    Args:
        forward: uint8 images [B, 3, H, W] to logits [B, K], in evaluation mode.
        batches: a whole epoch of the split.
    """
    # Imported at a run's first evaluation, not before its first step: it brings scipy.signal and torchvision along.
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

    device, classes = targets.mix.device, targets.classes
    top1 = MulticlassAccuracy(classes, top_k=1, average="micro", validate_args=False).to(device)
    top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro", validate_args=False).to(device)
    ece = MulticlassCalibrationError(classes, n_bins=ECE_BINS, validate_args=False).to(device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    one = torch.ones((), device=device)
    mix, penalty = targets.mix_by_class(), targets.extra[1] if targets.extra[1] else None
    for batch in batches:
        logits = forward(batch.images).float()
        losses, _ = soft_target_cross_entropy(logits, batch.labels, mix, targets.table, one, penalty=penalty)
        nll = functional.cross_entropy(logits, batch.labels, reduction="sum")
        sums += torch.stack([losses.sum(dtype=torch.float64), nll.double(), torch.full_like(sums[0], len(logits))])
        for metric in (top1, top5):
            metric.update(logits, batch.labels)
        ece.update(logits.softmax(1), batch.labels)
    loss, nll, seen = sums.tolist()
    return {
        "loss": loss / seen,
        "nll": nll / seen,
        "top1": 100 * top1.compute().item(),
        "top5": 100 * top5.compute().item(),
        "ece": ece.compute().item(),
    }
