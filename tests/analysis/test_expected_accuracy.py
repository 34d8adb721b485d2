"""Expected accuracy: fresh networks on the soft labels of a run on real digits, trained once."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fastlsr import analyze
from fastlsr.engine import checkpoint


@pytest.fixture(scope="module")
def run(train_digits, tmp_path_factory):
    colam = {"method.name": "colam", "method.stages": 2, "method.temperature": 1.5, "run.keep": 1}
    return train_digits(tmp_path_factory.mktemp("runs") / "a", colam)


@pytest.fixture(scope="module")
def analysed(run):
    assert analyze.main(["expected_accuracy", str(run), "--stages=0,1,2"]) == 0
    return run / "analysis"


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_stage_has_the_accuracy_of_a_run_of_method_table(run, analysed, train_digits, tmp_path):
    found = json.loads((analysed / "expected_accuracy.json").read_text())
    assert [stage["stage"] for stage in found["stages"]] == [0, 1, 2]
    assert [stage["own_top1"] for stage in found["stages"]] == [None, *(row["test/top1"] for row in rows(run))]
    by_hand = train_digits(tmp_path / "b", {
        "method.name": "table", "method.teacher_key": "class", "method.temperature": 1.5,
        "method.teacher": run / "soft_labels" / "stage_01.safetensors",
    })  # fmt: skip
    assert found["stages"][1]["expected_top1"] == rows(by_hand)[-1]["test/top1"]
    assert found["stages"][1]["expected_nll"] == rows(by_hand)[-1]["test/nll"]
    assert (analysed / "expected_accuracy.png").exists()


def test_the_networks_are_trained_on_the_frozen_tables_and_on_one_hot_labels(run, analysed):
    for stage in (1, 2):
        state, _ = checkpoint.load_newest(analysed / "expected_accuracy" / f"stage_{stage:02d}")
        table = load_file(run / "soft_labels" / f"stage_{stage:02d}.safetensors")["soft_labels"]
        torch.testing.assert_close(state["targets"]["table"], table)
        assert state["config"]["log"]["wandb"] == "disabled"
    (one_hot, *_) = rows(analysed / "expected_accuracy" / "stage_00")
    assert one_hot["target_entropy"] == 0


def test_nothing_is_trained_again(run, analysed, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in analysed.glob("expected_accuracy/*/*")}
    assert analyze.main(["expected_accuracy", str(run), "--stages=1,2", f"--out={tmp_path}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in analysed.glob("expected_accuracy/*/*")} == before
    assert "to train" not in capsys.readouterr().out


def test_a_stopped_network_is_trained_to_its_end(run, analysed, tmp_path, capsys):
    first = analysed / "expected_accuracy" / "stage_01"
    before = rows(first)
    shutil.copy(first / "checkpoint.previous.pt", first / "checkpoint.pt")  # as it was after its first epoch
    assert analyze.main(["expected_accuracy", str(run), f"--out={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "1 network to train, 1 epoch in all" in said
    assert "resuming after 1 epochs" in said
    assert [row["test/nll"] for row in rows(first)] == [row["test/nll"] for row in before]


def test_fewer_epochs_are_networks_of_their_own(run, tmp_path):
    words = [str(run), "--stages=2", "--epochs=1", f"--out={tmp_path}"]
    assert analyze.main(["expected_accuracy", *words]) == 0
    assert len(rows(run / "analysis" / "expected_accuracy" / "stage_02_epochs_1")) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--stages=3"], "stage 3 has no soft labels; the last is 2"),
        (["--stages=one"], "--stages=one: expected numbers"),
        (["--epochs=-1"], "--epochs=-1: expected 0 or more"),
    ],
)
def test_stages_that_are_not_there_are_an_error_in_one_line(run, words, complaint, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["expected_accuracy", str(run), *words])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_run_without_soft_labels_is_an_error(run, analysed, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["expected_accuracy", str(analysed / "expected_accuracy" / "stage_00")])
    assert exited.value.code == 2
    assert "method.name=hard has learned no soft labels" in capsys.readouterr().err
