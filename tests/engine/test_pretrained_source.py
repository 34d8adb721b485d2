"""What a run notes of the weights that it began from, and what it does with them later."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from fastlsr.data.manifest import digest_of
from fastlsr.engine.trained import open_run
from fastlsr.models import build_model
from fastlsr.runs import RunFolder


@pytest.fixture
def weights(tmp_path):
    """A file of weights for seven classes."""
    torch.manual_seed(9)
    save_file(build_model("resnet8", classes=7, resolution=8).state_dict(), path := tmp_path / "w.safetensors")
    return path


def test_a_run_notes_the_file_that_it_began_from_and_goes_on_without_it(train_digits, weights, tmp_path):
    options, digest = {"model.pretrained": weights}, digest_of(weights)
    folder = RunFolder(train_digits(tmp_path / "run", options))
    state = open_run(folder.path).state
    weights.unlink()
    shutil.copy(folder.previous_checkpoint, folder.newest_checkpoint)
    train_digits(folder.path, options)
    again = open_run(folder.path).state
    assert folder.read_environment()["pretrained"] == state["decided"]["pretrained"] == digest
    assert all(torch.equal(state["model"][name], again["model"][name]) for name in state["model"])


def test_a_run_that_begins_from_another_one_is_normalised_as_that_was(train_digits, small_photos_dir, tmp_path, capsys):
    first = open_run(train_digits(tmp_path / "first", {"train.epochs": 1}))
    photos = {"data.dataset": "photos", "data.dir": small_photos_dir, "data.resolution": 32, "train.epochs": 1}
    other = open_run(train_digits(tmp_path / "other", photos))
    capsys.readouterr()
    onward = open_run(train_digits(tmp_path / "onward", photos | {"model.pretrained": first.folder.path}))
    assert f"weights: model.pretrained={first.folder.path}; its classifier begins anew" in capsys.readouterr().out
    assert onward.decided["normalization"] == first.decided["normalization"] != other.decided["normalization"]
    assert onward.decided["pretrained"] == digest_of(first.folder.newest_checkpoint)
    assert other.decided["pretrained"] is None and len(onward.classes) == 4
