"""The fused soft-target cross-entropy: loss and gradient in one pass over the logits, no dense targets."""

from __future__ import annotations

import torch
from torch import Tensor


def losses_and_gradients(
    logits: Tensor, labels: Tensor, mix: Tensor, table: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """(losses, gradients): float32[B] cross-entropies, and float32[B, K], `scale` times d losses_i / d logits_i.

    With s = z/T, l = logsumexp(s), p = softmax(s), W = hard + uniform + soft and q the target,

        L_i       = W*l - hard*s_y - uniform*mean(s) - soft*<S_y, s>       (= COLAM Eq. 4, and TSLA Eq. 2 at T = 1)
        dL_i/dz   = (W*p - q) / T

    The arithmetic is float32 whatever the logits' type.

    Args:
        logits: [B, K], any floating type.
        labels: int64[B] in [0, K).
        mix: float32[4]: hard, uniform, soft, 1/T (`Targets.mix`).
        table: float32[K, K] soft labels by class (`Targets.table`), or None when no phase uses any.
        scale: float32 scalar that multiplies the gradients alone, such as 1/B for a mean.
    """
    hard, uniform, soft, inverse_temperature = mix.unbind()
    scaled = logits.float() * inverse_temperature
    shifted = scaled - scaled.amax(1, keepdim=True)
    exponentials = shifted.exp()
    total = exponentials.sum(1, keepdim=True)
    weight = hard + uniform + soft
    classes = logits.shape[1]
    is_label = torch.arange(classes, device=logits.device) == labels[:, None]
    rows = uniform / classes + torch.where(is_label, hard, 0.0)
    if table is not None:
        rows = rows + soft * table[labels]
    losses = weight * total.log()[:, 0] - (rows * shifted).sum(1)
    gradients = (weight * exponentials / total - rows) * (inverse_temperature * scale)
    return losses, gradients


class _SoftTargetCrossEntropy(torch.autograd.Function):
    """Sum of the losses times `scale`; the gradient is made in the forward pass and handed out in the backward."""

    @staticmethod
    def forward(ctx, logits, labels, mix, table, scale):
        losses, gradients = losses_and_gradients(logits, labels, mix, table, scale)
        ctx.save_for_backward(gradients)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(losses)
        return losses.sum() * scale, losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, _):
        (gradients,) = ctx.saved_tensors
        return (gradients * grad_output).to(ctx.dtype), None, None, None, None


def soft_target_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    mix: Tensor,
    table: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """(objective, losses): `scale` times the sum of the losses, differentiable, and the float32[B] losses, not.

    Arguments are those of `losses_and_gradients`; with `scale` = 1/B the objective is the mean loss. The gradient with
    respect to the logits has their dtype.
    """
    return _SoftTargetCrossEntropy.apply(logits, labels, mix, table, scale)
