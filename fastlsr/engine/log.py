"""What a run tells: files in its folder, the terminal, and W&B. The only home of wandb."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fastlsr.config import Config
from fastlsr.errors import InputError
from fastlsr.files import replace_text

Row = dict[str, Any]
SECONDS_BETWEEN_LINES = 30.0


class RunLog:
    """Writes `metrics.jsonl` and `summary.json`, shows progress, and mirrors both to W&B where that is on.

    On a terminal progress is a live bar; piped, a plain line an epoch, and one every half minute inside long ones.
    """

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self.console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
        self.rows: list[Row] = []
        self.wandb: wandb.Run | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._line_due = 0.0

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def open(self, *, epochs_done: int, wandb_id: str | None) -> None:
        """Reads back the rows of the first `epochs_done` epochs, dropping any later ones, and starts W&B."""
        self.rows = read_rows(self.folder)[:epochs_done]
        if len(self.rows) != epochs_done:
            raise InputError(f"{self.folder / 'metrics.jsonl'} lacks rows of the {epochs_done} epochs done")
        self._write_rows()
        mode = wandb_mode(self.config.log.wandb)
        if mode != "disabled":
            self.wandb = wandb.init(
                project=self.config.log.project,
                name=self.folder.name,
                config=self.config.as_dict(),
                dir=self.folder,
                mode=mode,
                id=wandb_id,
                resume="allow" if wandb_id else None,
            )
            self.wandb.define_metric("epoch")
            self.wandb.define_metric("*", step_metric="epoch")

    @property
    def wandb_id(self) -> str | None:
        """The W&B run's id, for a checkpoint."""
        return self.wandb.id if self.wandb else None

    def start_epoch(self, epoch: int, steps: int, done: int) -> None:
        """Begins the progress of 1-based `epoch`, `done` of whose steps lie behind."""
        self._line_due = time.monotonic() + SECONDS_BETWEEN_LINES
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            name = f"epoch {epoch}/{self.config.train.epochs}"
            self._task = self._progress.add_task(name, total=steps, completed=done, note="")

    def advance(self, epoch: int, steps: int, done: int, note: str) -> None:
        """Shows how far the epoch is; `note` is a few words on the running loss."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif time.monotonic() > self._line_due:
            self._line_due = time.monotonic() + SECONDS_BETWEEN_LINES
            self.say(f"epoch {epoch}/{self.config.train.epochs}  step {done}/{steps}  {note}")

    def end_progress(self) -> None:
        """Takes the bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def row(self, row: Row) -> None:
        """Keeps an epoch's row in the file, on the terminal and at W&B."""
        self.rows.append(row)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self.say(
            f"epoch {row['epoch']}/{self.config.train.epochs}  phase {row['phase']}  lr {row['lr']:.4g}  "
            f"train loss {row['train/loss']:.4f} top1 {row['train/top1']:.2f}  "
            f"test nll {row['test/nll']:.4f} top1 {row['test/top1']:.2f} top5 {row['test/top5']:.2f} "
            f"ece {row['test/ece']:.4f}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
        )
        if self.wandb:
            self.wandb.log(row)

    def summary(self, *, finished: bool) -> dict[str, Any]:
        """Writes `summary.json`: the last row and the one with the highest test accuracy. Returns it."""
        best = max(self.rows, key=lambda row: row["test/top1"])
        summary = {"name": self.folder.name, "finished": finished, "last": self.rows[-1], "best": best}
        write_json(self.folder / "summary.json", summary)
        if self.wandb:
            self.wandb.summary.update(
                {f"{kind}/{key}": v for kind in ("last", "best") for key, v in summary[kind].items()}
            )
        return summary

    def close(self, exit_code: int) -> None:
        """Ends the terminal's bar and the W&B run."""
        self.end_progress()
        if self.wandb:
            with suppress(Exception):  # a W&B that cannot be reached must not take the results with it
                self.wandb.finish(exit_code=exit_code)

    def _write_rows(self) -> None:
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        replace_text(self.folder / "metrics.jsonl", text)


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run's `metrics.jsonl`, in order; a line that a kill cut short ends them."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an indented JSON file, whole or not at all."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def wandb_mode(wish: str) -> str:
    """W&B's mode for `log.wandb`: `auto` is WANDB_MODE, else online with an account, else disabled.

    Raises:
        InputError: if `online` is asked for and there is no account: W&B would wait for one to be typed.
    """
    if wish == "auto" and "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    if wish in ("offline", "disabled"):
        return wish
    account = wandb.login(prompt=False, verify=False)
    if wish == "auto":
        return "online" if account else "disabled"
    if not account:
        raise InputError(
            "log.wandb=online: no W&B account; run `wandb login`, set WANDB_API_KEY or take log.wandb=offline"
        )
    return "online"


def results_table(summary: Mapping[str, Any]) -> Table:
    """The last and the best row of a run, side by side."""
    table = Table(
        title=summary["name"], caption="best: highest test top-1 of any epoch, as read on the evaluation split"
    )
    table.add_column("")
    names = ("epoch", "train/loss", "train/top1", "test/nll", "test/top1", "test/top5", "test/ece")
    for name in names:
        table.add_column(name.replace("/", "\n"), justify="right")  # two lines: the table fits 80 columns
    for kind in ("last", "best"):
        row = summary[kind]
        table.add_row(kind, *(f"{row[name]:.4g}" if name != "epoch" else str(row[name]) for name in names))
    return table
