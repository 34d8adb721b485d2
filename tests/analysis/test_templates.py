"""Distances between class templates: by hand, and of a run on real digits."""

import json
import math

import pytest
import torch

from fastlsr import analyze, train
from fastlsr.analysis import templates
from fastlsr.engine import checkpoint


def test_templates_are_compared_at_length_one():
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0], [1.0, 1e-4]])
    distances = templates.template_distances(rows)
    right, opposite = math.sqrt(2), 2.0
    expected = torch.tensor([[0, right, opposite], [right, 0, right], [opposite, right, 0]])
    torch.testing.assert_close(distances[:3, :3], expected)
    torch.testing.assert_close(distances[0, 3].item(), 1e-4, rtol=1e-3, atol=0)


@pytest.fixture(scope="module")
def run(digits_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    options = {"data.dataset": "digits", "data.dir": digits_dir, "model.name": "resnet8", "train.epochs": 1,
               "train.compile": "off", "train.precision": "fp32", "log.wandb": "disabled", "run.dir": folder,
               "run.name": "a"}  # fmt: skip
    assert train.main([f"--{name}={value}" for name, value in options.items()]) == 0
    return folder / "a"


def test_the_command_prints_each_pair_and_their_average(run, capsys):
    assert analyze.main(["templates", str(run), "--classes=0,3,7"]) == 0
    assert "0|3" in capsys.readouterr().out
    said = json.loads((run / "analysis" / "templates.json").read_text())
    state, _ = checkpoint.load_newest(run)
    (weight,) = [w for name, w in state["model"].items() if w.ndim == 2 and len(w) == 10]
    unit = weight.double() / weight.double().norm(dim=1, keepdim=True)
    expected = {f"{a}|{b}": (unit[a] - unit[b]).norm().item() for a, b in ((0, 3), (0, 7), (3, 7))}
    assert list(said) == [*expected, "average"]
    assert said == pytest.approx({**expected, "average": sum(expected.values()) / 3}, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--classes=0,owl"], "owl: no such class"),
        (["--classes=0"], "two classes"),
        ([], "templates needs --classes"),
        (["--clases=0,1"], "did you mean --classes"),
        (["--classes=0,1", "--optim.lr=1"], "--optim.lr is the run's own"),
    ],
)
def test_classes_that_do_not_fit_are_an_error_in_one_line(run, words, complaint, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["templates", str(run), *words])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        analyze.main(["templates", str(tmp_path), "--classes=0,1"])
    assert "holds no checkpoint" in capsys.readouterr().err
