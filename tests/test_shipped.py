"""Configs and sweep files by name: a file of the user's own comes first, then one that comes with the package."""

import pytest

from fastlsr.config import load
from fastlsr.errors import InputError
from fastlsr.shipped import CONFIGS, SWEEPS, file_or_shipped, names


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "./configs/quickstart"])
def test_every_spelling_of_a_shipped_config_is_that_config(given):
    assert load(given) == load(CONFIGS / "quickstart.yaml")


@pytest.mark.parametrize("given", ["quickstart_seeds", "configs/sweeps/quickstart_seeds.yaml"])
def test_every_spelling_of_a_shipped_sweep_is_that_sweep(given):
    assert file_or_shipped(given, SWEEPS) == SWEEPS / "quickstart_seeds.yaml"


@pytest.mark.parametrize("given", ["quickstart", "configs/quickstart.yaml"])
def test_a_file_of_the_user_s_own_comes_first(empty_folder, given):
    path = empty_folder / given
    path.parent.mkdir(exist_ok=True)
    path.write_text("train: {epochs: 77}\n", encoding="utf-8")
    assert load(given).train.epochs == 77


def test_a_folder_does_not_hide_a_shipped_config(empty_folder):
    (empty_folder / "quickstart").mkdir()
    assert load("quickstart").data.dataset == "digits"


@pytest.mark.parametrize("given", ["own/quickstart.yaml", "/nowhere/quickstart", "sweeps/quickstart_seeds.yaml"])
def test_another_folder_s_file_is_not_replaced_by_a_shipped_one(given):
    with pytest.raises(InputError, match=f"{given}: there is no such file"):
        load(given)


@pytest.mark.parametrize(
    ("given", "folder", "near"),
    [("tsla_cifar10", CONFIGS, "tsla_cifar100"), ("configs/quikstart.yml", CONFIGS, "quickstart"),
     ("quickstart_seed", SWEEPS, "quickstart_seeds")],
)  # fmt: skip
def test_an_unknown_name_is_one_line_with_the_nearest(given, folder, near):
    with pytest.raises(InputError, match=f"did you mean {near}\\?$") as error:
        file_or_shipped(given, folder)
    assert "\n" not in str(error.value)


def test_configs_and_sweeps_are_told_apart():
    assert not set(names(CONFIGS)) & {"quickstart_seeds"} and "quickstart_seeds" in names(SWEEPS)
    with pytest.raises(InputError):
        load("quickstart_seeds")
