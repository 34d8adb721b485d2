"""What a run reports: to the files in its folder, to the terminal, and to its loggers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from fastlsr.config import Config
from fastlsr.drawing import table_picture
from fastlsr.logs.loggers import Logger
from fastlsr.logs.tensorboard_log import TensorBoardLog
from fastlsr.logs.wandb_log import WandbLog
from fastlsr.runs import KINDS, Row, RunFolder, Summary, best_meaning, compared_keys, epoch_line, summary_of
from fastlsr.terminal import clock, progress, terminal

LOGGERS: tuple[type[Logger], ...] = (WandbLog, TensorBoardLog)
_LAST_EPOCHS = 10  # by whose seconds the time left is estimated
_MOST_DRAWN = 100  # classes of soft labels
_TABLE_WIDTH = 60


class RunLog:
    """Writes the rows and the summary of a run, shows progress, and passes both on to the loggers that are requested.

    On a terminal progress is a live bar; piped, a plain line an epoch, and one every half minute inside long ones.

    Attributes:
        rows: of the epochs so far.
        advised: whether advice on loading was printed.
    """

    def __init__(self, folder: RunFolder, config: Config, epochs: int):
        self.folder, self.config, self.epochs = folder, config, epochs
        self.console = terminal()
        self.rows: list[Row] = []
        self.advised = False
        self.loggers: list[Logger] = []
        self._before = 0  # rows of earlier processes
        self._wandb_id: str | None = None

    def report(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def restore(self, rows: list[Row]) -> None:
        """Makes the rows these and no others, also in the file."""
        self.rows, self._before = list(rows), len(rows)
        self.folder.write_rows(rows)

    def open(self, state: Mapping[str, Any] | None) -> None:
        """Goes on after the rows of `state`, a checkpoint's, dropping any later ones, and starts the loggers.

        Raises:
            InputError: if a requested one cannot be started.
        """
        self.restore(state["rows"] if state else [])
        self._wandb_id = state["wandb_id"] if state else None
        started = (kind.start(self.folder, self.config, state, self.report) for kind in LOGGERS)
        self.loggers = [logger for logger in started if logger]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: "rows", and "wandb_id" of the W&B run that has them."""
        kept: dict[str, Any] = {"wandb_id": self._wandb_id, "rows": self.rows}
        for logger in self.loggers:
            kept |= logger.state_dict()
        return kept

    def progress(self, epoch: int, *, steps: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """A function that shows how many of the `steps` of 1-based `epoch` are done, with a few words on the loss."""

        def following(seconds: float) -> float:
            return (self.epochs - epoch) * (self._seconds_per_epoch() or seconds)

        return progress(self.console, f"epoch {epoch}/{self.epochs}", steps=steps, following=following)

    def _seconds_per_epoch(self) -> float | None:
        """Mean over this process's last epochs, without its first, which loads kernels, unless that is all there is."""
        recent = self.rows[self._before + 1 :] or self.rows[-1:]
        return statistics.fmean(row["seconds"] for row in recent[-_LAST_EPOCHS:]) if recent else None

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Passes figures inside an epoch on to the loggers; as `Logger.step`."""
        for logger in self.loggers:
            logger.step(step, figures)

    def row(self, row: Row) -> None:
        """Keeps an epoch's row in the file, on the terminal and with the loggers."""
        self.rows.append(row)
        self.folder.append_row(row)
        seconds = (self.epochs - row["epoch"]) * (self._seconds_per_epoch() or 0)
        width = self.console.width if self.console.is_terminal else None
        self.report(epoch_line(row, self.epochs, left=clock(seconds) if seconds else "", width=width))
        for logger in self.loggers:
            logger.row(row)

    def soft_labels(self, file: Path, table: Tensor, classes: Sequence[str]) -> None:
        """Passes soft labels on to the loggers: float32[K, K], those that the last epoch's phase learned."""
        if self.loggers:
            picture = table_picture(table, classes) if len(classes) <= _MOST_DRAWN else None
            for logger in self.loggers:
                logger.soft_labels(self.rows[-1]["epoch"], file, picture)

    def summary(self, *, finished: bool) -> Summary:
        """Writes the last and the best row; returns what it wrote."""
        summary = self.folder.write_summary(self.rows, best_by=self.config.train.best_by, finished=finished)
        for logger in self.loggers:
            logger.summary(summary)
        return summary

    def show_results(self) -> None:
        """Writes and prints the last and the best row of a finished run, and where all is."""
        summary = self.summary(finished=True)
        self.console.print(results_table(summary), soft_wrap=False, width=min(_TABLE_WIDTH, self.console.width))
        meaning = best_meaning(self.config.train.best_by, self.config.data.evaluated_split)
        at_end = "; test: at the end, once" if self.config.data.selects_on_val else ", read on the evaluation split"
        self.report(f"best: the {meaning}{at_end}")
        self.report(f"results: {self.folder.path}")

    def close(self, exit_code: int) -> None:
        """Ends the loggers."""
        for logger in self.loggers:
            logger.close(exit_code)


class SilentLog(RunLog):
    """Keeps the rows, and neither prints nor writes: the log of every rank but the main one."""

    def __init__(self, folder: RunFolder, config: Config, epochs: int):
        super().__init__(folder, config, epochs)
        self.console = terminal(quiet=True)

    def restore(self, rows: list[Row]) -> None:
        """Makes the rows these."""
        self.rows = list(rows)

    def open(self, state: Mapping[str, Any] | None) -> None:
        """Goes on after the rows of `state`."""
        self.restore(state["rows"] if state else [])

    def row(self, row: Row) -> None:
        """Keeps an epoch's row."""
        self.rows.append(row)

    def summary(self, *, finished: bool) -> Summary:
        """The last and the best row."""
        return summary_of(self.folder.path.name, self.rows, best_by=self.config.train.best_by, finished=finished)


def check_loggers(config: Config) -> None:
    """Checks that the loggers that the options request are there.

    Raises:
        InputError: if one is not.
    """
    for kind in LOGGERS:
        kind.check(config)


def results_table(summary: Summary) -> Table:
    """The last and the best row of a run, side by side."""
    table = Table()
    table.add_column("", overflow="fold")
    for kind in KINDS:
        table.add_column(kind, justify="right", overflow="fold")
    for key in compared_keys([summary["last"], summary["best"]]):
        table.add_row(key, *(_shown(summary[kind].get(key)) for kind in KINDS))
    return table


def _shown(value: float | None) -> str:
    """A number in four digits; "-" for one that the row, perhaps of an earlier version, lacks."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"
