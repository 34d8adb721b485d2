"""Writing a file whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


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
