"""CIFAR-100's superclasses are those of its own files."""

import pickle

from fastlsr.data.superclasses import SUPERCLASS


def test_every_fine_class_has_the_superclass_of_the_official_files(cifar100_dir):
    folder = cifar100_dir / "cifar-100-python"
    names, train = (pickle.loads((folder / name).read_bytes(), encoding="latin1") for name in ("meta", "train"))
    fine, coarse = names["fine_label_names"], names["coarse_label_names"]
    official = {(fine[a], coarse[b]) for a, b in zip(train["fine_labels"], train["coarse_labels"], strict=True)}
    assert set(SUPERCLASS.items()) == official and len(official) == 100
