"""What a command shows while it works: lines that are never cut off, how much is done, and how long the rest takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 30.0
_SECONDS_OF_FIRST = 3.0  # after which `tracked` estimates the rest
_MINUTES_FROM = 60.0  # seconds left, from which it prints them
_WIDEST_BAR, _BESIDE_BAR = 40, 66  # characters: of the bar, and of all that is beside it in an epoch of a long run
Item = TypeVar("Item")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console for lines that are never cut off, or, if `quiet`, never shown."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return _Console(width=width, highlight=False, soft_wrap=True, stderr=stderr, quiet=quiet)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Pace:
    """Seconds a step takes, over all since the first, which warms up what the others find warm."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def after(self, done: int) -> float | None:
        """Seconds a step now that so many are done; None at the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        steps = done - self._first[0]
        return (now - self._first[1]) / steps if steps else None


@contextmanager
def progress(
    console: Console, name: str, *, steps: int | None = None, following: Callable[[float], float] | None = None
) -> Iterator[Callable[[int, str], None]]:
    """A function that shows how many of the `steps`, if they are known, are done, with a few words, and the time left.

    On a terminal it moves a bar; piped, it prints a line every half minute.

    Args:
        following: from the seconds of all steps to those of what a run does after them; the time left of the run is
            then shown, too.
    """
    pace, of = Pace(), f"/{steps}" if steps else ""

    def note(done: int, words: str) -> str:
        each = pace.after(done)
        return "  ".join(filter(None, (words, _time_left(each, steps - done, steps, following)
                                       if each and steps else "")))  # fmt: skip

    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(name, total=steps, note="")
            yield lambda done, words: bar.update(task, completed=done, note=note(done, words))
    else:
        due = time.monotonic() + SECONDS_BETWEEN_LINES

        def line(done: int, words: str) -> None:
            nonlocal due
            text = note(done, words)
            if time.monotonic() > due:
                due = time.monotonic() + SECONDS_BETWEEN_LINES
                console.print(f"{name}  step {done}{of}  {text}", markup=False)

        yield line


def _time_left(each: float, steps_left: int, steps: int, following: Callable[[float], float] | None) -> str:
    """Of the steps and, if something follows them, of the run; one step takes `each` seconds."""
    left = each * steps_left
    return f"left {clock(left)}" + (f", run {clock(left + following(each * steps))}" if following else "")


def _bar(console: Console) -> Progress:
    width = max(5, min(_WIDEST_BAR, console.width - _BESIDE_BAR))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(width),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=console, transient=True)


def tracked(items: Iterable[Item], name: str, *, steps: int) -> Iterator[Item]:
    """The items, while progress is shown; once the first have shown that all take minutes, how many is printed.

    Args:
        name: of what is done with them.
        steps: how many items there are.
    """
    console, pace, said = terminal(stderr=True), Pace(), False
    with progress(console, name, steps=steps) as advance:
        for done, item in enumerate(items, start=1):
            yield item
            advance(done, "")
            each = pace.after(done)
            if not said and each and each * (done - 1) > _SECONDS_OF_FIRST:
                said, left = True, each * (steps - done)
                if left > _MINUTES_FROM:
                    console.print(f"{name}: about {left / 60:.0f} more minutes", markup=False)
