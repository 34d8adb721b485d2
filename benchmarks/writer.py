"""Is our writer at least 0.9 times as fast as FFCV's bare `DatasetWriter` on the same input and workers?

    python benchmarks/writer.py [--photographs FOLDER] [--images N] [--workers N] [--repeats N]

Two inputs: `arrays`, CIFAR-like uint8 32x32 images in memory, stored raw; `photographs`, JPEG files stored as
`proportion` with the longest side at most 500. FFCV gets the fastest data set possible, which only indexes the array or
decodes the file with Pillow to RGB. Ours also checks the images, computes statistics and a digest, calls fsync and
writes the manifest.
"""

import argparse
import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from timing import Report, at_least, in_turns

from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.sources import SOURCES
from fastlsr.data.prepare.writing import Samples, write_beton

BARS = {"arrays_vs_ffcv": at_least(0.9), "photographs_vs_ffcv": at_least(0.9)}
_RAW = Encoding(mode="raw")
_PROPORTION = SOURCES["imagenet"].encoding


class Indexed:
    """The data set that FFCV's `from_indexed_dataset` takes: (image, label, index) by position."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, at: int) -> tuple[np.ndarray, int, int]:
        image = self.samples.images[at]
        if not isinstance(image, np.ndarray):
            with Image.open(image) as opened:
                image = np.asarray(opened.convert("RGB"))
        return image, int(self.samples.labels[at]), at


def write_ours(samples: Samples, path: Path, encoding: Encoding, workers: int) -> None:
    write_beton(samples, path, dataset="bench", split="train", classes=["a"], encoding=encoding, workers=workers)


def write_ffcv(samples: Samples, path: Path, encoding: Encoding, workers: int) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = RGBImageField(
        write_mode=encoding.mode,
        max_resolution=encoding.max_resolution or None,
        jpeg_quality=encoding.jpeg_quality,
        compress_probability=encoding.compress_probability,
    )
    fields = {"image": image, "label": IntField(), "index": IntField()}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        DatasetWriter(str(path), fields, num_workers=workers).from_indexed_dataset(Indexed(samples))


def compare(samples: Samples, encoding: Encoding, *, workers: int, rounds: int) -> dict[str, list[float]]:
    """Contender -> seconds of each round.

    Not timed: deleting the file, and for FFCV, waiting for the disk, which ours does itself.
    """

    def timed(write: Callable) -> Callable[[], float]:
        def run() -> float:
            path = Path(folder, "bench.beton")
            started = time.perf_counter()
            write(samples, path, encoding, workers)
            taken = time.perf_counter() - started
            path.unlink()
            os.sync()
            return taken

        return run

    with tempfile.TemporaryDirectory() as folder:
        return in_turns({"ours": timed(write_ours), "ffcv": timed(write_ffcv)}, rounds=rounds)


def arrays(count: int) -> Samples:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Samples(images, np.zeros(count, dtype=np.int64))


def photographs(folder: Path | None, count: int, scratch: Path) -> Samples:
    """`count` JPEG files: those under `folder`, repeated, or else smooth random pictures of 500x375."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")) if folder else []
    files = files or [_random_photograph(scratch / f"{seed}.jpg", seed) for seed in range(64)]
    return Samples([files[at % len(files)] for at in range(count)], np.zeros(count, dtype=np.int64))


def _random_photograph(path: Path, seed: int) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder with JPEG files; else random pictures")
    parser.add_argument("--images", type=int, default=2000, help="photographs to write (2000)")
    parser.add_argument("--arrays", type=int, default=50_000, help="32x32 images to write (50,000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    spent = {"workers": options.workers, "rounds": options.rounds}
    report = Report(BARS, {"arrays": options.arrays, "photographs": options.images, **spent})
    with tempfile.TemporaryDirectory() as scratch:
        photos = photographs(options.photographs, options.images, Path(scratch))
        inputs = {"arrays": (arrays(options.arrays), _RAW), "photographs": (photos, _PROPORTION)}
        for name, (samples, encoding) in inputs.items():
            seconds = compare(samples, encoding, **spent)
            report.table(f"{len(samples)} {name}", seconds, unit="images", units=len(samples))
            report.ratio(f"{name}_vs_ffcv", seconds["ffcv"], seconds["ours"])
    report.finish()


if __name__ == "__main__":
    main()
