"""Checkpoints: written aside and renamed, checked when read, never unpickling code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastlsr.errors import InputError

NEWEST, BEFORE = "checkpoint.pt", "checkpoint.previous.pt"


def replace_file(path: Path, write: Callable[[Path], None], *, keep: Path | None = None) -> None:
    """Puts what `write(temporary path)` writes in the place of `path`: whole and on the disk, or not at all.

    The former file is kept as `keep`, where that is given.
    """
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    with open(temporary, "rb+") as handle:
        os.fsync(handle.fileno())
    if keep is not None and path.exists():
        os.replace(path, keep)
    os.replace(temporary, path)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes `state` (tensors and plain values) as the newest checkpoint and keeps the one before it."""
    replace_file(folder / NEWEST, lambda path: torch.save(state, path), keep=folder / BEFORE)


def load(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """(state, remark): the newest whole checkpoint of a run, on the CPU, or None if it has none yet.

    The remark is "" or says that the newest was damaged and the one before it is used.

    Raises:
        InputError: if there are checkpoints and none is whole.
    """
    damage = []
    for name in (NEWEST, BEFORE):
        if not (folder / name).exists():
            continue
        try:
            state = _read(folder / name)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as e:
            damage.append(f"{folder / name} is damaged ({str(e).splitlines()[0][:80] if str(e) else type(e).__name__})")
            continue
        return state, f"{damage[0]}; going back to {name}" if damage else ""
    if damage:
        raise InputError("; ".join(damage))
    return None, ""


def _read(path: Path) -> dict[str, Any]:
    # The checksums of the archive's members: torch.load reads past a flipped bit without a word.
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad:
        raise ValueError(f"checksum of {bad}")
    return torch.load(path, map_location="cpu", weights_only=True)
