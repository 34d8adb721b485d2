r"""Variance of stochastic gradients (TSLA Eq. 4): python -m fastlsr.analyze variance RUN ... [--parameters=head].

    sigma2      = E ||grad l(y) - grad F||^2        y the one-hot label, grad F the mean of grad l(y)
    sigma2_hat  = E ||grad l(y_hat) - grad F||^2    y_hat the label that is mixed in: uniform, or a teacher's
    delta       = sigma2_hat / sigma2               theta = 1 / (1 + delta) is y_hat's weight in Theorems 3 and 4

The expectation is over training samples, one at a time and not augmented; l is the cross-entropy at temperature 1,
without weight decay. The network is in evaluation mode, in float32: with the statistics of a batch, a sample would have
no gradient of its own. Under y_hat gradients are biased in general; sigma2_hat includes the square of that bias, which
is also given by itself. Several checkpoints of a run, as `run.keep` keeps them, show how delta develops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fastlsr import drawing
from fastlsr.analysis import Finding
from fastlsr.data.loader import Loader
from fastlsr.engine.session import read_teacher
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError, unknown
from fastlsr.inference.cost import tell_cost, training_seconds
from fastlsr.labels.methods import make_plan
from fastlsr.models import head_parameters
from fastlsr.rng import Stream, generator
from fastlsr.terminal import tracked
from fastlsr.trials import run_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMETERS = {"all": 12.0, "head": 1.0}  # what a sample's gradients take, in times of training on an image: measured
RESAMPLES = 1000  # of the bootstrap
_BINS = 40
_VALUES = 1 << 25  # of gradients made at a time: 128 MiB in float32, of which some four copies are in use

# (labels int64[B], index int64[B]) -> targets float32[B, 2, K]: y and y_hat of those samples.
Targets = Callable[[Tensor, Tensor], Tensor]
# Makes the same batches at each call: normalised images float[B, 3, H, W], and targets float[B, 2, K].
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Distances:
    """Squared distances of the gradients of N samples to grad F, the mean gradient under y.

    Attributes:
        hard: float64[N], under y.
        soft: float64[N], under y_hat.
        cross: float64[N], <grad l(y) - grad F, grad l(y_hat) - grad F>.
        lever: float64[N], 2 <bias, grad l(y) - grad F>: how fast sigma2_hat falls when the sample counts for more,
            since that moves grad F.
        bias_squared: of the mean gradient under y_hat, taken for grad F.
        gradient_squared: of grad F.
    """

    hard: np.ndarray
    soft: np.ndarray
    cross: np.ndarray
    lever: np.ndarray
    bias_squared: float
    gradient_squared: float

    def mixed(self, theta: float) -> float:
        """E ||(1 - theta) grad l(y) + theta grad l(y_hat) - grad F||^2: under labels that are smoothed by theta."""
        shares = (1 - theta) ** 2 * self.hard + theta**2 * self.soft + 2 * theta * (1 - theta) * self.cross
        return float(shares.mean())


def analyze(
    runs: list[TrainedRun],
    *,
    parameters: str = "all",
    teacher: str = "",
    teacher_key: str = "sample",
    samples: int = 1000,
) -> Finding:
    """The delta of each checkpoint, its standard error, and theta = 1/(1+delta) beside the theta it was trained with.

    Args:
        parameters: `all` of the network's, or those of its `head`, the classifier.
        teacher: a file of soft labels that are y_hat, as `method.teacher`; without one, y_hat is uniform.
        teacher_key: which of the file's soft labels, as `method.teacher_key`: one a `sample` or one a `class`.
        samples: training samples that are drawn, the same ones each time; all, if there are no more.

    Raises:
        InputError: for options, data or a file that do not fit, or a checkpoint whose gradients are all zero.
    """
    if parameters not in PARAMETERS:
        raise InputError(unknown("choice of --parameters", parameters, list(PARAMETERS)))
    if samples < 2:
        raise InputError(f"--samples={samples}: expected at least 2")
    images = PARAMETERS[parameters] * samples
    tell_cost(f"gradients of {len(runs)} checkpoints", sum(training_seconds(run, images) for run in runs))
    rows = []
    for number, run in enumerate(runs, start=1):
        loader = run.plain_training_loader(lambda labels: drawn(len(labels), samples))
        targets = _targets(run, loader, teacher, teacher_key)
        name = f"gradients of checkpoint {number} of {len(runs)}"
        rows.append(_row(run, _distances_of_run(run, loader, targets, parameters, name)))
    numbers = {"parameters": parameters, "y_hat": teacher or "uniform", "checkpoints": rows}
    names = _names(runs)
    one_each = len(set(names)) == len(names)
    with drawing.style():
        picture = _histograms(names, rows) if one_each else _curves(names, rows)
    return Finding(numbers, _text(names, numbers), picture)


def drawn(count: int, samples: int) -> np.ndarray:
    """int64[min(count, samples)]: positions out of `count`, ascending, drawn without replacement."""
    return np.sort(generator(Stream.ANALYSES, 0).permutation(count)[:samples])


def squared_distances(model: nn.Module, parameters: Mapping[str, Tensor], batches: Batches) -> Distances:
    """The distances of all samples, in two passes: the means first, since E ||g||^2 - ||E g||^2 loses its digits.

    Args:
        model: in evaluation mode, from images to logits.
        parameters: those that the gradients are taken by, under their names in the model.
        batches: the samples; both passes ask for them.
    """
    with torch.no_grad():  # vjp makes what it needs; the parameters' own graphs would only cost memory
        total, count = torch.zeros(()), 0
        for images, targets in batches():
            total, count = total + _gradients(model, parameters, images, targets).double(), count + len(images)
        mean, mean_hat = total / count
        origin = mean.to(images.dtype)
        bias = (mean_hat - mean).to(images.dtype)

        def of_sample(image: Tensor, targets: Tensor) -> Tensor:
            gradients = _gradients(model, parameters, image[None], targets[None]) - origin
            hard, soft = gradients
            return torch.stack([hard @ hard, soft @ soft, hard @ soft, 2 * (hard @ bias)])

        chunk = max(1, _VALUES // (2 * len(origin)))
        parts = [vmap(of_sample, chunk_size=chunk)(*batch).double().cpu() for batch in batches()]
    hard, soft, cross, lever = torch.cat(parts).numpy().T
    return Distances(hard, soft, cross, lever, (mean_hat - mean).square().sum().item(), mean.square().sum().item())


def _gradients(model: nn.Module, parameters: Mapping[str, Tensor], images: Tensor, targets: Tensor) -> Tensor:
    """[2, P]: the gradients of the cross-entropy, summed over [B, ...] images, under both targets [B, 2, K]."""
    with_pull: Any = vjp(lambda values: functional_call(model, values, (images,)), dict(parameters))
    logits, pull = with_pull
    # In float64, since where p is close to y their difference would have few digits.
    of_logits = (logits.double().softmax(1)[:, None] - targets).to(logits.dtype)
    (found,) = vmap(pull)(of_logits.transpose(0, 1))
    return torch.cat([values.flatten(1) for values in found.values()], 1)


def delta_with_error(distances: Distances) -> tuple[float, float, tuple[float, float]]:
    """(delta, its standard error, its 95% interval) by the bootstrap over samples.

    `lever` carries over, to first order, that each resample has a mean gradient of its own.
    """

    def ratio(hard: np.ndarray, soft: np.ndarray, axis: int = -1) -> Any:
        return soft.mean(axis) / hard.mean(axis)

    found = bootstrap(
        (distances.hard, distances.soft - distances.lever), ratio, paired=True, vectorized=True, method="percentile",
        n_resamples=RESAMPLES, batch=20, random_state=generator(Stream.ANALYSES, 0, 1),
    )  # fmt: skip
    low, high = map(float, found.confidence_interval)
    return float(ratio(distances.hard, distances.soft)), float(found.standard_error), (low, high)


def _distances_of_run(run: TrainedRun, loader: Loader, targets: Targets, parameters: str, name: str) -> Distances:
    network = run.network(loader.resolution)
    # On a CPU channels-last, which suits the kernels of batches, makes gradients by sample take twice as long.
    model = network.model.to(memory_format=torch.contiguous_format)
    of_head = {id(parameter) for parameter in head_parameters(model)}
    chosen = {key: value for key, value in model.named_parameters() if parameters == "all" or id(value) in of_head}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in tracked(loader.epoch(0), name, steps=len(loader)):
            yield network.normalised(batch.images).contiguous(), targets(batch.labels, batch.index)

    return squared_distances(model, chosen, batches)


def _targets(run: TrainedRun, loader: Loader, teacher: str, teacher_key: str) -> Targets:
    """Both targets; y_hat is uniform, or the file's soft labels, read as `method.name=table` reads them."""
    one_hot = torch.eye(len(run.classes), device=run.device)
    table, by_sample = torch.full_like(one_hot, 1 / len(one_hot)), None
    if teacher:
        method = replace(run.config.method, name="table", teacher=teacher, teacher_key=teacher_key)
        config = replace(run.config, method=method)
        by_class, by_sample = read_teacher(config, make_plan(method, 1), loader.manifest, run.device)
        table = table if by_class is None else by_class.to(run.device)

    def targets(labels: Tensor, index: Tensor) -> Tensor:
        return torch.stack([one_hot[labels], by_sample.rows(index) if by_sample else table[labels]], 1)

    return targets


def _row(run: TrainedRun, distances: Distances) -> dict[str, Any]:
    """The figures of a checkpoint.

    `theta_used` is the weight of all but the one-hot label in its last targets, and `mixed` the variance under labels
    that are smoothed by it, over sigma2.
    """
    if not distances.hard.any():
        raise InputError(f"{run.folder.path}: all gradients are zero after {run.position.epochs} epochs")
    delta, error, interval = delta_with_error(distances)
    phase = run.plan.last_trained(run.position.epochs, run.position.batches)
    return {
        "run": run.folder.path.name,
        "method": run.config.method.name,
        "epoch": run.position.epochs,
        "samples": len(distances.hard),
        "sigma2": distances.hard.mean().item(),
        "sigma2_hat": distances.soft.mean().item(),
        "bias_squared": distances.bias_squared,
        "gradient_squared": distances.gradient_squared,
        "delta": delta,
        "delta_error": error,
        "delta_interval": interval,
        "theta": 1 / (1 + delta),
        "theta_used": 1 - phase.hard,
        "mixed": distances.mixed(1 - phase.hard) / distances.hard.mean().item(),
        "histogram": _histogram(distances),
    }


def _names(runs: Sequence[TrainedRun]) -> list[str]:
    """What tells the runs apart; checkpoints of one run have one name."""
    configs = {run.folder.path.resolve(): run.config for run in runs}
    names = dict(zip(configs, run_labels(list(configs.values())), strict=True))
    return [names[run.folder.path.resolve()] for run in runs]


def _text(names: Sequence[str], numbers: Mapping[str, Any]) -> str:
    rows, width = numbers["checkpoints"], max(map(len, names))
    lines = [
        f"gradients of {numbers['parameters']} parameters on {rows[0]['samples']:,} training images, "
        f"y_hat {numbers['y_hat']} (TSLA Eq. 4; +- standard error, bootstrap)",
        f"{'':{width}}  epoch     sigma2  sigma2_hat  (bias^2)  delta             1/(1+delta)  theta used  its "
        "variance/sigma2",
    ]
    lines += [
        f"{name:{width}}  {row['epoch']:5}  {row['sigma2']:9.3g}  {row['sigma2_hat']:10.3g}  {row['bias_squared']:8.3g}"
        f"  {row['delta']:<8.3g} +- {row['delta_error']:<6.2g}  {row['theta']:<11.3g}  "
        f"{row['theta_used']:<10.3g}  {row['mixed']:.3g}"
        for name, row in zip(names, rows, strict=True)
    ]
    return "\n".join(lines)


def _histogram(distances: Distances) -> dict[str, list[float]]:
    """Samples in bins of equal width on a logarithmic axis, under y and under y_hat."""
    both = np.concatenate([distances.hard, distances.soft])
    edges = np.geomspace(both[both > 0].min(), both.max(), _BINS + 1)
    inside = (values.clip(edges[0], edges[-1]) for values in (distances.hard, distances.soft))
    hard, soft = (np.histogram(values, edges)[0].tolist() for values in inside)
    return {"edges": edges.tolist(), "hard": hard, "soft": soft}


def _histograms(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel a checkpoint: the squared distances of the samples, their means marked."""
    columns = min(3, len(names))
    figure, axes = drawing.panels(-(-len(names) // columns), columns)
    for axis, name, row in zip(axes, names, rows, strict=False):
        histogram = row["histogram"]
        for key, mean, colour, label in (
            ("hard", "sigma2", drawing.BLUE, r"under $y$; mean: $\sigma^2$"),
            ("soft", "sigma2_hat", drawing.YELLOW, r"under $\hat y$; mean: $\hat\sigma^2$"),
        ):
            axis.stairs(histogram[key], histogram["edges"], fill=True, alpha=0.35, color=colour, label=label)
            axis.axvline(row[mean], color=colour, linestyle="--")
        axis.set(xscale="log", title=rf"{name}, epoch {row['epoch']}: $\delta$ = {row['delta']:.3g}", ylabel="samples")
        axis.set_xlabel(r"$\Vert\nabla\ell - \nabla F\Vert^2$ of a sample")
    for unused in axes[len(names) :]:
        unused.set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _curves(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """sigma2 and sigma2_hat, and delta, along the epochs of each run."""
    figure, (variances, deltas) = drawing.panels(1, 2)
    methods = {name: row["method"] for name, row in zip(names, rows, strict=True)}
    for name, style in zip(methods, drawing.line_styles(list(methods.values())), strict=True):
        own = sorted(
            (row for row, other in zip(rows, names, strict=True) if other == name), key=lambda row: row["epoch"]
        )
        epochs, colour = [row["epoch"] for row in own], style["color"]
        variances.plot(epochs, [row["sigma2"] for row in own], "o-", color=colour, markersize=3)
        variances.plot(epochs, [row["sigma2_hat"] for row in own], "^--", color=colour, markersize=3)
        below, above = np.transpose([row["delta_interval"] for row in own])
        deltas.fill_between(epochs, below, above, color=colour, alpha=0.2, linewidth=0)
        deltas.plot(
            epochs,
            [row["delta"] for row in own],
            "o",
            color=colour,
            linestyle=style["linestyle"],
            markersize=3,
            label=name,
        )
    for label, line in ((r"$\sigma^2$, under $y$", "o-"), (r"$\hat\sigma^2$, under $\hat y$", "^--")):
        variances.plot([], [], line, color=drawing.INK, markersize=3, label=label)
    deltas.axhline(1, color=drawing.INK, linewidth=0.8)
    variances.set(xlabel="epoch", yscale="log", title="variance of the gradients")
    deltas.set(xlabel="epoch", yscale="log", title=r"$\delta = \hat\sigma^2/\sigma^2$")
    variances.legend()
    deltas.legend()
    return figure
