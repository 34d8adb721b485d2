"""Opening a trained run: only places may change, a damaged checkpoint is reported, other data is an error."""

import pytest
import torch

from fastlsr.engine.trained import open_run
from fastlsr.errors import InputError
from fastlsr.runs import RunFolder


@pytest.fixture(scope="module")
def run(train_digits, tmp_path_factory):
    options = {"method.name": "tsla", "method.drop_epoch": 1, "method.smoothing": 0.5, "train.ema": 0.9}
    return RunFolder(train_digits(tmp_path_factory.mktemp("runs") / "a", options))


def test_a_run_is_opened_as_it_evaluates(run):
    opened = open_run(run.path)
    row = run.read_rows()[-1]
    assert {f"test/{name}": value for name, value in opened.evaluate().items()} == {
        key: value for key, value in row.items() if key.startswith("test/")
    }
    assert opened.position.epochs == 2 and opened.targets().mix.tolist() == [1, 0, 0, 1], "the phase trained last"
    network = opened.network(8)
    assert not network.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.model.state_dict().values(), opened.state["ema"].values(), strict=True)
    )
    assert len(opened.plain_training_loader().indices) == 1438 and opened.classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("key", ["optim.lr", "data.resolution", "method.name", "train.seed", "data.fold"])
def test_nothing_but_places_may_change(run, key):
    with pytest.raises(InputError, match=f"--{key} is the run's own"):
        open_run(run.path, {key: "1"})


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_opened(run, capsys, tmp_path):
    copy = RunFolder(tmp_path)
    copy.newest_checkpoint.write_bytes(b"torn")
    copy.previous_checkpoint.write_bytes(run.previous_checkpoint.read_bytes())
    assert open_run(copy.path).position.epochs == 1
    assert "is damaged" in capsys.readouterr().err


def test_other_training_data_is_an_error(run, digits_dir):
    test_split = digits_dir / "digits_test.beton"
    with pytest.raises(InputError, match="other data"):
        open_run(run.path, {"data.train": str(test_split)}).plain_training_loader()


def test_what_holds_no_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_run(tmp_path / "absent")
    with pytest.raises(InputError, match="no checkpoint of a run"):
        open_run(tmp_path)
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="no checkpoint of a run"):
        open_run(tmp_path)
