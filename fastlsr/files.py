"""Atomic file replacement, and exclusive use of a folder."""

import contextlib
import fcntl
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fastlsr.errors import InputError


def replace_file(path: Path, write: Callable[[Path], object], *, keep: Path | None = None) -> None:
    """Replaces `path` atomically by what `write(temporary path)` writes, and returns when it is on the disk.

    The temporary file is `.NAME.PID.partial` in the same folder. If anything fails, it is removed and `path` is
    unchanged.

    Args:
        path: file to write or replace.
        write: writes the file at the path it is given.
        keep: where the former file is moved to; by default it is overwritten.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_archive(path: Path) -> None:
    """Checks the checksums of all members of a zip archive: torch.load does not notice a flipped bit.

    Raises:
        ValueError: if one does not fit. Other damage raises what `zipfile` does.
    """
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad:
        raise ValueError(f"the checksum of {bad} does not fit")


def check_can_be_written(folder: Path) -> None:
    """Checks, without making it, that a folder is there or can be made, and files in it.

    Raises:
        InputError: if not.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"{folder} cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: no permission for {there}")


def _sync_folder(folder: Path) -> None:
    # fsync of the file does not cover its name.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Replaces the file `path` atomically by `text` in UTF-8."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes left in the folder and below it (see `replace_file`).

    Files of running processes stay. Processes are looked up on this machine only, so hold the folder's lock where
    other machines write to it, too.
    """
    for path in folder.rglob(".*.partial"):
        match = re.fullmatch(r"\..+\.(\d{1,9})\.partial", path.name)
        if match and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def sole_use(folder: Path, busy: str) -> Iterator[int]:
    """Makes the folder and holds a lock on it; yields the lock's file descriptor, which a child may inherit.

    Raises:
        InputError: if the folder cannot be made; with the message `busy` if another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # perhaps only by `is_in_use`, which lets go at once
            time.sleep(0.05)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    except BlockingIOError:
        raise InputError(busy) from None
    finally:
        os.close(lock)


def is_in_use(folder: Path) -> bool:
    """Whether a process of this machine holds the lock of `sole_use` on a folder; disturbs none that takes it."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
