"""A `.beton` file's tables of samples, checked before any kernel follows their raw pointers.

FFCV does not validate the file: a wrong address or size reads whatever lies there, or ends the process.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastlsr.data.augment import Images
from fastlsr.data.ffcv_parts import IMAGE_MODES, Reader
from fastlsr.data.manifest import Manifest, manifest_path
from fastlsr.errors import InputError

FIELDS = {"image": "RGBImageField", "label": "IntField", "index": "IntField"}


@dataclass(frozen=True)
class Tables:
    """The tables of a file of N samples: its metadata and its allocation table.

    Attributes:
        metadata: FFCV's row of each sample, with its fields as f0 (image), f1 (label) and f2 (index).
        images: where the N images lie in the file.
        page: int64[N], the page of the file that holds each image.
        page_bytes: the size of a page.
    """

    path: Path
    metadata: np.ndarray
    images: Images
    page: np.ndarray
    page_bytes: int

    @property
    def labels(self) -> np.ndarray:
        """int64[N]: the label of each sample."""
        return self.metadata["f1"]


def read_tables(beton: Path, manifest: Manifest) -> Tables:
    """The tables of `beton`, each row of which is in the bounds of the file and agrees with its manifest.

    Raises:
        InputError: the file is not FFCV's, or contradicts itself or its manifest; the message names file and field.
    """
    reader = _open_reader(beton)
    if len(reader.metadata) != manifest.count or reader.num_samples != manifest.count:
        raise InputError(f"{beton} has {len(reader.metadata)} samples, count in its manifest is {manifest.count}")
    _check_labels(beton, reader.metadata["f1"], manifest)
    if not np.array_equal(reader.metadata["f2"], np.arange(manifest.count)):
        raise InputError(f"{beton}: the field index is not 0, 1, 2, ...; write it again")
    _check_sides(beton, reader.metadata["f0"], manifest)
    images = _images(beton, reader, manifest.bytes)
    return Tables(beton, reader.metadata, images, images.offset // int(reader.page_size), int(reader.page_size))


def _open_reader(beton: Path) -> Any:
    try:
        reader = Reader(str(beton))
    except Exception as error:  # FFCV raises whatever its first wrong step runs into
        raise InputError(f"{beton} is not a .beton of this FFCV: {error!r}") from None
    fields = {name: type(handler).__name__ for name, handler in reader.handlers.items()}
    if list(fields.items()) != list(FIELDS.items()):
        raise InputError(f"{beton} has the fields {fields}, not {FIELDS}")
    return reader


def _check_labels(beton: Path, labels: np.ndarray, manifest: Manifest) -> None:
    classes = len(manifest.classes)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(f"{beton} has labels from {low} to {high}, its manifest has {classes} classes")
    counts = np.bincount(labels, minlength=classes)
    wrong = np.flatnonzero(counts != manifest.class_counts)
    if len(wrong):
        label = int(wrong[0])
        raise InputError(
            f"{manifest_path(beton)}: class_counts gives {manifest.class_counts[label]} samples to class {label}, "
            f"{beton.name} has {counts[label]}; write it again"
        )


def _check_sides(beton: Path, image: np.ndarray, manifest: Manifest) -> None:
    for field, sides, named in (
        ("heights", image["height"], manifest.heights),
        ("widths", image["width"], manifest.widths),
    ):
        found = int(sides.min()), int(sides.max())
        if found != named:
            raise InputError(
                f"{manifest_path(beton)}: {field} is {list(named)}, {beton.name} has {list(found)}; write it again"
            )


def _images(beton: Path, reader: Any, file_bytes: int) -> Images:
    """Where the images lie, each inside of the file and of one page, and of the size that its sides need."""
    image, allocations, count = reader.metadata["f0"], reader.alloc_table, len(reader.metadata)
    sample, page_bytes = allocations["sample_id"], np.uint64(reader.page_size)
    if len(allocations) != count or sample.max() >= count or not page_bytes:
        raise InputError(f"{beton}: its allocation table is not one of {count} samples; write it again")
    start, size = np.zeros((2, count), dtype=np.uint64)  # a sample that the table leaves out has no bytes
    start[sample], size[sample] = allocations["ptr"], allocations["size"]
    pixels = 3 * image["height"].astype(np.uint64) * image["width"]
    raw = image["mode"] == IMAGE_MODES["raw"]
    # Unsigned: in int64 an address from 2**63 on is negative, and passes any upper bound.
    faults = {
        "lies outside the file": (size == 0) | (size > file_bytes) | (start > file_bytes - size),
        "has two addresses": start != image["data_ptr"],
        "crosses the end of a page": start // page_bytes != (start + size - np.uint64(1)) // page_bytes,
        "has a mode that is neither raw nor JPEG": ~raw & (image["mode"] != IMAGE_MODES["jpg"]),
        "has a height and width that its size contradicts": raw & (size != pixels),
    }
    for fault, rows in faults.items():
        if rows.any():
            raise InputError(f"{beton}: the image of sample {rows.argmax()} {fault}; write it again")
    columns = (start, size, image["height"], image["width"], ~raw)
    return Images(*(np.ascontiguousarray(column, dtype=np.int64) for column in columns))
