"""The JSON beside each `.beton`: what it holds, and the proof that it is still that file."""

import contextlib
import hashlib
import json
import os
import shlex
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastlsr.cores import cores
from fastlsr.errors import InputError
from fastlsr.files import replace_text

_BLOCK_BYTES = 64 * 2**20  # of the digest
_READ_BYTES = 2**20
# A file that changed so shortly before it was hashed could change again within one tick of the file system's clock, and
# no time stamp would show it. Such a file is not stamped: the next `verify` hashes it again.
_SETTLED_NANOSECONDS = 200_000_000
_SILENT_SECONDS = 1.0  # progress of hashing is shown from then on
_OPTIONAL = ("names",)  # fields that manifests of earlier versions lack
_ROUNDING = 1e-9  # of a variance in squared grey levels; that of one pixel in a million is a thousand times as much


class NoSuchData(InputError):
    """A `.beton` file does not exist; the message has the command that writes it.

    Attributes:
        beton: the file.
    """

    def __init__(self, beton: Path):
        self.beton = beton
        super().__init__(f"{beton} does not exist; {_how_to_write(beton)}")


@dataclass(frozen=True)
class Manifest:
    """What a `.beton` file holds. `bytes` and `digest` are those of the whole file."""

    dataset: str
    split: str
    count: int  # samples in the file
    classes: tuple[str, ...]  # names; the position is the label
    class_counts: tuple[int, ...]  # samples of each class in this split
    heights: tuple[int, int]  # (smallest, largest) as stored, pixels
    widths: tuple[int, int]
    mean: tuple[float, float, float]  # of the pixels in [0, 1] after resizing and before JPEG compression
    std: tuple[float, float, float]  # over all pixels of the split, each pixel with the same weight
    options: dict[str, Any]  # of the writer
    bytes: int
    digest: str  # `digest_of` the file
    versions: dict[str, Any]  # of the libraries that decode, resize and compress
    skipped: tuple[str, ...]  # what `--skip-bad` left out, and why
    names: str = ""  # digest of the samples' names (`sample_names`); "" where there are none, as in early files


def manifest_path(beton: Path) -> Path:
    """The manifest's path: `cifar100_train.beton` -> `cifar100_train.json`."""
    return Path(beton).with_suffix(".json")


def read_manifest(beton: Path) -> Manifest:
    """The manifest of `beton`, its values checked for themselves; the `.beton` itself is not opened.

    Raises:
        NoSuchData: the `.beton` is missing.
        InputError: its manifest is missing, is malformed or contradicts itself.
    """
    beton, path = Path(beton), manifest_path(Path(beton))
    if not beton.is_file():
        raise NoSuchData(beton)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{beton} has no manifest {path.name} beside it; write it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return _parsed(values, path)


def write_manifest(manifest: Manifest, beton: Path) -> None:
    """Writes the manifest of `beton`, whole or not at all; equal manifests are equal bytes."""
    replace_text(manifest_path(beton), json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")


def verify(beton: Path) -> Manifest:
    """The manifest of `beton`, once the file's size and digest are known to be the manifest's.

    A hidden stamp beside the file keeps the digest for this state of the file (size, times, inode), so that not each
    start of a training computes it. Progress is shown where that takes more than a second.

    Raises:
        InputError: as `read_manifest`, or the file is truncated, altered, or another than the manifest's.
    """
    beton = Path(beton)
    manifest = read_manifest(beton)
    state = beton.stat()
    if state.st_size != manifest.bytes:
        raise InputError(f"{beton} has {state.st_size} bytes, its manifest states {manifest.bytes}; write it again")
    stamp = {**_identity(state), "digest": manifest.digest}
    if _read_stamp(beton) == stamp:
        return manifest
    settled = time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED_NANOSECONDS
    if digest_of(beton, watch=lambda blocks: _shown(blocks, beton)) != manifest.digest:
        raise InputError(f"{beton} is not the file its manifest describes (its digest differs); write it again")
    if settled and _identity(beton.stat()) == _identity(state):
        _write_stamp(beton, stamp)
    return manifest


def digest_of(path: Path, watch: Callable[[Iterable[str]], Iterable[str]] = iter) -> str:
    """The sha256, in hexadecimal, of the list of sha256s of the file's blocks, which all cores compute together.

    `split -b 64M --filter=sha256sum FILE | sha256sum` prints the same. `watch` sees the blocks as they are done.
    """
    with ThreadPoolExecutor(cores()) as pool:
        starts = range(0, max(1, path.stat().st_size), _BLOCK_BYTES)
        lines = pool.map(lambda start: f"{_block_sha256(path, start)}  -\n", starts)
        return hashlib.sha256("".join(watch(lines)).encode()).hexdigest()


def _shown(blocks: Iterable[str], beton: Path) -> Iterator[str]:
    """The same blocks; after `_SILENT_SECONDS` with a bar on a terminal, or one line elsewhere."""
    size, start, shown = beton.stat().st_size, time.monotonic(), False
    if sys.stderr.isatty():
        yield from tqdm(
            blocks,
            f"verifying {beton}",
            total=-(-size // _BLOCK_BYTES),
            leave=False,
            delay=_SILENT_SECONDS,
            unit=" MiB",
            unit_scale=_BLOCK_BYTES // 2**20,
        )
        return
    for block in blocks:
        if not shown and time.monotonic() - start > _SILENT_SECONDS:
            print(f"verifying {beton} ({size / 2**30:.1f} GiB), once after each change", file=sys.stderr, flush=True)
            shown = True
        yield block


def _block_sha256(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        for _ in range(_BLOCK_BYTES // _READ_BYTES):
            digest.update(file.read(_READ_BYTES))
    return digest.hexdigest()


def _how_to_write(beton: Path) -> str:
    """The command that writes a file of this name, or what else helps."""
    from fastlsr.data.prepare.sources import SOURCES, near_source  # for its names alone, which nothing else here needs

    name, _, split = beton.stem.rpartition("_")
    source, out = SOURCES.get(name), shlex.quote(str(beton.parent))
    others = [path.stem.removeprefix(f"{name}_") for path in sorted(beton.parent.glob(f"{name}_*.beton"))]
    if others and (not source or split not in source.splits):
        instead = "; data.folds with data.val=val holds a part of train out" * (split == "val")
        return f"of {name}, {beton.parent} has {' and '.join(others)} alone{instead}"
    if source:
        copy = "" if source.downloads else " --data-dir COPY"
        return f"python -m fastlsr.write {name}{copy} --out {out}"
    if not name:
        return "python -m fastlsr.write -h lists what writes data sets"
    if near := near_source(name):
        return f"did you mean data.dataset={near}?"
    command = f"python -m fastlsr.write folder --data-dir IMAGES --name {shlex.quote(name)} --out {out}"
    return f"{command} makes it of images of your own"


def _parsed(values: object, path: Path) -> Manifest:
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a manifest: it holds no JSON object")
    names = {field.name for field in fields(Manifest)}
    wrong = (names ^ values.keys()) - {*_OPTIONAL}
    if wrong:
        raise InputError(f"{path} is not a manifest: it lacks or adds {', '.join(sorted(wrong))}")
    hints = typing.get_type_hints(Manifest)
    manifest = Manifest(**{name: _typed(value, hints[name], f"{path}: {name}") for name, value in values.items()})
    _check_values(manifest, path)
    return manifest


def _typed(value: object, hint: Any, name: str) -> Any:
    """`value`, of the type `hint`: a plain type, dict[...], or tuple[...] of one plain type, made from a list."""
    wanted = typing.get_origin(hint) or hint
    if wanted is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, list) or (items[-1] is not Ellipsis and len(value) != len(items)):
            raise InputError(f"{name} is not a list of the right length")
        return tuple(_typed(item, items[0], name) for item in value)
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise InputError(f"{name} holds {value!r}, not a {wanted.__name__}")
    return value


def _check_values(manifest: Manifest, path: Path) -> None:
    names, counts = manifest.classes, manifest.class_counts
    rules = {
        "classes": (
            all(name.strip() for name in names) and len(set(names)) == len(names),
            "does not hold different names, none of them empty",
        ),
        "class_counts": (
            len(counts) == len(names) and min(counts, default=0) >= 0 and 0 < sum(counts) == manifest.count,
            "does not add up to count over the classes",
        ),
        "heights": (0 < manifest.heights[0] <= manifest.heights[1], "is no range of pixels"),
        "widths": (0 < manifest.widths[0] <= manifest.widths[1], "is no range of pixels"),
        "mean": (all(0 <= mean <= 1 for mean in manifest.mean), "does not lie in 0..1"),
        "std": (all(map(_can_have, manifest.mean, manifest.std)), "is not one that pixels of this mean can have"),
    }
    for name, (holds, fault) in rules.items():
        if not holds:
            raise InputError(f"{path}: {name} {fault}")


def _can_have(mean: float, std: float) -> bool:
    """Whether values of 0/255, 1/255, ... 255/255 can have this mean and standard deviation.

    Their variance is least where all are next to the mean, and largest where all are 0 or 1. A deviation of 0 is that
    of a constant channel, whose mean is one of the values.
    """
    grey = 255 * mean
    part = grey % 1
    least, most = part * (1 - part), grey * (255 - grey)
    return std >= 0 and least - _ROUNDING <= (255 * std) ** 2 <= most + _ROUNDING


def _identity(state: os.stat_result) -> dict[str, int]:
    # ctime, too, since no ordinary program can set it back.
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns, "inode": state.st_ino}


def _stamp_path(beton: Path) -> Path:
    return beton.with_name(f".{beton.stem}.verified")


def _read_stamp(beton: Path) -> dict[str, Any]:
    try:
        return json.loads(_stamp_path(beton).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_stamp(beton: Path, stamp: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a read-only folder: the digest is then computed each time
        replace_text(_stamp_path(beton), json.dumps(stamp))
