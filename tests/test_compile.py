"""Compiled training: the numbers of eager training, and no compilation after the first epoch."""

import json

import pytest
import torch
from torch._dynamo.utils import counters

from fastlsr import evaluate, train
from fastlsr.engine import loop

OPTIONS = {
    "data.dataset": "digits", "data.batch_size": 400, "data.flip": "false", "model.name": "resnet8", "optim.lr": 0.01,
    "train.epochs": 4, "train.device": "cpu", "train.precision": "fp32", "log.wandb": "disabled",
}  # fmt: skip


def run(digits_dir, folder, **options):
    """(rows, graphs compiled so far at the end of each epoch) of a run."""
    chosen = OPTIONS | {"data.dir": digits_dir, "run.dir": folder.parent, "run.name": folder.name} | options
    assert train.main([f"--{key}={value}" for key, value in chosen.items()]) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def compiled_graphs(monkeypatch):
    """Graphs compiled after each row that a run logs."""
    counters.clear()
    counts = []
    row = loop.RunLog.row

    def counting(log, values):
        counts.append(counters["stats"]["unique_graphs"])
        row(log, values)

    monkeypatch.setattr(loop.RunLog, "row", counting)
    return counts


@pytest.mark.parametrize(
    "method",
    [
        {"method.name": "tsla", "method.drop_epoch": 2},
        {"method.name": "colam", "method.stages": 4, "method.temperature": 2.0},
    ],
    ids=lambda method: method["method.name"],
)
def test_no_phase_change_compiles_anything(digits_dir, tmp_path, compiled_graphs, method, capsys):
    rows = run(digits_dir, tmp_path / "compiled", **method, **{"train.compile": "on"})
    assert compiled_graphs[0] > 0, "the step was compiled"
    assert compiled_graphs == [compiled_graphs[0]] * 4
    said = capsys.readouterr().out
    assert said.count("compiling the training step") == 2, "the last batch is smaller, and has a graph of its own"
    assert said.count("compiling evaluation") == 1 and said.count("compiled in ") == 3
    eager = run(digits_dir, tmp_path / "eager", **method, **{"train.compile": "off"})
    for one, other in zip(rows, eager, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=0.02)
        assert one["target_entropy"] == pytest.approx(other["target_entropy"], rel=0.05, abs=1e-6)
    last = {key: value for key, value in rows[-1].items() if key.startswith("test/")}
    again = evaluate.evaluate_run(tmp_path / "compiled", {}, compile=True)
    assert {key: value for key, value in again.items() if key.startswith("test/")} == last
    torch._dynamo.reset()
    counters.clear()
    quick = evaluate.evaluate_run(tmp_path / "compiled", {})
    assert not counters["stats"], "nothing is compiled for one pass"
    assert quick == pytest.approx(again, rel=0.02)
