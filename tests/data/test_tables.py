"""A file or a manifest with false tables is an error before a kernel follows it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fastlsr.config import Data
from fastlsr.data.ffcv_parts import IMAGE_MODES, Reader
from fastlsr.data.loader import Loader
from fastlsr.data.manifest import Manifest, digest_of, read_manifest, write_manifest
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.data.tables import read_tables
from fastlsr.errors import InputError

HUGE = [2**31, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
# field -> the values that its type can hold
FIELDS = {
    "mode": (0, 255),
    "width": (0, 2**16 - 1),
    "height": (0, 2**16 - 1),
    "data_ptr": (0, 2**64 - 1),
    "label": (-(2**63), 2**63 - 1),
    "index": (-(2**63), 2**63 - 1),
    "sample_id": (0, 2**64 - 1),
    "ptr": (0, 2**64 - 1),
    "size": (0, 2**64 - 1),
}


@contextmanager
def altered(original: Path, changes: dict[str, int], row: int) -> Iterator[Path]:
    """A copy of the file with other values in the fields of one row, and a manifest that has the copy's digest."""
    reader = Reader(str(original))
    metadata, allocations = reader.metadata.copy(), reader.alloc_table.copy()
    columns = {name: metadata["f0"][name] for name in ("mode", "width", "height", "data_ptr")}
    columns |= {"label": metadata["f1"], "index": metadata["f2"]}
    columns |= {name: allocations[name] for name in ("sample_id", "ptr", "size")}
    for field, value in changes.items():
        if columns[field][row] == value:
            hypothesis.reject()
        columns[field][row] = value
    with tempfile.TemporaryDirectory() as folder:
        beton = Path(folder, original.name)
        shutil.copy(original, beton)
        with open(beton, "r+b") as file:
            file.seek(reader.header.nbytes + reader.field_descriptors.nbytes)
            file.write(metadata.tobytes())
            file.seek(int(reader.header["alloc_table_ptr"]))
            file.write(allocations.tobytes())
        write_manifest(replace(read_manifest(original), digest=digest_of(beton)), beton)
        yield beton


def pictures(beton: Path) -> torch.Tensor:
    loader = Loader(beton, Data(resolution=32, batch_size=16), train=False, seed=0, device=torch.device("cpu"))
    return torch.cat([batch.images.clone() for batch in loader.epoch(0)])


@st.composite
def changed_fields(draw) -> dict[str, int]:
    field = draw(st.sampled_from(sorted(FIELDS)))
    low, high = FIELDS[field]
    edges = st.sampled_from([value for value in (low, -1, 0, 1, *HUGE, high) if low <= value <= high])
    return {field: draw(edges | st.integers(low, min(high, 10**6)) | st.integers(low, high))}


@given(changes=changed_fields(), row=st.integers(0, 358))
def test_any_other_value_in_a_raw_file_is_an_input_error(digits_dir, changes, row):
    with altered(digits_dir / "digits_test.beton", changes, row) as beton, pytest.raises(InputError) as error:
        pictures(beton)
    assert "digits_test" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def photographs(small_photos_dir):
    """(file of JPEG and raw images, what they look like)."""
    beton = small_photos_dir / "photos_train.beton"
    return beton, pictures(beton)


@given(changes=changed_fields(), row=st.integers(0, 35))
def test_any_other_value_in_a_file_with_jpegs_is_an_input_error_or_changes_no_pixel(photographs, changes, row):
    """A JPEG's end is in its data: a size that is too large is harmless."""
    original, expected = photographs
    with altered(original, changes, row) as beton:
        try:
            found = pictures(beton)
        except InputError:
            return
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data_ptr": 2**63, "ptr": 2**63}, "sample 5 lies outside the file"),
        ({"data_ptr": 2**64 - 192, "ptr": 2**64 - 192}, "sample 5 lies outside the file"),
        ({"size": 2**64 - 1}, "sample 5 lies outside the file"),
        ({"size": 2**63}, "sample 5 lies outside the file"),
        ({"size": 0}, "sample 5 lies outside the file"),
        ({"ptr": 2**63}, "sample 5 lies outside the file"),
        ({"data_ptr": 2**63}, "sample 5 has two addresses"),
        ({"size": 191}, "sample 5 has a height and width that its size contradicts"),
        ({"mode": 7}, "sample 5 has a mode that is neither raw nor JPEG"),
        ({"mode": IMAGE_MODES["jpg"]}, "sample 5 is damaged"),
        ({"sample_id": 4}, "sample 5 lies outside the file"),
        ({"sample_id": 2**64 - 1}, "allocation table"),
        ({"height": 9}, r"heights is \[8, 8\], digits_test.beton has \[8, 9\]"),
        ({"width": 0}, r"widths is \[8, 8\], digits_test.beton has \[0, 8\]"),
        ({"label": -1}, "labels from -1 to 9"),
        ({"label": 10}, "labels from 0 to 10"),
        ({"index": -5}, "the field index"),
    ],
)
def test_each_lie_of_a_file_has_its_own_line(digits_dir, changes, line):
    with altered(digits_dir / "digits_test.beton", changes, 5) as beton, pytest.raises(InputError, match=line):
        pictures(beton)


def test_an_image_across_two_pages_is_an_error(tmp_path):
    """FFCV's page reader holds one page of it."""
    images = np.zeros((2, 1024, 1024, 3), dtype=np.uint8)  # two of them need two pages of 4 MiB
    beton = tmp_path / "large.beton"
    write_beton(Samples(images, np.arange(2)), beton, dataset="made", split="train", classes="ab")
    with open(beton, "r+b") as file:
        file.seek(4)
        file.write((2**21).to_bytes(4, "little"))
    write_manifest(replace(read_manifest(beton), digest=digest_of(beton)), beton)
    with pytest.raises(InputError, match="sample 0 crosses the end of a page"):
        read_tables(beton, read_manifest(beton))


@pytest.mark.parametrize("content", [b"", b"no beton", bytes(5000), b"\2\0\3\0" + b"\xff" * 5000])
def test_a_file_of_another_kind_is_an_error_in_one_line(digits_dir, tmp_path, content):
    beton = tmp_path / "other.beton"
    beton.write_bytes(content)
    manifest = replace(read_manifest(digits_dir / "digits_test.beton"), digest=digest_of(beton), bytes=len(content))
    write_manifest(manifest, beton)
    with pytest.raises(InputError, match="other.beton is not a .beton of this FFCV") as error:
        read_tables(beton, manifest)
    assert "\n" not in str(error.value)


pairs = st.tuples(st.integers(1, 20), st.integers(1, 20))


@given(data=st.data(), field=st.sampled_from(["heights", "widths", "class_counts", "count"]))
def test_any_other_value_of_a_manifest_is_an_error_with_its_field(digits_dir, data, field):
    beton = digits_dir / "digits_test.beton"
    truth = read_manifest(beton)
    other = {"heights": pairs, "widths": pairs, "count": st.integers(1, 10**6)}
    counts = st.lists(st.integers(0, 70), min_size=10, max_size=10).map(tuple)
    value = data.draw(other.get(field, counts | st.permutations(truth.class_counts).map(tuple)))
    assume(value != getattr(truth, field))
    with pytest.raises(InputError, match=f"{field} .*digits_test.beton|digits_test.beton .*{field} "):
        read_tables(beton, replace(truth, **{field: value}))


def test_a_manifest_of_fewer_classes_is_an_error(digits_dir):
    beton = digits_dir / "digits_test.beton"
    truth = read_manifest(beton)
    counts = (*truth.class_counts[:8], sum(truth.class_counts[8:]))
    with pytest.raises(InputError, match="labels from 0 to 9, its manifest has 9 classes"):
        read_tables(beton, replace(truth, classes=truth.classes[:9], class_counts=counts))


def test_a_constant_channel_has_a_std_of_zero_and_is_read(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    images[..., 1] = 77
    beton = tmp_path / "constant.beton"
    manifest: Manifest = write_beton(
        Samples(images, np.arange(30) % 3), beton, dataset="made", split="train", classes="abc"
    )
    assert manifest.std[1] == 0 and manifest.std[0] > 0
    loader = Loader(beton, Data(batch_size=30), train=False, seed=0, device=torch.device("cpu"))
    (batch,) = loader.epoch(0)
    assert torch.equal(batch.images.permute(0, 2, 3, 1), torch.from_numpy(images))
