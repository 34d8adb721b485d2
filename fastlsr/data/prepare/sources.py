"""The official layouts of the data sets -> samples, with official splits, and labels 0-based and contiguous."""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.writing import Samples
from fastlsr.errors import InputError, unknown
from fastlsr.plugins import register
from fastlsr.rng import WriteStream, position_uniform

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_TEST_SHARE = 0.2  # of each class, where there is no official split


@dataclass(frozen=True)
class Dataset:
    """Class names (the position is the label) and the samples of each split."""

    classes: tuple[str, ...]
    splits: dict[str, Samples]


@dataclass(frozen=True)
class Source:
    """One data set's reader, how it is stored by default, and its line in `--help`.

    read: (folder, may_download) -> Dataset. The folder is the user's copy, or where a download goes.
    splits: those that `read` gives; of "folder" those that it may give.
    """

    read: Callable[[Path, bool], Dataset]
    encoding: Encoding
    note: str
    downloads: bool = False  # can be had without --data-dir
    splits: tuple[str, ...] = ("train", "test")


def subset(samples: Samples, size: int, seed: int) -> Samples:
    """`size` of the samples (all, if there are fewer), in order; drawn by seed, the classes as even as possible."""
    drawn = np.array([position_uniform(WriteStream.SUBSET, seed, at) for at in range(len(samples))])
    by_class = np.lexsort((drawn, samples.labels))
    labels = samples.labels[by_class]
    rank = np.empty(len(samples), dtype=np.int64)
    rank[by_class] = np.arange(len(samples)) - np.searchsorted(labels, labels)  # in its class
    return _chosen(samples, np.sort(np.lexsort((drawn, rank))[:size]))


def of_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with these classes alone, and labels in the order of `names`.

    Raises:
        InputError: if it has no class of that name.
    """
    for name in names:
        if name not in dataset.classes:
            raise InputError(unknown("class", name, dataset.classes))
    label = np.full(len(dataset.classes), -1)
    label[[dataset.classes.index(name) for name in names]] = np.arange(len(names))
    kept = {split: _chosen(samples, np.flatnonzero(label[samples.labels] >= 0))
            for split, samples in dataset.splits.items()}  # fmt: skip
    return Dataset(tuple(names), {split: replace(each, labels=label[each.labels]) for split, each in kept.items()})


def read_digits(folder: Path, may_download: bool) -> Dataset:
    """scikit-learn's 1,797 bundled digits: 8x8, grey 0..16 -> uint8 0..255 in three equal channels."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    grey = np.rint(bundle.images * (255 / 16)).astype(np.uint8)
    pixels, labels = np.repeat(grey[..., None], 3, axis=3), bundle.target.astype(np.int64)
    samples = Samples(pixels, labels, _numbered("digits", len(labels)))
    return Dataset(tuple(str(name) for name in bundle.target_names), _stratified(samples))


def read_cifar10(folder: Path, may_download: bool) -> Dataset:
    """The official train (50,000) and test (10,000), 32x32."""
    return _read_cifar("CIFAR10", "cifar-10-batches-py", folder, may_download)


def read_cifar100(folder: Path, may_download: bool) -> Dataset:
    """The official train (50,000) and test (10,000), 32x32, with the fine labels."""
    return _read_cifar("CIFAR100", "cifar-100-python", folder, may_download)


def read_flowers102(folder: Path, may_download: bool) -> Dataset:
    """train: the official train and val together, as transfer papers do (2,040 images); test: the official test."""
    root = folder if may_download else _root_of("flowers-102", folder)
    parts = [_torchvision("Flowers102", root, may_download, split=split) for split in ("train", "val", "test")]
    train, val, test = (_files(part) for part in parts)
    return Dataset(tuple(parts[0].classes), {"train": _joined(train, val), "test": test})


def read_fgvc_aircraft(folder: Path, may_download: bool) -> Dataset:
    """The 100 variants; train: the official trainval (6,667 images); test: the official test (3,333)."""
    root = folder if may_download else _root_of("fgvc-aircraft-2013b", folder)
    parts = {"train": "trainval", "test": "test"}
    read = {name: _torchvision("FGVCAircraft", root, may_download, split=split) for name, split in parts.items()}
    return Dataset(tuple(read["train"].classes), {name: _files(part) for name, part in read.items()})


def read_dtd(folder: Path, may_download: bool) -> Dataset:
    """Official split 1 of 10; train: its train and val together (3,760 images); test: its test (1,880)."""
    if may_download:
        _torchvision("DTD", folder, True)
    # torchvision unpacks the official folder `dtd` into another `dtd`
    base = _found("labels/train1.txt", [folder, folder / "dtd", folder / "dtd" / "dtd"])
    lists = {"train": ("train1.txt", "val1.txt"), "test": ("test1.txt",)}
    return _named_by_folder({
        split: [base / "images" / name for part in parts for (name,) in _rows(base / "labels" / part, 1)]
        for split, parts in lists.items()
    }, base / "images")  # fmt: skip


def read_cub200(folder: Path, may_download: bool) -> Dataset:
    """CUB-200-2011 by its `train_test_split.txt`; classes that have no image in the copy are left out."""
    base = _found("train_test_split.txt", [folder, folder / "CUB_200_2011"])
    files, labels, in_train, names = (
        dict(_rows(base / name, 2))
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    )
    _check_same_keys(base, files, labels, in_train)
    _check_same_keys(base, names, names | dict.fromkeys(labels.values()))
    splits = {"train": "1", "test": "0"}
    listed = {
        split: [(base / "images" / files[key], int(labels[key])) for key in files if in_train[key] == flag]
        for split, flag in splits.items()
    }
    return _renumbered(listed, {int(number): name for number, name in names.items()}, base / "images")


def read_stanford_dogs(folder: Path, may_download: bool) -> Dataset:
    """Stanford Dogs by `train_list.mat` and `test_list.mat`; classes that are in neither are left out."""
    base = _found("train_list.mat", [folder, folder / "stanford_dogs"])
    listed = {split: _mat_list(base / f"{split}_list.mat", base / "Images") for split in ("train", "test")}
    names = {number: path.parent.name for rows in listed.values() for path, number in rows}
    return _renumbered(listed, names, base / "Images")


def read_imagenet(folder: Path, may_download: bool) -> Dataset:
    """train/ and val/ with a folder for each class (nXXXXXXXX, the class name here); `test` is the official val."""
    return _class_folders({"train": folder / "train", "test": folder / "val"})


def read_folder(folder: Path, may_download: bool) -> Dataset:
    """train/CLASS/..., val/CLASS/... and test/CLASS/..., as far as they are there.

    Of val/ and test/ alone, `test` is the one that is there. A tree without train/ is split here, fixed, 80/20.
    """
    if not (folder / "train").is_dir():
        whole = _class_folders({"all": folder})
        return Dataset(whole.classes, _stratified(whole.splits["all"]))
    held_out = [name for name in ("val", "test") if (folder / name).is_dir()]
    names = held_out if len(held_out) == 2 else ["test"] * len(held_out)
    folders = {name: folder / found for name, found in zip(names, held_out, strict=True)}
    return _class_folders({"train": folder / "train"} | folders)


_PIXELS = Encoding(mode="raw")
_PHOTOGRAPHS = Encoding(mode="jpg", max_resolution=500, jpeg_quality=90)

SOURCES: dict[str, Source] = {
    "digits": Source(read_digits, _PIXELS, "scikit-learn's bundled digits, 80/20 split", downloads=True),
    "cifar10": Source(read_cifar10, _PIXELS, "official splits", downloads=True),
    "cifar100": Source(read_cifar100, _PIXELS, "official splits, fine labels", downloads=True),
    "stanford_dogs": Source(
        read_stanford_dogs, _PHOTOGRAPHS,
        "official lists; from vision.stanford.edu/aditya86/ImageNetDogs: Images/, train_list.mat, test_list.mat",
    ),
    "cub200": Source(
        read_cub200, _PHOTOGRAPHS, "train_test_split.txt; from vision.caltech.edu/datasets/cub_200_2011: CUB_200_2011/"
    ),
    "imagenet": Source(
        read_imagenet, Encoding(mode="proportion", max_resolution=500, compress_probability=0.5, jpeg_quality=90),
        "train/ and val/ with class folders, from image-net.org; test is the official val",
    ),
    "flowers102": Source(read_flowers102, _PHOTOGRAPHS, "train is the official train + val", downloads=True),
    "fgvc_aircraft": Source(
        read_fgvc_aircraft, _PHOTOGRAPHS, "100 variants, train is the official trainval", downloads=True
    ),
    "dtd": Source(read_dtd, _PHOTOGRAPHS, "official split 1, train is its train + val", downloads=True),
    "folder": Source(
        read_folder, _PHOTOGRAPHS,
        "any tree train/CLASS, val/CLASS, test/CLASS; of val/ and test/ alone it is test; CLASS alone is split 80/20",
        splits=("train", "val", "test"),
    ),
}  # fmt: skip

# What else the data sets are called, in lower case and without - and _.
_ALIASES = {
    "dogs": "stanford_dogs", "dogs120": "stanford_dogs", "imagenetdogs": "stanford_dogs",
    "cub": "cub200", "cub2002011": "cub200",
    "ilsvrc": "imagenet", "ilsvrc2012": "imagenet", "imagenet1k": "imagenet", "in1k": "imagenet",
    "flowers": "flowers102", "oxfordflowers": "flowers102", "oxfordflowers102": "flowers102",
    "aircraft": "fgvc_aircraft", "planes": "fgvc_aircraft", "textures": "dtd",
    "cifar": "cifar10", "imagefolder": "folder",
}  # fmt: skip
_NEAR = 0.7  # of `difflib`: `cars` is near to no data set


def near_source(name: str) -> str:
    """The data set that a name which is none probably means, or ""."""
    plain = re.sub(r"[-_ ]", "", name.lower())
    known = {re.sub("_", "", source): source for source in SOURCES} | _ALIASES
    close = difflib.get_close_matches(plain, known, 1, cutoff=_NEAR)
    return known[close[0]] if close else ""


def add_source(name: str, source: Source) -> None:
    """Adds a plugin's data set.

    Raises:
        InputError: if the name is taken.
    """
    register(SOURCES, "data set", name, source)


def read_dataset(name: str, data_dir: Path | None, downloads: Path) -> Dataset:
    """The data set `name` from the copy `data_dir`, or downloaded into `downloads`.

    Raises:
        InputError: no copy where it was looked for, a damaged or contradicting list, no network.
    """
    source = SOURCES[name]
    if data_dir is None and not source.downloads:
        raise InputError(f"{name} cannot be downloaded: give --data-dir ({source.note})")
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"--data-dir {data_dir} is not a folder")
    return source.read(data_dir or downloads, data_dir is None)


def _read_cifar(reader: str, base: str, folder: Path, may_download: bool) -> Dataset:
    root = folder if may_download else _root_of(base, folder)
    parts = {split: _torchvision(reader, root, may_download, train=split == "train") for split in ("train", "test")}
    splits = {split: Samples(part.data, np.array(part.targets), _numbered(split, len(part.targets)))
              for split, part in parts.items()}  # fmt: skip
    return Dataset(tuple(parts["train"].classes), splits)


def _torchvision(reader: str, root: Path, may_download: bool, **options):
    """The data set object of torchvision.

    Raises:
        InputError: for any of torchvision's errors, in one line.
    """
    import torchvision

    try:
        return getattr(torchvision.datasets, reader)(str(root), download=may_download, **options)
    except Exception as error:  # RuntimeError, URLError, OSError, pickle and zip errors: all mean "not usable"
        what = f"downloaded into {root}" if may_download else f"read from {root}"
        advice = "; give --data-dir, an official copy on disk" if may_download else ""
        raise InputError(f"{reader} could not be {what}: {' '.join(str(error).split())}{advice}") from None


def _root_of(base: str, folder: Path) -> Path:
    """The folder that holds `base`: `folder` itself, or its parent when `folder` is the base."""
    if (folder / base).is_dir():
        return folder
    if folder.resolve().name == base:
        return folder.resolve().parent
    raise InputError(f"there is no folder {base} in --data-dir {folder}")


def _found(marker: str, folders: Sequence[Path]) -> Path:
    """The first of `folders` that holds `marker`."""
    for folder in folders:
        if (folder / marker).is_file():
            return folder
    raise InputError(f"{marker} is not in {' or '.join(map(str, folders))}; --data-dir must hold the official layout")


def _rows(path: Path, columns: int) -> Iterable[list[str]]:
    """The lines of a list file, split into `columns` at white space."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    rows = [line.split(maxsplit=columns - 1) for line in lines if line.strip()]
    if not rows or any(len(row) != columns for row in rows):
        raise InputError(f"{path} is empty, or one of its lines does not have {columns} columns")
    return rows


def _mat_list(path: Path, images: Path) -> list[tuple[Path, int]]:
    """(file, label as listed) for each row of one of Stanford Dogs' lists."""
    import scipy.io

    try:
        listed = scipy.io.loadmat(path)
        files = [str(np.asarray(cell).item()) for cell in listed["file_list"].ravel()]
        labels = listed["labels"].ravel().astype(np.int64).tolist()
    except Exception as error:  # scipy's readers raise many unrelated types for damaged files
        raise InputError(f"{path} cannot be read: {error}") from None
    if len(files) != len(labels):
        raise InputError(f"{path} lists {len(files)} files and {len(labels)} labels")
    return [(images / name, label) for name, label in zip(files, labels, strict=True)]


def _numbered(source: str, count: int) -> tuple[str, ...]:
    """The names of samples that are no files: train:0, train:1, ..."""
    return tuple(f"{source}:{at}" for at in range(count))


def _renumbered(listed: dict[str, list[tuple[Path, int]]], names: dict[int, str], base: Path) -> Dataset:
    """The listed files below `base` with labels 0..K-1 in the order of the official numbers that occur in any split."""
    numbers = sorted({number for rows in listed.values() for _, number in rows})
    label = {number: at for at, number in enumerate(numbers)}
    splits = {split: _samples([path for path, _ in rows], [label[number] for _, number in rows], base)
              for split, rows in listed.items()}  # fmt: skip
    return Dataset(tuple(names[number] for number in numbers), splits)


def _named_by_folder(files: dict[str, list[Path]], base: Path) -> Dataset:
    """The files below `base` with the class names sorted, each the name of the file's folder."""
    classes = sorted({path.parent.name for paths in files.values() for path in paths})
    label = {name: at for at, name in enumerate(classes)}
    splits = {split: _samples(paths, [label[path.parent.name] for path in paths], base)
              for split, paths in files.items()}  # fmt: skip
    return Dataset(tuple(classes), splits)


def _class_folders(folders: dict[str, Path]) -> Dataset:
    """A data set of trees with one folder for each class; every split must have the same classes.

    The order is that of `torchvision.datasets.ImageFolder`: classes by name, in each the folders by path, in each
    of these the files by name. So are the suffixes. Hidden class folders are left out, and no folder is read twice.
    """
    trees = {split: _class_tree(folder) for split, folder in folders.items()}
    classes = {split: sorted(tree) for split, tree in trees.items()}
    first = next(iter(trees))
    for split, names in classes.items():
        if differing := sorted(set(names) ^ set(classes[first])):
            raise InputError(f"{folders[first]} and {folders[split]} differ in classes: {', '.join(differing[:5])}")
    splits = {split: _samples([path for name in classes[first] for path in tree[name]],
                              [at for at, name in enumerate(classes[first]) for _ in tree[name]], folders[split])
              for split, tree in trees.items()}  # fmt: skip
    return Dataset(tuple(classes[first]), splits)


def _class_tree(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, in order; a class's folder may be a link."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"{folder} has no class folders: each class needs a folder of its own")
    classes: dict[tuple[int, int], Path] = {}
    for path in (folder / name for name in names):
        if (same := classes.setdefault(_folder_key(path), path)) is not path:
            raise InputError(f"{same} and {path} are two names of one folder, so its images would have two classes")
    # A link up the tree leads to the other classes, and round in circles.
    above = {_folder_key(parent) for path in classes.values() for parent in path.resolve().parents}
    seen = above | classes.keys()
    tree = {path.name: _images_under(path, seen) for path in classes.values()}
    if empty := [name for name, files in tree.items() if not files]:
        raise InputError(f"{folder / empty[0]} holds no image")
    return tree


def _images_under(root: Path, seen: set[tuple[int, int]]) -> list[Path]:
    """The image files below `root`, in order; skips the subfolders in `seen`, and adds the others to it."""
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        found.append((folder, sorted(name for name in names if name.lower().endswith(_IMAGE_SUFFIXES))))
        keys = {_folder_key(Path(folder, name)): name for name in sorted(subfolders, reverse=True)}
        subfolders[:] = sorted(name for key, name in keys.items() if key not in seen)
        seen.update(keys)
    return [Path(folder, name) for folder, names in sorted(found) for name in names]


def _raise_unreadable(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}")


def _folder_key(folder: Path) -> tuple[int, int]:
    """(device, inode): equal for all names of one folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _stratified(samples: Samples) -> dict[str, Samples]:
    """The samples split 80/20 within each class, the same way each time, in file order."""
    drawn = np.array([position_uniform(WriteStream.SPLIT, 0, at) for at in range(len(samples))])
    held_out = np.zeros(len(samples), dtype=bool)
    for label in np.unique(samples.labels):
        members = np.flatnonzero(samples.labels == label)
        held_out[members[np.argsort(drawn[members])][: round(_TEST_SHARE * len(members))]] = True
    return {"train": _chosen(samples, np.flatnonzero(~held_out)), "test": _chosen(samples, np.flatnonzero(held_out))}


def _chosen(samples: Samples, positions: np.ndarray) -> Samples:
    images = samples.images
    chosen = images[positions] if isinstance(images, np.ndarray) else [images[at] for at in positions]
    return Samples(chosen, samples.labels[positions], [samples.names[at] for at in positions if samples.names])


def _files(part) -> Samples:
    # torchvision's file-based readers keep these two lists, and no public way to them but decoding each image.
    files = [Path(path) for path in part._image_files]
    return _samples(files, part._labels, files[0].parent)


def _samples(files: Sequence[Path], labels: Sequence[int], base: Path) -> Samples:
    """The files, each named by its path below `base`."""
    skipped = len(base.parts)
    names = tuple("/".join(path.parts[skipped:]) for path in files)
    return Samples(tuple(files), np.array(labels, dtype=np.int64), names)


def _joined(first: Samples, second: Samples) -> Samples:
    labels = np.concatenate([first.labels, second.labels])
    return Samples((*first.images, *second.images), labels, (*first.names, *second.names))


def _check_same_keys(base: Path, *tables: dict[str, Any]) -> None:
    keys = [table.keys() for table in tables]
    if odd := {key for key in set().union(*keys) if not all(key in table for table in tables)}:
        raise InputError(f"the lists in {base} contradict each other about number {min(odd)}")
