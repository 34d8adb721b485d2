"""Sweep files as values: W&B's order, distributions and commands, and what is an error."""

import math
from collections import Counter
from datetime import date

import pytest
import yaml

from fastlsr.errors import InputError
from fastlsr.sweep.file import read_sweep


@pytest.fixture
def sweep(tmp_path):
    """parameters, further top-level keys -> the sweep in a file of these."""

    def make(parameters, **keys):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"method": "grid", "parameters": parameters} | keys, sort_keys=False))
        return read_sweep(path)

    return make


def only(sweep, parameter):
    """The quantile function of a sweep's single parameter."""
    return sweep({"x": parameter}, method="random").parameters[0].distribution.quantile


def test_a_grid_is_the_product_by_name_whose_last_parameter_varies_fastest(sweep):
    """W&B's `HyperParameterSet.from_config` sorts by name before `itertools.product`; the file's order is not kept."""
    trials = sweep({"b": {"values": [2, 1]}, "c": {"value": "k"}, "a": {"values": ["x", "y"]}}).combinations()
    assert trials == [
        {"a": "x", "b": 2, "c": "k"}, {"a": "x", "b": 1, "c": "k"},
        {"a": "y", "b": 2, "c": "k"}, {"a": "y", "b": 1, "c": "k"},
    ]  # fmt: skip
    assert all(list(trial) == ["a", "b", "c"] for trial in trials)


def test_a_grid_takes_whole_numbers_and_quantized_ranges_as_w_and_b_does(sweep):
    trials = sweep({"x": {"min": 1, "max": 3}}).combinations()
    assert [trial["x"] for trial in trials] == [1, 2, 3]
    trials = sweep({"x": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25}}).combinations()
    assert [trial["x"] for trial in trials] == [0, 0.25, 0.5, 0.75]


def test_a_value_named_twice_is_one_trial(sweep):
    assert len(sweep({"x": {"values": [1, 2, 1]}}).combinations()) == 2


def test_run_cap_and_count_both_limit(sweep):
    values = {"x": {"values": list(range(9))}}
    assert [len(sweep(values, run_cap=cap).combinations(count)) for cap, count in ((4, None), (4, 6), (6, 4))] == [
        4,
        4,
        4,
    ]
    assert len(sweep(values).combinations(3)) == 3


def test_a_draw_depends_on_parameter_and_trial_alone(sweep):
    def drawn(names, count):
        parameters = {name: {"min": 0.0, "max": 1.0} for name in names}
        return sweep(parameters, method="random").combinations(count)

    long = drawn("ab", 6)
    assert drawn("ab", 3) == long[:3]
    assert [trial["a"] for trial in drawn("a", 6)] == [trial["a"] for trial in long]
    assert len({value for trial in long for value in trial.values()}) == 12


# Each distribution at quantiles whose value follows from its definition.
@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        ({"value": 7}, {0: 7, 0.9: 7}),
        ({"values": ["p", "q", "r"]}, {0: "p", 0.34: "q", 0.99: "r"}),
        ({"values": ["p", "q"], "probabilities": [0.9, 0.1]}, {0.89: "p", 0.91: "q"}),
        ({"min": 2, "max": 4}, {0: 2, 0.34: 3, 0.99: 4}),
        ({"min": 2, "max": 4.0}, {0: 2, 0.25: 2.5}),
        ({"distribution": "q_uniform", "min": 0, "max": 10, "q": 5}, {0.1: 0, 0.5: 5, 0.9: 10}),
        ({"distribution": "log_uniform", "min": 0, "max": 2}, {0.5: math.e}),
        ({"distribution": "log_uniform_values", "min": 0.01, "max": 1}, {0: 0.01, 0.5: 0.1}),
        ({"distribution": "q_log_uniform", "min": 0, "max": math.log(100), "q": 3}, {0.5: 9}),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 3}, {0.5: 9}),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 2}, {0: math.exp(-2), 0.5: 1 / math.e}),
        ({"distribution": "inv_log_uniform_values", "min": 0.01, "max": 1}, {0: 0.01, 0.5: 0.1}),
        ({"distribution": "normal", "mu": 3, "sigma": 2}, {0.5: 3, 0.8413447: 5}),
        ({"distribution": "q_normal", "mu": 3, "sigma": 2, "q": 2}, {0.8413447: 4}),
        ({"distribution": "log_normal", "mu": 1}, {0.5: math.e, 0.8413447: math.exp(2)}),
        ({"distribution": "q_log_normal", "mu": 1, "q": 1}, {0.5: 3}),
        ({"distribution": "beta", "a": 1, "b": 2}, {0.75: 0.5}),
        ({"distribution": "q_beta", "a": 1, "b": 2, "q": 0.2}, {0.75: 0.4}),
    ],
    ids=lambda value: str(value) if "distribution" in value else None,
)
def test_a_distribution_has_its_quantiles(sweep, parameter, values):
    quantile = only(sweep, parameter)
    found = {u: quantile(u) for u in values}
    assert found == {
        u: value if isinstance(value, str) else pytest.approx(value, rel=1e-5) for u, value in values.items()
    }


def test_a_quantum_that_is_whole_gives_whole_numbers(sweep):
    """An option such as method.stages does not take 8.0."""
    drawn = only(sweep, {"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 4})(0.5)
    assert type(drawn) is int


def test_draws_are_spread_evenly(sweep):
    trials = sweep({"x": {"min": 0.0, "max": 8.0}}, method="random").combinations(2000)
    counts = Counter(int(trial["x"]) for trial in trials)
    assert sum((counts[bin] - 250) ** 2 / 250 for bin in range(8)) < 24.3  # 7 degrees of freedom: the 99.9th percentile


def test_each_macro_is_what_w_and_b_s_own_agent_makes_of_it(sweep, monkeypatch):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {"a.flag": True, "b.flag": False, "c.rate": 1e-5, "d.name": "x y", "e.none": None, "f.count": 3}
    theirs = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    theirs.pop("args_dict")  # replaces no word of a command
    assert len(theirs) == 7
    for macro, words in theirs.items():
        assert sweep({"a": {"value": 1}}, command=["${" + macro + "}"]).command_of(values) == words
    monkeypatch.setenv("GPUS", "4")
    command = ["${env}", "${interpreter}", "-n${envvar:GPUS}", "${envvar:NOT_SET}", "${program}", 5, "${args}"]
    made = sweep({"a": {"value": 1}}, command=command, program="p.py").command_of({"a": 1})
    assert made == ["/usr/bin/env", "python", "-n4", "NOT_SET", "p.py", "5", "--a=1"]
    assert utils.create_sweep_command(list(command))[2:4] == ["-n4", "NOT_SET"]


def test_without_a_command_it_is_w_and_b_s(sweep):
    made = sweep({"a": {"value": 1}}, program="p.py").command_of({"a": 1})
    assert made == ["/usr/bin/env", "python", "p.py", "--a=1"]


def test_the_goal_is_to_minimize_unless_the_file_says_otherwise(sweep):
    values = {"a": {"value": 1}}
    assert not sweep(values, metric={"name": "test/nll"}).maximize
    assert sweep(values, metric={"name": "test/top1", "goal": "maximize"}).maximize
    assert (sweep(values).metric, sweep(values).maximize) == ("test/top1", True)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"method": "bayes"}, "`wandb sweep` and `wandb agent`"),
        ({"method": "hyperopt"}, "neither grid nor random"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3}}, "early_terminate is done by W&B's server"),
        ({"paramters": {}}, "did you mean parameters?"),
        ({"command": "python x.py"}, "list of words"),
        ({"run_cap": 0}, "run_cap"),
        ({"metric": {"name": "test/top1", "goal": "max"}}, "minimize nor maximize"),
        ({"metric": {"name": "test/top1", "target": 99}}, "target"),
        ({"parameters": {"x": 3}}, "expected `value:`"),
        ({"parameters": {"x": {"value": 3, "values": [1]}}}, "constant takes value"),
        ({"parameters": {"x": {"parameters": {"y": {"value": 1}}}}}, "flat, x.key"),
        ({"parameters": {"x": {"distribution": "normale"}}}, "did you mean normal?"),
        ({"parameters": {"x": {"min": 0.1, "max": 1.0}}}, "a grid takes"),
        ({"parameters": {"x": {"values": []}}}, "expected a list"),
        ({"parameters": {"x": {"min": 1}}}, "uniform takes min, max"),
        ({"parameters": {"x": {"min": 3, "max": 1}}}, "above max"),
        ({"parameters": {"x": {"min": "1e-4", "max": 1.0}}}, "write 1.0e-4"),
        ({"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}}, "not above 0"),
        ({"parameters": {"x": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}}}, "not above 0"),
        ({"parameters": {"x": {"values": [1, 2], "probabilities": [0.5, 0.6]}}}, "sum is 1.1"),
        ({"parameters": {"x": {"values": [1, 2], "probabilities": ["a", 0.5]}}}, "expected one for each"),
        ({"parameters": {"x": {"values": [1, 2], "probabilities": [1.5, -0.5]}}}, "expected one for each"),
        ({"parameters": {}}, "parameters: expected at least one"),
        ({"parameters": None}, "a sweep has"),
        ({"parameters": {"x": {"distribution": ["normal"]}}}, "is none of W&B's"),
        ({"parameters": {"x": {"min": 0.0, "max": math.inf}}}, "max: inf is no number"),
        ({"parameters": {"x": {"min": 0, "max": 2**60}}}, "more than 9007199254740992 whole numbers"),
        ({"parameters": {"x": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-9}}}, "1,000,000 steps"),
        ({"parameters": {"x": {"distribution": "normal", "sigma": -1}}}, "not negative"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_run_here_is_an_error_of_a_line_that_names_the_file(sweep, tmp_path, keys, line):
    with pytest.raises(InputError, match="(?s).*") as error:
        sweep(**{"parameters": {"x": {"value": 1}}} | keys)
    assert line in str(error.value) and str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_a_grid_too_large_to_be_meant_is_an_error_and_a_random_search_draws_from_it(sweep):
    seeds = {"train.seed": {"min": 0, "max": 2**31 - 1}}
    with pytest.raises(InputError, match="2,147,483,648 trials, more than 100,000"):
        sweep(seeds).combinations(3)
    drawn = [values["train.seed"] for values in sweep(seeds, method="random").combinations(3)]
    assert all(0 <= seed < 2**31 for seed in drawn) and max(drawn) > 2**20


def test_a_draw_too_large_for_a_number_is_an_error(sweep):
    """As where the bounds of `log_uniform` are meant as values: they are logarithms."""
    parameters = {"x": {"distribution": "log_uniform", "min": 1, "max": 10_000}}
    with pytest.raises(InputError, match="parameters: x: draw . is too large"):
        sweep(parameters, method="random").combinations(5)


def test_a_date_among_the_values_is_its_text(sweep):
    """As of `run.name: {value: 2026-11-21}`, which YAML reads as a date."""
    made = sweep({"x": {"value": date(2026, 11, 21)}}, command=["${args}", "${args_json}"])
    assert made.command_of(made.combinations()[0]) == ["--x=2026-11-21", '{"x": "2026-11-21"}']


def test_a_random_search_without_an_end_is_an_error(sweep):
    with pytest.raises(InputError, match="--count"):
        sweep({"x": {"min": 0.0, "max": 1.0}}, method="random").combinations()


@pytest.mark.parametrize("macro", ["${program}", "${arg}"])
def test_a_macro_that_stands_for_nothing_is_an_error(sweep, macro):
    with pytest.raises(InputError, match="command:"):
        sweep({"x": {"value": 1}}, command=["python", macro]).command_of({"x": 1})


@pytest.mark.parametrize("text", [None, "a: [", "[1, 2]", ""])
def test_a_file_that_is_no_sweep_is_an_error(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="sweep.yaml"):
        read_sweep(path)
