"""Official layouts give official splits, with labels 0-based and contiguous."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from fastlsr.data.prepare.sources import SOURCES, Dataset, near_source, of_classes, read_dataset, subset
from fastlsr.data.prepare.writing import Samples
from fastlsr.errors import InputError


def read(name: str, folder: Path):
    return read_dataset(name, folder, folder / "downloads")


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def named(samples: Samples, classes) -> dict[str, str]:
    """File name -> class name."""
    return {path.name: classes[label] for path, label in zip(samples.images, samples.labels, strict=True)}


def test_digits_are_scikit_learns_in_three_equal_channels_split_within_each_class():
    from sklearn.datasets import load_digits

    dataset = read_dataset("digits", None, Path("unused"))
    train, test = dataset.splits["train"], dataset.splits["test"]
    both = np.concatenate([train.images, test.images])
    assert both.shape == (1797, 8, 8, 3) and both.dtype == np.uint8
    assert (both == both[..., :1]).all() and both.max() == 255
    original = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both[..., 0])) == sorted(map(bytes, original))
    share = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    assert (abs(share - 0.2) < 0.01).all()


def test_digits_are_split_alike_each_time():
    first, second = (read_dataset("digits", None, Path("unused")).splits["test"] for _ in range(2))
    assert (first.images == second.images).all() and (first.labels == second.labels).all()


def test_cifar100_is_the_official_archive_in_its_own_order(cifar100_dir):
    dataset = read("cifar100", cifar100_dir / "cifar-100-python")  # its parent serves as well: torchvision's root
    with open(cifar100_dir / "cifar-100-python" / "test", "rb") as file:
        official = pickle.load(file, encoding="latin1")
    test = dataset.splits["test"]
    assert len(dataset.splits["train"]) == 50_000 and len(dataset.classes) == 100
    assert (test.labels == official["fine_labels"]).all()
    assert (test.images.transpose(0, 3, 1, 2).reshape(10_000, -1) == official["data"]).all()


def test_cub_is_split_by_its_list_and_numbered_without_gaps(unpacked):
    folder = unpacked("CUB_200_2011.tar")
    base = folder / "CUB_200_2011"
    dataset = read("cub200", folder)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 120, "test": 80}
    in_train = dict(line.split() for line in (base / "train_test_split.txt").read_text().splitlines())
    files = dict(line.split() for line in (base / "images.txt").read_text().splitlines())
    for split, flag in {"train": "1", "test": "0"}.items():
        listed = {Path(name).name: Path(name).parent.name for key, name in files.items() if in_train[key] == flag}
        assert named(dataset.splits[split], dataset.classes) == listed
    assert set(dataset.splits["train"].labels) == set(range(20))
    assert list(dataset.classes) == sorted(dataset.classes)
    assert all(path.is_file() for path in dataset.splits["train"].images)
    assert named(read("cub200", base).splits["test"], dataset.classes) == listed


def test_dogs_are_split_by_their_lists_and_numbered_without_gaps(unpacked):
    dataset = read("stanford_dogs", unpacked("stanford_dogs.tar"))
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 48, "test": 24}
    assert [name.split("-")[0] for name in dataset.classes] == ["n02085936", "n02099601", "n02106662", "n02109525"]
    for samples in dataset.splits.values():
        assert set(samples.labels) == {0, 1, 2, 3}
        assert all(path.is_file() and path.parent.name == dataset.classes[label]
                   for path, label in zip(samples.images, samples.labels, strict=True))  # fmt: skip


def test_imagenets_test_split_is_its_val_folder(tmp_path):
    for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/n02/c.JPEG", "val/n01/d.JPEG"):
        image(tmp_path / name)
    dataset = read("imagenet", tmp_path)
    assert dataset.classes == ("n01", "n02")
    assert named(dataset.splits["train"], dataset.classes) == {"a.JPEG": "n01", "b.JPEG": "n02"}
    assert named(dataset.splits["test"], dataset.classes) == {"d.JPEG": "n01", "c.JPEG": "n02"}


def test_dtd_trains_on_train_and_val_of_its_first_split(tmp_path):
    base = tmp_path / "dtd"
    for part, name in {"train1": "banded/a.jpg", "val1": "dotted/b.jpg", "test1": "banded/c.jpg"}.items():
        image(base / "images" / name)
        (base / "labels").mkdir(exist_ok=True)
        (base / "labels" / f"{part}.txt").write_text(name + "\n")
    for folder in (tmp_path, base):
        dataset = read("dtd", folder)
        assert named(dataset.splits["train"], dataset.classes) == {"a.jpg": "banded", "b.jpg": "dotted"}
        assert named(dataset.splits["test"], dataset.classes) == {"c.jpg": "banded"}


def test_aircraft_trains_on_the_variants_of_trainval(tmp_path):
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    image(data / "images" / "1.jpg")
    (data / "variants.txt").write_text("707-320\nA 300\n")
    (data / "images_variant_trainval.txt").write_text("1 A 300\n")
    (data / "images_variant_test.txt").write_text("2 707-320\n")
    dataset = read("fgvc_aircraft", tmp_path)
    assert named(dataset.splits["train"], dataset.classes) == {"1.jpg": "A 300"}
    assert named(dataset.splits["test"], dataset.classes) == {"2.jpg": "707-320"}


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_folder_tree_takes_val_or_test_as_its_test_split(tmp_path, held_out):
    for name in ("train/cat/a.jpg", "train/cat/deep/b.png", "train/dog/c.jpg"):
        image(tmp_path / name)
    for name in ("cat/x.png", "dog/y.jpg"):
        image(tmp_path / held_out / name)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    dataset = read("folder", tmp_path)
    assert named(dataset.splits["train"], dataset.classes) == {"a.jpg": "cat", "b.png": "cat", "c.jpg": "dog"}
    assert named(dataset.splits["test"], dataset.classes) == {"x.png": "cat", "y.jpg": "dog"}


def touched(root: Path, *names: str) -> Path:
    """`root`, with an empty file of each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def paths_and_labels(samples: Samples) -> list[tuple[str, int]]:
    return [(str(path), int(label)) for path, label in zip(samples.images, samples.labels, strict=True)]


def test_classes_and_files_of_a_nested_tree_come_in_the_order_of_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    names = ["z.png", "10.jpg", "9.jpg", "B.JPG", "b-c/x.jpg", "b/x.jpg", "b/y/a.jpg", "b/a.jpg", "b c/x.jpg",
             "B/x.jpg", ".jpg", ".hidden.png", "b/.hidden/x.png", "notes.txt", "x.jpg.part", "c.jpg/x.png"]  # fmt: skip
    names += [f"all{kind}" for kind in IMG_EXTENSIONS] + [f"ALL{kind.upper()}" for kind in IMG_EXTENSIONS]
    files = [f"{label}/{name}" for label in ("cat", "Dog", "cat-2", "a b") for name in names]
    tree = touched(tmp_path / "train", *files)
    (tree / "elsewhere").symlink_to(touched(tmp_path / "far", "n/2.png", "1.png"))
    theirs, ours = ImageFolder(str(tree)), read("folder", tmp_path)
    assert list(ours.classes) == theirs.classes
    assert paths_and_labels(ours.splits["train"]) == theirs.samples


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "/", "../b", "deep"])
def test_a_link_inside_a_class_adds_no_image_twice_and_none_of_another_class(tmp_path, target):
    tree = touched(tmp_path / "train", "a/1.png", "a/deep/2.png", "b/3.png")
    touched(tmp_path / "test", "a/4.png", "b/5.png")
    expected = [["1.png", "2.png"], ["3.png"]]
    (tree / "a" / "up").symlink_to(target)
    samples = read("folder", tmp_path).splits["train"]
    found = [sorted(path.name for path, label in zip(samples.images, samples.labels, strict=True) if label == wanted)
             for wanted in (0, 1)]  # fmt: skip
    assert found == expected


def test_links_to_one_folder_outside_add_its_images_once(tmp_path):
    tree = touched(tmp_path / "train", "a/1.png", "a/deep/2.png", "b/3.png")
    touched(tmp_path / "more", "4.png")
    for name in ("a/later", "a/first", "a/deep/below", "b/other"):
        (tree / name).symlink_to(tmp_path / "more")
    names = [path.relative_to(tree).as_posix() for path in read("folder", tmp_path).splits["train"].images]
    assert names == ["a/1.png", "a/deep/2.png", "a/first/4.png", "b/3.png"]


def test_a_class_folder_may_be_a_link_and_may_lead_back(tmp_path):
    elsewhere = touched(tmp_path / "elsewhere", "cat/1.png", "cat/more/2.png", "other/3.png")
    tree = touched(tmp_path / "train", "dog/4.png")
    (tree / "cat").symlink_to(elsewhere / "cat")
    (elsewhere / "cat" / "up").symlink_to("..")
    samples = read("folder", tmp_path).splits["train"]
    assert named(samples, ("cat", "dog")) == {"1.png": "cat", "2.png": "cat", "4.png": "dog"}


def test_two_classes_in_one_folder_are_an_error_that_names_both(tmp_path):
    tree = touched(tmp_path / "train", "a/1.png")
    os.symlink("a", tree / "b")
    with pytest.raises(InputError, match="train/a and .*train/b are two names of one folder"):
        read("folder", tmp_path)


def test_a_tree_without_splits_is_split_within_each_class_and_alike_each_time(tmp_path):
    for at in range(20):
        image(tmp_path / f"class_{at % 2}" / f"{at}.png")
    first, second = read("folder", tmp_path), read("folder", tmp_path)
    assert np.bincount(first.splits["test"].labels).tolist() == [2, 2]
    assert first.splits["test"].images == second.splits["test"].images
    together = {path for samples in first.splits.values() for path in samples.images}
    assert len(together) == 20


def test_splits_that_differ_in_classes_are_an_error(tmp_path):
    for name in ("train/cat/a.png", "train/dog/b.png", "test/cat/c.png"):
        image(tmp_path / name)
    with pytest.raises(InputError, match="differ in classes: dog"):
        read("folder", tmp_path)


def test_a_class_folder_without_image_is_an_error(tmp_path):
    image(tmp_path / "train" / "cat" / "a.png")
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(InputError, match="dog holds no image"):
        read("folder", tmp_path)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ({"train", "val", "test"}, {"train": "train", "val": "val", "test": "test"}),
        ({"train", "val"}, {"train": "train", "test": "val"}),
        ({"train", "test"}, {"train": "train", "test": "test"}),
        ({"train"}, {"train": "train"}),
    ],
)
def test_each_folder_of_a_tree_is_a_split_and_a_single_one_beside_train_is_test(tmp_path, folders, splits):
    for folder in folders:
        for name in ("cat", "dog"):
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / f"{folder}.png").touch()
    found = read_dataset("folder", tmp_path, tmp_path).splits
    assert {split: samples.names for split, samples in found.items()} == {
        split: (f"cat/{folder}.png", f"dog/{folder}.png") for split, folder in splits.items()
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [("dogs", "stanford_dogs"), ("Stanford-Dogs", "stanford_dogs"), ("CUB_200_2011", "cub200"), ("ilsvrc", "imagenet"),
     ("ImageNet-1k", "imagenet"), ("cifar-100", "cifar100"), ("flowers", "flowers102"), ("aircraft", "fgvc_aircraft"),
     ("cars", ""), ("birds", ""), ("my_images", "")],
)  # fmt: skip
def test_a_name_that_is_none_means_a_data_set_only_if_it_is_near_or_known(name, meant):
    assert near_source(name) == meant


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"digits"}))
def test_an_empty_folder_is_an_error_of_one_line_that_names_it(tmp_path, name):
    with pytest.raises(InputError) as raised:
        read(name, tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cub200", "stanford_dogs", "imagenet", "folder"])
def test_what_cannot_be_downloaded_asks_for_a_copy(tmp_path, name):
    with pytest.raises(InputError, match="--data-dir"):
        read_dataset(name, None, tmp_path)


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        read("cifar100", tmp_path / "nowhere")


def test_lists_that_contradict_each_other_are_an_error(tmp_path):
    lists = {"images": "1 a/x.jpg\n2 a/y.jpg\n", "image_class_labels": "1 1\n", "train_test_split": "1 1\n2 0\n",
             "classes": "1 a\n"}  # fmt: skip
    for name, text in lists.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(InputError, match="contradict"):
        read("cub200", tmp_path)


def test_a_damaged_mat_list_is_an_error_that_names_it(tmp_path):
    (tmp_path / "train_list.mat").write_bytes(b"no matrix")
    with pytest.raises(InputError, match="train_list.mat"):
        read("stanford_dogs", tmp_path)


def test_a_mat_list_whose_columns_differ_in_length_is_an_error(tmp_path):
    files = np.array([["a/x.jpg"], ["a/y.jpg"]], dtype=object)
    scipy.io.savemat(tmp_path / "train_list.mat", {"file_list": files, "labels": np.array([[1]])})
    with pytest.raises(InputError, match="2 files and 1 labels"):
        read("stanford_dogs", tmp_path)


def test_chosen_classes_are_numbered_in_the_order_of_their_names():
    labels = np.arange(12) % 4
    samples = Samples(np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1), labels)
    dataset = Dataset(("a", "b", "c", "d"), {"train": samples, "test": samples})
    chosen = of_classes(dataset, ["d", "b"])
    assert chosen.classes == ("d", "b") and chosen.splits.keys() == {"train", "test"}
    for split in chosen.splits.values():
        assert split.images.ravel().tolist() == [1, 3, 5, 7, 9, 11], "the order in the file stays"
        assert [chosen.classes[label] for label in split.labels] == ["b", "d"] * 3
    with pytest.raises(InputError, match="no such class"):
        of_classes(dataset, ["a", "e"])


def test_a_subset_is_a_function_of_the_seed_and_keeps_the_order():
    samples = Samples(np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1), np.arange(50))
    first, again, other = subset(samples, 10, 0), subset(samples, 10, 0), subset(samples, 10, 1)
    assert first.labels.tolist() == sorted(first.labels.tolist()) == again.labels.tolist() != other.labels.tolist()
    assert (first.images.ravel() == first.labels).all()
    assert subset(samples, 99, 0).labels.tolist() == list(range(50))
