"""Checkpoints: written aside and renamed, checked when read, never unpickling code."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlsr.errors import InputError
from fastlsr.files import check_archive, replace_file
from fastlsr.runs import RunFolder

State = dict[str, Any]

# What an opened run needs of a state: not what training goes on from.
FOR_ANALYSES = ("config", "decided", "model", "ema", "position", "targets")


class Writer:
    """Writes checkpoints in a thread of its own, one at a time, while training goes on.

    As a context manager it waits in the end for what is under way. Until then a process that is killed leaves the
    checkpoint before.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def write(self, state: State, write: Callable[[State], None]) -> None:
        """Has `write` called with a copy of the state, which may change afterwards; first waits as `wait` does."""
        self.wait()
        self._last = self._thread.submit(write, on_host(state))

    def wait(self) -> None:
        """Waits until the last one is on the disk; raises what its writing raised."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()


def on_host(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples of tensors and plain values, with all tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # with the versions that a module's state_dict notes of its parts
        copied.update({key: on_host(value) for key, value in state.items()})
        return copied
    return type(state)(map(on_host, state)) if isinstance(state, list | tuple) else state


def save(folder: RunFolder, state: State) -> None:
    """Writes `state` (tensors and plain values) as the newest checkpoint and keeps the one before it."""
    replace_file(folder.newest_checkpoint, lambda path: torch.save(state, path), keep=folder.previous_checkpoint)


def keep(path: Path, state: State) -> None:
    """Writes what analyses need of `state`, and the W&B run that they log to."""
    path.parent.mkdir(exist_ok=True)
    kept = {key: state[key] for key in (*FOR_ANALYSES, "wandb_id")}
    replace_file(path, lambda temporary: torch.save(kept, temporary))


def load_newest(run: Path) -> tuple[State | None, str]:
    """(state, remark): the newest whole checkpoint of a run's folder, on the CPU, or None if it has none yet.

    The remark is "" or a line that the newest was damaged and the one before it is used.

    Args:
        run: the folder, or the file of one checkpoint.

    Raises:
        InputError: if there are checkpoints and none is whole.
    """
    damage = []
    folder = RunFolder(run)
    for path in [run] if run.is_file() else [folder.newest_checkpoint, folder.previous_checkpoint]:
        if not path.exists():
            continue
        try:
            state = _read(path)
        except Exception as e:  # zip, zlib, pickle and torch each have errors of their own for damage
            damage.append(f"{path} is damaged ({str(e).splitlines()[0][:80] if str(e) else type(e).__name__})")
            continue
        return state, f"{damage[0]}; going back to {path.name}" if damage else ""
    if damage:
        raise InputError("; ".join(damage) + "; nothing to go on from is left there")
    return None, ""


def set_aside(folder: RunFolder) -> None:
    """Renames the newest checkpoint, which is damaged, so that the next one does not push out the one before it."""
    if folder.newest_checkpoint.exists():
        folder.newest_checkpoint.replace(folder.damaged_checkpoint)


def _read(path: Path) -> State:
    check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True)
