"""What a configuration trains and evaluates on: which files, and which samples of them. Loaded without torch or FFCV.

The folds of cross-validation depend on the labels and the number of folds alone. `train.seed` has no part in them:
settings are compared on the same folds, and each setting is tried with several seeds.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastlsr.config import PLACES, TEST, VAL, Config, Data, from_dict, load
from fastlsr.data.manifest import NoSuchData, read_manifest
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
        InputError: `data.folds` is 1, `data.fold` is not one of them, or a file or split of `data.val` would not be
            read.
    """
    if data.folds == 1:
        raise InputError("data.folds=1: expected at least 2, or 0 for no cross-validation")
    if data.fold and not data.folds:
        raise InputError(f"data.fold={data.fold} is one of data.folds, which is not set")
    if data.folds and data.fold >= data.folds:
        raise InputError(f"data.fold={data.fold}: expected one of data.folds={data.folds}, counted from 0")
    if data.folds and data.val not in ("", VAL):
        raise InputError(
            f"data.val={data.val} is not read with data.folds, which evaluate on a part of the training split; "
            "data.val=val evaluates on the test split at the end, too"
        )


@contextlib.contextmanager
def naming_data_dir() -> Iterator[None]:
    """Inside, where an earlier run is opened, the error for data that are not there names `data.dir`, too."""
    try:
        yield
    except NoSuchData as error:
        raise InputError(f"{error}; if the run's data have moved: --data.dir=FOLDER") from None


def places_of_run(run: Config, path: str, options: Mapping[str, str]) -> dict[str, Any]:
    """The options of `config.PLACES` that tell where a trained run's data are now, and what computes.

    Args:
        run: its own options.
        path: a config file that has other places, or "".
        options: of the command line, which win.

    Raises:
        InputError: as `config.load`, and for other folds than the run's.
    """
    given = load(path, options) if path else from_dict(run.as_dict(), options)
    if fold_name(given.data) != fold_name(run.data):
        raise InputError(
            f"the run was trained with data.folds={run.data.folds} and data.fold={run.data.fold}, not "
            f"{given.data.folds} and {given.data.fold}"
        )
    values = given.flat()
    return {key: values[key] for key in PLACES if key in given.given or key == "train.device"}


def split_paths(config: Config) -> tuple[Path, Path]:
    """The training and the evaluation `.beton` of a configuration; one and the same with `data.folds`.

    Raises:
        InputError: as `check_folds`, or `data.val` is neither a split nor a file.
    """
    check_folds(config.data)
    data = config.data
    train = Path(data.train) if data.train else _file_of_split(data, "train")
    if data.folds:
        return train, train
    return train, _file_of_split(data, data.val or TEST) if data.val in ("", TEST, VAL) else _named_file(data.val)


def test_path(config: Config) -> Path:
    """The `.beton` that a run is evaluated on at its end, where it `selects_on_val`."""
    return _file_of_split(config.data, TEST)


def _file_of_split(data: Data, split: str) -> Path:
    return Path(data.dir) / f"{data.dataset}_{split}.beton"


def _named_file(val: str) -> Path:
    if not val.endswith(".beton"):
        raise InputError(f"data.val={val}: expected {TEST}, {VAL} or a .beton file")
    return Path(val)


def data_digests(config: Config) -> list[str]:
    """The digests of the training and the evaluation file, as their manifests have them.

    A third one is that of the test file, for a run that `selects_on_val`.

    Raises:
        InputError: a file is missing, or they have different classes; or as `split_paths`.
    """
    paths = [*split_paths(config), *([test_path(config)] if config.data.selects_on_val else [])]
    manifests = [read_manifest(path) for path in paths]
    for path, manifest in zip(paths, manifests, strict=True):
        if manifest.classes != manifests[0].classes:
            raise InputError(f"{paths[0]} and {path} have different classes")
    return [manifest.digest for manifest in manifests]
