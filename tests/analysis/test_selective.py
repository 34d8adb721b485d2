"""Selective classification: curves by hand, and of runs on real digits."""

import json

import numpy as np
import pytest

from fastlsr import analyze, scores
from fastlsr.analysis import selective
from fastlsr.logits import read_logits
from fastlsr.runs import RunFolder


def test_area_excess_and_curve_by_hand():
    """Risks 0, 1/2, 1/3, 1/4 in this order; at best 0, 0, 0, 1/4."""
    found = selective.of_confidence(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True]))
    area, least = 1000 * (1 / 2 + 1 / 3 + 1 / 4) / 4, 1000 * (1 / 4) / 4
    assert [found["aurc"], found["excess"]] == pytest.approx([area, area - least])
    assert [found["risk"][percent - 1] for percent in (1, 25, 26, 50, 75, 100)] == pytest.approx(
        [0, 0, 1 / 2, 1 / 2, 1 / 3, 1 / 4]
    )


@pytest.mark.parametrize("correct", [[True] * 5, [False] * 5, [True, True, False]])
def test_an_order_with_all_errors_last_has_no_excess(correct):
    correct = np.array(correct)
    assert selective.of_confidence(np.arange(len(correct), 0, -1.0), correct)["excess"] == 0


@pytest.fixture(scope="module")
def found(six_runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert analyze.main(["selective", *map(str, six_runs.values()), f"--out={out}"]) == 0
    assert (out / "selective.svg").exists()
    return json.loads((out / "selective.json").read_text())["settings"]


def test_each_run_has_the_areas_of_its_kept_logits(found, six_runs):
    assert {label: [run["seed"] for run in each["runs"]] for label, each in found.items()} == {
        method: [0, 1] for method in ("hard", "lsr", "tsla")
    }
    for each in found.values():
        for run in each["runs"]:
            kept = read_logits(RunFolder(six_runs[f"{run['method']}-{run['seed']}"]).logits("last"))
            predictions = scores.Predictions(kept.logits, kept.labels)
            confidence, norms = scores.normalised_confidence(kept.logits, kept.labels, kept.index)
            assert run["raw"]["aurc"] == scores.aurc(predictions)
            assert run["normalised"]["aurc"] == scores.area_under_risk(confidence, predictions.correct)
            assert run["norms"] == norms


def test_the_risk_at_full_coverage_is_the_error_whatever_the_confidence(found):
    for each in found.values():
        for run in each["runs"]:
            assert run["raw"]["risk"][-1] == pytest.approx(run["error"])
            assert run["normalised"]["risk"][-1] == pytest.approx(run["error"])


def test_checkpoints_of_one_run_at_several_epochs_are_settings_of_their_own(six_runs, tmp_path, capsys):
    files = [RunFolder(six_runs["hard-0"]).kept_checkpoint(epoch) for epoch in (1, 2)]
    assert analyze.main(["selective", *map(str, files), f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "selective.json").read_text())["settings"]
    rows = RunFolder(six_runs["hard-0"]).read_rows()
    errors = {label: each["runs"][0]["error"] for label, each in found.items()}
    expected = {f"hard, epoch {row['epoch']}": 1 - row["test/top1"] / 100 for row in rows}
    assert errors == pytest.approx(expected, abs=0.006)  # float16 makes ties: two images
