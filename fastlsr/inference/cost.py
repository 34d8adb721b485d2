"""What an analysis will take; of a run, by the speed at which it was trained."""

from __future__ import annotations

from fastlsr.config import Config
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import split_paths
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError
from fastlsr.terminal import terminal

FORWARD = 1 / 3  # of what training on an image takes; the backward pass is the rest
_SECONDS_FROM = 60.0  # that are told of


def training_seconds(run: TrainedRun, images: float) -> float:
    """How long training on so many images takes, as in the run's last epoch; 0 where no row tells."""
    try:
        rows = run.folder.read_rows()
    except InputError:  # an estimate is no reason to fail
        return 0.0
    speeds = [row.get("images_per_second") for row in rows]
    numbers = [speed for speed in speeds if isinstance(speed, int | float) and speed > 0]
    return images / numbers[-1] if numbers else 0.0


def forward_seconds(run: TrainedRun, data: Config) -> float:
    """How long the run's network takes for both splits of a data set without training.

    Raises:
        InputError: if a manifest cannot be read.
    """
    images = sum(read_manifest(split).count for split in split_paths(data))
    return training_seconds(run, FORWARD * images)


def tell_cost(work: str, seconds: float) -> None:
    """Prints, to stderr, what is about to be done and the expected minutes; nothing if it is less than one."""
    if seconds >= _SECONDS_FROM:
        terminal(stderr=True).print(f"{work}: about {seconds / 60:.0f} minutes", markup=False)
