"""Runs that several analyses are tried on, trained once a session."""

from pathlib import Path

import pytest

EPOCHS = 2


@pytest.fixture(scope="session")
def six_runs(train_digits, tmp_path_factory) -> dict[str, Path]:
    """ "METHOD-SEED" -> the folder of a run on the digits: `hard`, `lsr` and `tsla`, two seeds, each epoch kept."""
    folder, shared = tmp_path_factory.mktemp("six_runs"), {"train.epochs": EPOCHS, "run.keep": 1}
    return {
        f"{method}-{seed}": train_digits(
            folder / f"{method}-{seed}", {**shared, "method.name": method, "train.seed": seed}
        )
        for method in ("hard", "lsr", "tsla")
        for seed in (0, 1)
    }


@pytest.fixture(scope="session")
def both_data(digits_dir, small_photos_dir, tmp_path_factory) -> Path:
    """One folder with the digits and the photographs."""
    folder = tmp_path_factory.mktemp("both_data")
    for file in (*digits_dir.iterdir(), *small_photos_dir.iterdir()):
        (folder / file.name).symlink_to(file)
    return folder
