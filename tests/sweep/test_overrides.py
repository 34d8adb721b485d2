"""Options on a sweep's command line: every trial has them, whatever the file has, unless the file varies them."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.errors import InputError
from fastlsr.sweep import __main__ as command
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.overrides import override, split_overrides
from fastlsr.sweep.plan import plan_trials, trainer_config

PARAMETERS = {"method.name": {"values": ["hard", "lsr"]}, "optim.lr": {"value": 0.2}}


def planned(sweep, overrides):
    return plan_trials(override(sweep, overrides), None)[0]


@pytest.mark.parametrize("words", [["--train.epochs=9"], ["--train.epochs", "9"]])
@pytest.mark.parametrize("where", ["parameter", "word before", "word after", "two words", "nowhere"])
def test_every_trial_has_the_option_wherever_the_file_sets_it(sweep_file, words, where):
    parameters = PARAMETERS | ({"train.epochs": {"value": 3}} if where == "parameter" else {})
    fixed = {"word before": ["--train.epochs=3"], "two words": ["--train.epochs", "3"]}.get(where, [])
    keys = {}
    if where == "word after":
        keys = {"command": ["python", "-m", "fastlsr.train", "${args}", "--train.epochs=3", "--optim.lr=0.1"]}
    sweep = read_sweep(sweep_file(parameters, words=fixed, **keys))
    others, overrides = split_overrides(["FILE", *words, "--jobs", "2"])
    assert others == ["FILE", "--jobs", "2"]
    former, trials = planned(sweep, {}), planned(sweep, overrides)
    assert [each.config.train.epochs for each in trials] == [9, 9]
    assert [trainer_config(each.command) for each in trials] == [each.config for each in trials]
    assert [each.config.optim.lr for each in trials] == [each.config.optim.lr for each in former], "nothing else moves"
    assert {each.folder.path for each in trials}.isdisjoint(each.folder.path for each in former)


def test_a_dry_run_shows_the_option_in_the_trial_and_in_its_command(sweep_file, capsys):
    assert command.main([str(sweep_file(PARAMETERS)), "--dry-run", "--train.epochs=9", "--count=1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "trial 1: method.name=hard optim.lr=0.2 train.epochs=9"
    assert "--train.epochs=9" in shlex.split(shown[1])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--method.name=tsla"], "--method.name: the sweep varies method.name; change the file instead"),
        (["--train.epoch=9"], "unknown option train.epoch; did you mean train.epochs?"),
        (["--train.epochs=many"], "train.epochs=many: expected a whole number"),
        (["--train.epochs"], "--train.epochs needs a value"),
        (["--epochs=9"], "unrecognized arguments: --epochs=9"),
    ],
)
def test_an_option_that_cannot_be_is_one_line_and_nothing_starts(
    sweep_file, tmp_path, capsys, monkeypatch, words, line
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exited:
        command.main([str(sweep_file(PARAMETERS)), *words])
    said = capsys.readouterr()
    assert exited.value.code == 2 and line in said.err and said.err.count("\n") == 1 and not said.out
    assert not (tmp_path / "runs").exists()


def test_a_parameter_that_is_drawn_cannot_be_overridden(sweep_file):
    sweep = read_sweep(sweep_file({"optim.lr": {"min": 0.1, "max": 0.2}}, method="random", run_cap=2))
    with pytest.raises(InputError, match="varies optim.lr"):
        override(sweep, {"optim.lr": "1"})
    drawn = [each.values["optim.lr"] for each in planned(sweep, {})]
    assert [each.values["optim.lr"] for each in planned(sweep, {"train.epochs": "9"})] == drawn


@given(
    st.lists(st.sampled_from(["a.yaml", "--jobs", "2", "--count=3", "--select", "--dry-run"])),
    st.permutations([["--train.epochs=1"], ["--optim.lr", "0.5"], ["--data.dir", "some where"]]),
    st.data(),
)
def test_words_are_split_alike_wherever_the_options_stand(others, options, data):
    words = [[word] for word in others]
    for option in options:
        words.insert(data.draw(st.integers(0, len(words))), option)
    left, overrides = split_overrides([word for group in words for word in group])
    assert left == others and overrides == {"train.epochs": "1", "optim.lr": "0.5", "data.dir": "some where"}
