"""Writes a data set's splits as `.beton` files for FFCV, each with a JSON manifest beside it.

python -m fastlsr.write cifar100                                # downloads where torchvision can
python -m fastlsr.write imagenet --data-dir /path/to/imagenet   # a copy on disk, official layout
python -m fastlsr.write folder --data-dir pictures --name birds # any tree train/CLASS/, val/CLASS/, test/CLASS/
"""

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastlsr.cli import Parser, exit_on_input_error, interrupts_raised
from fastlsr.cores import cores
from fastlsr.data.manifest import Manifest, manifest_path, read_manifest, verify
from fastlsr.data.prepare.encoding import WRITE_MODES, Encoding
from fastlsr.data.prepare.sources import SOURCES, Dataset, near_source, of_classes, read_dataset, subset
from fastlsr.data.prepare.writing import Samples, manifest_facts, write_beton
from fastlsr.data.sample_names import names_path, read_names
from fastlsr.errors import InputError
from fastlsr.files import sole_use
from fastlsr.plugins import load_named

_SECONDS_BETWEEN_LINES = 10
_LARGEST_SEED = 2**40 - 1  # of `rng.position_uniform`


def parser() -> Parser:
    """The parser of the options; its help lists the data sets, too."""
    lines = [f"  {name:14} {_described(source.encoding)}; {', '.join(source.splits)}; {source.note}"
             for name, source in SOURCES.items()]  # fmt: skip
    made = Parser(
        prog="python -m fastlsr.write",
        description=__doc__,
        epilog="data sets, how each is stored by default, and its splits:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("dataset", type=_dataset_name, metavar="DATASET", help="one of the names below")
    made.add_argument("--name", type=_file_stem, help="of the files and of data.dataset, instead of DATASET")
    made.add_argument("--data-dir", type=Path, help="a copy on disk in its official layout; nothing is downloaded")
    made.add_argument("--out", type=Path, default=Path("data"), help="folder for DATASET_SPLIT.beton (data)")
    made.add_argument("--overwrite", action="store_true", help="replace files that are there with other content")
    made.add_argument("--splits", type=_names, metavar="NAMES",
                      help="as train or train,test; all that the data set has, which are listed below")  # fmt: skip
    made.add_argument("--classes", type=_names, metavar="NAMES",
                      help="these classes alone, in this order, as cat,dog; needs --name")  # fmt: skip
    made.add_argument("--subset", type=_number(int, 1), metavar="N", help="N samples of each split, drawn by --seed")
    made.add_argument("--write-mode", dest="mode", choices=WRITE_MODES,
                      help="raw pixels; jpg; smart: jpg above --smart-threshold; "
                      "proportion: jpg for a --compress-probability share, drawn by --seed")  # fmt: skip
    made.add_argument("--max-resolution", type=_number(int, 0), metavar="PIXELS",
                      help="longest side; 0 keeps every size")  # fmt: skip
    made.add_argument("--jpeg-quality", type=_number(int, 1, 100), metavar="Q", help="1 to 100")
    made.add_argument("--compress-probability", type=_number(float, 0, 1), metavar="P", help="of proportion, 0 to 1")
    made.add_argument("--smart-threshold", type=_number(int, 0), metavar="BYTES", help="of an image's raw pixels")
    made.add_argument("--seed", type=_number(int, 0, _LARGEST_SEED), help="of --subset and proportion (0)")
    made.add_argument("--workers", type=_number(int, 0), default=0, help="threads; 0, the default: one a core")
    made.add_plugin()
    made.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and list them")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Writes what the arguments request; exits with code 2 and one line where they are wrong, 130 on Ctrl-C."""
    with exit_on_input_error():
        words = load_named(arguments)  # one may have the data set
        write_splits(parser().parse_args(words))


def write_splits(options: argparse.Namespace) -> None:
    """Writes all splits, or none; a file that is there with the same content stays untouched.

    Raises:
        InputError: wrong input, or a file is there with other content and `--overwrite` is not given. That is checked
            before the images are read, as far as the manifest shows it, and again once they are encoded.
    """
    name = options.name or options.dataset
    if options.classes and name == options.dataset:
        raise InputError(f"--classes needs --name=NAME: the files of the name {name} hold all classes")
    _check_splits(options, SOURCES[options.dataset].splits)  # before anything is downloaded
    dataset = read_dataset(options.dataset, options.data_dir, options.out / "downloads")
    if options.classes:
        dataset = of_classes(dataset, options.classes)
    samples = _requested_samples(options, dataset)
    paths = {split: options.out / f"{name}_{split}.beton" for split in samples}
    descriptions = {split: _description(options, dataset, split) for split in samples}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # unwinds, so that the scratch is removed
    with interrupts_raised(), _scratch_folder(options.out, name) as scratch:
        if not options.overwrite:
            for split, path in paths.items():
                _check_same_request(path, descriptions[split], len(samples[split]))
        manifests = {split: _write_split(options, descriptions[split], samples[split], scratch / path.name)
                     for split, path in paths.items()}  # fmt: skip
        changed = [split for split, path in paths.items() if not _holds(path, manifests[split])]
        replaced = [paths[split] for split in changed if not _has_same_images(paths[split], manifests[split])]
        if taken := [path for path in replaced if _is_there(path) and not options.overwrite]:
            raise InputError(f"{taken[0]} is there with other content; --overwrite replaces it")
        _publish(scratch, [paths[split] for split in changed])
    for split, manifest in manifests.items():
        size = f"{manifest.count} images of {len(manifest.classes)} classes, {manifest.bytes / 1e6:.1f} MB"
        print(f"{paths[split]}: {size}" + ("" if split in changed else "; it was there already and is unchanged"))


def _check_splits(options: argparse.Namespace, there: Collection[str]) -> None:
    """Raises InputError for a split that is not there, unless the option is left out."""
    if missing := [name for name in options.splits or [] if name not in there]:
        raise InputError(f"--splits: {options.dataset} has no {missing[0]} here; it has {', '.join(there)}")


def _requested_samples(options: argparse.Namespace, dataset: Dataset) -> dict[str, Samples]:
    """The samples of each requested split, the smallest first: a bad image in it is found before the longest work."""
    _check_splits(options, dataset.splits)
    samples = {split: dataset.splits[split] for split in options.splits or dataset.splits}
    if options.subset:
        samples = {split: subset(whole, options.subset, options.seed or 0) for split, whole in samples.items()}
    return dict(sorted(samples.items(), key=lambda item: len(item[1])))


def _description(options: argparse.Namespace, dataset: Dataset, split: str) -> dict[str, Any]:
    """What the manifest of a split is to hold, as keywords of `write_beton`."""
    names = {field.name for field in dataclasses.fields(Encoding)}
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    return {
        "dataset": options.name or options.dataset,
        "split": split,
        "classes": dataset.classes,
        "encoding": dataclasses.replace(SOURCES[options.dataset].encoding, **given),
        "options": {"subset": options.subset, "skip_bad": options.skip_bad},
    }


def _write_split(options: argparse.Namespace, description: dict[str, Any], samples: Samples, path: Path) -> Manifest:
    """Writes one split, reports the images that were left out, and returns the manifest."""
    manifest = write_beton(
        samples,
        path,
        **description,
        workers=options.workers or cores(),
        skip_bad=options.skip_bad,
        on_progress=_progress(path.name, len(samples)),
    )
    for left_out in manifest.skipped:
        print(f"left out: {left_out}", file=sys.stderr)
    return manifest


def _check_same_request(path: Path, description: dict[str, Any], images: int) -> None:
    """Raises InputError if a file is at `path` that, by its manifest, cannot equal what is about to be written."""
    if not _is_there(path):
        return
    try:
        manifest = read_manifest(path)
    except InputError:
        raise InputError(f"{path} is there without a readable manifest; --overwrite replaces it") from None
    there = _by_field({**vars(manifest), "count": manifest.count + len(manifest.skipped)})
    requested = _by_field({**manifest_facts(**description), "count": images})
    if differing := [name for name, value in requested.items() if there.get(name) != value]:
        raise InputError(f"{path} is there and differs in {', '.join(differing)}; --overwrite replaces it")


def _by_field(facts: dict[str, Any]) -> dict[str, Any]:
    """Field name -> value, the parts of `options` under `options.NAME`; other versions may give the same bytes."""
    parts = {f"options.{key}": value for key, value in facts["options"].items()}
    return {name: value for name, value in facts.items() if not isinstance(value, dict)} | parts


def _holds(path: Path, manifest: Manifest) -> bool:
    """Whether `path` is there with the content of this manifest and its names, whatever the versions that wrote it."""
    if not _has_same_images(path, manifest):
        return False
    try:
        there = read_manifest(path)
        return there.names == manifest.names and (not there.names or bool(read_names(path, there)))
    except InputError:
        return False


def _has_same_images(path: Path, manifest: Manifest) -> bool:
    """As `_holds`, whatever the names of the samples, which earlier versions did not keep."""
    try:
        return dataclasses.replace(verify(path), versions=manifest.versions, names=manifest.names) == manifest
    except InputError:
        return False


def _is_there(path: Path) -> bool:
    return os.path.lexists(path) or os.path.lexists(manifest_path(path))


@contextlib.contextmanager
def _scratch_folder(out: Path, name: str) -> Iterator[Path]:
    """An empty hidden folder in `out` for unfinished files, removed at the end; clears what a killed writer left."""
    folder = out / f".writing-{name}"
    with sole_use(folder, f"{out / name} is being written by another process"):
        try:
            for leftover in folder.iterdir():
                leftover.unlink()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(scratch: Path, paths: list[Path]) -> None:
    """Moves the files and their manifests from `scratch` to `paths`.

    At no time is a `.beton` beside another one's manifest, or a new split with its manifest beside an old one with its.
    """
    try:
        for path in paths:
            manifest_path(path).unlink(missing_ok=True)
        for path in paths:
            os.replace(scratch / path.name, path)
        for path in paths:
            if names_path(scratch / path.name).exists():
                os.replace(names_path(scratch / path.name), names_path(path))
        for path in paths:
            os.replace(manifest_path(scratch / path.name), manifest_path(path))
    except OSError as error:
        raise InputError(f"{path} cannot be replaced: {error.strerror}; write all splits again") from None


def _progress(name: str, total: int) -> Callable[[int], None]:
    """What to call with each number of images done: a bar on a terminal, else a plain line every ten seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=name, unit=" images").update
    done, reported = 0, time.monotonic()

    def report(images: int) -> None:
        nonlocal done, reported
        done += images
        if time.monotonic() - reported > _SECONDS_BETWEEN_LINES:
            reported = time.monotonic()
            print(f"{name}: {done} of {total} images", file=sys.stderr)

    return report


def _dataset_name(text: str) -> str:
    if text not in SOURCES:
        near = near_source(text)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(SOURCES)} (any tree of images)"
        raise argparse.ArgumentTypeError(f"no data set {text}; {hint}")
    return text


def _file_stem(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+", text) or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text} is no name for a file; take letters, digits, - and _")
    return text


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("expected names, separated by commas")
    return names


def _number(kind: type[int] | type[float], least: float, most: float = float("inf")) -> Callable[[str], float]:
    """A parser of an option's number that rejects one out of range."""

    def parse(text: str) -> float:
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
