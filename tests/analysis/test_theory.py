"""TSLA's Theorems 3 and 4: their budgets by hand, and their bounds above what is measured on a known problem."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr import analyze
from fastlsr.analysis import theory
from fastlsr.analysis.theory import Constants, Stage

GIVEN = {"smoothness": 1.0, "pl": 0.1, "sigma2": 1.0, "delta": 0.1, "loss": 10.0, "epsilon": 0.5}
OTHER = {"smoothness": 2.0, "pl": 0.5, "sigma2": 0.5, "delta": 0.25, "loss": 4.0, "epsilon": 0.5}


def budgets(**constants):
    return {budget.name: budget for budget in theory.budgets(Constants(**constants))}


def steps(budget):
    return [stage.steps for stage in budget.stages]


def test_budgets_are_as_worked_by_hand():
    # eta = 0.25 / 2; T = 40 / (0.125 * 0.25); 10 / 0.1; 10 log(2 * 1.1 / 0.2) = 23.98; 0.8 / (0.1 * 0.125 * 0.25);
    # log(4 * 0.1 * 10 / 0.25) / 0.0125 = 221.8 and 2 / 0.0125.
    found = budgets(**GIVEN)
    assert {name: steps(budget) for name, budget in found.items()} == {
        "SGD": [1280], "SGD + LSR": [100], "TSLA": [24, 256], "SGD, PL": [222, 160]
    }  # fmt: skip
    assert [(stage.rate, stage.theta) for stage in found["TSLA"].stages] == [(1, 1 / 1.1), (0.125, 0)]
    assert found["SGD + LSR"].stages[0] == Stage(100, 1, 1 / 1.1)
    assert found["SGD + LSR"].promise == pytest.approx(0.4)  # 4 delta sigma2
    # eta = 0.25 / 2; 16 / (0.125 * 0.25); 4 / (0.5 * 0.125); log(5 / 0.25) / 0.25 = 11.98; 1 / (0.5 * 0.125 * 0.25);
    # log(8 / 0.25) / 0.0625 = 55.5 and 2 / 0.0625.
    found = budgets(**OTHER)
    assert {name: steps(budget) for name, budget in found.items()} == {
        "SGD": [512], "SGD + LSR": [64], "TSLA": [12, 64], "SGD, PL": [56, 32]
    }  # fmt: skip
    assert found["TSLA"].stages[0].rate == 0.5
    assert found["SGD + LSR"].promise == pytest.approx(0.5)


def test_a_small_delta_takes_case_1_to_epsilon():
    found = budgets(**{**GIVEN, "delta": 0.05})["SGD + LSR"]
    assert steps(found) == [160]  # 4 * 10 / 0.25
    assert found.promise == pytest.approx(20 / 160 + 0.1)


POSITIVE = st.floats(1e-3, 1e3)


@given(POSITIVE, st.floats(1e-3, 1), POSITIVE, POSITIVE, POSITIVE, st.floats(1e-2, 0.99))
def test_each_budget_keeps_its_promise_with_whole_steps(smoothness, share, sigma2, delta, loss, epsilon):
    constants = Constants(smoothness, share * smoothness, sigma2, delta, loss, epsilon)
    for budget in theory.budgets(constants):
        known = budget.name != "SGD + LSR" or delta <= epsilon**2 / (4 * sigma2)
        assert budget.promise <= (epsilon**2 if known else 4 * delta * sigma2) * (1 + 1e-9)
        assert all(stage.steps >= 0 and 0 < stage.rate <= 1 / smoothness * (1 + 1e-9) for stage in budget.stages)


@given(POSITIVE, st.floats(1e-3, 1), POSITIVE, POSITIVE, POSITIVE, st.floats(1e-2, 0.99))
def test_tsla_has_a_budget_exactly_where_theorem_4_applies(smoothness, share, sigma2, delta, loss, epsilon):
    constants = Constants(smoothness, share * smoothness, sigma2, delta, loss, epsilon)
    applies = delta * sigma2 / constants.pl <= loss and epsilon**2 <= 2 * sigma2
    assert ("TSLA" in {budget.name for budget in theory.budgets(constants)}) == applies
    assert (theory.obstacle_to_theorem_4(constants) == "") == applies


def test_the_case_is_told_by_delta():
    least = 0.25 / 4
    cases = [theory.case_of(Constants(**{**GIVEN, "delta": delta})) for delta in (least, 1.01 * least, 0.99, 1)]
    assert ["case 1" in case for case in cases] == [True, False, False, False]
    assert ["not promised" in case for case in cases] == [False, True, True, True]
    assert ["better than TSLA's" in case for case in cases] == [False, False, False, True]


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.0])
def test_the_problem_of_the_check_has_the_constants_it_is_given(theta):
    # On a quadratic with additive noise the mean and the variance of each coordinate have a closed form.
    c = Constants(smoothness=2.0, pl=0.25, sigma2=3.0, delta=0.6, loss=5.0, epsilon=0.5)
    stage, d = Stage(60, 0.3, theta), theory.DIMENSIONS
    curvature = np.geomspace(0.25, 2, d)
    mean, variance = np.sqrt(2 * 5 / d / curvature), np.zeros(d)
    assert (curvature * mean**2 / 2).sum() == pytest.approx(5)  # F(w0)
    under_y, under_y_hat, bias = math.sqrt(3 / d), math.sqrt(0.6 * 3 / 2 / d), math.sqrt(0.6 * 3 / 2 / d)
    noise = (1 - theta) * under_y + theta * under_y_hat
    for squared in theory.gradients_of_last_stage(c, [stage]):
        expected = (curvature**2 * (mean**2 + variance)).sum()
        error = squared.std(ddof=1) / math.sqrt(len(squared))
        assert squared.mean() == pytest.approx(expected, abs=4.5 * error + 1e-9)
        mean = mean - 0.3 * (curvature * mean + theta * bias)
        variance = (1 - 0.3 * curvature) ** 2 * variance + 0.3**2 * noise**2


def found_by_command(folder, constants, *options):
    words = [f"--{name}={value}" for name, value in constants.items()]
    assert analyze.main(["theory", *words, f"--out={folder}", *options]) == 0
    return json.loads((folder / "theory.json").read_text())


@pytest.mark.parametrize("constants", [GIVEN, OTHER, {**GIVEN, "delta": 0.02}, {**GIVEN, "delta": 0.9, "pl": 0.5}])
def test_each_bound_lies_above_what_is_measured(constants, tmp_path, capsys):
    found = found_by_command(tmp_path, constants, "--check=true")
    assert [curve["name"] for curve in found["check"]] == ["SGD", "SGD + LSR", "TSLA", "SGD, PL"]
    for curve, budget in zip(found["check"], found["budgets"], strict=True):
        measured, error, bound = (np.array(curve[key]) for key in ("measured", "error", "bound"))
        assert (measured + 3 * error < bound).all()
        assert curve["steps"][0] == 1
        assert curve["steps"][-1] == budget["stages"][-1]["steps"]
        assert bound[-1] == budget["promise"]
    assert capsys.readouterr().out.count("measured") == 4
    assert (tmp_path / "theory.svg").exists()


def test_the_command_says_where_theorem_4_does_not_apply(tmp_path, capsys):
    found = found_by_command(tmp_path, {**GIVEN, "loss": 0.5})
    assert "TSLA" not in [budget["name"] for budget in found["budgets"]]
    assert "Theorem 4 does not apply: delta sigma2 / mu = 1 is above F(w0) = 0.5" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"theory.json", "theory.txt"}, "there is nothing to draw"


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"delta": 0}, "--delta=0: expected a number above 0"),
        ({"sigma2": "nan"}, "--sigma2=nan: expected a number above 0"),
        ({"epsilon": 1}, "--epsilon=1: expected a number below 1"),
        ({"pl": 2}, "--pl=2 is above --smoothness=1"),
        ({"epsilon": 1e-200}, "the constants are too far apart"),
        ({"smoothness": 1e300, "sigma2": 1e300}, "the constants are too far apart"),
        ({"epsilon": 0.01, "check": "true"}, "--check=true: SGD takes 8,000,000,000 steps"),
    ],
)
def test_constants_that_no_problem_has_are_an_error_in_one_line(changed, complaint, tmp_path, capsys):
    words = [f"--{name}={value}" for name, value in {**GIVEN, **changed}.items()]
    with pytest.raises(SystemExit) as exited:
        analyze.main(["theory", *words, f"--out={tmp_path}"])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
