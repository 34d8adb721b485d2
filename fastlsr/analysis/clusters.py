"""How tight the clusters of a network's features are, and how far apart: COLAM's Fig. 3 and Table 5, and their kin.

    python -m fastlsr.analyze clusters RUN ... [--classes=man,palm_tree,pine_tree]

Of the penultimate features x of the training and the test split, without augmentation, and of the templates w, the
rows of the classifier's weights. Classes count equally, however many images they have.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastlsr.analysis import Finding
from fastlsr.drawing import INK, MOST_NAMES, heat_map, method_colour, panels, style
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError
from fastlsr.inference.cost import forward_seconds, tell_cost
from fastlsr.inference.features import split_features
from fastlsr.trials import run_labels, setting_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME = 26  # characters of a line
_PAIRS = 10  # distances of templates that the text shows one by one
# Key in the numbers: (title in a picture, head of a column).
_FIGURES = {
    "adt_own": ("ADT, own template", "ADT own"),
    "adt_other": ("ADT, other templates", "other"),
    "intra_class_variation": ("intra-class variation", "within"),
    "adc_own": ("ADC, own centroid", "ADC own"),
    "adc_other": ("ADC, other centroids", "other"),
    "separation": ("inter-class separation, R²", "R²"),
    "nc1": ("NC1: variability", "NC1"),
    "nc2_norms": ("NC2: unequal norms", "NC2 norms"),
    "nc2_angles": ("NC2: unequal angles", "angles"),
}
_SPLITS = ("train", "test")


def template_distances(templates: Tensor) -> Tensor:
    """float64[K, K]: Euclidean distances between the rows of float[K, D] scaled to length 1; 0 to 2. COLAM, Table 5.

    The classes are few enough to subtract them pair by pair: from products, near templates would lose their digits.
    """
    rows = normalize(templates.double(), dim=1)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def average_distances(anchors: Tensor, clusters: Sequence[Tensor]) -> Tensor:
    """float64[A, C]: mean Euclidean distance of the samples of each cluster to each anchor, all scaled to length 1.

    ADT where the anchors are templates, ADC where they are centroids (COLAM, section 5.2, Fig. 3).

    Args:
        anchors: float[A, D].
        clusters: C tensors float[n, D].
    """
    unit = normalize(anchors.double(), dim=1)
    return torch.stack([torch.cdist(unit, normalize(each.double(), dim=1)).mean(1) for each in clusters], dim=1)


def centroids(clusters: Sequence[Tensor]) -> Tensor:
    """float64[C, D]: the mean of each cluster's samples float[n, D], which are scaled to length 1 before."""
    return torch.stack([normalize(each.double(), dim=1).mean(0) for each in clusters])


def variation_and_separation(clusters: Sequence[Tensor]) -> tuple[float, float]:
    """(d_within, R²) of K classes: intra-class variation and inter-class separation as in MaxSup's Table 2.

    Both are Kornblith et al.'s (2021, Eq. 11), with the cosine similarity sim:

        d_within = Σ_k Σ_m Σ_n (1 - sim(x_k,m, x_k,n)) / (K N_k²)
        d_total  = Σ_j Σ_k Σ_m Σ_n (1 - sim(x_j,m, x_k,n)) / (K² N_j N_k)
        R²       = 1 - d_within / d_total

    A sum of similarities is the product of sums of vectors of length 1, so that the means u_k of those suffice:
    d_within = 1 - mean |u_k|² and d_total = 1 - |mean u_k|².
    """
    means = centroids(clusters)
    within = 1 - means.square().sum(1).mean().item()
    total = 1 - means.mean(0).square().sum().item()
    return within, 1 - within / total if total else math.nan


def neural_collapse(clusters: Sequence[Tensor]) -> tuple[float, float, float]:
    """(NC1, NC2 of norms, NC2 of angles) of K classes, by Papyan et al. 2020; all 0 for a collapsed network.

    With the class means μ_k, their mean μ, Σ_W the mean over classes of a class's covariance, Σ_B the covariance of the
    class means and † the pseudo-inverse:

        NC1        = tr(Σ_W Σ_B†) / K
        NC2 norms  = std_k |μ_k - μ| / mean_k |μ_k - μ|
        NC2 angles = mean over j ≠ k of |cos(μ_j - μ, μ_k - μ) + 1 / (K - 1)|
    """
    count = len(clusters)
    means = torch.stack([each.double().mean(0) for each in clusters])
    centred = means - means.mean(0)
    _, sizes, directions = torch.linalg.svd(centred / math.sqrt(count), full_matrices=False)
    # Centred means span K - 1 dimensions at most; Σ_B† = Σ v vᵀ / s² over those that they do span.
    spanned = sizes[: count - 1] > torch.finfo(torch.float64).eps * max(centred.shape) * sizes[0]
    basis, scale = directions[: count - 1][spanned], sizes[: count - 1][spanned]
    within = [((each.double() - mean) @ basis.T).square().mean(0) for each, mean in zip(clusters, means, strict=True)]
    nc1 = (torch.stack(within).mean(0) / scale.square()).sum().item() / count if len(scale) else math.nan
    norms = centred.norm(dim=1)
    cosines = normalize(centred, dim=1) @ normalize(centred, dim=1).T
    off_diagonal = cosines[~torch.eye(count, dtype=torch.bool)]
    angles = (off_diagonal + 1 / (count - 1)).abs().mean().item()
    return nc1, (norms.std(correction=0) / norms.mean()).item(), angles


def analyze(runs: Sequence[TrainedRun], *, classes: str = "") -> Finding:
    """ADT, ADC, intra-class variation, inter-class separation, NC1, NC2 and template distances of each run.

    Rows of `adt` and `adc` are templates and centroids, columns are clusters; `own` is the mean of the diagonal,
    `other` that of the rest.

    Args:
        classes: two or more names, separated by commas, for ADT, ADC and the distances between templates; empty: all.
            The other figures are of all classes.

    Raises:
        InputError: if a class is not of each run, there are fewer than two, the runs differ in classes and none are
            chosen, or a split has no image of a class.
    """
    for run in runs:
        if not classes and run.classes != runs[0].classes:
            raise InputError(
                f"{run.folder.path} has other classes than {runs[0].folder.path}: choose some, --classes=A,B"
            )
    labels = [run.labels_named(classes) if classes else list(range(len(run.classes))) for run in runs]
    if len(labels[0]) < 2:
        raise InputError("a distance takes two classes: --classes=A,B")
    names = [runs[0].classes[label] for label in labels[0]]
    configs = [run.config for run in runs]
    tell_cost(f"features of {len(runs)} runs", sum(forward_seconds(run, run.config) for run in runs))
    titles = zip(run_labels(configs), setting_labels(configs), strict=True)
    found = [
        {"label": label + run.at_epoch, "setting": setting + run.at_epoch, "method": run.config.method.name}
        | {"run": str(run.folder.path), **_of_run(run, chosen, names)}
        for (label, setting), run, chosen in zip(titles, runs, labels, strict=True)
    ]
    picture = _heat_maps(names, found[0]) if len(found) == 1 else _bars(found)
    return Finding({"classes": names, "runs": found}, _text(found), picture)


def _of_run(run: TrainedRun, chosen: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The distances between the templates of the classes `chosen`, and the figures of each split."""
    found: dict[str, Any] = {}
    for split, loader in zip(_SPLITS, (run.plain_training_loader(), run.evaluation_loader()), strict=True):
        features = split_features(run, loader, split)
        clusters = [features.values[features.labels == label] for label in range(len(run.classes))]
        for name, cluster in zip(run.classes, clusters, strict=True):
            if not len(cluster):
                raise InputError(f"the {split} split of {run.config.data.dataset} has no image of {name}")
        found["template_distances"] = _pairs(names, template_distances(features.templates[chosen]))
        found[split] = _of_split(clusters, features.templates, chosen)
    return found


def _pairs(names: Sequence[str], distances: Tensor) -> dict[str, float]:
    """The distance of each pair of classes, under "A|B", and their mean, under "average"."""
    pairs = {f"{names[a]}|{names[b]}": distances[a, b].item() for a, b in itertools.combinations(range(len(names)), 2)}
    return {**pairs, "average": sum(pairs.values()) / len(pairs)}


def _of_split(clusters: Sequence[Tensor], templates: Tensor, chosen: Sequence[int]) -> dict[str, Any]:
    """ADT and ADC of the classes `chosen`, and the figures of all."""
    shown = [clusters[label] for label in chosen]
    tables = {"adt": average_distances(templates[chosen], shown), "adc": average_distances(centroids(shown), shown)}
    found: dict[str, Any] = {}
    for name, table in tables.items():
        own = torch.eye(len(table), dtype=torch.bool)
        found |= {name: table.tolist(), f"{name}_own": table[own].mean().item()}
        found[f"{name}_other"] = table[~own].mean().item()
    of_all = (*variation_and_separation(clusters), *neural_collapse(clusters))
    keys = ("intra_class_variation", "separation", "nc1", "nc2_norms", "nc2_angles")
    return found | {
        key: value if math.isfinite(value) else None for key, value in zip(keys, of_all, strict=True)
    }  # JSON has no NaN


def _text(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each run and split, and one for each pair of templates where they are few."""
    width = max(len(each["label"]) for each in found)
    lines = [f"{'':{width}}  split  " + "  ".join(f"{head:>9}" for _, head in _FIGURES.values())]
    for each in found:
        for split in _SPLITS:
            figures = "  ".join(_shown(each[split][key]) for key in _FIGURES)
            lines.append(f"{each['label']:{width}}  {split:5}  {figures}")
    pairs = list(found[0]["template_distances"])
    shown = pairs if len(pairs) <= _PAIRS + 1 else ["average"]
    wide = max(map(len, shown))
    lines += ["", "distances between templates:"]
    for each in found:
        lines += [f"{each['label']:{width}}  {pair:{wide}}  {each['template_distances'][pair]:.4f}" for pair in shown]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.4f}"


@style()
def _heat_maps(names: Sequence[str], found: Mapping[str, Any]) -> Figure:
    """ADT and ADC of one run, as COLAM's Fig. 3: a column of panels for each, with colours of its own."""
    side = max(2.6, 0.26 * min(len(names), MOST_NAMES) + 1.2)
    figure, axes = panels(2, 2, width=side, height=side)
    for column, (key, row) in enumerate((("adt", "template of"), ("adc", "centroid of"))):
        tables = [torch.tensor(found[split][key]) for split in _SPLITS]
        low, high = torch.stack(tables).aminmax()
        for panel, split, table in zip(axes[column::2], _SPLITS, tables, strict=True):
            image = heat_map(panel, table, names, vmin=low.item(), vmax=high.item())
            panel.set(title=f"{key.upper()}, {split}", xlabel="samples of", ylabel=row)
        figure.colorbar(image, ax=axes[column::2], label="mean distance", location="bottom", shrink=0.7)
    return figure


@style()
def _bars(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Each figure in a panel of its own: a bar for a setting's mean and split, a dot for each of its runs."""
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for each in found:
        settings.setdefault(each["setting"], []).append(each)
    figure, axes = panels(3, 3, width=2.8, height=0.4 * len(settings) + 0.8)
    for at, (panel, (key, (title, _))) in enumerate(zip(axes, _FIGURES.items(), strict=True)):
        _draw_bars(panel, list(settings.values()), key)
        names = [textwrap.fill(name, _NAME) for name in settings] if at % 3 == 0 else []
        panel.set_yticks(range(len(settings)), names or [""] * len(settings))
        panel.set_title(title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside lower center", ncols=2)
    return figure


def _draw_bars(panel: Axes, settings: Sequence[Sequence[Mapping[str, Any]]], key: str) -> None:
    for at, repeats in enumerate(settings):
        colour = method_colour(repeats[0]["method"])
        for split, shift, opacity in zip(_SPLITS, (-0.2, 0.2), (1.0, 0.4), strict=True):
            values = [each[split][key] for each in repeats if each[split][key] is not None]
            if values:
                mean = sum(values) / len(values)
                panel.barh(at + shift, mean, 0.36, color=colour, alpha=opacity, label=split)
                panel.scatter(
                    values, [at + shift] * len(values), s=9, color=INK, edgecolors="white", linewidths=0.5, zorder=3
                )
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
