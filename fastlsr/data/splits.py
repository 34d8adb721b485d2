"""What a configuration trains and evaluates on: which files, and which samples of them. Loaded without torch or FFCV.

The folds of cross-validation depend on the labels and the number of folds alone. `train.seed` has no part in them:
settings are compared on the same folds, and each setting is tried with several seeds.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastlsr.config import Config, Data
from fastlsr.data.manifest import read_manifest
from fastlsr.errors import InputError
from fastlsr.rng import folds_generator

# From the labels int64[N] of a file to the positions int64[n], ascending, of the samples that are used.
Subset = Callable[[np.ndarray], np.ndarray]


def whole(labels: np.ndarray) -> np.ndarray:
    """int64[N]: every sample."""
    return np.arange(len(labels))


def fold_of_sample(labels: np.ndarray, folds: int) -> np.ndarray:
    """int64[N]: the fold, 0 to folds - 1, of each sample. Each class is spread evenly, within one sample.

    Args:
        labels: int[N].
        folds: at least 1.
    """
    shuffled = folds_generator().permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % folds  # dealt out like cards, class after class
    return fold


def training_subset(data: Data) -> Subset:
    """The samples in all folds but `data.fold`; every sample without `data.folds`."""
    if not data.folds:
        return whole
    return lambda labels: np.flatnonzero(fold_of_sample(labels, data.folds) != data.fold)


def held_out_subset(data: Data) -> Subset:
    """The samples in the fold `data.fold`; every sample without `data.folds`."""
    if not data.folds:
        return whole
    return lambda labels: np.flatnonzero(fold_of_sample(labels, data.folds) == data.fold)


def training_count(count: int, data: Data) -> int:
    """The number of samples that `training_subset` takes of a file's `count`."""
    return count - len(range(data.fold, count, data.folds)) if data.folds else count


def fold_name(data: Data) -> str:
    """The part of a training split that is held out, as a file of soft labels names it: "1 of 5", or "" for none."""
    return f"{data.fold} of {data.folds}" if data.folds else ""


def check_folds(data: Data) -> None:
    """Checks that the options of cross-validation go together.

    Raises:
        InputError: `data.folds` is 1, `data.fold` is not one of them, or `data.val` would not be read.
    """
    if data.folds == 1:
        raise InputError("data.folds=1: expected at least 2, or 0 for no cross-validation")
    if data.fold and not data.folds:
        raise InputError(f"data.fold={data.fold} is one of data.folds, which is not set")
    if data.folds and data.fold >= data.folds:
        raise InputError(f"data.fold={data.fold}: expected one of data.folds={data.folds}, counted from 0")
    if data.folds and data.val:
        raise InputError(
            f"data.val={data.val} is not read with data.folds, which evaluate on a part of the training split"
        )


def split_paths(config: Config) -> tuple[Path, Path]:
    """The training and the evaluation `.beton` of a configuration; one and the same with `data.folds`.

    Raises:
        InputError: as `check_folds`.
    """
    check_folds(config.data)
    folder, name = Path(config.data.dir), config.data.dataset
    train = Path(config.data.train) if config.data.train else folder / f"{name}_train.beton"
    val = Path(config.data.val) if config.data.val else folder / f"{name}_test.beton"
    return train, train if config.data.folds else val


def data_digests(config: Config) -> list[str]:
    """The digests of the training and the evaluation file, as their manifests have them.

    Raises:
        InputError: a file is missing, or the two have different classes; or as `check_folds`.
    """
    paths = split_paths(config)
    train, val = map(read_manifest, paths)
    if train.classes != val.classes:
        raise InputError("{} and {} have different classes".format(*paths))
    return [train.digest, val.digest]
