"""Samples -> a `.beton` file and its manifest; the same bytes for any number of workers.

The file has FFCV's format, but is not written by FFCV's DatasetWriter: that hangs for ever when a worker fails, draws
`proportion` without a seed, and stores samples in the order in which its workers happen to finish. Here threads
decode and encode (OpenCV and Pillow release the interpreter lock meanwhile), and the caller's thread alone writes
their results, in the order of the samples.
"""

import contextlib
import fcntl
import importlib.metadata
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

import fastlsr
from fastlsr.data.manifest import Manifest, digest_of, manifest_path, write_manifest
from fastlsr.data.prepare.beton import Layout, finish
from fastlsr.data.prepare.encoding import Chunk, Encoding, copy_images, encode_images
from fastlsr.data.sample_names import names_path, write_names
from fastlsr.errors import InputError

_FILES_A_CHUNK = 8
_ARRAYS_A_CHUNK = 512
_CHUNKS_AHEAD = 3  # encoded and not yet written, for each worker: bounds the memory


@dataclass(frozen=True)
class Samples:
    """Images and their labels, in file order.

    images: uint8 [N, H, W, 3], or N image files.
    labels: int64 [N], 0-based.
    names: of the N samples in their source, as `sample_names` keeps them; empty where they have none.
    """

    images: np.ndarray | Sequence[Path]
    labels: np.ndarray
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)


def write_beton(
    samples: Samples,
    path: Path,
    *,
    dataset: str,
    split: str,
    classes: Sequence[str],
    encoding: Encoding = Encoding(),
    options: dict | None = None,
    workers: int = 1,
    skip_bad: bool = False,
    on_progress: Callable[[int], object] = lambda images: None,
) -> Manifest:
    """Writes `path`, with the fields image, label and index (0..N-1, the position in the file), and its manifest.

    The samples' names, where they have any, lie beside it (`sample_names`). `path` appears whole or not at all, its
    manifest after it; what was there before stays until then, and no `.beton` is ever beside another one's manifest.

    Args:
        options: noted in the manifest, besides the encoding.
        workers: threads that decode and encode.
        on_progress: called with how many more of the samples are done.

    Returns:
        The manifest.

    Raises:
        InputError: no sample; a label outside the classes; an image cannot be read (and not `skip_bad`); the
            disk is full or read-only; another process is writing `path`.
    """
    path = Path(path)
    _check_samples(samples, classes, workers)
    with _partial_file(path) as (partial, file):
        written = _write(samples, file, encoding, workers=workers, skip_bad=skip_bad, on_progress=on_progress)
        manifest = Manifest(
            **manifest_facts(dataset, split, classes, encoding, options or {}),
            **_stored_facts(written, len(classes)),
            bytes=partial.stat().st_size,
            digest=digest_of(partial),
            skipped=tuple(written.skipped),
        )
        manifest_path(path).unlink(missing_ok=True)
        os.replace(partial, path)
        try:
            if written.names:
                manifest = replace(manifest, names=write_names(written.names, path))
            write_manifest(manifest, path)
        except BaseException:
            path.unlink(missing_ok=True)  # a file without manifest is of no use
            names_path(path).unlink(missing_ok=True)
            raise
    return manifest


def manifest_facts(
    dataset: str, split: str, classes: Sequence[str], encoding: Encoding, options: dict
) -> dict[str, Any]:
    """The manifest's fields that are known before the images are read."""
    return {
        "dataset": dataset,
        "split": split,
        "classes": tuple(classes),
        "options": {**asdict(encoding), **options},
        "versions": _versions(),
    }


@dataclass
class _Written:
    """What has gone into the file so far."""

    layout: Layout
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])  # per channel; Python's integers, so no overflow
    squares: list[int] = field(default_factory=lambda: [0, 0, 0])
    skipped: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def add(self, chunk: Chunk, labels: np.ndarray, file: BinaryIO) -> None:
        """Writes the chunk's samples into the file, each where the layout places it, and counts them in."""
        rows = zip(labels.tolist(), chunk.rows, chunk.stored, strict=True)
        for label, (mode, width, height, size), stored in rows:
            free = self.layout.end
            start = self.layout.place(label=label, mode=mode, width=width, height=height, size=size)
            if start != free:
                file.seek(start)  # past the end: the gap before the next page reads as zeros
            file.write(stored.data)
        self.sums = [total + more for total, more in zip(self.sums, chunk.sums, strict=True)]
        self.squares = [total + more for total, more in zip(self.squares, chunk.squares, strict=True)]


def _write(
    samples: Samples, file: BinaryIO, encoding: Encoding, *, workers: int, skip_bad: bool, on_progress: Callable
) -> _Written:
    written = _Written(Layout.for_samples(len(samples)))
    file.seek(written.layout.end)
    with contextlib.closing(_encoded(samples, encoding, workers)) as chunks:
        for positions, chunk in chunks:
            if chunk.bad and not skip_bad:
                raise InputError(f"{chunk.bad[0][1]}; --skip-bad leaves such images out")
            bad = {positions.start + at for at, _ in chunk.bad}
            kept = [at for at in positions if at not in bad]
            written.add(chunk, samples.labels[kept], file)
            written.names.extend(samples.names[at] for at in kept if samples.names)
            written.skipped.extend(why for _, why in chunk.bad)
            on_progress(len(positions))
    if not written.layout.rows:
        raise InputError(f"not one of the images could be read: {written.skipped[0]}")
    finish(file, written.layout)
    file.flush()
    os.fsync(file.fileno())
    return written


def _encoded(samples: Samples, encoding: Encoding, workers: int) -> Generator[tuple[range, Chunk], None, None]:
    """(positions, encoded images) for each chunk of the samples, in order; a few for each worker are under way."""
    images = samples.images
    size = _ARRAYS_A_CHUNK if isinstance(images, np.ndarray) else _FILES_A_CHUNK
    chunks = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    if isinstance(images, np.ndarray) and encoding.mode == "raw" and not _shrinks(encoding, images):
        yield from ((positions, copy_images(images[positions.start : positions.stop])) for positions in chunks)
        return
    pending: deque[tuple[range, Future]] = deque()
    pool = ThreadPoolExecutor(workers)
    former = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for positions in chunks:
            part = list(images[positions.start : positions.stop])
            pending.append((positions, pool.submit(encode_images, part, positions, encoding)))
            if len(pending) == workers * _CHUNKS_AHEAD:
                done, chunk = pending.popleft()
                yield done, chunk.result()
        for done, chunk in pending:
            yield done, chunk.result()
    finally:
        pool.shutdown(cancel_futures=True)  # an error must not leave threads that go on in the background
        cv2.setNumThreads(former)


def _shrinks(encoding: Encoding, images: np.ndarray) -> bool:
    return 0 < encoding.max_resolution < max(images.shape[1:3])


@contextlib.contextmanager
def _partial_file(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """(path, open file) of the hidden file that becomes `path`; removed however the block ends.

    It is locked, so that two writers of one `.beton` cannot mix; what a killed writer left in it is overwritten.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    with file:
        _lock(file, partial, path)
        try:
            file.truncate(0)
            yield partial, file
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
        finally:
            partial.unlink(missing_ok=True)


def _lock(file: BinaryIO, partial: Path, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other writer may have finished between our opening and our locking: then this is its finished file.
        ours = partial.exists() and os.path.samestat(os.fstat(file.fileno()), partial.stat())
    except BlockingIOError:
        ours = False
    if not ours:
        raise InputError(f"{path} is being written by another process")


def _stored_facts(written: _Written, classes: int) -> dict:
    """The manifest's fields that follow from the stored images."""
    labels, _, widths, heights, _, _ = np.array(written.layout.rows, dtype=np.int64).T
    mean, std = _mean_and_std(written.sums, written.squares, int((widths * heights).sum()))
    return {
        "count": len(labels),
        "class_counts": tuple(np.bincount(labels, minlength=classes).tolist()),
        "heights": (int(heights.min()), int(heights.max())),
        "widths": (int(widths.min()), int(widths.max())),
        "mean": mean,
        "std": std,
    }


def _mean_and_std(sums: Sequence[int], squares: Sequence[int], pixels: int) -> tuple[tuple, tuple]:
    """Per channel of values v/255: mean and population standard deviation, from exact integer sums."""
    mean = tuple(total / (255 * pixels) for total in sums)
    pairs = zip(sums, squares, strict=True)
    # n*sum(v^2) - sum(v)^2 in whole numbers: the difference of two near numbers loses nothing.
    std = tuple(math.sqrt(pixels * square - total**2) / (255 * pixels) for total, square in pairs)
    return mean, std


def _versions() -> dict[str, str]:
    named = {name: importlib.metadata.version(name) for name in ("ffcv", "numpy", "pillow")}
    return {**named, "fastlsr": fastlsr.__version__, "opencv": cv2.__version__}


def _check_samples(samples: Samples, classes: Sequence[str], workers: int) -> None:
    if len(samples) == 0:
        raise InputError("there is no image to write")
    if samples.names and len(samples.names) != len(samples):
        raise InputError(f"there are {len(samples.names)} names for {len(samples)} images")
    if samples.labels.min() < 0 or samples.labels.max() >= len(classes):
        raise InputError(f"a label lies outside the {len(classes)} classes")
    if workers < 1:
        raise InputError("--workers must be at least 1")
