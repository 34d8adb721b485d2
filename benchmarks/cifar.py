"""Random images of CIFAR's shape as `.beton` files, and the options to train on them, for several benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.writing import Samples, write_beton

CLASSES = 100


def write_random(folder: Path, *, train: int, test: int) -> None:
    """Writes `bench_train.beton` and `bench_test.beton`: random pixels, which take as long to train on as CIFAR's."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        samples = Samples(random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count) % CLASSES)
        write_beton(
            samples, folder / f"bench_{split}.beton", dataset="bench", split=split,
            classes=[str(label) for label in range(CLASSES)], encoding=Encoding(),
        )  # fmt: skip


def options(folder: Path, **more: object) -> dict[str, str]:
    """The options of a run on those files, for `fastlsr.config.load`; `more` are further ones, as section__key."""
    common = {"data.dir": folder, "data.dataset": "bench", "run.dir": folder / "runs", "log.wandb": "disabled",
              "train.compile": "off"}  # fmt: skip
    chosen = {**common, **{name.replace("__", "."): value for name, value in more.items()}}
    return {name: str(value) for name, value in chosen.items()}
