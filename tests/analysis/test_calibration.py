"""Calibration: intervals and bins by hand, and of runs on real digits."""

import json
import math

import numpy as np
import pytest

from fastlsr import analyze
from fastlsr.analysis import calibration
from fastlsr.logits import read_logits
from fastlsr.metrics import ECE_BINS
from fastlsr.runs import RunFolder
from fastlsr.scores import fit_temperature


def table(**bins):
    """float64[3, 15] with columns (samples, sum of confidences, correct) in the bins b0 .. b14."""
    columns = np.zeros((3, ECE_BINS))
    for name, column in bins.items():
        columns[:, int(name[1:])] = column
    return columns


def test_wilsons_interval_by_hand():
    """(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n) for 8 of 10, z = 1.959964."""
    z, n, p = 1.959963985, 10, 0.8
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    by_hand = [(p + z**2 / (2 * n) + sign * reach) / (1 + z**2 / n) for sign in (-1, 1)]
    assert calibration.wilson_interval(8, 10) == pytest.approx(by_hand, rel=1e-6)


def test_an_interval_over_seeds_is_students():
    """0.5 ± 4.302653 · 0.1 / √3; a share goes from 0 to 1; one seed has no spread."""
    reach = 4.3026527 * 0.1 / math.sqrt(3)
    assert calibration.student_interval([0.4, 0.5, 0.6]) == pytest.approx((0.5 - reach, 0.5 + reach), rel=1e-6)
    assert calibration.student_interval([0.1, 0.9]) == (0, 1)
    assert calibration.student_interval([0.4]) == (None, None)


def test_a_bin_of_one_run_is_what_its_samples_are():
    (first, last) = calibration.reliability_bins([table(b3=(10, 2.5, 8), b14=(30, 29.4, 30))])
    assert first == pytest.approx(
        {"from": 0.2, "to": 4 / 15, "runs": 1, "share": 0.25, "confidence": 0.25, "accuracy": 0.8,
         "low": calibration.wilson_interval(8, 10)[0], "high": calibration.wilson_interval(8, 10)[1]}
    )  # fmt: skip
    assert [last["from"], last["to"], last["share"]] == pytest.approx([14 / 15, 1, 0.75])


def test_a_bin_of_several_runs_is_the_mean_over_those_that_have_samples_there():
    one, other = table(b3=(10, 2.0, 8), b14=(30, 30, 30)), table(b3=(30, 9.0, 12), b5=(10, 3.5, 1))
    third, alone, last = calibration.reliability_bins([one, other])
    assert third == pytest.approx(
        {"from": 0.2, "to": 4 / 15, "runs": 2, "share": 0.5, "confidence": 0.25, "accuracy": 0.6, "low": 0, "high": 1}
    )
    assert [alone["runs"], alone["share"], alone["low"], alone["high"]] == [1, 0.125, None, None]
    assert [last["runs"], last["share"], last["accuracy"]] == [1, 0.375, 1]


@pytest.fixture(scope="module")
def found(six_runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    words = ["calibration", *map(str, (six_runs["hard-0"], six_runs["lsr-0"], six_runs["lsr-1"])), f"--out={out}"]
    assert analyze.main(words) == 0
    assert (out / "calibration.svg").exists()
    return json.loads((out / "calibration.json").read_text())


def test_the_raw_figures_are_those_that_the_run_logged(found, six_runs):
    for each, name in zip(found["runs"], ("hard-0", "lsr-0", "lsr-1"), strict=True):
        row = RunFolder(six_runs[name]).read_rows()[-1]
        logged = [row["test/nll"], row["test/ece"]]
        assert [each["raw"]["nll"], each["raw"]["ece"]] == pytest.approx(logged, abs=0.003)  # float16: a bin's edge


def test_each_half_is_scaled_by_the_temperature_of_the_other(found, six_runs):
    kept = read_logits(RunFolder(six_runs["hard-0"]).logits("last"))
    halves = [kept.index % 2 == parity for parity in (1, 0)]
    by_hand = [fit_temperature(kept.logits[half], kept.labels[half]) for half in halves]
    assert found["runs"][0]["temperatures"] == pytest.approx(by_hand)
    assert found["runs"][0]["scaled"]["nll"] < found["runs"][0]["raw"]["nll"]


def test_settings_hold_their_runs_and_the_bins_give_the_error_back(found):
    assert {label: each["runs"] for label, each in found["settings"].items()} == {"hard": 1, "lsr": 2}
    assert found["settings"]["lsr"]["raw"]["nll"] == [each["raw"]["nll"] for each in found["runs"][1:]]
    for kind in ("raw", "scaled"):
        bins = found["settings"]["hard"][kind]["bins"]
        error = sum(each["share"] * abs(each["confidence"] - each["accuracy"]) for each in bins)
        assert error == pytest.approx(found["runs"][0][kind]["ece"], rel=1e-6)
        assert all(each["low"] <= each["accuracy"] <= each["high"] for each in bins)


def test_a_run_that_is_given_twice_is_an_error(six_runs, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["calibration", str(six_runs["hard-0"]), str(six_runs["hard-0"])])
    assert exited.value.code == 2
    assert "2 runs of hard have 1 seed" in capsys.readouterr().err
