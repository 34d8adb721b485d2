"""Renews a report while runs go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_READ = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "logits/*.safetensors")
_SECONDS = 5.0

Stamp = tuple[tuple[str, int, int], ...]


def watch(
    paths: Sequence[Path], renew: Callable[[], bool], *, pause: Callable[[], object] = lambda: time.sleep(_SECONDS)
) -> None:
    """Calls `renew` at first, and again whenever a run has written something; returns once `renew` returns False.

    Args:
        paths: run folders, and folders of run folders.
        renew: writes the report; returns whether it may still change.
        pause: waits for a moment, between two looks at the folders.
    """
    seen: Stamp | None = None
    going_on = True
    while going_on:
        # Taken before the report: what a run writes meanwhile shows as a change at the next look.
        now = stamp(paths)
        if now != seen:
            going_on, seen = renew(), now
        if going_on:
            pause()


def stamp(paths: Sequence[Path]) -> Stamp:
    """Name, size and time in ns of each file that a report reads of runs; it changes whenever a run writes one."""
    return tuple(sorted(_states(paths)))


def _states(paths: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        for pattern in _READ:
            for file in (*path.glob(pattern), *path.glob(f"*/{pattern}")):
                try:
                    state = file.stat()
                except OSError:  # it was replaced or removed just now
                    continue
                yield str(file), state.st_size, state.st_mtime_ns
