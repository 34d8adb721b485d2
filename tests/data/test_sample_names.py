"""The names of samples come back in the order of the file, and a file of names that is another's is an error."""

import gzip
import json
import os
import shutil

import numpy as np
import pytest

from fastlsr import write
from fastlsr.data.manifest import manifest_path, read_manifest
from fastlsr.data.prepare.sources import of_classes, read_dataset, subset
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.data.sample_names import names_path, read_names, write_names
from fastlsr.errors import InputError


@pytest.fixture
def photos(small_photos_dir, tmp_path):
    """A copy of photos_train.beton with what lies beside it."""
    for path in small_photos_dir.glob("photos_train.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "photos_train.beton"


def test_each_sample_of_a_tree_is_named_by_its_path_below_its_split(photos, photo_tree):
    names = read_names(photos, read_manifest(photos))
    tree = photo_tree / "train"
    assert names == sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*.jpg"))


def test_a_name_follows_its_sample_through_classes_and_subsets(tmp_path):
    digits = read_dataset("digits", None, tmp_path)
    whole = dict(zip(digits.splits["train"].names, digits.splits["train"].images, strict=True))
    part = subset(of_classes(digits, ["7", "2"]).splits["train"], 20, seed=3)
    assert len(part.names) == 20 == len(set(part.names))
    for name, image in zip(part.names, part.images, strict=True):
        assert (whole[name] == image).all()


def test_an_image_that_is_left_out_takes_its_name_with_it(tmp_path, photo_tree):
    paths = sorted((photo_tree / "train").rglob("*.jpg"))[:20]
    (tmp_path / "bad.jpg").write_bytes(b"")
    files = [*paths[:10], tmp_path / "bad.jpg", *paths[10:]]
    samples = Samples(files, np.zeros(21, dtype=np.int64), [path.name for path in files])
    manifest = write_beton(
        samples, tmp_path / "a.beton", dataset="a", split="train", classes=["only"], skip_bad=True, workers=1
    )
    assert read_names(tmp_path / "a.beton", manifest) == [path.name for path in paths]


def test_names_are_bytes_of_the_file_system_and_each_is_one_line(photos):
    names = ["ordinary.png", "Z\u00fcrich.png", os.fsdecode(b"latin\xe9.png"), "two\nlines.png"]
    manifest = read_manifest(photos).__class__(**{**vars(read_manifest(photos)), "names": write_names(names, photos)})
    assert read_names(photos, manifest) == [*names[:3], "two lines.png"]


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b"no gzip"),
    lambda path: path.write_bytes(path.read_bytes()[:-20]),
    lambda path: path.write_bytes(gzip.compress(b"other\n")),
])  # fmt: skip
def test_a_file_of_names_that_is_missing_damaged_or_another_s_is_an_error(photos, damage):
    damage(names_path(photos))
    with pytest.raises(InputError, match="samples.gz"):
        read_names(photos, read_manifest(photos))


def test_a_manifest_of_an_earlier_version_is_read_and_has_no_names(photos):
    values = json.loads(manifest_path(photos).read_text())
    assert values.pop("names")
    manifest_path(photos).write_text(json.dumps(values))
    manifest = read_manifest(photos)
    assert manifest.names == ""
    with pytest.raises(InputError, match="without the names"):
        read_names(photos, manifest)


def test_writing_again_adds_the_names_that_an_earlier_version_did_not_keep(tmp_path, capsys):
    write.main(["digits", "--out", str(tmp_path), "--splits", "test"])
    beton = tmp_path / "digits_test.beton"
    values, names = json.loads(manifest_path(beton).read_text()), names_path(beton).read_bytes()
    names_path(beton).unlink()
    manifest_path(beton).write_text(json.dumps({key: value for key, value in values.items() if key != "names"}))
    write.main(["digits", "--out", str(tmp_path), "--splits", "test"])
    assert names_path(beton).read_bytes() == names and json.loads(manifest_path(beton).read_text()) == values
