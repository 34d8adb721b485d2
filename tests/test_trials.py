"""Trials and settings: which runs repeat each other, what tells settings apart, and their statistics."""

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Config, differences, load
from fastlsr.errors import InputError
from fastlsr.labels.methods import METHODS, options_of
from fastlsr.plugins import Plugin
from fastlsr.runs import RunFolder
from fastlsr.trials import (
    REPEATS,
    Setting,
    Trial,
    grouped,
    mean_and_std,
    ordered,
    read_trial,
    run_labels,
    settings_of,
    varying,
)

OPTIONS = {
    "optim.lr": [0.1, 0.2],
    "method.name": ["hard", "colam"],
    "data.folds": [3, 4],
    "train.seed": [0, 1, 2],
    "data.fold": [0, 1],
    "data.workers": [1, 2],
    "run.name": ["one", "two"],
}
overrides = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in OPTIONS.items()})


def trial(numbers=None, folder="run", **options):
    """A trial with options such as train__seed, and a summary if there are numbers of "last"."""
    summary = numbers and {"name": "run", "finished": True, "last": numbers, "best": {"test/top1": 99.0}}
    config = load(overrides={name.replace("__", "."): str(value) for name, value in options.items()})
    return Trial(config, summary, RunFolder(folder))


@given(st.lists(overrides, max_size=8))
def test_trials_of_one_setting_differ_in_repeats_alone_and_those_of_two_in_more(chosen):
    trials = [Trial(load(overrides=each), None, RunFolder(str(at))) for at, each in enumerate(chosen)]
    settings = settings_of(trials)
    assert sorted(one.folder.path for setting in settings for one in (*setting.trials, *setting.copies)) == sorted(
        one.folder.path for one in trials
    )
    for setting in settings:
        repeats = [(one.config.train.seed, one.config.data.fold) for one in setting.trials]
        assert len(set(repeats)) == len(repeats)
        for one in setting.trials:
            assert set(differences(one.config, setting.trials[0].config)) <= set(REPEATS)
        for other in settings:
            between = set(differences(other.trials[0].config, setting.trials[0].config)) - set(REPEATS)
            assert bool(between) == (other is not setting) and between <= set(varying(settings))


def test_runs_on_different_data_are_different_settings():
    small, large = (
        replace(trial({"test/top1": top1}), data=(name,)) for name, top1 in (("small", 10.0), ("large", 70.0))
    )
    assert [setting.numbers("last", "test/top1") for setting in settings_of([small, large])] == [[10.0], [70.0]]


def test_the_same_run_in_two_folders_counts_once_by_the_one_that_is_finished():
    begun, finished, again = (trial(numbers, folder=str(at)) for at, numbers in
                              enumerate([None, {"test/top1": 50.0}, {"test/top1": 52.0}]))  # fmt: skip
    (setting,) = settings_of([begun, finished, again])
    assert setting.trials == (finished,) and setting.copies == (again, begun)
    assert setting.numbers("last", "test/top1") == [50.0]


def test_settings_and_their_trials_keep_their_order():
    trials = [trial(optim__lr=lr, train__seed=seed) for seed in (1, 0) for lr in (3, 1, 2)]
    settings = settings_of(trials)
    assert [[(one.config.optim.lr, one.config.train.seed) for one in setting.trials] for setting in settings] == [
        [(lr, 1), (lr, 0)] for lr in (3, 1, 2)
    ]


def test_what_varies_is_named_in_the_order_of_the_options_without_repeats_and_places():
    trials = [
        trial(train__epochs=2, optim__lr=1, train__seed=0, data__fold=0, data__workers=1, log__every=1),
        trial(train__epochs=3, optim__lr=2, train__seed=1, data__fold=1, data__workers=2, log__every=2),
    ]
    assert varying(settings_of(trials)) == ["optim.lr", "train.epochs"]
    assert varying(settings_of(trials[:1])) == varying([]) == []


@pytest.mark.parametrize(
    ("chosen", "labels"),
    [
        ([], []),
        ([{"method.name": "lsr", "method.smoothing": "0.4"}], ["lsr"]),
        ([{}, {"method.name": "tsla"}], ["hard", "tsla"]),
        (
            [{"method.name": "lsr", "method.smoothing": "0.2", "data.flip": "false"}, {"method.name": "lsr"}, {}],
            ["lsr flip=false smoothing=0.2", "lsr", "hard"],
        ),
        ([{"model.name": "resnet8"}, {"run.dir": "elsewhere"}], ["hard model=resnet8", "hard"]),
        (
            [{"train.seed": "3"}, {"method.name": "lsr", "train.seed": "3"}, {}],
            ["hard, seed 3", "lsr", "hard, seed 0"],
        ),
        (
            [{"data.folds": "2", "data.fold": fold, "train.seed": seed} for fold in "01" for seed in "01"],
            [f"hard, seed {seed}, fold {fold}" for fold in "01" for seed in "01"],
        ),
        ([{}, {"data.workers": "2"}], ["hard, seed 0", "hard, seed 0"]),
        (  # options that differ between data sets alone are not spelled out
            [
                {"data.dataset": "digits", "optim.lr": "7"},
                {"method.smoothing": "0.2", "method.name": "lsr"},
                {"method.name": "lsr", "method.smoothing": "0.3"},
            ],
            ["hard dataset=digits", "lsr dataset=cifar100 smoothing=0.2", "lsr dataset=cifar100 smoothing=0.3"],
        ),
    ],
)
def test_a_run_is_labelled_by_its_method_and_what_tells_it_from_the_others(chosen, labels):
    assert run_labels([load(overrides=each) for each in chosen]) == labels


def test_settings_of_a_method_stand_in_the_order_of_their_options():
    chosen = [("lsr", "0.4"), ("hard", "0.1"), ("lsr", "0.05"), ("lsr", "0.2"), ("lsr", "0.05")]
    configs = [load(overrides={"method.name": name, "method.smoothing": smoothing}) for name, smoothing in chosen]
    assert ordered(configs) == [2, 4, 3, 0, 1]


@given(st.lists(overrides, max_size=8))
def test_runs_with_equal_labels_are_equal_in_all_that_decides(chosen):
    configs = [load(overrides=each) for each in chosen]
    labels = run_labels(configs)
    for one, config in zip(labels, configs, strict=True):
        for other, another in zip(labels, configs, strict=True):
            assert (one == other) == (config.decisive() == another.decisive())


@pytest.mark.parametrize("method", METHODS)
def test_runs_that_differ_in_any_one_option_that_the_method_reads_have_labels_of_their_own(method):
    base = load(overrides={"method.name": method})
    changed = {"plugin": replace(base, plugins=(Plugin("mine.py", "0"),))}
    for key in base.flat().keys() & base.decisive().keys():
        part, name = key.split(".")
        changed[key] = replace(base, **{part: replace(getattr(base, part), **{name: "x"})})
    read = {"method.name", *(f"method.{name}" for name in options_of(method))}
    ignored = [key for key in changed if key.startswith("method.") and key not in read]
    labels = dict(zip(changed, run_labels(list(changed.values())), strict=True))
    assert len(set(labels.values())) == len(changed) - max(len(ignored) - 1, 0)
    assert len({labels[key] for key in ignored}) <= 1, "what the method ignores tells no settings apart"


def test_an_option_that_the_method_ignores_makes_no_setting_of_its_own():
    options = [{}, {"method.drop_epoch": 2, "train.seed": 1}, {"method.name": "tsla"}]
    trials = [Trial(load(overrides=each), None, RunFolder(Path(str(at)))) for at, each in enumerate(options)]
    assert [len(setting.trials) for setting in settings_of(trials)] == [2, 1]


def test_every_repeat_is_an_option_that_decides():
    assert set(REPEATS) <= set(Config().decisive())


def test_numbers_are_those_of_finished_trials_that_have_a_finite_one():
    summaries = [{"test/top1": 50.0}, None, {"test/top1": None}, {"test/top1": float("nan")}, {}, {"test/top1": 52}]
    (setting,) = settings_of([trial(each, train__seed=seed) for seed, each in enumerate(summaries)])
    assert setting.numbers("last", "test/top1") == [50.0, 52]
    assert setting.numbers("best", "test/top1") == [99.0] * 4  # not of the unfinished one, nor of the empty summary


@pytest.mark.parametrize(
    ("folds", "held_out", "complete"),
    [
        (0, [(0, 0), (1, 0)], True),
        (2, [(0, 0), (0, 1)], True),
        (2, [(0, 1), (1, 0), (1, 1), (0, 0)], True),
        (2, [(0, 0)], False),
        (2, [(0, 0), (1, 1)], False),
        (2, [(0, 0), (0, 1), (0, 1)], False),
    ],
)
def test_folds_are_complete_where_each_seed_holds_out_every_one_once(folds, held_out, complete):
    trials = [trial(train__seed=seed, data__fold=fold, data__folds=folds) for seed, fold in held_out]
    assert Setting(tuple(trials)).has_all_folds() is complete


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], "-"),
        ([98.05], "98.05"),
        ([1e-7], "1.000e-07"),
        ([90, 92], "91.0 ± 1.4"),
        ([97.74, 98.36], "98.05 ± 0.44"),
        ([0.353, 0.361], "0.3570 ± 0.0057"),
        ([100, 100, 100], "100.0 ± 0.0"),
        ([12345, 12355], "12350.0 ± 7.1"),
        ([0.5, -0.5], "0.00 ± 0.71"),
        ([0, 0], "0 ± 0"),
        ([1, 1 + 1e-12], "1.000000 ± 0.000000"),
    ],
)
def test_mean_and_deviation_share_the_decimals_that_the_deviation_carries(numbers, text):
    assert mean_and_std(numbers) == text


@pytest.mark.parametrize(("numbers", "text"), [([], "-"), ([98.051], "98.05"), ([90, 92], "91.00 ± 1.41")])
def test_the_decimals_of_a_column_can_be_given(numbers, text):
    assert mean_and_std(numbers, 2) == text


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=9))
def test_the_deviation_is_that_of_a_sample(numbers):
    mean, std = mean_and_std(numbers).split(" ± ")
    expected = (sum((x - statistics.mean(numbers)) ** 2 for x in numbers) / (len(numbers) - 1)) ** 0.5
    assert float(mean) == pytest.approx(statistics.mean(numbers), rel=1e-3, abs=0.06 * expected)
    assert float(std) == pytest.approx(expected, rel=0.06, abs=1e-4)


def test_a_trial_is_read_from_its_folder_and_has_its_summary_once_it_is_finished(tmp_path):
    folder, config = RunFolder(tmp_path), load(overrides={"optim.lr": "7"})
    folder.write_config(config)
    folder.write_environment({"data": ["a", "b"]})
    assert read_trial(folder) == Trial(config, None, folder, ("a", "b"))
    folder.write_summary([{"test/top1": 1.0}], finished=False)
    assert read_trial(folder).summary is None
    summary = folder.write_summary([{"test/top1": 1.0}], finished=True)
    assert read_trial(folder) == Trial(config, summary, folder, ("a", "b"))


def test_a_folder_that_holds_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path / "config.yaml")):
        read_trial(RunFolder(tmp_path))
    RunFolder(tmp_path).write_config(Config())
    RunFolder(tmp_path).write_environment({"data": []})
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(InputError, match=f"{tmp_path / 'summary.json'} is damaged"):
        read_trial(RunFolder(tmp_path))


def test_reading_runs_loads_no_torch():
    code = "import sys, json, fastlsr.trials, fastlsr.sweep.__main__; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "ffcv", "wandb"}.isdisjoint(json.loads(done.stdout))


def test_runs_are_grouped_by_setting_and_by_epoch_where_one_has_several():
    chosen = [("hard", 0, 9), ("lsr", 0, 9), ("hard", 1, 9), ("lsr", 0, 3)]
    configs = [load(overrides={"method.name": method, "train.seed": seed}) for method, seed, _ in chosen]
    expected = {"hard": [0, 2], "lsr, epoch 9": [1], "lsr, epoch 3": [3]}
    assert grouped(configs, [epoch for *_, epoch in chosen]) == expected


def test_grouped_runs_differ_in_seed_or_fold():
    folds = [load(overrides={"data.folds": 2, "data.fold": fold}) for fold in (0, 1)]
    assert grouped(folds, [9, 9]) == {"hard": [0, 1]}
    with pytest.raises(InputError, match="3 runs of hard have 2 seeds and folds"):
        grouped([*folds, folds[0]], [9, 9, 9])
