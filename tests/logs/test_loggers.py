"""W&B and TensorBoard: each has the rows, the figures inside epochs and the soft labels of a run, once each."""

import shutil
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import load
from fastlsr.engine.totals import EpochTotals
from fastlsr.logs.run_log import check_loggers
from fastlsr.logs.wandb_log import with_project
from fastlsr.runs import RunFolder

EVERY, BATCHES, EPOCHS = 5, 6, 4  # 1,438 images in batches of 256


@pytest.fixture(scope="module")
def train_colam(train_digits):
    """folder, more options -> the folder, after a run of two stages of COLAM in it, or the rest of one."""

    def run(folder, **options):
        chosen = {"data.batch_size": 256, "method.name": "colam", "method.stages": 2, "train.epochs": EPOCHS,
                  "log.every": EVERY}  # fmt: skip
        return train_digits(folder, chosen | {key.replace("__", "."): value for key, value in options.items()})

    return run


@pytest.fixture(scope="module")
def logged(train_colam, tmp_path_factory):
    """A finished run that logged to TensorBoard and, offline, to the W&B project that WANDB_PROJECT names."""
    pytest.importorskip("wandb").teardown()  # it reads the environment once a process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_PROJECT", "of-the-environment")
        patch.setenv("WANDB_ENTITY", "some-team")
        return train_colam(tmp_path_factory.mktemp("runs") / "whole", log__tensorboard="true", log__wandb="offline")


def events(folder, axis):
    """What TensorBoard reads of a run: an accumulator that keeps all steps."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder / "tensorboard" / axis), {"scalars": 0, "images": 0})
    return found.Reload()


def check_tensorboard(folder):
    """Checks that TensorBoard has each row and each figure of the run once, in order."""
    rows, epochs, steps = RunFolder(folder).read_rows(), events(folder, "epochs"), events(folder, "steps")
    for key in rows[0].keys() - {"epoch"}:
        expected = [(row["epoch"], row[key]) for row in rows]
        found = [(each.step, each.value) for each in epochs.Scalars(key)]
        assert found == [(step, pytest.approx(value)) for step, value in expected], key
    for key in ("train/loss", "lr"):
        found = [each.step for each in steps.Scalars(key)]
        assert found == list(range(EVERY, BATCHES * EPOCHS + 1, EVERY)), key
    assert [each.step for each in epochs.Images("soft_labels")] == [2, 4], "at the ends of the stages"


def test_tensorboard_has_each_epoch_each_figure_inside_it_the_options_and_the_soft_labels(logged):
    check_tensorboard(logged)
    hyperparameters = events(logged, "epochs").PluginTagToContent("hparams")
    assert b"method.temperature" in hyperparameters["_hparams_/session_start_info"]
    assert "_hparams_/session_end_info" in hyperparameters


def test_at_an_epoch_s_end_figures_are_those_of_its_row_and_soft_labels_follow_it(train_colam, tmp_path, capsys):
    folder = train_colam(
        tmp_path / "run", log__tensorboard="true", log__every=BATCHES, optim__accumulate=4, optim__schedule="cosine"
    )
    rows, steps = RunFolder(folder).read_rows(), events(folder, "steps")
    assert [each.value for each in steps.Scalars("lr")] == pytest.approx([row["lr"] for row in rows])
    assert [each.value for each in steps.Scalars("train/loss")] == pytest.approx([row["train/loss"] for row in rows])
    assert not (folder / "wandb").exists()
    lines = [line.split("  ")[0].split(":")[0].split(",")[0] for line in capsys.readouterr().out.splitlines()]
    shown = [line for line in lines if line.startswith(("epoch", "soft labels"))]
    assert shown[:5] == ["epoch 1/4", "epoch 2/4", "soft labels", "epoch 3/4", "epoch 4/4"]


def test_a_run_that_goes_on_from_an_earlier_checkpoint_has_no_step_twice(logged, train_colam, tmp_path):
    folder = shutil.copytree(logged, tmp_path / "whole")
    (folder / "checkpoint.pt").unlink()  # the last epoch is trained again
    train_colam(folder, log__tensorboard="true")
    assert len(list(folder.glob("tensorboard/epochs/events*"))) == 2
    check_tensorboard(folder)


def test_a_run_that_logs_to_tensorboard_only_from_later_on_has_its_former_rows_there(logged, train_colam, tmp_path):
    folder = shutil.copytree(logged, tmp_path / "whole", ignore=shutil.ignore_patterns("tensorboard"))
    (folder / "checkpoint.pt").unlink()
    train_colam(folder, log__tensorboard="true")
    assert [each.step for each in events(folder, "epochs").Scalars("test/top1")] == [1, 2, 3, 4]


def test_wandb_has_rows_figures_by_step_soft_labels_and_the_project_of_the_environment(logged):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # its service has then written what it was given
    (record,) = logged.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    for row in RunFolder(logged).read_rows():
        for key in ("test/nll", "train/loss", "lr"):
            assert repr(row[key]).encode() in content, key
    assert content.count(b"step/train/loss") >= BATCHES * EPOCHS // EVERY and b"step/lr" in content
    assert b"of-the-environment" in content and b"some-team" in content
    assert all(f"stage_{stage:02}.safetensors".encode() in content for stage in (1, 2))
    assert len(list(record.parent.glob("files/media/images/soft_labels_*.png"))) == 2
    assert load(logged / "config.yaml").log.project == "of-the-environment", "analyses find the run there"


def test_tensorboard_that_is_not_installed_is_one_line_before_anything_is_written(
    train_colam, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(SystemExit) as exited:
        train_colam(tmp_path / "run", log__tensorboard="true")
    said = capsys.readouterr().err
    assert exited.value.code == 2 and "pip install tensorboard" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    check_loggers(load(overrides={"log.wandb": "disabled"}))


@pytest.mark.parametrize("given_in", ["file", "command line"])
def test_a_project_that_is_given_wins_over_the_environment_s_and_that_over_the_default(given_in, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "of-the-environment")
    (tmp_path / "run.yaml").write_text("log: {project: mine}")
    config = load(tmp_path / "run.yaml") if given_in == "file" else load(overrides=["--log.project=mine"])
    assert with_project(config).log.project == "mine"
    assert with_project(load()).log.project == "of-the-environment"
    monkeypatch.setenv("WANDB_PROJECT", "")
    assert with_project(load()).log.project == "fastlsr"


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 512)), min_size=1), st.data())
def test_the_means_since_the_figures_before_add_up_to_that_of_the_epoch(batches, data):
    """Of (mean loss, images) of batches."""
    sums = np.cumsum([(loss * images, 0, images, 1, 0) for loss, images in batches], axis=0)
    readings = data.draw(st.lists(st.sampled_from(range(len(batches))), unique=True).map(sorted))
    totals = [EpochTotals(*sums[at]) for at in {*readings, len(batches) - 1}]
    totals.sort(key=lambda each: each.steps)
    parts = [new.since(former) for former, new in zip([EpochTotals(), *totals], totals, strict=False)]
    assert sum(each.loss * each.seen for each in parts) == pytest.approx(totals[-1].loss_sum)
    assert sum(each.steps for each in parts) == len(batches)


def test_figures_inside_an_epoch_are_those_of_a_run_that_was_not_stopped_there(train_colam, tmp_path, stopping):
    options = {"log__tensorboard": "true", "log__every": 4}
    whole = train_colam(tmp_path / "whole", **options)
    with stopping(9), pytest.raises(AssertionError):  # exit code 143; its last batch is in no figure yet
        train_colam(tmp_path / "stopped", **options)
    stopped = train_colam(tmp_path / "stopped", **options)
    one, other = (events(folder, "steps").Scalars("train/loss") for folder in (whole, stopped))
    assert [each.step for each in one] == [each.step for each in other]
    assert [each.value for each in one] == [each.value for each in other]
