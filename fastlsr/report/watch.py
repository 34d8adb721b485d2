"""Renews a report while runs go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fastlsr.files import is_in_use

_READ = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "logits/*.safetensors")
_SECONDS = 5.0

Stamp = tuple[tuple[str, int, int], ...]


def watch(
    paths: Sequence[Path], renew: Callable[[bool], bool], *, pause: Callable[[], object] = lambda: time.sleep(_SECONDS)
) -> None:
    """Calls `renew` at first and whenever a run has written something; returns when no run is unfinished or to come.

    Args:
        paths: run folders, and folders of run folders.
        renew: writes the report; takes whether runs are to come, returns whether one that is there is unfinished.
        pause: waits for a moment between two looks at the folders.
    """
    seen: tuple[Stamp, bool] | None = None
    unfinished = True
    while True:
        # Both are taken before the report: what a run writes meanwhile shows as a change at the next look.
        now = stamp(paths), sweep_is_under_way(paths)
        if now != seen:
            unfinished, seen = renew(now[1]), now
        if not unfinished and not now[1]:
            return
        pause()


def stamp(paths: Sequence[Path]) -> Stamp:
    """Name, size and time in ns of each file that a report reads of runs; it changes whenever a run writes one."""
    return tuple(sorted(_states(paths)))


def sweep_is_under_way(paths: Sequence[Path]) -> bool:
    """Whether a sweep of `fastlsr.sweep` that keeps its runs in one of the folders is under way on this machine."""
    return any(is_in_use(folder) for path in paths for folder in path.glob("sweeps/*"))


def _states(paths: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        for pattern in _READ:
            for file in (*path.glob(pattern), *path.glob(f"*/{pattern}")):
                try:
                    state = file.stat()
                except OSError:  # it was replaced or removed just now
                    continue
                yield str(file), state.st_size, state.st_mtime_ns
