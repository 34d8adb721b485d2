"""FFCV's file format, version 2, for the fields image, label, index: where samples lie, and the bytes around them.

Defined here and not taken from `ffcv.types`, because `import ffcv` takes seconds and sets the thread counts of torch
and numba; a test compares the types with FFCV's own.

    header | field descriptions | metadata, one row a sample | samples, in order | allocations, one row a sample
"""

from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from fastlsr.errors import InputError

FIELDS = ("image", "label", "index")
_FIELD_TYPES = (2, 1, 1)  # RGBImageField, IntField, IntField
_VERSION = 2
_SMALLEST_PAGE, _LARGEST_PAGE = 2**21, 2**31  # bytes; FFCV's own bounds
_ALIGNMENT = 64  # of the first sample: a cache line, so that equal raw images stay aligned

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("allocations_at", "<u8")],
    align=True,
)
DESCRIPTION = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)], align=True)
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
METADATA = np.dtype([("image", IMAGE), ("label", "<i8"), ("index", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
METADATA_START = HEADER.itemsize + len(FIELDS) * DESCRIPTION.itemsize


@dataclass
class Layout:
    """Where the samples so far lie in the file.

    A sample never crosses a multiple of the page size. A sample larger than a page doubles the page size: a sample
    that crosses no multiple of the smaller one crosses none of the larger.
    """

    end: int  # the file's next free byte
    page: int = _SMALLEST_PAGE
    rows: list[tuple[int, ...]] = field(default_factory=list)  # (label, mode, width, height, pointer, size)

    @classmethod
    def for_samples(cls, most: int) -> "Layout":
        """An empty layout with room for the metadata of `most` samples."""
        end = METADATA_START + most * METADATA.itemsize
        return cls(end=-(-end // _ALIGNMENT) * _ALIGNMENT)

    def place(self, *, label: int, mode: int, width: int, height: int, size: int) -> int:
        """Reserves `size` bytes for the next sample and returns their position in the file."""
        while size > self.page:
            self.page *= 2
        if self.page > _LARGEST_PAGE:
            raise InputError(f"an image of {width}x{height} pixels is too large; set --max-resolution")
        start = self.end
        if start // self.page != (start + size - 1) // self.page:
            start = -(-start // self.page) * self.page
        self.end = start + size
        self.rows.append((label, mode, width, height, start, size))
        return start


def finish(file: BinaryIO, layout: Layout) -> None:
    """Writes all but the samples, which are in `file` already: header, descriptions, metadata, allocations."""
    rows = np.array(layout.rows, dtype=np.int64)
    file.seek(layout.end)
    file.write(_allocations(rows).tobytes())
    file.seek(0)
    file.write(_header(layout).tobytes() + _descriptions().tobytes() + _metadata(rows).tobytes())


def _header(layout: Layout) -> np.ndarray:
    return np.array((_VERSION, len(FIELDS), layout.page, len(layout.rows), layout.end), dtype=HEADER)


def _descriptions() -> np.ndarray:
    described = np.zeros(len(FIELDS), dtype=DESCRIPTION)
    for row, name, number in zip(described, FIELDS, _FIELD_TYPES, strict=True):
        row["type"] = number
        row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), dtype=np.uint8)
    return described


def _metadata(rows: np.ndarray) -> np.ndarray:
    metadata = np.zeros(len(rows), dtype=METADATA)
    image = metadata["image"]
    metadata["label"], image["mode"], image["width"], image["height"], image["pointer"] = rows[:, :5].T
    metadata["index"] = np.arange(len(rows))
    return metadata


def _allocations(rows: np.ndarray) -> np.ndarray:
    table = np.zeros(len(rows), dtype=ALLOCATION)
    table["sample"], table["pointer"], table["size"] = np.arange(len(rows)), rows[:, 4], rows[:, 5]
    return table
