"""What a run reports: files in its folder, the terminal, and W&B. The only home of wandb."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

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

from fastlsr.config import VAL, Config
from fastlsr.errors import InputError
from fastlsr.runs import Row, RunFolder, Summary, compared_keys, epoch_line, evaluated_split, summary_of

if TYPE_CHECKING:
    from fastlsr.engine.trained import TrainedRun

SECONDS_BETWEEN_LINES = 30.0
_SECONDS_OF_FIRST = 3.0  # after which `tracked` estimates the rest
_MINUTES_FROM = 60.0  # seconds left, from which it prints them
Item = TypeVar("Item")
WandbMode = Literal["online", "offline", "disabled"]
_MODES = ("online", "offline", "disabled")


class RunLog:
    """Writes the rows and the summary of a run, shows progress, and mirrors both to W&B where that is on.

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
        self.wandb: wandb.Run | None = None
        self._former_wandb_id: str | None = None

    def report(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def restore(self, rows: list[Row]) -> None:
        """Makes the rows these and no others, also in the file."""
        self.rows = list(rows)
        self.folder.write_rows(rows)

    def open(self, rows: list[Row], *, wandb_id: str | None) -> None:
        """Goes on after `rows`, a checkpoint's, dropping any later ones from the file, and starts W&B.

        Args:
            rows: of the epochs before.
            wandb_id: of the W&B run that has them; another one that an agent waits for gets them, too.

        Raises:
            InputError: if W&B is requested by `log.wandb=online` and cannot be reached; `auto` goes on offline.
        """
        self.restore(rows)
        self._former_wandb_id = wandb_id
        mode = wandb_mode(self.config.log.wandb)
        if mode == "disabled":
            return
        run_id = agent_run() or wandb_id
        try:
            self.wandb = self._start_wandb(mode, run_id)
        except wandb.Error as error:
            reason = " ".join(str(error).split())[:200]
            if self.config.log.wandb != "auto" or mode != "online":
                raise InputError(f"log.wandb={self.config.log.wandb}: {reason}") from None
            self.report(f"warning: W&B cannot be reached, logging offline ({reason})")
            self.wandb = self._start_wandb("offline", run_id)
        if self.wandb.id != wandb_id and not self.wandb.resumed:
            for row in rows:
                self.wandb.log(row)

    def _start_wandb(self, mode: WandbMode, run_id: str | None) -> wandb.Run:
        run = wandb.init(
            project=self.config.log.project,
            name=self.folder.path.name,
            config=self.config.as_dict(),
            dir=self.folder.path,
            mode=mode,
            id=run_id,
            resume="allow" if run_id else None,
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run

    @property
    def wandb_id(self) -> str | None:
        """The id of the W&B run that has the rows, for a checkpoint."""
        return self.wandb.id if self.wandb else self._former_wandb_id

    def progress(self, epoch: int, *, steps: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """A function that shows how many of the `steps` of 1-based `epoch` are done, with a few words on the loss."""
        return progress(self.console, f"epoch {epoch}/{self.epochs}", steps=steps)

    def row(self, row: Row) -> None:
        """Keeps an epoch's row in the file, on the terminal and at W&B."""
        self.rows.append(row)
        self.folder.append_row(row)
        self.report(epoch_line(row, self.epochs))
        if self.wandb:
            self.wandb.log(row)

    def summary(self, *, finished: bool) -> Summary:
        """Writes the last and the best row; returns what it wrote."""
        summary = self.folder.write_summary(self.rows, finished=finished)
        if self.wandb:
            named = {"last": summary["last"], "best": summary["best"]}
            self.wandb.summary.update(
                {f"{kind}/{key}": value for kind, row in named.items() for key, value in row.items()}
            )
        return summary

    def close(self, exit_code: int) -> None:
        """Ends the W&B run."""
        if self.wandb:
            with suppress(Exception):  # a W&B that cannot be reached must not take the results with it
                self.wandb.finish(exit_code=exit_code)


class SilentLog(RunLog):
    """Keeps the rows, and neither prints nor writes: the log of every rank but the main one."""

    def __init__(self, folder: RunFolder, config: Config, epochs: int):
        super().__init__(folder, config, epochs)
        self.console = terminal(quiet=True)

    def restore(self, rows: list[Row]) -> None:
        """Makes the rows these."""
        self.rows = list(rows)

    def open(self, rows: list[Row], *, wandb_id: str | None) -> None:
        """Goes on after `rows`."""
        self.restore(rows)

    def row(self, row: Row) -> None:
        """Keeps an epoch's row."""
        self.rows.append(row)

    def summary(self, *, finished: bool) -> Summary:
        """The last and the best row."""
        return summary_of(self.folder.path.name, self.rows, finished=finished)


def log_finding(run: TrainedRun, kind: str, files: Sequence[Path]) -> None:
    """Logs the numbers and the picture of an analysis to the W&B run that has the run's rows, where there is one.

    Args:
        files: of the finding: JSON, and PNG where there is a picture.
    """
    run_id = run.state.get("wandb_id")
    mode = wandb_mode(run.config.log.wandb)
    if not run_id or mode == "disabled":
        return
    numbers = next(path for path in files if path.suffix == ".json")
    logged: dict[str, Any] = {f"analysis/{kind}": json.loads(numbers.read_text(encoding="utf-8"))}
    try:
        mirror = wandb.init(
            project=run.config.log.project, dir=run.folder.path, mode=mode, id=run_id, resume="allow",
            settings=wandb.Settings(silent=True),
        )  # fmt: skip
        mirror.summary.update(logged)
        mirror.log({f"analysis/{kind}": wandb.Image(str(path)) for path in files if path.suffix == ".png"})
        mirror.finish()
    except wandb.Error as error:
        print(f"warning: W&B did not take the analysis: {' '.join(str(error).split())[:200]}", file=sys.stderr)


def tracked(items: Iterable[Item], name: str, *, steps: int) -> Iterator[Item]:
    """The items, while progress is shown; once the first have shown that all take minutes, how many is printed.

    Args:
        name: of what is done with them.
        steps: how many items there are.
    """
    console, start, said = terminal(stderr=True), time.monotonic(), False
    with progress(console, name, steps=steps) as advance:
        for done, item in enumerate(items, start=1):
            yield item
            advance(done, "")
            if done == 1:  # it warms up what the others find warm
                start = time.monotonic()
            seconds = time.monotonic() - start
            if not said and seconds > _SECONDS_OF_FIRST:
                said, left = True, seconds / (done - 1) * (steps - done)
                if left > _MINUTES_FROM:
                    console.print(f"{name}: about {left / 60:.0f} more minutes", markup=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console for lines that are never cut off, or, if `quiet`, never shown."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return _Console(width=width, highlight=False, soft_wrap=True, stderr=stderr, quiet=quiet)


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


def wandb_mode(requested: str) -> WandbMode:
    """W&B's mode for `log.wandb`: `auto` is WANDB_MODE, else online with an account, else disabled.

    Raises:
        InputError: if `online` is requested and there is no account (W&B would wait for one to be typed), or WANDB_MODE
            is no mode.
    """
    if requested == "auto" and (mode := os.environ.get("WANDB_MODE")):
        if mode not in _MODES:
            raise InputError(f"WANDB_MODE={mode}: expected online, offline or disabled")
        return cast(WandbMode, mode)
    if requested in ("offline", "disabled"):
        return cast(WandbMode, requested)
    account = wandb.login(prompt=False, verify=False)
    if requested == "auto":
        return "online" if account else "disabled"
    if not account:
        raise InputError(
            "log.wandb=online: no W&B account; run `wandb login`, set WANDB_API_KEY or take log.wandb=offline"
        )
    return "online"


def results_table(summary: Summary) -> Table:
    """The last and the best row of a run, side by side."""
    split = evaluated_split(summary["last"])
    at_end = "; test: at the end, once" if split == VAL else ", as read on the evaluation split"
    table = Table(title=summary["name"], caption=f"best: highest {split} top-1 of any epoch{at_end}")
    table.add_column("")
    keys = compared_keys([summary["last"], summary["best"]])
    for key in keys:
        table.add_column(key.replace("/", "\n"), justify="right")  # two lines: the table fits 80 columns
    for kind, row in (("last", summary["last"]), ("best", summary["best"])):
        table.add_row(kind, *(_shown(row.get(key)) for key in keys))
    return table


def _shown(value: float | None) -> str:
    """A number in four digits; "-" for one that the row, perhaps of an earlier version, lacks."""
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"
