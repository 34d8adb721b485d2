"""Renews a report while runs go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fastlsr.files import is_in_use
from fastlsr.runs import runs_below

_READ = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "logits/*.safetensors")
_SECONDS = 5.0
_PATIENCE = 3600.0  # seconds without any change after which it gives up on runs that are stopped, or are elsewhere

Stamp = tuple[tuple[str, int, int], ...]


def watch(
    paths: Sequence[Path],
    renew: Callable[[bool], bool],
    *,
    pause: Callable[[], object] = lambda: time.sleep(_SECONDS),
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Calls `renew` at first and whenever a run has written something, until no run is unfinished or to come.

    Returns whether it came to that; it did not if no run has written anything for an hour while none was under way on
    this machine.

    Args:
        paths: run folders, and folders of run folders.
        renew: writes the report; takes whether runs are to come, returns whether one that is there is unfinished.
        pause: waits for a moment between two looks at the folders.
        clock: seconds since some moment.
    """
    seen: tuple[Stamp, bool] | None = None
    unfinished, changed = True, clock()
    while True:
        # Both are taken before the report: what a run writes meanwhile shows as a change at the next look.
        now = stamp(paths), sweep_is_under_way(paths)
        if now != seen:
            unfinished, seen, changed = renew(now[1]), now, clock()
        if not unfinished and not now[1]:
            return True
        if clock() - changed > _PATIENCE and not now[1] and not any(map(is_in_use, _folders(paths))):
            return False
        pause()


def stamp(paths: Sequence[Path]) -> Stamp:
    """Name, size and time in ns of each file that a report reads of runs; it changes whenever a run writes one."""
    return tuple(sorted(_states(paths)))


def sweep_is_under_way(paths: Sequence[Path]) -> bool:
    """Whether a sweep of `fastlsr.sweep` that keeps its runs in one of the folders is under way on this machine."""
    return any(is_in_use(folder) for path in paths for folder in path.glob("sweeps/*"))


def _folders(paths: Sequence[Path]) -> Iterator[Path]:
    return (folder for path in paths if path.exists() for folder in runs_below(path))


def _states(paths: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        for pattern in _READ:
            for file in (*path.glob(pattern), *path.glob(f"*/{pattern}")):
                try:
                    state = file.stat()
                except OSError:  # it was replaced or removed just now
                    continue
                yield str(file), state.st_size, state.st_mtime_ns
