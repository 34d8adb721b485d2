"""What a run tells: files in its folder, the terminal, and W&B. The only home of wandb."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import wandb
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fastlsr.config import Config
from fastlsr.errors import InputError
from fastlsr.files import replace_text
from fastlsr.labels.methods import phases

Row = dict[str, Any]
SECONDS_BETWEEN_LINES = 30.0


class RunLog:
    """Writes `metrics.jsonl` and `summary.json`, shows progress, and mirrors both to W&B where that is on.

    On a terminal progress is a live bar; piped, a plain line an epoch, and one every half minute inside long ones.
    """

    def __init__(self, folder: Path, config: Config):
        self.folder, self.config = folder, config
        self.epochs = sum(phase.epochs for phase in phases(config.method, config.train.epochs))
        self.console = terminal()
        self.rows: list[Row] = []
        self.wandb: wandb.Run | None = None

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def restore(self, rows: list[Row]) -> None:
        """Makes `metrics.jsonl` hold these rows and no others."""
        self.rows = list(rows)
        replace_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def open(self, rows: list[Row], *, wandb_id: str | None) -> None:
        """Goes on after `rows`, a checkpoint's, dropping any later ones from the file, and starts W&B.

        Args:
            rows: of the epochs before.
            wandb_id: of the W&B run that has them; another one that an agent waits for gets them, too.

        Raises:
            InputError: if W&B is asked for by `log.wandb=online` and cannot be reached; `auto` goes on offline.
        """
        self.restore(rows)
        mode = wandb_mode(self.config.log.wandb)
        if mode == "disabled":
            return
        run = agent_run() or wandb_id
        try:
            self._start_wandb(mode, run)
        except wandb.Error as error:
            reason = " ".join(str(error).split())[:200]
            if self.config.log.wandb != "auto" or mode != "online":
                raise InputError(f"log.wandb={self.config.log.wandb}: {reason}") from None
            self.say(f"warning: W&B cannot be reached, logging offline ({reason})")
            self._start_wandb("offline", run)
        if self.wandb.id != wandb_id and not self.wandb.resumed:
            for row in rows:
                self.wandb.log(row)

    def _start_wandb(self, mode: str, wandb_id: str | None) -> None:
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

    def progress(self, epoch: int, *, steps: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """A function that shows how many of the `steps` of 1-based `epoch` are done, with a few words on the loss."""
        return progress(self.console, f"epoch {epoch}/{self.epochs}", steps=steps)

    def row(self, row: Row) -> None:
        """Keeps an epoch's row in the file, on the terminal and at W&B."""
        self.rows.append(row)
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self.say(
            f"epoch {row['epoch']}/{self.epochs}  phase {row['phase']}  lr {row['lr']:.4g}  "
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
        """Ends the W&B run."""
        if self.wandb:
            with suppress(Exception):  # a W&B that cannot be reached must not take the results with it
                self.wandb.finish(exit_code=exit_code)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise


def terminal() -> Console:
    """A console for lines that are never cut off."""
    return _Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console, name: str, *, steps: int | None = None) -> Iterator[Callable[[int, str], None]]:
    """A function that shows how many of the `steps`, if they are known, are done, with a few words.

    On a terminal it moves a bar; piped, it prints a line every half minute.
    """
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(name, total=steps, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
    else:
        due, of = time.monotonic() + SECONDS_BETWEEN_LINES, f"/{steps}" if steps else ""

        def line(done: int, note: str) -> None:
            nonlocal due
            if time.monotonic() > due:
                due = time.monotonic() + SECONDS_BETWEEN_LINES
                console.print(f"{name}  step {done}{of}  {note}", markup=False)

        yield line


def _bar(console: Console) -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    note = TextColumn("{task.fields[note]}")
    return Progress(TextColumn("{task.description}"), *columns, note, console=console, transient=True)


def agent_run() -> str | None:
    """The id of the W&B run that `wandb agent`, or whoever set WANDB_RUN_ID, waits for."""
    return os.environ.get("WANDB_RUN_ID") or None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an indented JSON file, whole or not at all."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def wandb_mode(wish: str) -> str:
    """W&B's mode for `log.wandb`: `auto` is WANDB_MODE, else online with an account, else disabled.

    Raises:
        InputError: if `online` is asked for and there is no account (W&B would wait for one to be typed), or WANDB_MODE
            is no mode.
    """
    if wish == "auto" and (mode := os.environ.get("WANDB_MODE")):
        if mode not in ("online", "offline", "disabled"):
            raise InputError(f"WANDB_MODE={mode}: expected online, offline or disabled")
        return mode
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
