"""When a run's kept logits stand for an evaluation, and that they equal one."""

import shutil

import numpy as np
import pytest

from fastlsr.engine.trained import open_run
from fastlsr.errors import InputError
from fastlsr.inference.predictions import evaluation_logits
from fastlsr.logits import read_logits
from fastlsr.runs import RunFolder
from fastlsr.scores import Predictions, nll


@pytest.fixture(scope="module")
def run(train_digits, tmp_path_factory):
    return RunFolder(train_digits(tmp_path_factory.mktemp("runs") / "a", {"run.keep": 1}))


@pytest.fixture
def copy(run, tmp_path):
    return RunFolder(shutil.copytree(run.path, tmp_path / "copy"))


def test_kept_logits_stand_for_the_last_epoch_even_where_the_data_is_not(run, tmp_path):
    for path in (run.path, run.kept_checkpoint(2)):
        found = evaluation_logits(open_run(path, {"data.dir": str(tmp_path)}))
        kept = read_logits(run.logits("last"))
        assert (found.logits == kept.logits).all()


def test_computed_logits_are_the_kept_ones(copy):
    kept = read_logits(copy.logits("last"))
    copy.logits("last").unlink()
    found = evaluation_logits(open_run(copy.path))
    assert (found.epoch, found.data) == (kept.epoch, kept.data)
    assert (found.labels == kept.labels).all()
    assert (found.index == kept.index).all()
    np.testing.assert_allclose(found.logits.astype(float), kept.logits.astype(float), rtol=2e-3, atol=2e-3)


def test_a_checkpoint_of_another_epoch_is_evaluated(run, tmp_path):
    found = evaluation_logits(open_run(run.kept_checkpoint(1)), quiet=True)
    first, last = (row["test/nll"] for row in run.read_rows())
    assert found.epoch == 1
    assert nll(Predictions(found.logits, found.labels)) == pytest.approx(first, rel=1e-3)
    assert first != pytest.approx(last, rel=0.01)
    with pytest.raises(InputError, match="does not exist"):
        evaluation_logits(open_run(run.kept_checkpoint(1), {"data.dir": str(tmp_path)}))


def test_another_evaluation_file_is_evaluated(run, digits_dir):
    found = evaluation_logits(open_run(run.path, {"data.val": str(digits_dir / "digits_train.beton")}))
    assert len(found.labels) == 1438


def test_damaged_kept_logits_are_an_error(copy):
    copy.logits("last").write_bytes(b"no logits")
    with pytest.raises(InputError, match="holds no logits"):
        evaluation_logits(open_run(copy.path))
