"""Distances between a run's class templates: python -m fastlsr.analysis.templates RUN --classes=A,B,C [--data.dir=DIR].

A class's template is its row of the classifier's weights, scaled to length 1 (COLAM, section 5; its Table 5). Prints
one JSON object: the Euclidean distance of each pair of the classes, "A|B", and their average.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fastlsr.cli import exit_on_input_error, read_arguments
from fastlsr.config import from_dict
from fastlsr.engine import checkpoint
from fastlsr.engine.session import evaluation_loader, trained_network
from fastlsr.errors import InputError

USAGE = "usage: python -m fastlsr.analysis.templates RUN --classes=A,B,C"


def template_distances(templates: Tensor) -> Tensor:
    """float32[K, K]: Euclidean distances between the rows of float[K, D] scaled to length 1; 0 to 2.

    The classes are few enough for the differences themselves: from products, near templates would lose their digits.
    """
    rows = functional.normalize(templates.float(), dim=1)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


@torch.inference_mode()
def distances_of_run(folder: Path, classes: list[str], overrides: dict[str, str]) -> dict[str, float]:
    """Pair of classes "A|B", and "average" -> distance, of the network in a run's newest checkpoint.

    Args:
        overrides: options of the run to change, as where its data is now.

    Raises:
        InputError: if there is no checkpoint, a class is not the run's, or there are fewer than two.
    """
    state, _ = checkpoint.load(folder)
    if state is None:
        raise InputError(f"{folder} holds no checkpoint")
    names = state["decided"]["classes"]
    if unknown := [name for name in classes if name not in names]:
        raise InputError(f"{folder} knows no class {unknown[0]}; it has {', '.join(names[:5])} and so on")
    if len(set(classes)) < 2:
        raise InputError("a distance takes two classes: --classes=A,B")
    device = torch.device("cpu")
    config = from_dict(state["config"], overrides)
    loader = evaluation_loader(config, device)
    side = loader.resolution
    network = trained_network(state, config, loader, device)
    noise = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)  # any images tell where the classifier is
    distances = template_distances(network.penultimate(noise).templates)
    pairs = {f"{a}|{b}": distances[names.index(a), names.index(b)].item()
             for a, b in itertools.combinations(dict.fromkeys(classes), 2)}  # fmt: skip
    return {**pairs, "average": sum(pairs.values()) / len(pairs)}


def main(arguments: list[str] | None = None) -> int:
    """Prints the distances; the exit code."""
    with exit_on_input_error():
        words = sys.argv[1:] if arguments is None else arguments
        if "--help" in words:
            print(__doc__)
            return 0
        if not words or words[0].startswith("-"):
            raise InputError(USAGE)
        _, overrides, _ = read_arguments(words[1:])
        classes = [name.strip() for name in overrides.pop("classes", "").split(",") if name.strip()]
        print(json.dumps(distances_of_run(Path(words[0]), classes, overrides), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
