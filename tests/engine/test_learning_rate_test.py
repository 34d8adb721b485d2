"""The range test finds the rates that a curve was made for, is the same each time, and leaves one picture."""

import json
import math

import numpy as np
import pytest

from fastlsr import train
from fastlsr.engine.learning_rate_test import HIGHEST, LOWEST, STEPS, RangeTest, RisingRate, smooth


def test_rates_rise_by_equal_ratios_from_the_lowest_to_the_highest():
    factors = [RisingRate(7).factor(step) for step in range(STEPS)]
    assert factors[0] == LOWEST and factors[-1] == pytest.approx(HIGHEST)
    np.testing.assert_allclose(np.diff(np.log(factors)), math.log(HIGHEST / LOWEST) / (STEPS - 1))


def test_a_smoothed_constant_is_that_constant_and_noise_gets_less():
    assert smooth([2.5] * 30) == pytest.approx([2.5] * 30)
    noise = np.random.default_rng(0).normal(size=400)
    assert np.std(smooth(noise.tolist())[50:]) < 0.3 * np.std(noise)


def test_the_steepest_and_the_lowest_rate_of_a_known_curve():
    rates = np.logspace(-5, 1, 121)
    falling = 2 - 1 / (1 + np.exp(-6 * (np.log10(rates) + 2)))  # steepest at 0.01
    losses = (falling + np.maximum(0, np.log10(rates)) ** 2 * 30).tolist()  # and rising above 1
    measured = RangeTest(rates.tolist(), losses, losses)
    assert measured.steepest() == pytest.approx(0.01)
    assert 0.3 < measured.lowest() <= 1


def test_the_test_is_repeated_to_the_bit_and_trains_no_run(digits_dir, tmp_path):
    words = ["--data.dataset=digits", f"--data.dir={digits_dir}", "--model.name=resnet8", "--train.compile=off",
             "--data.batch_size=64", "--method.name=colam", "--method.stages=1", "--train.epochs=1",
             "--train.precision=fp32", "--log.wandb=disabled", f"--run.dir={tmp_path}", "--find-lr"]  # fmt: skip
    found = []
    for name in "ab":
        assert train.main([*words, f"--run.name={name}"]) == 0
        folder = tmp_path / f"{name}-find-lr"
        assert {path.suffix for path in folder.iterdir()} == {".json", ".png", ".svg"} and not (
            tmp_path / name
        ).exists()
        found.append(json.loads((folder / "learning_rate.json").read_text()))
    assert found[0] == found[1]
    rates, losses = found[0]["rates"], found[0]["losses"]
    assert len(rates) == len(losses) > 100 and min(losses) < 0.8 * losses[0]
    assert rates[0] < found[0]["steepest"] <= found[0]["lowest"] <= rates[-1]
