"""Is our writer at least 0.9 times as fast as FFCV's bare `DatasetWriter` on the same input and workers?

    python benchmarks/writer.py [--data-dir FOLDER_OF_CLASS_FOLDERS] [--images N] [--workers N] [--repeats N]

Two inputs: `arrays`, CIFAR-like uint8 32x32 images in memory, stored raw; `photographs`, JPEG files stored as
`proportion` with the longest side at most 500. FFCV gets the fastest data set it can be given: one that indexes the
array, or decodes the file with Pillow to RGB. Ours does more besides: checks, statistics, digest, fsync, manifest.
Ratios are FFCV's median seconds / ours, so larger is better for us. The last line is a JSON object.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fastlsr.data.encoding import Encoding
from fastlsr.data.sources import SOURCES
from fastlsr.data.writing import Samples, write_beton

_RAW = Encoding(mode="raw")
_PROPORTION = SOURCES["imagenet"].encoding


class Indexed:
    """What FFCV's `from_indexed_dataset` wants: (image, label, index) by position."""

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


def compare(samples: Samples, encoding: Encoding, *, workers: int, repeats: int) -> dict[str, list[float]]:
    """Contender -> seconds of each repeat, interleaved, after one warm-up of each."""
    contenders = {"ours": write_ours, "ffcv": write_ffcv}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats + 1):
            for name, write in contenders.items():
                path = Path(folder, f"{repeat}.beton")
                started = time.perf_counter()
                write(samples, path, encoding, workers)
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
                path.unlink()  # untimed, as is what FFCV leaves for the disk to do: ours waits for the disk itself
                os.sync()
    return seconds


def arrays(count: int) -> Samples:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Samples(images, np.zeros(count, dtype=np.int64))


def photographs(folder: Path | None, count: int, scratch: Path) -> Samples:
    """`count` JPEG files: those under `folder` in turn, or else smooth random pictures of 500x375."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")) if folder else []
    files = files or [_random_photograph(scratch / f"{seed}.jpg", seed) for seed in range(64)]
    return Samples([files[at % len(files)] for at in range(count)], np.zeros(count, dtype=np.int64))


def _random_photograph(path: Path, seed: int) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def report(question: str, seconds: dict[str, list[float]], images: int) -> float:
    """FFCV's median seconds / ours, printed with the spread."""
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{question:12} {name:5} {median:7.2f} s ({min(taken):.2f} to {max(taken):.2f}) "
              f"{images / median:8.0f} images/s")  # fmt: skip
    return statistics.median(seconds["ffcv"]) / statistics.median(seconds["ours"])


def where() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in ("ffcv", "numpy", "pillow", "opencv-python")}
    return {"device": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
            "commit": commit or "none", **versions}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="JPEG files anywhere below; else random pictures")
    parser.add_argument("--images", type=int, default=2000, help="photographs to write (2000)")
    parser.add_argument("--arrays", type=int, default=50_000, help="32x32 images to write (50,000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(where())
    spent = {"workers": options.workers, "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as scratch:
        photos = photographs(options.data_dir, options.images, Path(scratch))
        inputs = {"arrays": (arrays(options.arrays), _RAW), "photographs": (photos, _PROPORTION)}
        ratios = {}
        for question, (samples, encoding) in inputs.items():
            taken = compare(samples, encoding, **spent)
            ratios[f"{question}_vs_ffcv"] = round(report(question, taken, len(samples)), 3)
    print(json.dumps({**ratios, **spent, "bar": 0.9, **where()}))


if __name__ == "__main__":
    main()
