"""Writing a file whole or not at all, and having a folder to oneself."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fastlsr.errors import InputError


def replace_file(path: Path, write: Callable[[Path], None], *, keep: Path | None = None) -> None:
    """Puts what `write(temporary path)` writes in the place of `path`: whole and on the disk, or not at all.

    The temporary file lies beside `path`, hidden; `keep`, where given, is where the former file goes.
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


def _sync_folder(folder: Path) -> None:
    # The new name, too, is on the disk only then.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Puts `text` in the place of the file `path`, whole or not at all."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def sole_use(folder: Path, busy: str) -> Iterator[int]:
    """Makes the folder and holds a lock on it; gives the lock's file descriptor, which a child may inherit.

    Raises:
        InputError: if the folder cannot be made; with the message `busy` if another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    except BlockingIOError:
        raise InputError(busy) from None
    finally:
        os.close(lock)


def remove_leftovers(folder: Path) -> None:
    """Removes what processes that are gone left of `replace_file` in the folder."""
