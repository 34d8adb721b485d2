"""Penultimate features on the plane of three class templates: COLAM's Fig. 2, after Müller et al. 2019.

    python -m fastlsr.analyze projection RUN ... --classes=man,palm_tree,pine_tree [--samples=100]

Each image becomes a point of the plane through the templates of the three classes, the rows of the classifier's
weights. What lies outside the plane is dropped: a near point may be a far feature.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastlsr import rng
from fastlsr.analysis import Finding
from fastlsr.data.loader import Loader
from fastlsr.drawing import BLUE, GREEN, YELLOW, panels, style
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError
from fastlsr.inference.cost import forward_seconds, tell_cost
from fastlsr.inference.features import split_features
from fastlsr.trials import run_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS = ((BLUE, "o"), (YELLOW, "^"), (GREEN, "s"))  # of the three classes: told apart without colour, too
_TITLE = 30  # characters of a line
_FLAT = 1e-6  # of the longest side: triangles that are flatter span no plane


@dataclass(frozen=True)
class Plane:
    """A plane in feature space.

    Attributes:
        origin: float64[D], one of its points.
        axes: float64[D, 2], orthonormal.
    """

    origin: Tensor
    axes: Tensor

    def coordinates(self, points: Tensor) -> Tensor:
        """float64[N, 2]: where float[N, D] points are on the plane, once what is orthogonal to it is dropped."""
        return (points.double() - self.origin) @ self.axes


def plane_through(templates: Tensor) -> Plane:
    """The plane through three points float[3, D], with their mean as its origin.

    The first axis runs from the first point to the second, and the third lies on the positive side of the second axis:
    every plane shows its templates in the same order, A at the left, B at the right and C above.

    Raises:
        InputError: if the points lie on a line.
    """
    corners = templates.double()
    axes, sizes = torch.linalg.qr((corners[1:] - corners[0]).T)
    lengths = sizes.diagonal()
    if len(lengths) < 2 or lengths.abs().min() <= _FLAT * sizes.abs().max():
        raise InputError("the templates of the three classes lie on a line; there is no plane to project on")
    return Plane(corners.mean(0), axes * lengths.sign())


def spreads(points: Sequence[Tensor], templates: Tensor) -> list[dict[str, float]]:
    """How far the points float64[N, 2] of each class spread, and how far from their template float64[3, 2] they are.

    Returns:
        of each class: `spread`, the root mean square distance of its points to their mean; `relative_spread`, the same
        in units of the mean distance between the means of the classes, for networks whose features differ in size; and
        `to_template`, the distance of their mean to the class's template.
    """
    means = torch.stack([each.mean(0) for each in points])
    apart = torch.pdist(means).mean().item()
    found = []
    for each, mean, template in zip(points, means, templates, strict=True):
        spread = (each - mean).square().sum(1).mean().sqrt().item()
        to_template = (mean - template).norm().item()
        found.append({"spread": spread, "relative_spread": spread / apart, "to_template": to_template})
    return found


def analyze(runs: Sequence[TrainedRun], *, classes: str, samples: int = 100) -> Finding:
    """The coordinates of images and templates for each run and split; runs on the same data show the same images.

    Args:
        classes: three names, separated by commas.
        samples: images of each class, drawn at random from each split; all of a class that has fewer.

    Raises:
        InputError: if the classes are not three of each run, a split has none of one, or `samples` is less than 1.
    """
    labels = [run.labels_named(classes) for run in runs]
    if len(labels[0]) != 3:
        raise InputError(f"a plane takes three classes: --classes=A,B,C; {len(labels[0])} are given")
    if samples < 1:
        raise InputError(f"--samples={samples}: expected at least 1")
    names = [runs[0].classes[label] for label in labels[0]]
    titles = run_labels([run.config for run in runs])
    tell_cost(
        f"features of {len(runs)} runs", sum(3 / len(run.classes) * forward_seconds(run, run.config) for run in runs)
    )
    found = [
        {"label": title + run.at_epoch, "run": str(run.folder.path), **_projected(run, chosen, samples)}
        for run, title, chosen in zip(runs, titles, labels, strict=True)
    ]
    numbers = {"classes": names, "samples": samples, "runs": found}
    return Finding(numbers, _text(names, found), _picture(names, found))


def _projected(run: TrainedRun, labels: Sequence[int], samples: int) -> dict[str, Any]:
    """The templates and, for the training and the test split, what `_split` gives."""
    loaders = {"train": run.plain_training_loader(), "test": run.evaluation_loader()}
    found: dict[str, Any] = {}
    for split, loader in loaders.items():
        index = torch.cat([_drawn(run, loader, split, label, samples) for label in labels])
        features = split_features(run, loader, split, index)
        plane = plane_through(features.templates[labels])
        templates = plane.coordinates(features.templates[labels])
        at = [features.labels == label for label in labels]
        points = [plane.coordinates(features.values[each]) for each in at]
        found["templates"] = templates.tolist()
        found[split] = [
            {"index": features.index[each].tolist(), "points": coordinates.tolist(), **figures}
            for each, coordinates, figures in zip(at, points, spreads(points, templates), strict=True)
        ]
    return found


def _drawn(run: TrainedRun, loader: Loader, split: str, label: int, samples: int) -> Tensor:
    """int64[n], the index of `samples` random images of a class: a function of the split's labels alone."""
    members = loader.indices[loader.labels[loader.indices] == label]
    if not len(members):
        raise InputError(f"the {split} split of {run.config.data.dataset} has no image of {run.classes[label]}")
    generator = rng.named_generator(f"projection of {split} images", label)
    return torch.from_numpy(generator.choice(members, size=min(samples, len(members)), replace=False))


def _text(names: Sequence[str], found: Sequence[dict[str, Any]]) -> str:
    width = max(len(each["label"]) for each in found)
    head = f"{'':{width}}  {'split':5}  " + "  ".join(f"{name:>12}" for name in names)
    lines = ["spread of each class around its mean, in units of the mean distance between the classes:", head]
    for each in found:
        for split in ("train", "test"):
            figures = "  ".join(f"{one['relative_spread']:12.3f}" for one in each[split])
            lines.append(f"{each['label']:{width}}  {split:5}  {figures}")
    return "\n".join(lines)


@style()
def _picture(names: Sequence[str], found: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = panels(2, len(found), width=3.2, height=3.0)
    for column, each in enumerate(found):
        points = {split: [one["points"] for one in each[split]] for split in ("train", "test")}
        centre, half = _square([*each["templates"], *sum((*points["train"], *points["test"]), [])])
        for panel, split in zip(axes[column :: len(found)], points, strict=True):
            _draw(panel, names, each["templates"], points[split])
            panel.set_aspect("equal")
            panel.set_xlim(centre[0] - half, centre[0] + half)
            panel.set_ylim(centre[1] - half, centre[1] + half)
        axes[column].set_title(textwrap.fill(each["label"], _TITLE))
    axes[0].set_ylabel("train")
    axes[len(found)].set_ylabel("test")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _square(points: Sequence[Sequence[float]]) -> tuple[list[float], float]:
    """The centre and half the side of a square that holds all points [N, 2], with a margin for names."""
    low, high = torch.tensor(points).aminmax(dim=0)
    return ((low + high) / 2).tolist(), 0.58 * (high - low).max().item()


def _draw(panel: Axes, names: Sequence[str], templates: Sequence[Any], points: Sequence[Any]) -> None:
    for name, (colour, marker), own in zip(names, _LOOKS, points, strict=True):
        x, y = zip(*own, strict=True)
        panel.scatter(x, y, s=9, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
    outside = (-16, -16, 8)  # points: the first two templates are the lower ones, `plane_through`
    for name, (colour, _), (x, y), up in zip(names, _LOOKS, templates, outside, strict=True):
        panel.scatter(x, y, s=170, color=colour, marker="*", edgecolors="white", linewidths=0.8, zorder=3)
        panel.annotate(name, (x, y), (0, up), textcoords="offset points", ha="center", weight="bold", zorder=4)
