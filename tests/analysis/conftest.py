"""Runs that several analyses are tried on, trained once a session."""

from pathlib import Path

import pytest

from fastlsr import train

EPOCHS = 2


@pytest.fixture(scope="session")
def six_runs(digits_dir, tmp_path_factory) -> dict[str, Path]:
    """ "METHOD-SEED" -> the folder of a run on the digits: `hard`, `lsr` and `tsla`, two seeds, each epoch kept."""
    folder = tmp_path_factory.mktemp("six_runs")
    options = {"data.dataset": "digits", "data.dir": digits_dir, "model.name": "resnet8", "train.epochs": EPOCHS,
               "train.compile": "off", "train.precision": "fp32", "log.wandb": "disabled", "run.keep": 1,
               "run.dir": folder}  # fmt: skip
    for method in ("hard", "lsr", "tsla"):
        for seed in (0, 1):
            words = {**options, "method.name": method, "train.seed": seed, "run.name": f"{method}-{seed}"}
            assert train.main([f"--{name}={value}" for name, value in words.items()]) == 0
    return {path.name: path for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def both_data(digits_dir, small_photos_dir, tmp_path_factory) -> Path:
    """One folder with the digits and the photographs."""
    folder = tmp_path_factory.mktemp("both_data")
    for file in (*digits_dir.iterdir(), *small_photos_dir.iterdir()):
        (folder / file.name).symlink_to(file)
    return folder
