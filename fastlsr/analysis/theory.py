"""Budgets of TSLA's Theorems 3 and 4: python -m fastlsr.analyze theory --smoothness=L --pl=MU ... [--check=true].

Each bounds E ||grad F(w_R)||^2, w_R drawn from the iterates of the last stage; eta is the learning rate, T the steps:

    SGD        2 F(w0) / (eta T) + eta L sigma2       eta = eps^2 / (2 L sigma2), T = 4 F(w0) / (eta eps^2)
    SGD + LSR  2 F(w0) / (eta T) + 2 delta sigma2     eta = 1/L, theta = 1 / (1 + delta)      (Theorem 3)
        case 1, delta <= eps^2 / (4 sigma2): T = 4 F(w0) / (eta eps^2), to eps^2
        case 2, above: T = F(w0) / (eta delta sigma2), to 4 delta sigma2
    TSLA       eps^2, if delta sigma2 / mu <= F(w0)                                            (Theorem 4)
        with LSR: eta1 = 1/L, T1 = log(2 mu F(w0) (1 + delta) / (2 delta sigma2)) / (eta1 mu)
        without: eta2 = eps^2 / (2 L sigma2), T2 = 8 delta sigma2 / (mu eta2 eps^2)
    SGD, PL    eps^2 after log(4 mu F(w0) / eps^2) / (eta mu) + 2 / (eta mu) steps, eta as for SGD

The first is the standard analysis that the Remark on Theorem 3 refers to. It does without Assumption 2 (PL), which
Theorem 4 uses; so that like can be compared with like, the last row is plain SGD's with it. That one is not the
paper's: by PL, F - F* falls to eps^2 / (2 mu) in the first of its stages, and from there the first bound holds. Steps
are rounded up. Where eta would exceed 1/L, plain SGD takes 1/L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlsr import drawing
from fastlsr.analysis import Finding
from fastlsr.errors import InputError
from fastlsr.inference.cost import tell_cost
from fastlsr.rng import Stream, generator
from fastlsr.terminal import tracked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIMENSIONS, REPETITIONS = 10, 200  # of the check
MOST_STEPS = 5_000_000  # of the check, of an algorithm: some minutes
_SECONDS_A_STEP = 8e-5  # on one slow core
_BLOCK = 128  # steps whose noise is drawn at once
_POINTS = 100  # of a curve

NOT_PROMISED = (
    "these are upper bounds: they order the algorithms in the worst case that the assumptions admit, not on a problem",
    "case 2 of Theorem 3 bounds the gradient by 4 delta sigma2; a bound cannot show that less is not reached",
    "delta is one number for all w, and moves by orders of magnitude as a network is trained (analyze variance)",
    "momentum, other schedules, theta other than 1/(1+delta) and test accuracy are outside of both theorems",
    "the SGD row does without PL, TSLA's uses it; the last row is SGD's with it",
)


@dataclass(frozen=True)
class Constants:
    """What the bounds depend on.

    Attributes:
        smoothness: L, the Lipschitz constant of grad F (Assumption 1).
        pl: mu of the Polyak-Lojasiewicz condition (Assumption 2).
        sigma2: variance of the gradients under the one-hot label (Assumption 1).
        delta: that under the label that is mixed in, over sigma2 (Eq. 4).
        loss: F(w0), nonnegative as a cross-entropy is.
        epsilon: of the stationary point that is sought, in (0, 1) (Definition 1).
    """

    smoothness: float
    pl: float
    sigma2: float
    delta: float
    loss: float
    epsilon: float

    @property
    def theta(self) -> float:
        """The weight of the label that is mixed in, in both theorems."""
        return 1 / (1 + self.delta)


@dataclass(frozen=True)
class Stage:
    """Steps of SGD with one learning rate and one weight `theta` of the label that is mixed in."""

    steps: int
    rate: float
    theta: float = 0.0


@dataclass(frozen=True)
class Budget:
    """An algorithm's stages, and what they bound.

    Attributes:
        loss: an upper bound of F - F* where the last stage begins.
        noise: what the bound tends to as the last stage grows.
    """

    name: str
    stages: tuple[Stage, ...]
    loss: float
    noise: float

    def bound(self, steps: np.ndarray | int) -> np.ndarray | float:
        """Of E ||grad F(w_R)||^2, w_R one of the first `steps` iterates of the last stage."""
        return 2 * self.loss / (self.stages[-1].rate * steps) + self.noise

    @property
    def promise(self) -> float:
        """The bound over the whole last stage."""
        return float(self.bound(self.stages[-1].steps))


def analyze(
    *, smoothness: float, pl: float, sigma2: float, delta: float, loss: float, epsilon: float, check: bool = False
) -> Finding:
    """Steps and learning rates by which each algorithm's bound is met, which case holds, and what is not promised.

    Args:
        smoothness: L.
        pl: mu, at most L.
        sigma2: variance of the gradients under the one-hot label.
        delta: that under the label that is mixed in, over sigma2.
        loss: F(w0).
        epsilon: of the stationary point that is sought, below 1.
        check: also runs the algorithms on a quadratic of just these constants, and draws ||grad F||^2 and the bounds.

    Raises:
        InputError: for constants that no problem has, or that no computer can divide, or a check of too many steps.
    """
    constants = Constants(smoothness, pl, sigma2, delta, loss, epsilon)
    _check_constants(constants)
    try:
        chosen = budgets(constants)
    except (ArithmeticError, ValueError):  # a quotient or a logarithm that 64 bits do not hold
        raise InputError("the constants are too far apart: a budget of theirs is beyond all numbers") from None
    if check:
        _check_steps(chosen)
        steps = sum(stage.steps for budget in chosen for stage in budget.stages)
        tell_cost(f"check: {steps:,} steps", steps * _SECONDS_A_STEP)
    curves = [_measured_curve(constants, budget) for budget in chosen] if check else []
    numbers = {
        "constants": asdict(constants),
        "theta": constants.theta,
        "case": case_of(constants),
        "budgets": [asdict(budget) | {"promise": budget.promise} for budget in chosen],
        "not_promised": NOT_PROMISED,
        "check": curves,
    }
    picture = _picture(constants, chosen, curves) if check else None
    return Finding(numbers, "\n".join(_lines(constants, chosen, curves)), picture)


def _check_constants(constants: Constants) -> None:
    for name, value in asdict(constants).items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"--{name}={value:g}: expected a number above 0")
    if constants.epsilon >= 1:
        raise InputError(f"--epsilon={constants.epsilon:g}: expected a number below 1 (Definition 1)")
    if constants.pl > constants.smoothness:
        raise InputError(f"--pl={constants.pl:g} is above --smoothness={constants.smoothness:g}: no function has both")


def _check_steps(chosen: Sequence[Budget]) -> None:
    for budget in chosen:
        total = sum(stage.steps for stage in budget.stages)
        if total > MOST_STEPS:
            raise InputError(
                f"--check=true: {budget.name} takes {total:,} steps, above {MOST_STEPS:,}; raise --epsilon"
            )


def budgets(constants: Constants) -> list[Budget]:
    """The budget of each algorithm; TSLA's only where Theorem 4 applies (`obstacle_to_theorem_4`)."""
    c, wanted = constants, constants.epsilon**2
    rate = min(wanted / (2 * c.smoothness * c.sigma2), 1 / c.smoothness)
    noise = rate * c.smoothness * c.sigma2
    with_labels_mixed = 1 / c.smoothness
    reaches = c.delta <= wanted / (4 * c.sigma2)
    lsr_steps = (
        4 * c.loss / (with_labels_mixed * wanted) if reaches else c.loss / (with_labels_mixed * c.delta * c.sigma2)
    )
    settling = max(0.0, math.log(4 * c.pl * c.loss / wanted) / (rate * c.pl))
    found = [
        Budget("SGD", (_stage(4 * c.loss / (rate * wanted), rate),), c.loss, noise),
        Budget("SGD + LSR", (_stage(lsr_steps, with_labels_mixed, c.theta),), c.loss, 2 * c.delta * c.sigma2),
        Budget("SGD, PL", (_stage(settling, rate), _stage(2 / (rate * c.pl), rate)), wanted / (2 * c.pl), noise),
    ]
    if not obstacle_to_theorem_4(c):
        first = math.log(2 * c.pl * c.loss * (1 + c.delta) / (2 * c.delta * c.sigma2)) / (with_labels_mixed * c.pl)
        second = 8 * c.delta * c.sigma2 / (c.pl * rate * wanted)
        stages = _stage(first, with_labels_mixed, c.theta), _stage(second, rate)
        found.insert(2, Budget("TSLA", stages, 2 * c.delta * c.sigma2 / c.pl, noise))
    return found


def _stage(steps: float, rate: float, theta: float = 0.0) -> Stage:
    return Stage(math.ceil(steps * (1 - 1e-12)), rate, theta)  # a whole number stays one, whatever the rounding


def obstacle_to_theorem_4(constants: Constants) -> str:
    """Why Theorem 4 does not apply, or ""."""
    c = constants
    if c.delta * c.sigma2 / c.pl > c.loss:
        return f"delta sigma2 / mu = {c.delta * c.sigma2 / c.pl:.3g} is above F(w0) = {c.loss:.3g}"
    if c.epsilon**2 > 2 * c.sigma2:
        return "epsilon^2 > 2 sigma2 makes eta2 larger than 1/L, for which no descent is known (it does not say so)"
    return ""


def case_of(constants: Constants) -> str:
    """What the Remarks say of such a delta, in orders of epsilon alone; of TSLA only where Theorem 4 applies."""
    least, applies = constants.epsilon**2 / (4 * constants.sigma2), not obstacle_to_theorem_4(constants)
    if constants.delta <= least:
        tsla = "TSLA between log(1/eps) and 1/eps^2, " if applies else ""
        return (
            f"delta <= epsilon^2 / (4 sigma2) = {least:.3g}, case 1 of Theorem 3: LSR in O(1/eps^2), "
            f"{tsla}SGD in O(1/eps^4)"
        )
    lsr = "case 2 of Theorem 3: LSR is not promised to get there"
    if constants.delta < 1:
        tsla = "TSLA in O(delta/eps^4), " if applies else ""
        return f"epsilon^2 / (4 sigma2) = {least:.3g} < delta < 1, {lsr}, {tsla}SGD in O(1/eps^4)"
    return f"delta >= 1, {lsr}" + (", and SGD's order is better than TSLA's" if applies else "")


def _lines(constants: Constants, chosen: Sequence[Budget], curves: Sequence[dict[str, Any]]) -> Iterator[str]:
    c = constants
    yield (
        f"L {c.smoothness:g}, mu {c.pl:g}, sigma2 {c.sigma2:g}, delta {c.delta:g}, F(w0) {c.loss:g}, "
        f"epsilon {c.epsilon:g}; theta = 1/(1+delta) = {c.theta:.4g}"
    )
    yield case_of(c)
    yield f"{'':9}  {'steps':>20}  {'learning rates':>20}  E||grad F(w_R)||^2, epsilon^2 = {c.epsilon**2:.4g}"
    for at, budget in enumerate(chosen):
        steps = " + ".join(f"{stage.steps:,}" for stage in budget.stages)
        rates = ", ".join(f"{stage.rate:.4g}" for stage in budget.stages)
        line = f"{budget.name:9}  {steps:>20}  {rates:>20}  at most {budget.promise:.4g}"
        if curves:
            line += f"; measured {curves[at]['measured'][-1]:.4g} +- {curves[at]['error'][-1]:.2g}"
        yield line
    if obstacle := obstacle_to_theorem_4(c):
        yield f"Theorem 4 does not apply: {obstacle}"
    yield "not promised:"
    yield from (f"- {line}" for line in NOT_PROMISED)


def _measured_curve(constants: Constants, budget: Budget) -> dict[str, Any]:
    """The mean of ||grad F||^2 over the first iterates of the last stage, its standard error, and its bound."""
    steps = budget.stages[-1].steps
    shown = np.unique(np.geomspace(1, steps, _POINTS).round().astype(int))
    sums, measured, errors, wanted = np.zeros(REPETITIONS), [], [], set(shown.tolist())
    for step, squared in enumerate(gradients_of_last_stage(constants, budget.stages), start=1):
        sums += squared
        if step in wanted:
            measured.append(float(sums.mean() / step))
            errors.append(float(sums.std(ddof=1) / step / math.sqrt(REPETITIONS)))
    bounds = np.asarray(budget.bound(shown)).tolist()
    return {"name": budget.name, "steps": shown.tolist(), "measured": measured, "error": errors, "bound": bounds}


def gradients_of_last_stage(constants: Constants, stages: Sequence[Stage]) -> Iterator[np.ndarray]:
    """float64[REPETITIONS]: ||grad F(w)||^2 at each iterate of the last stage, on a problem of just these constants.

    F(w) = sum of lambda_j w_j^2 / 2 with lambda from mu to L, F* = 0, and F(w0) split evenly. Under y a gradient is
    grad F + xi with xi normal, E ||xi||^2 = sigma2; under y_hat of the same sample it is grad F + b + sqrt(delta/2) xi
    with ||b||^2 = delta sigma2 / 2, half of Eq. 4's variance being bias. So both assumptions and Eq. 4 hold at every w,
    with equality.
    """
    c, random = constants, generator(Stream.ANALYSES, 0, 2)
    curvature = np.geomspace(c.pl, c.smoothness, DIMENSIONS)
    w = np.tile(np.sqrt(2 * c.loss / DIMENSIONS / curvature), (REPETITIONS, 1))
    bias, spread = math.sqrt(c.delta * c.sigma2 / 2 / DIMENSIONS), math.sqrt(c.sigma2 / DIMENSIONS)
    for number, stage in enumerate(stages, start=1):
        blocks = range(0, stage.steps, _BLOCK)
        for first in tracked(blocks, f"check, stage {number} of {len(stages)}", steps=len(blocks)):
            shape = min(_BLOCK, stage.steps - first), REPETITIONS, DIMENSIONS
            factor = 1 - stage.theta + stage.theta * math.sqrt(c.delta / 2)
            for noise in factor * spread * random.standard_normal(shape) + stage.theta * bias:
                gradient = curvature * w
                if number == len(stages):
                    yield np.square(gradient).sum(1)
                w = w - stage.rate * (gradient + noise)


def _picture(constants: Constants, chosen: Sequence[Budget], curves: Sequence[dict[str, Any]]) -> Figure:
    """A panel an algorithm: what was measured along its last stage, and the bound."""
    with drawing.style():
        figure, axes = drawing.panels(2, 2)
        for axis, budget, curve in zip(axes, chosen, curves, strict=False):
            measured, error = np.array(curve["measured"]), np.array(curve["error"])
            axis.fill_between(
                curve["steps"], measured - 2 * error, measured + 2 * error, color=drawing.BLUE, alpha=0.25
            )
            axis.plot(curve["steps"], measured, color=drawing.BLUE, label=r"measured, $\pm$ 2 standard errors")
            axis.plot(curve["steps"], curve["bound"], "--", color=drawing.BROWN, label="bound")
            axis.plot(curve["steps"][-1], curve["bound"][-1], "o", color=drawing.BROWN, label="what is promised")
            axis.axhline(constants.epsilon**2, color=drawing.INK, linestyle=":", label=r"$\epsilon^2$")
            steps = " + ".join(f"{stage.steps:,}" for stage in budget.stages)
            axis.set(xscale="log", yscale="log", title=f"{budget.name}: {steps} steps")
            axis.set(xlabel="steps of the last stage", ylabel=r"$E\,\Vert\nabla F(w_R)\Vert^2$")
        for unused in axes[len(chosen) :]:
            unused.set_visible(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
