"""A `.beton` is taken for what its manifest states only while it is that very file."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.data import manifest
from fastlsr.data.manifest import NoSuchData, digest_of, manifest_path, read_manifest, verify, write_manifest
from fastlsr.errors import InputError


@pytest.fixture
def beton(digits_dir, tmp_path):
    """A copy of the digits' test split that a test may damage."""
    for name in ("digits_test.beton", "digits_test.json"):
        shutil.copy(digits_dir / name, tmp_path / name)
    return tmp_path / "digits_test.beton"


def test_a_manifest_read_back_is_the_manifest_written(beton):
    manifest = replace(read_manifest(beton), skipped=("a.jpg: empty",))
    write_manifest(manifest, beton)
    assert read_manifest(beton) == manifest


def test_equal_manifests_are_equal_files(beton):
    before = manifest_path(beton).read_bytes()
    write_manifest(read_manifest(beton), beton)
    assert manifest_path(beton).read_bytes() == before


@pytest.mark.parametrize("terminal", [True, False])
def test_verifying_for_long_is_shown_once(beton, terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    verify(beton)
    beton.with_name(".digits_test.verified").unlink(missing_ok=True)
    assert capsys.readouterr().err == "", "it was quick"
    monkeypatch.setattr(manifest, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(manifest, "_BLOCK_BYTES", manifest._READ_BYTES)
    os.truncate(beton, 3 * manifest._BLOCK_BYTES)
    write_manifest(replace(read_manifest(beton), bytes=3 * manifest._BLOCK_BYTES, digest=digest_of(beton)), beton)
    verify(beton)
    shown = capsys.readouterr().err
    assert f"verifying {beton}" in shown
    assert ("%|" in shown, shown.count("\n")) == ((True, 0) if terminal else (False, 1))


def test_an_untouched_file_is_verified_each_time(beton):
    assert verify(beton) == verify(beton) == read_manifest(beton)


def test_one_altered_byte_is_an_error_though_size_and_time_are_put_back(beton):
    verify(beton)
    before = beton.stat()
    with open(beton, "r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(beton, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="digits_test.beton.*digest"):
        verify(beton)


@pytest.mark.parametrize("change", [-1, 1], ids=["truncated", "lengthened"])
def test_another_size_is_an_error(beton, change):
    os.truncate(beton, beton.stat().st_size + change)
    with pytest.raises(InputError, match="digits_test.beton has .* bytes"):
        verify(beton)


def test_another_splits_manifest_is_an_error(beton, digits_dir):
    shutil.copy(digits_dir / "digits_train.json", manifest_path(beton))
    with pytest.raises(InputError, match="its manifest states"):
        verify(beton)


def test_the_digest_is_spared_only_by_a_stamp_of_this_very_state(beton):
    with open(beton, "r+b") as file:
        file.write(b"\0")
    state = beton.stat()
    stamp = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "ctime_ns": state.st_ctime_ns,
             "inode": state.st_ino, "digest": read_manifest(beton).digest}  # fmt: skip
    beton.with_name(".digits_test.verified").write_text(json.dumps(stamp))
    verify(beton)  # no digest was computed: it would differ
    beton.with_name(".digits_test.verified").write_text(json.dumps({**stamp, "inode": state.st_ino + 1}))
    with pytest.raises(InputError, match="digest"):
        verify(beton)


def test_a_missing_beton_and_a_missing_manifest_are_told_apart(beton):
    manifest_path(beton).unlink()
    with pytest.raises(InputError, match="no manifest digits_test.json"):
        read_manifest(beton)
    beton.unlink()
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(beton)


DAMAGE = {
    "no JSON": lambda values: "{",
    "no object": lambda values: "[]",
    "a key missing": lambda values: json.dumps({key: values[key] for key in values if key != "classes"}),
    "a key too many": lambda values: json.dumps({**values, "extra": 1}),
    "a wrong type": lambda values: json.dumps({**values, "count": "359"}),
    "a wrong item": lambda values: json.dumps({**values, "mean": [0.1, 0.2, "0.3"]}),
    "a wrong length": lambda values: json.dumps({**values, "std": [0.1, 0.2]}),
    "another count": lambda values: json.dumps({**values, "count": 360}),
    "a class missing": lambda values: json.dumps({**values, "classes": values["classes"][:-1]}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_an_error_by_name(beton, damage):
    values = json.loads(manifest_path(beton).read_text())
    manifest_path(beton).write_text(DAMAGE[damage](values))
    with pytest.raises(InputError, match="digits_test.json"):
        read_manifest(beton)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", ["same"] * 10),
        ("classes", [*"abcdefghi", ""]),
        ("classes", [*"abcdefghi", " "]),
        ("class_counts", [-1, 73, 35, 36, 36, 36, 36, 36, 36, 36]),
        ("class_counts", [36] * 10),
        ("heights", [0, 8]),
        ("heights", [9, 8]),
        ("widths", [-8, 8]),
        ("mean", [0.3, 0.3, 1.1]),
        ("mean", [0.3, math.nan, 0.3]),
        ("mean", [-0.1, 0.3, 0.3]),
        ("std", [0.3, 0.3, 0.0]),
        ("std", [-0.3, 0.3, 0.3]),
        ("std", [-1.0, 0.3, 0.3]),
        ("std", [0.3, math.inf, 0.3]),
        ("std", [0.3, math.nan, 0.3]),
        ("std", [0.3, 0.3, 0.5]),
    ],
)
def test_a_value_that_no_file_has_is_an_error_with_its_field(beton, field, value):
    values = json.loads(manifest_path(beton).read_text())
    manifest_path(beton).write_text(json.dumps({**values, field: value}))
    with pytest.raises(InputError, match=f"digits_test.json: {field} ") as error:
        read_manifest(beton)
    assert "\n" not in str(error.value)


@given(pixels=st.lists(st.sampled_from([0, 1, 127, 254, 255]) | st.integers(0, 255), min_size=1, max_size=30))
def test_the_mean_and_std_of_any_pixels_are_accepted(digits_dir, pixels):
    values = np.array(pixels) / 255
    beton = digits_dir / "digits_test.beton"
    manifest = replace(read_manifest(beton), mean=(values.mean().item(),) * 3, std=(values.std().item(),) * 3)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy.beton")
        copy.touch()
        write_manifest(manifest, copy)
        assert read_manifest(copy) == manifest


def test_the_digest_is_what_the_documented_command_prints(tmp_path):
    path = tmp_path / "blocks"
    with open(path, "wb") as file:
        file.write(b"first")
        file.seek(2 * 2**26)  # two blocks and a little
        file.write(b"last")
    command = "split -b 64M --filter=sha256sum blocks | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert digest_of(path) == printed.split()[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar100_train", "python -m fastlsr.write cifar100 --out"),
        ("cub200_test", "python -m fastlsr.write cub200 --data-dir COPY --out"),
        ("dogs_train", "did you mean data.dataset=stanford_dogs?"),
        ("birds_train", "python -m fastlsr.write folder --data-dir IMAGES --name birds --out"),
        ("digits_val", "has test and train alone; data.folds with data.val=val"),
        ("absent", "python -m fastlsr.write -h"),
    ],
)
def test_a_file_that_is_not_there_is_an_error_with_the_command_that_makes_it(digits_dir, name, words):
    with pytest.raises(NoSuchData) as error:
        read_manifest(digits_dir / f"{name}.beton")
    assert f"{name}.beton does not exist; " in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value) and error.value.beton == digits_dir / f"{name}.beton"
