"""A linear classifier on the features of a frozen network: multinomial logistic regression on any number of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from fastlsr.labels.losses import soft_target_cross_entropy

PENALTIES = tuple(10.0**-power for power in range(7))  # L2, in the order in which they are tried
MAX_ITERATIONS = 200  # for each penalty
_BLOCK_VALUES = 1 << 24  # number of features, or of logits, that are held in float32 at a time


@dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias.

    Attributes:
        weight: float32[K, D], for features that are not standardised.
        bias: float32[K].
        l2: the penalty it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    l2: float

    def __call__(self, features: Tensor) -> Tensor:
        """The logits, float32[B, K], of features float[B, D]."""
        return torch.addmm(self.bias, features.float(), self.weight.T)


def fit_linear_head(
    features: Tensor,
    labels: Tensor,
    held_out: Tensor,
    *,
    classes: int,
    advance: Callable[[int, str], None] = lambda done, note: None,
) -> LinearHead:
    """The head that minimises  mean cross-entropy(W x + b)  +  l2 / 2 * |W|^2,  x the standardised features.

    Same as scikit-learn's LogisticRegression with C = 1 / (l2 * n). l2 is chosen on the samples held out: `PENALTIES`
    are tried from the strongest on, each fit starting from the solution before, until the cross-entropy rises. The head
    is then fitted on all samples with the best one, by SciPy's L-BFGS. Sums over the samples are made in blocks, in
    float32 on the features' device, so that only the half-precision features must fit in memory: 5.2 GB for ImageNet
    with D = 2048.

    Args:
        features: float16 or float32[n, D], finite.
        labels: int64[n] on the same device.
        held_out: bool[n] on the same device; neither all nor none.
        advance: called after each evaluation of the objective with their number and a note on the progress.
    """
    problem = _Problem(features, labels, classes, advance)
    best, least, l2 = np.zeros(classes * (features.shape[1] + 1)), np.inf, PENALTIES[0]
    for penalty in PENALTIES:
        weights = problem.minimum(~held_out, penalty, best)
        loss, _ = problem(weights, held_out, 0.0)
        if loss >= least:
            break
        best, least, l2 = weights, loss, penalty
    return problem.head(problem.minimum(torch.ones_like(held_out), l2, best), l2)


class _Problem:
    """The objective over chosen samples, as SciPy takes it: W and b are one float64[K * (D + 1)], W first."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, advance: Callable[[int, str], None]):
        self.features, self.labels, self.classes, self.advance = features, labels, classes, advance
        self.rows = max(1, _BLOCK_VALUES // max(classes, features.shape[1]))
        self.evaluations = 0
        total = sum(block.double().sum(0) for block in features.split(self.rows))
        self.mean = (total / len(features)).float()
        squares = sum((block.float() - self.mean).square().sum(0).double() for block in features.split(self.rows))
        std = (squares / len(features)).sqrt().float()
        self.scale = torch.where(std > 0, 1 / std, 1.0)  # a constant feature is 0 whatever its scale

    def minimum(self, chosen: Tensor, l2: float, start: np.ndarray) -> np.ndarray:
        """The weights that minimise the objective over the samples bool[n] `chosen`."""
        options = {"maxiter": MAX_ITERATIONS, "ftol": 1e-7, "gtol": 1e-6}
        return minimize(self, start, args=(chosen, l2), jac=True, method="L-BFGS-B", options=options).x

    def __call__(self, flat: np.ndarray, chosen: Tensor, l2: float) -> tuple[float, np.ndarray]:
        """The objective and its gradient, float64[K * (D + 1)]."""
        weight, bias = self._parts(flat)
        mix, one = torch.tensor([1.0, 0.0, 0.0, 1.0], device=weight.device), torch.ones((), device=weight.device)
        total, slope, bias_slope = weight.new_zeros((), dtype=torch.float64), weight * 0, bias * 0
        columns = (column.split(self.rows) for column in (self.features, self.labels, chosen))
        for block, labels, share in zip(*columns, strict=True):
            x = (block.float() - self.mean) * self.scale
            losses, gradients = soft_target_cross_entropy(torch.addmm(bias, x, weight.T), labels, mix, None, one)
            gradients = gradients * share[:, None]
            total += (losses * share).sum(dtype=torch.float64)
            slope.addmm_(gradients.T, x)
            bias_slope += gradients.sum(0)
        count = chosen.sum()
        loss = float(total / count)
        gradient = torch.cat([(slope / count + l2 * weight).flatten(), bias_slope / count]).double().cpu().numpy()
        self.evaluations += 1
        self.advance(self.evaluations, f"l2 {l2:g}, loss {loss:.4f}")
        return loss + l2 / 2 * float(weight.double().square().sum()), gradient

    def head(self, flat: np.ndarray, l2: float) -> LinearHead:
        """The weights `flat` for features that are not standardised."""
        weight, bias = self._parts(flat)
        weight = weight * self.scale
        return LinearHead(weight, bias - weight @ self.mean, l2)

    def _parts(self, flat: np.ndarray) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(flat).float().to(self.mean.device)
        return values[: -self.classes].view(self.classes, -1), values[-self.classes :]
