"""The folder of a run: what is written is read back, damage is named, and each column and metric is named once."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Config, Train, load
from fastlsr.errors import InputError
from fastlsr.metrics import METRICS
from fastlsr.runs import (
    RunFolder,
    best_meaning,
    best_of,
    check_best_by,
    columns,
    compared_keys,
    epoch_line,
    finite_row,
    is_whole,
    keys,
    run_folder,
)

ROW = {
    "epoch": 3,
    "phase": 1,
    "lr": 0.05,
    "train/loss": 1.23456,
    "train/top1": 45.0,
    "test/loss": 1.5,
    "test/nll": 1.1,
    "test/top1": 50.0,
    "test/top5": 90.0,
    "test/ece": 0.05,
    "images_per_second": 1234.4,
    "data_wait": 0.01,
    "target_entropy": None,
    "seconds": 2.54,
    "peak_memory_bytes": 1,
}


def test_the_line_of_an_epoch_is_as_it_has_always_been():
    assert epoch_line(ROW, 4) == (
        "epoch 3/4  phase 1  lr 0.05  train loss 1.2346 top1 45.00  test nll 1.1000 top1 50.00 top5 90.00 ece 0.0500  "
        "1234 images/s  2.5 s"
    )


def test_what_json_has_no_number_for_is_null_in_a_row():
    row = finite_row(ROW | {"target_entropy": -math.inf, "test/ece": math.nan})
    assert row == ROW | {"target_entropy": None, "test/ece": None}


def test_a_value_that_is_not_there_is_left_out_of_the_line():
    row = dict.fromkeys(keys()) | {"epoch": 1, "test/top1": 50.0}
    assert epoch_line(row, 1) == "epoch 1/1  test top1 50.00"


def test_a_row_s_keys_are_its_columns_in_order():
    of_val = {key for key in keys() if key.startswith("val/")}
    assert tuple(column.key for column in columns()) == keys()
    assert tuple(ROW) == tuple(key for key in keys() if key not in of_val)
    assert {key.replace("val/", "test/") for key in of_val} == {key for key in keys() if key.startswith("test/")}
    assert len(set(keys())) == len(keys())


def test_the_metrics_are_among_the_keys_the_line_and_the_compared_ones():
    names = [f"test/{name}" for name in METRICS]
    assert names == ["test/nll", "test/top1", "test/top5", "test/ece"]
    assert compared_keys([ROW]) == ["epoch", "train/loss", "train/top1", *names]
    for name in METRICS:
        value = format(ROW[f"test/{name}"], METRICS[name].format)
        assert f"{name} {value}" in epoch_line(ROW, 4)


def test_a_new_metric_is_one_function():
    """It is then a key of rows, part of an epoch's line, and in the table of the last and the best row."""
    code = """
from fastlsr import metrics, runs

@metrics.metric("bits", "a new one", best=min, format=".1f")
def brier(logits, labels): ...

assert runs.keys().index("test/brier") == runs.keys().index("test/ece") + 1
assert runs.compared_keys([{"test/brier": 0.25}])[-1] == "test/brier"
(column,) = [column for column in runs.columns() if column.key == "test/brier"]
assert (column.unit, column.meaning) == ("bits", "a new one")
row = dict.fromkeys(runs.keys(), 1) | {"test/brier": 0.25}
assert "ece 1.0000 brier 0.2  1 images/s" in runs.epoch_line(row, 4), runs.epoch_line(row, 4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_written_is_read_back(tmp_path):
    folder, config = RunFolder(tmp_path), load(overrides={"optim.lr": "0.3", "method.name": "colam"})
    folder.write_config(config)
    folder.write_environment({"python": "3", "git": None})
    rows = [ROW, ROW | {"epoch": 4, "test/top1": 40.0}]
    folder.write_rows(rows[:1])
    folder.append_row(rows[1])
    summary = folder.write_summary(rows, finished=True)
    assert folder.read_config() == config
    assert folder.read_environment() == {"python": "3", "git": None}
    assert folder.read_rows() == rows
    assert folder.read_summary() == folder.finished_summary() == summary
    assert (summary["last"], summary["best"], summary["name"]) == (rows[1], ROW, tmp_path.name)
    folder.write_rows([])
    assert folder.read_rows() == []


@given(st.lists(st.integers(0, 5), min_size=1), st.sampled_from(sorted(METRICS)))
def test_the_best_row_is_the_first_with_the_best_value_of_the_metric(values, metric):
    rows = [{"epoch": at, f"test/{metric}": value} for at, value in enumerate(values)]
    best = max(values) if metric in ("top1", "top5") else min(values)
    assert best_of(rows, metric) is rows[values.index(best)]
    assert best_meaning(metric, "val") == f"{'highest' if metric in ('top1', 'top5') else 'lowest'} val {metric}"


def test_a_best_row_needs_a_metric_that_there_is():
    for name, line in {"acc": "no such metric", "test/nll": "did you mean nll", "TOP1": "did you mean top1"}.items():
        with pytest.raises(InputError, match=f"train.best_by={name}: .*{line}"):
            check_best_by(Train(best_by=name))


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 4), st.integers(0, 11))
def test_patience_ends_a_run_as_soon_as_its_last_phase_has_not_got_better_for_so_long(values, patience, last_phase):
    """Against a loop over the epochs that counts."""
    rows = [{"epoch": at, "test/nll": value} for at, value in enumerate(values, start=1)]
    train = Train(patience=patience, best_by="nll")
    best, waited, ends = float("inf"), 0, []
    for at, value in enumerate(values):
        waited = 0 if at < last_phase or value < best else waited + 1
        best = float("inf") if at < last_phase else min(best, value)
        ends.append(at + 1 == 12 or waited >= patience)
    found = [is_whole(rows[: at + 1], train, epochs=12, last_phase=last_phase) for at in range(len(rows))]
    first = ends.index(True) if True in ends else len(ends)
    assert found[: first + 1] == ends[: first + 1]
    assert not is_whole(rows[:11], Train(), epochs=12, last_phase=0)


FILES = {
    "config.yaml": RunFolder.read_config,
    "environment.json": RunFolder.read_environment,
    "metrics.jsonl": RunFolder.read_rows,
    "summary.json": RunFolder.read_summary,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [None, b"{", b"\xff\xfe", b"[1, 2]", b"7", "folder", b"\0" * 64],
    ids=["missing", "cut", "not text", "a list", "a number", "a folder", "zeros"],
)
def test_a_missing_or_damaged_file_is_a_line_that_names_it(tmp_path, name, content):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content + b"\n")
    with pytest.raises(InputError) as error:
        FILES[name](RunFolder(tmp_path))
    assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_last_row_that_is_half_written_is_left_out(tmp_path):
    RunFolder(tmp_path).write_rows([{"epoch": 1}, {"epoch": 2}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"epoch":')
    assert RunFolder(tmp_path).read_rows() == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "summary.json"])
def test_an_empty_file_is_damaged(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{tmp_path / name} is damaged"):
        FILES[name](RunFolder(tmp_path))


@pytest.mark.parametrize("value", ["many", "-1"])
def test_an_option_of_a_run_that_cannot_be_is_named_with_its_file(tmp_path, value):
    (tmp_path / "config.yaml").write_text(f"train: {{epochs: {value}}}")
    with pytest.raises(InputError, match=f"config.yaml: train.epochs={value}: expected a whole number"):
        RunFolder(tmp_path).read_config()


@pytest.mark.parametrize("key", ["finished", "last", "best"])
def test_a_summary_without_one_of_its_parts_is_damaged(tmp_path, key):
    summary = RunFolder(tmp_path).write_summary([ROW], finished=True)
    del summary[key]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=f"summary.json is damaged: it has no {key}"):
        RunFolder(tmp_path).finished_summary()


def test_a_run_without_a_summary_is_not_finished(tmp_path):
    assert RunFolder(tmp_path / "absent").finished_summary() is None
    RunFolder(tmp_path).write_summary([ROW], finished=False)
    assert RunFolder(tmp_path).finished_summary() is None


def test_the_folder_of_a_run_is_its_name_in_the_folder_of_runs():
    config = load(overrides={"run.dir": "some/where", "run.name": "mine"})
    assert str(run_folder(config).path) == "some/where/mine"
    assert run_folder(Config()).path.name == Config().run_name()
