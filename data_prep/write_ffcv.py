#!/usr/bin/env python3
"""Writes a data set's splits as `.beton` files for FFCV, each with a JSON manifest beside it.

python data_prep/write_ffcv.py cifar100                                # downloads where torchvision can
python data_prep/write_ffcv.py imagenet --data-dir /path/to/imagenet   # a copy on disk, official layout
python data_prep/write_ffcv.py folder --data-dir pictures --name birds # any tree train/CLASS/, test/CLASS/
"""

import argparse
import contextlib
import dataclasses
import difflib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation

from tqdm import tqdm

from fastlsr.cli import Parser, exit_on_input_error
from fastlsr.data.manifest import Manifest, manifest_path
from fastlsr.data.prepare.encoding import WRITE_MODES, Encoding
from fastlsr.data.prepare.sources import SOURCES, Dataset, read_dataset, subset
from fastlsr.data.prepare.writing import write_beton
from fastlsr.errors import InputError
from fastlsr.files import sole_use


def parser() -> Parser:
    """The options, with the data sets described below them."""
    lines = [f"  {name:14} {_described(source.encoding)}; {source.note}" for name, source in SOURCES.items()]
    made = Parser(
        description=__doc__,
        epilog="data sets, how each is stored unless options say otherwise, and its splits:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("dataset", type=_known, metavar="DATASET", help="one of the names below")
    made.add_argument("--name", type=_plain, help="of the files and of data.dataset, instead of DATASET")
    made.add_argument("--data-dir", type=Path, help="a copy on disk in its official layout; nothing is downloaded")
    made.add_argument("--out", type=Path, default=Path("data"), help="folder for DATASET_{train,test}.beton (data)")
    made.add_argument("--splits", type=_names, metavar="NAMES",
                      help="train, test or train,test; all that the data set has")  # fmt: skip
    made.add_argument("--subset", type=_from(int, 1), metavar="N", help="N samples of each split, drawn by --seed")
    made.add_argument("--write-mode", choices=WRITE_MODES, help="raw pixels; jpg; smart: jpg above --smart-threshold; "
                      "proportion: jpg for a --compress-probability share, drawn by --seed")  # fmt: skip
    made.add_argument("--max-resolution", type=_from(int, 0), metavar="PIXELS",
                      help="longest side; 0 keeps every size")  # fmt: skip
    made.add_argument("--jpeg-quality", type=_from(int, 1, 100), metavar="Q", help="1 to 100")
    made.add_argument("--compress-probability", type=_from(float, 0, 1), metavar="P", help="of proportion, 0 to 1")
    made.add_argument("--smart-threshold", type=_from(int, 0), metavar="BYTES", help="of an image's raw pixels")
    made.add_argument("--seed", type=_from(int, 0), help="of --subset and proportion (0)")
    made.add_argument("--workers", type=_from(int, 0), default=0, help="threads; 0, the default: one a core")
    made.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and list them")
    return made


def main(arguments: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that partial files are removed
    try:
        with exit_on_input_error():
            write_splits(parser().parse_args(arguments))
    except KeyboardInterrupt:
        sys.exit(130)


def write_splits(options: argparse.Namespace) -> None:
    """None; all the splits are written, or none is and what was there before stays."""
    dataset = read_dataset(options.dataset, options.data_dir, options.out / "downloads")
    names = _checked_splits(options.splits, dataset)
    with _aside(options.out, options.name or options.dataset) as aside:
        # The smallest first: a bad image in it is then found before hours went into the largest.
        ordered = sorted(names, key=lambda name: len(dataset.splits[name]))
        manifests = {split: _write_split(options, dataset, split, aside) for split in ordered}
        for split in ordered:
            _publish(aside / _file_name(options, split), options.out)
    for split, manifest in manifests.items():
        path = options.out / _file_name(options, split)
        print(f"{path}: {manifest.count} images of {len(manifest.classes)} classes, {manifest.bytes / 1e6:.1f} MB")


def _write_split(options: argparse.Namespace, dataset: Dataset, split: str, folder: Path) -> Manifest:
    samples, path = dataset.splits[split], folder / _file_name(options, split)
    given = {name: value for name, value in vars(options).items() if name in _ENCODING_OPTIONS and value is not None}
    if options.subset:
        samples = subset(samples, options.subset, options.seed or 0)
    manifest = write_beton(
        samples,
        path,
        dataset=options.name or options.dataset,
        split=split,
        classes=dataset.classes,
        encoding=dataclasses.replace(SOURCES[options.dataset].encoding, **_renamed(given)),
        options={"subset": options.subset, "skip_bad": options.skip_bad},
        workers=options.workers or len(os.sched_getaffinity(0)),
        skip_bad=options.skip_bad,
        on_progress=_progress(path.name, len(samples)),
    )
    for left_out in manifest.skipped:
        print(f"left out: {left_out}", file=sys.stderr)
    return manifest


def _file_name(options: argparse.Namespace, split: str) -> str:
    return f"{options.name or options.dataset}_{split}.beton"


@contextlib.contextmanager
def _aside(out: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `out` for what is not finished; removed with all that is left in it, a killed writer's too."""
    folder = out / f".writing-{name}"
    with sole_use(folder, f"{out / name} is being written by another process"):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(written: Path, folder: Path) -> None:
    """None; the file and its manifest are in the folder, and no `.beton` was ever beside another one's manifest."""
    manifest_path(folder / written.name).unlink(missing_ok=True)
    os.replace(written, folder / written.name)
    os.replace(manifest_path(written), manifest_path(folder / written.name))


def _progress(name: str, total: int) -> Callable[[int], None]:
    """What to call with each number of images done: a bar on a terminal, else a plain line every ten seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=name, unit=" images").update
    done, told = 0, time.monotonic()

    def tell(images: int) -> None:
        nonlocal done, told
        done += images
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            print(f"{name}: {done} of {total} images", file=sys.stderr)

    return tell


_SECONDS_BETWEEN_LINES = 10
_ENCODING_OPTIONS = ("write_mode", "max_resolution", "jpeg_quality", "compress_probability", "smart_threshold", "seed")


def _renamed(given: dict) -> dict:
    return {"mode" if name == "write_mode" else name: value for name, value in given.items()}


def _checked_splits(wanted: list[str] | None, dataset: Dataset) -> list[str]:
    if missing := [name for name in wanted or [] if name not in dataset.splits]:
        raise InputError(f"there is no split {missing[0]} here, only {', '.join(dataset.splits)}")
    return wanted or list(dataset.splits)


def _known(text: str) -> str:
    if text not in SOURCES:
        close = difflib.get_close_matches(text.lower(), SOURCES, 1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(SOURCES)}"
        raise argparse.ArgumentTypeError(f"no data set {text}; {hint}")
    return text


def _plain(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text) or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text} is no name for a file; take letters, digits, - and _")
    return text


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("names no split")
    return names


def _from(kind: type, least: float, most: float = float("inf")) -> Callable[[str], float]:
    """What reads an option's number and refuses one out of range."""

    def parse(text: str):
        value = kind(text)
        if not least <= value <= most:
            span = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not {span}")
        return value

    parse.__name__ = kind.__name__
    return parse


def _described(encoding: Encoding) -> str:
    side = f" {encoding.max_resolution} px" if encoding.max_resolution else ""
    share = f" {encoding.compress_probability}" if encoding.mode == "proportion" else ""
    quality = f" q{encoding.jpeg_quality}" if encoding.mode != "raw" else ""
    return encoding.mode + share + side + quality


if __name__ == "__main__":
    main()
