"""The configs and sweep files that come with the package, found by name."""

from __future__ import annotations

from pathlib import Path

from fastlsr.errors import InputError, nearest

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED, _IN_A_CLONE = _PACKAGE / "configs", _PACKAGE.parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _IN_A_CLONE
SWEEPS = CONFIGS / "sweeps"


def names(folder: Path) -> list[str]:
    """The names of a folder's files."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def file_or_shipped(given: str | Path, folder: Path) -> Path:
    """The file `given` if there is one, else the file of `folder` that it names.

    `tsla_cifar100`, `tsla_cifar100.yaml` and `configs/tsla_cifar100.yaml` all name a config, so that the commands of
    pages and of sweep files can be typed in any folder.

    Args:
        folder: `CONFIGS` or `SWEEPS`.

    Raises:
        InputError: if there is neither.
    """
    path = Path(given)
    if path.is_file():
        return path
    name, place = path.name.removesuffix(".yaml"), folder.relative_to(CONFIGS.parent)
    if path.parent in (Path(), place) and name in names(folder):
        return folder / f"{name}.yaml"
    if path.exists():
        return path  # a pipe; a folder, which cannot be read
    raise InputError(
        f"{given}: there is no such file, and none of that name in fastlsr; {nearest(name, names(folder))}"
    )
