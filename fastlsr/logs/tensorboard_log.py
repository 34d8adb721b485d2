"""A run's figures as TensorBoard's event files in its folder. The only home of tensorboard."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlsr.config import Config
from fastlsr.errors import InputError
from fastlsr.logs.loggers import Logger
from fastlsr.runs import Row, RunFolder, keys

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog(Logger):
    """Writes `epochs/`, a step an epoch, and `steps/`, a step a batch: TensorBoard has one axis for a folder.

    Args:
        folder: of both.
        options: shown as hyperparameters.
        split: whose metrics are shown beside them.
        rows: of the epochs before; later ones in the files are hidden from TensorBoard.
    """

    def __init__(self, folder: Path, options: Mapping[str, str | float], split: str, rows: list[Row]):
        from torch.utils.tensorboard.summary import hparams

        self._folder = folder
        self._steps: SummaryWriter | None = None  # not made in a run without such figures
        missed = [] if any(folder.glob("epochs/events*")) else rows
        self._epochs = _writer(folder / "epochs", first=len(rows) - len(missed) + 1)
        metrics = dict.fromkeys(key for key in keys() if key.startswith(f"{split}/"))
        *described, self._succeeded = hparams(dict(options), metrics)
        for part in described:
            _add_summary(self._epochs, part)
        for row in missed:
            self._add(row)
        self._epochs.flush()

    @classmethod
    def check(cls, config: Config) -> None:
        """Checks that the package is installed if it is requested.

        Raises:
            InputError: if it is not.
        """
        if config.log.tensorboard and not importlib.util.find_spec("tensorboard"):
            raise InputError("log.tensorboard=true needs a package that is not installed: pip install tensorboard")

    @classmethod
    def start(
        cls, folder: RunFolder, config: Config, state: Mapping[str, Any] | None, report: Callable[[str], None]
    ) -> TensorBoardLog | None:
        """The event files of the run's folder; None unless `log.tensorboard` requests them."""
        if not config.log.tensorboard:
            return None
        rows = state["rows"] if state else []
        return cls(folder.tensorboard, config.flat(), config.data.evaluated_split, rows)

    def row(self, row: Row) -> None:
        """Adds a step to each of its columns, on the disk before the checkpoint of the epoch is."""
        self._add(row)
        self._epochs.flush()
        if self._steps:
            self._steps.flush()

    def _add(self, row: Row) -> None:
        for key, value in row.items():
            if value is not None and key != "epoch":
                self._epochs.add_scalar(key, value, row["epoch"])

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a step to each figure; at the first, later ones of a process that was killed are hidden."""
        self._steps = self._steps or _writer(self._folder / "steps", first=step)
        for key, value in figures.items():
            self._steps.add_scalar(key, value, step)

    def soft_labels(self, epoch: int, file: Path, picture: np.ndarray | None) -> None:
        """Adds the picture at its epoch."""
        if picture is not None:
            self._epochs.add_image("soft_labels", picture, epoch, dataformats="HWC")
            self._epochs.flush()

    def close(self, exit_code: int) -> None:
        """Closes the files, in which the run then counts as finished or not."""
        if exit_code == 0:
            _add_summary(self._epochs, self._succeeded)
        self._epochs.close()
        if self._steps:
            self._steps.close()


def _add_summary(writer: SummaryWriter, summary: Any) -> None:
    files: Any = writer.file_writer  # torch's annotation has it None
    files.add_summary(summary, 0)


def _writer(folder: Path, *, first: int) -> SummaryWriter:
    """A writer of a new file, which hides all steps of earlier files from `first` on.

    TensorBoard reads files in the order of their names, which begin with the second they were made in: one that would
    be made in the same second as another waits for the next.
    """
    from torch.utils.tensorboard import SummaryWriter

    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.01)
    return SummaryWriter(str(folder), purge_step=first)
