"""The JSON beside each `.beton`: what it holds, and the proof that it is still that file."""

import hashlib
import json
import os
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from fastlsr.errors import InputError
from fastlsr.files import replace_text

_BLOCK_BYTES = 64 * 2**20  # of the digest
_READ_BYTES = 2**20
# A file changed this shortly before it was hashed can be changed again within one tick of the file system's
# clock, which no time stamp would show. Such a file is not stamped: the next `verify` hashes it again.
_SETTLED_NANOSECONDS = 200_000_000
_SILENT_SECONDS = 1.0  # of verifying a file; after them it is shown


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
    options: dict  # what the writer was asked for
    bytes: int
    digest: str  # `digest_of` the file
    versions: dict  # of the libraries that decode, resize and compress
    skipped: tuple[str, ...]  # what `--skip-bad` left out, and why


def manifest_path(beton: Path) -> Path:
    """The manifest's path: `cifar100_train.beton` -> `cifar100_train.json`."""
    return Path(beton).with_suffix(".json")


def read_manifest(beton: Path) -> Manifest:
    """The manifest of `beton`, its values' types checked; the `.beton` itself is not opened.

    Raises:
        InputError: the `.beton` or its manifest is missing, or the manifest is not one.
    """
    beton, path = Path(beton), manifest_path(Path(beton))
    if not beton.is_file():
        raise InputError(f"{beton} does not exist; python data_prep/write_ffcv.py -h lists what writes data sets")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{beton} has no manifest {path.name} beside it; write it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return _parsed(values, path)


def write_manifest(manifest: Manifest, beton: Path) -> None:
    """None; the manifest of `beton` is on disk, whole or not at all, and says the same for the same values."""
    replace_text(manifest_path(beton), json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")


def verify(beton: Path) -> Manifest:
    """The manifest of `beton`, after the file's size and digest were found to be the manifest's.

    A verified file leaves a hidden stamp beside it, so that the digest is computed once for each state of the
    file (size, times, inode), not at each start of a training. Where that takes more than a second it is shown.

    Raises:
        InputError: as `read_manifest`, or the file is truncated, altered, or another than the manifest's.
    """
    beton = Path(beton)
    manifest = read_manifest(beton)
    state = beton.stat()
    if state.st_size != manifest.bytes:
        raise InputError(f"{beton} has {state.st_size} bytes, its manifest says {manifest.bytes}; write it again")
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
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        starts = range(0, max(1, path.stat().st_size), _BLOCK_BYTES)
        lines = pool.map(lambda start: f"{_block_sha256(path, start)}  -\n", starts)
        return hashlib.sha256("".join(watch(lines)).encode()).hexdigest()


def _shown(blocks: Iterable[str], beton: Path) -> Iterator[str]:
    """The same blocks, with a bar on a terminal, elsewhere a line, once they have taken `_SILENT_SECONDS`."""
    size, start, said = beton.stat().st_size, time.monotonic(), False
    if sys.stderr.isatty():
        mebibytes = {"unit": " MiB", "unit_scale": _BLOCK_BYTES // 2**20}
        total = -(-size // _BLOCK_BYTES)
        yield from tqdm(blocks, f"verifying {beton}", total, leave=False, delay=_SILENT_SECONDS, **mebibytes)
        return
    for block in blocks:
        if not said and time.monotonic() - start > _SILENT_SECONDS:
            print(f"verifying {beton} ({size / 2**30:.1f} GiB), once after each change", file=sys.stderr, flush=True)
            said = True
        yield block


def _block_sha256(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        for _ in range(_BLOCK_BYTES // _READ_BYTES):
            digest.update(file.read(_READ_BYTES))
    return digest.hexdigest()


def _parsed(values: object, path: Path) -> Manifest:
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a manifest: it holds no JSON object")
    names = {field.name for field in fields(Manifest)}
    if values.keys() != names:
        raise InputError(f"{path} is not a manifest: it lacks or adds {', '.join(sorted(names ^ values.keys()))}")
    hints = typing.get_type_hints(Manifest)
    typed = {name: _typed(value, hints[name], f"{path}: {name}") for name, value in values.items()}
    manifest = Manifest(**typed)
    if len(manifest.classes) != len(manifest.class_counts) or sum(manifest.class_counts) != manifest.count:
        raise InputError(f"{path} contradicts itself: class_counts do not add up to count over the classes")
    return manifest


def _typed(value: object, hint: object, name: str) -> object:
    """`value` as `hint` wants it (lists become tuples); `hint` is a plain type or tuple[...] of one plain type."""
    if isinstance(hint, types.GenericAlias):
        wanted = typing.get_args(hint)
        if not isinstance(value, list) or (wanted[-1] is not Ellipsis and len(value) != len(wanted)):
            raise InputError(f"{name} is not a list of the right length")
        return tuple(_typed(item, wanted[0], name) for item in value)
    if not isinstance(value, hint) or isinstance(value, bool):
        raise InputError(f"{name} holds {value!r}, not a {hint.__name__}")
    return value


def _identity(state: os.stat_result) -> dict[str, int]:
    # ctime too: unlike mtime, no ordinary program can set it back.
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns, "inode": state.st_ino}


def _stamp_path(beton: Path) -> Path:
    return beton.with_name(f".{beton.stem}.verified")


def _read_stamp(beton: Path) -> dict:
    try:
        return json.loads(_stamp_path(beton).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_stamp(beton: Path, stamp: dict) -> None:
    try:
        replace_text(_stamp_path(beton), json.dumps(stamp))
    except OSError:
        pass  # a read-only folder: the digest is then computed each time
