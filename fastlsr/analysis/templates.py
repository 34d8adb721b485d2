"""Distances between a run's class templates: python -m fastlsr.analyze templates RUN --classes=A,B,C.

A class's template is its row of the classifier's weights, scaled to length 1 (COLAM, section 5; its Table 5).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from fastlsr.analysis import Finding
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError, unknown


def template_distances(templates: Tensor) -> Tensor:
    """float32[K, K]: Euclidean distances between the rows of float[K, D] scaled to length 1; 0 to 2.

    The classes are few enough to subtract them pair by pair: from products, near templates would lose their digits.
    """
    rows = functional.normalize(templates.float(), dim=1)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


@torch.inference_mode()
def analyze(run: TrainedRun, *, classes: str) -> Finding:
    """The distance of each pair of classes, under "A|B", and their mean, under "average".

    Args:
        classes: two or more names, separated by commas.

    Raises:
        InputError: if a class is not the run's, or there are fewer than two.
    """
    chosen = list(dict.fromkeys(name.strip() for name in classes.split(",") if name.strip()))
    for name in chosen:
        if name not in run.classes:
            raise InputError(unknown("class of the run", name, run.classes))
    if len(chosen) < 2:
        raise InputError("a distance takes two classes: --classes=A,B")
    side = run.evaluation_loader().resolution
    noise = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, device=run.device)  # any images will do
    distances = template_distances(run.network(side).penultimate(noise).templates)
    at = run.classes.index
    pairs = {f"{a}|{b}": distances[at(a), at(b)].item() for a, b in itertools.combinations(chosen, 2)}
    numbers = {**pairs, "average": sum(pairs.values()) / len(pairs)}
    return Finding(numbers, "\n".join(f"{name}  {distance:.4f}" for name, distance in numbers.items()))
