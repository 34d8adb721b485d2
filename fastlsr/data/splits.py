"""Which files a configuration trains and evaluates on. Light: asked before torch and FFCV are loaded."""

from pathlib import Path

from fastlsr.config import Config
from fastlsr.data.folds import check_folds
from fastlsr.data.manifest import read_manifest
from fastlsr.errors import InputError


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
