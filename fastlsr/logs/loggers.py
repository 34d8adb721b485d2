"""Where a run's figures may go besides its folder and the terminal: what every such logger can be given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastlsr.config import Config
from fastlsr.runs import Row, RunFolder, Summary


class Logger:
    """One such place. What a kind has no use for, it leaves as it is here.

    Another kind is a subclass in a file of its own, and a word in `run_log.LOGGERS`.
    """

    @classmethod
    def check(cls, config: Config) -> None:
        """Checks that what the options request of this kind is there; nothing is written.

        Raises:
            InputError: if it is not.
        """

    @classmethod
    def start(
        cls, folder: RunFolder, config: Config, state: Mapping[str, Any] | None, report: Callable[[str], None]
    ) -> Logger | None:
        """The logger that the options request; None where they request none of this kind.

        Args:
            state: the checkpoint that the run goes on from, with the `rows` before.
            report: prints a line.

        Raises:
            InputError: if it cannot be started.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the next checkpoints keep for it."""
        return {}

    def row(self, row: Row) -> None:
        """Takes an epoch's row."""

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes figures of training inside an epoch.

        Args:
            step: batches trained on since the run's beginning.
            figures: "train/loss", the mean since the figures before or the epoch's beginning, and "lr".
        """

    def soft_labels(self, epoch: int, file: Path, picture: np.ndarray | None) -> None:
        """Takes the soft labels that a phase learned.

        Args:
            epoch: after which it ended.
            file: that holds them.
            picture: uint8 [H, W, 3]: the table as a heat map; None for too many classes.
        """

    def summary(self, summary: Summary) -> None:
        """Takes the last and the best row."""

    def close(self, exit_code: int) -> None:
        """Ends the record; the run ends with the exit code."""
