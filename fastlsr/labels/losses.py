"""The fused soft-target cross-entropy: losses and their gradients in one pass over the logits, no dense targets.

Every loss here returns (losses, gradients): its derivatives by the logits are computed with it, since both need the
same exponentials, and `logits.backward(gradients)` goes on from them. `losses` is for the log and carries no gradient.

    >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    >>> labels = torch.tensor([0, 2])
    >>> smoothing = torch.tensor([0.9, 0.1, 0.0, 1.0])  # 0.9 onehot(y) + 0.1/K, no soft labels, temperature 1
    >>> losses, gradients = soft_target_cross_entropy(logits, labels, smoothing, None, torch.tensor(1 / 2))
    >>> [round(loss, 4) for loss in losses.tolist()]
    [0.3729, 1.5181]
    >>> logits.backward(gradients)  # the mean over the batch, since `scale` is 1/2
    >>> mean = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    >>> torch.allclose(torch.autograd.grad(mean, logits)[0], logits.grad)
    True

A further term of the objective is one `@term` function here, and a `plan.Term` of its name in a method's phases.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlsr.plugins import register

LOG2_E = 1.4426950408889634

# (logits [B, K], labels int64[B], peer_logits [B, K] or None, scale, **numbers) -> (losses, gradients)
TermFunction = Callable[..., tuple[Tensor, Tensor]]
TERMS: dict[str, TermFunction] = {}


def term(function: TermFunction) -> TermFunction:
    """Makes a function a term of the objective under its name.

    It takes the arguments of `Targets.objective` and, as float32 scalars on the device, `weight` and the other numbers
    of its `plan.Term`; it is proportional to `weight`.
    """
    register(TERMS, "term", function.__name__, function)
    return function


def soft_target_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    mix: Tensor,
    table: Tensor | None,
    scale: Tensor,
    *,
    key: Tensor | None = None,
    penalty: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(losses, gradients): float32[B] cross-entropies, and [B, K], `scale` times d losses_i / d logits_i.

    With s = z/T, l = logsumexp(s), p = softmax(s), H = -sum(p log p), W = hard + uniform + soft and q the target,

        L_i       = W*l - hard*s_y - uniform*mean(s) - soft*<S, s> - beta*H    (COLAM Eq. 4; TSLA Eq. 2 at T = 1)
        dL_i/dz   = (W*p - q + beta * p * (log p + H)) / T

    The arithmetic is float32 whatever the logits' type; the gradients have that type.

    Args:
        logits: [B, K], any floating type.
        labels: int64[B] in [0, K).
        mix: float32[4]: hard, uniform, soft, 1/T (`Targets.mix`).
        table: float[R, K] soft labels, rows summing to 1, or None when no phase uses any.
        scale: float32 scalar that multiplies the gradients alone, such as 1/B for a mean.
        key: int64[B] rows of `table`; None: the labels.
        penalty: float32 scalar beta, or None when no phase has any (Pereyra et al. 2017).
    """
    hard, uniform, soft, inverse_temperature = mix.unbind()
    weight, classes = hard + uniform + soft, logits.shape[1]
    values = logits.detach().float()
    shifted = (values - values.amax(1, keepdim=True)) * inverse_temperature
    exponentials = torch.exp2(shifted * LOG2_E)  # a CPU takes half as long for it as for exp
    others = uniform / classes
    if table is not None:
        others = others + soft * table[labels if key is None else key].float()
    own = labels[:, None]
    if on_cpu(logits):  # the label's own weight where it is: a comparison with every class costs half as much again
        exponentials, total, product = _row_by_row(exponentials, others * shifted)
        losses = weight * total.log() - hard * shifted.gather(1, own)[:, 0] - product
    else:  # a gather and a scatter would be launches of their own
        others = others + torch.where(torch.arange(classes, device=logits.device) == own, hard, 0.0)
        total, product = exponentials.sum(1), (others * shifted).sum(1)
        losses = weight * total.log() - product
    total = total[:, None]
    gradients = weight / total * exponentials - others
    if penalty is not None:
        logarithms, probabilities = shifted - total.log(), exponentials / total
        entropy = -(probabilities * logarithms).sum(1)
        losses = losses - penalty * entropy
        gradients = gradients + penalty * probabilities * (logarithms + entropy[:, None])
    factor = inverse_temperature * scale
    gradients = gradients * factor
    if on_cpu(logits):
        gradients = gradients.scatter_add(1, own, (-hard * factor).expand(len(labels), 1))
    return losses, gradients.to(logits.dtype)


def on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is there; compiled code has another form then. `benchmarks/codegen.py` denies it."""
    return tensor.device.type == "cpu"


def _row_by_row(exponentials: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(exponentials, their sums, the sums of products), so that inductor's C++ is one loop over rows.

    As a strided view the exponentials are kept for the gradients instead of being computed again. The two sums are
    stacked, since inductor would vectorise contiguous losses over eight rows and then run each pass over all rows by
    itself, through memory instead of the cache. Together this saves a sixth of the time at K = 1000.
    """
    exponentials = exponentials.as_strided(exponentials.shape, exponentials.stride())
    sums = torch.stack([exponentials.sum(1), products.sum(1)], 1)
    return exponentials, sums[:, 0], sums[:, 1]


@term
def pair_divergence(
    logits: Tensor,
    labels: Tensor,
    peer_logits: Tensor,
    scale: Tensor,
    *,
    weight: Tensor,
    inverse_temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """(losses, gradients) of weight * T^2 * KL(softmax(peers / T) || softmax(logits / T)) (CS-KD, Yun et al. 2020).

    Float32[B], and [B, K] in the logits' type: `scale` times the derivatives by the logits; the peers are constants.

    Args:
        logits, peer_logits: [B, K], any floating type; row i of one and of the other are of one class.
        labels: not read.
        scale: float32 scalar that multiplies the gradients alone.
        weight, inverse_temperature: float32 scalars lambda and 1/T.
    """
    peers = (peer_logits.detach().float() * inverse_temperature).softmax(1)
    none, one = torch.zeros_like(weight), torch.ones_like(weight)
    mix = torch.stack([none, none, one, inverse_temperature])
    rows = torch.arange(len(logits), device=logits.device)
    factor = weight / inverse_temperature.square()
    losses, gradients = soft_target_cross_entropy(logits, rows * 0, mix, peers, scale * factor, key=rows)
    return factor * (losses - torch.special.entr(peers).sum(1)), gradients


def redrawn(labels: Tensor, index: Tensor, probability: Tensor, classes: int, seed: Tensor) -> Tensor:
    """int64[B]: each label replaced, with a probability, by one drawn uniformly from all classes (DisturbLabel).

    A pure function of (seed, index): `seed` is an int64 scalar that stands for (run's seed, epoch), so that the labels
    of an epoch do not depend on its order. The expected target is that of label smoothing with theta = probability.

    Args:
        labels, index: int64[B]; the index is the sample's.
        probability: float32 scalar in [0, 1].
    """
    first = _hash(seed + index * 2)
    second = _hash(seed + index * 2 + 1)
    drawn = (first >> 40).double() / 2**23  # 23 bits, in [0, 1)
    return torch.where(drawn < probability, (second >> 32) % classes, labels)


def _hash(value: Tensor) -> Tensor:
    """Nonnegative int64 with 63 well-mixed bits (the finaliser of splitmix64; int64 arithmetic wraps)."""
    value = value * -7046029254386353131  # 0x9E3779B97F4A7C15
    value = (value ^ _shifted(value, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    value = (value ^ _shifted(value, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return _shifted(value ^ _shifted(value, 31), 1)


def _shifted(value: Tensor, bits: int) -> Tensor:
    # A logical shift: int64's own is arithmetic.
    return (value >> bits) & ((1 << (64 - bits)) - 1)
