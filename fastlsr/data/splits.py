"""What a configuration trains and evaluates on: which files, and which samples of them. Loaded without torch or FFCV.

The folds of cross-validation are a function of (labels, number of folds) and of nothing else: not of `train.seed`,
since settings are only to be compared on the same folds, and a setting is tried with several seeds.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastlsr.config import Config, Data
from fastlsr.data.manifest import read_manifest
from fastlsr.errors import InputError

# From the labels int64[N] of a file to the positions int64[n], ascending, of the samples to use of it.
Subset = Callable[[np.ndarray], np.ndarray]

_KEY = 0x0F01D5


def whole(labels: np.ndarray) -> np.ndarray:
    """int64[N]: every sample."""
    return np.arange(len(labels))


def fold_of_sample(labels: np.ndarray, folds: int) -> np.ndarray:
    """int64[N]: the fold, 0 to folds - 1, of each sample. Each class is spread evenly, within one sample.

    Args:
        labels: int[N].
    """
    shuffled = np.random.Generator(np.random.Philox(key=_KEY)).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % folds  # dealt out like cards: a class lies together in `by_class`
    return fold


def training_subset(data: Data) -> Subset:
    """All folds but `data.fold`, or the whole file without `data.folds`."""
    if not data.folds:
        return whole
    return lambda labels: np.flatnonzero(fold_of_sample(labels, data.folds) != data.fold)


def held_out_subset(data: Data) -> Subset:
    """The fold `data.fold`, or the whole file without `data.folds`."""
    if not data.folds:
        return whole
    return lambda labels: np.flatnonzero(fold_of_sample(labels, data.folds) == data.fold)


def training_count(count: int, data: Data) -> int:
    """How many of a file's `count` samples `training_subset` takes."""
    return count - len(range(data.fold, count, data.folds)) if data.folds else count


def fold_name(data: Data) -> str:
    """Which part of a training split is held out, as a teacher's file has it: "1 of 5", or "" for none."""
    return f"{data.fold} of {data.folds}" if data.folds else ""


def check_folds(data: Data) -> None:
    """None.

    Raises:
        InputError: `data.fold` is not one of `data.folds`, or `data.val` names a file that would not be read.
    """
    if data.folds == 1:
        raise InputError("data.folds=1: expected at least 2, or 0 for no cross-validation")
    if data.fold and not data.folds:
        raise InputError(f"data.fold={data.fold} is one of data.folds, which is not set")
    if data.fold and data.fold >= data.folds:
        raise InputError(f"data.fold={data.fold}: expected one of data.folds={data.folds}, counted from 0")
    if data.folds and data.val:
        raise InputError(
            f"data.val={data.val} is not read with data.folds, which evaluate on a part of the training split"
        )


def split_paths(config: Config) -> tuple[Path, Path]:
    """The training and the evaluation `.beton` of a configuration; one and the same with `data.folds`.

    Raises:
        InputError: for folds that do not go together.
    """
    check_folds(config.data)
    folder, name = Path(config.data.dir), config.data.dataset
    train = Path(config.data.train) if config.data.train else folder / f"{name}_train.beton"
    val = Path(config.data.val) if config.data.val else folder / f"{name}_test.beton"
    return train, train if config.data.folds else val


def data_digests(config: Config) -> list[str]:
    """The digests of the training and the evaluation file, as their manifests have them.

    Raises:
        InputError: if a file is missing, or the two have different classes.
    """
    train, val = (read_manifest(path) for path in split_paths(config))
    if train.classes != val.classes:
        raise InputError("{} and {} have different classes".format(*split_paths(config)))
    return [train.digest, val.digest]
