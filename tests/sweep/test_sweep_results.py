"""The table of a sweep, and the setting that it selects."""

import subprocess
import sys

import pytest

from fastlsr.errors import InputError
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.plan import plan_trials, trainer_config
from fastlsr.sweep.results import (
    check_metric,
    check_metric_is_evaluated,
    command_without_folds,
    outcomes_of,
    selection_text,
    sweep_table,
)

TOP1 = {"name": "test/top1", "goal": "maximize"}
NUMBERS = {1: [90.0, 91.0, 92.0], 2: [95.0, 95.0, 95.0], 3: [99.0, None, None]}


def planned_of(path):
    sweep = read_sweep(path)
    return sweep, plan_trials(sweep, None)[0]


@pytest.fixture
def results(sweep_file):
    """metric, numbers by temperature and fold -> (sweep, outcomes) as if these had been trained."""

    def make(metric, last, best=None):
        parameters = {"method.temperature": {"values": list(last)}, "method.name": {"value": "colam"},
                      "data.folds": {"value": 3}, "data.fold": {"values": [0, 1, 2]},
                      "model.name": {"value": "resnet8"}}  # fmt: skip
        sweep, planned = planned_of(sweep_file(parameters, metric=metric))
        summaries = {}
        for trial in planned:
            at, fold = trial.values["method.temperature"], trial.values["data.fold"]
            rows = {"last": last[at][fold], "best": (best or last)[at][fold]}
            if last[at][fold] is not None:
                summaries[trial.number] = {row: {"test/top1": number} for row, number in rows.items()}
        return sweep, outcomes_of(planned, summaries)

    return make


def rows_of(table):
    return list(zip(*(column._cells for column in table.columns), strict=True))


def test_the_table_has_mean_deviation_and_n_of_each_setting_best_first(results):
    table = sweep_table(*results(TOP1, NUMBERS, best={**NUMBERS, 1: [91.0, 92.0, 94.0]}))
    assert [column.header for column in table.columns] == ["method.temperature", "n", "last", "best"]
    assert rows_of(table) == [
        ("3", "1 of 3", "99.00", "99.00"),
        ("2", "3", "95.00 ± 0.00", "95.00 ± 0.00"),
        ("1", "3", "91.0 ± 1.0", "92.3 ± 1.5"),
    ]  # fmt: skip


def test_a_setting_without_numbers_is_the_last_row_whatever_the_goal(results):
    for goal in ("minimize", "maximize"):
        numbers = {1: [None] * 3, 2: [-5.0] * 3, 3: [float("nan")] * 3, 4: [5.0] * 3}
        rows = rows_of(sweep_table(*results({"name": "test/top1", "goal": goal}, numbers)))
        assert [row[0] for row in rows[2:]] == ["1", "3"] and rows[2][1] == "0 of 3" and rows[3][2:] == ("-", "-")


def test_a_file_of_options_that_varies_is_a_column(sweep_file, tmp_path):
    """`cfg` is no option of the configuration, and settings are still told apart by it."""
    for lr in (1, 2):
        (tmp_path / f"{lr}.yaml").write_text(f"optim: {{lr: {lr}}}")
    files = [str(tmp_path / "1.yaml"), str(tmp_path / "2.yaml")]
    sweep, planned = planned_of(sweep_file({"cfg": {"values": files}, "train.seed": {"values": [0, 1]}}))
    rows = rows_of(sweep_table(sweep, outcomes_of(planned, {})))
    assert [row[:2] for row in rows] == [(file, "0 of 2") for file in files]


def test_selection_takes_the_best_mean_of_complete_settings_and_prints_their_command(results):
    warning, line, command = selection_text(*results(TOP1, NUMBERS)).splitlines()
    assert warning == "warning: 1 settings lack trials or folds and were not considered"
    assert line == "selected: highest mean test/top1 (last) 95.00 ± 0.00, n = 3"
    assert command == "python -m fastlsr.train --method.name=colam --method.temperature=2 --model.name=resnet8"


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ({"name": "test/top1", "goal": "minimize"}, 1),
        ({"name": "best/test/top1", "goal": "maximize"}, 1),
        ({"name": "last/test/top1", "goal": "maximize"}, 2),
    ],
    ids=["lowest", "best epoch", "last epoch"],
)
def test_selection_follows_the_file_s_metric(results, metric, best):
    outcomes = results(metric, NUMBERS, best={**NUMBERS, 1: [96.0, 97.0, 98.0]})
    assert f"--method.temperature={best} " in selection_text(*outcomes)


def test_a_selection_without_folds_names_what_it_selects_on(sweep_file):
    sweep, planned = planned_of(sweep_file({"train.seed": {"values": [0, 1]}}))
    summaries = {number: {row: {"test/top1": 50.0} for row in ("last", "best")} for number in (1, 2)}
    assert "on the evaluation split itself" in selection_text(sweep, outcomes_of(planned, summaries))


def test_folds_set_in_the_command_do_not_reach_the_selected_command(sweep_file):
    words = ["--data.folds", "3", "--data.fold=1", "--train.seed=4"]
    sweep, planned = planned_of(sweep_file({"optim.lr": {"value": 1}}, words=words))
    config = trainer_config(command_without_folds(sweep, planned[0]))
    assert (config.data.folds, config.data.fold, config.train.seed, config.optim.lr) == (0, 0, 0, 1)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_nothing_complete_is_no_selection(results, missing):
    with pytest.raises(InputError, match="no setting has test/top1 of all its trials"):
        selection_text(*results(TOP1, {1: [90.0, missing, 92.0]}))


def test_a_sweep_over_some_of_the_folds_is_no_selection(sweep_file):
    sweep, planned = planned_of(sweep_file({"data.folds": {"value": 3}, "data.fold": {"values": [0, 1]}}))
    summaries = {number: {row: {"test/top1": 50.0} for row in ("last", "best")} for number in (1, 2)}
    with pytest.raises(InputError, match="no setting has test/top1 of all its trials and folds"):
        selection_text(sweep, outcomes_of(planned, summaries))


def test_a_new_metric_can_be_a_sweep_s(sweep_file):
    """It is a function of `fastlsr.metrics`, and named nowhere else; here another process has it."""
    path = sweep_file({"optim.lr": {"value": 1}}, metric={"name": "best/test/brier"})
    register = (
        "from fastlsr import metrics\n@metrics.metric('', 'a new one', best=min)\ndef brier(logits, labels): ...\n"
    )
    check = f"from fastlsr.sweep import __main__\nimport sys\nsys.exit(__main__.main([{str(path)!r}, '--dry-run']))"
    codes = [subprocess.run([sys.executable, "-c", code], capture_output=True).returncode
             for code in (register + check, check)]  # fmt: skip
    assert codes == [0, 2]


@pytest.mark.parametrize(
    ("metric", "maximize", "near"),
    [
        ("test/acc", True, "test/top1"), ("accuracy", True, "test/top1"), ("val_acc", True, "val/top1"),
        ("valid/accuracy", True, "val/top1"), ("best/test/top_5", True, "best/test/top5"),
        ("tset/top1", True, "test/top1"), ("val_loss", False, "val/loss"), ("test/nl", False, "test/nll"),
        # better would be the other direction, or nothing is near
        ("test/acc", False, ""), ("test/lose", True, ""), ("test/error", True, ""), ("test/error", False, ""),
    ],
)  # fmt: skip
def test_a_hint_names_a_column_only_if_it_is_near_and_better_in_the_same_direction(sweep_file, metric, maximize, near):
    goal = "maximize" if maximize else "minimize"
    sweep = read_sweep(sweep_file({"train.seed": {"values": [0]}}, metric={"name": metric, "goal": goal}))
    with pytest.raises(InputError) as error:
        check_metric(sweep)
    assert (f"did you mean {near}?" in str(error.value)) if near else ("did you mean" not in str(error.value))


def test_a_metric_of_the_validation_split_needs_one_in_every_trial(sweep_file):
    top1 = {"name": "val/top1", "goal": "maximize"}
    for values, holds in ((["val"], True), (["val", "test"], False)):
        sweep, planned = planned_of(sweep_file({"data.val": {"values": values}}, metric=top1))
        if holds:
            check_metric_is_evaluated(sweep, planned)
        else:
            with pytest.raises(InputError, match="data.val=val"):
                check_metric_is_evaluated(sweep, planned)


def test_a_selection_on_val_shows_the_test_split_and_one_on_test_is_warned_of(sweep_file):
    parameters = {"data.val": {"value": "val"}, "method.smoothing": {"values": [0.1, 0.2]},
                  "method.name": {"value": "lsr"}}  # fmt: skip
    row = {"val/top1": 90.0, "test/top1": 80.0}
    for name, words in (("val/top1", "test/top1 (last), which was not selected on: 80"), ("test/top1", "warning")):
        sweep, planned = planned_of(sweep_file(parameters, metric={"name": name, "goal": "maximize"}))
        outcomes = outcomes_of(planned, {trial.number: {"last": row, "best": row} for trial in planned})
        assert words in selection_text(sweep, outcomes) and ("warning" in selection_text(sweep, outcomes)) == (
            name == "test/top1"
        )
        assert all(
            cells[-1] == ("-" if name == "test/top1" else "90.00") for cells in rows_of(sweep_table(sweep, outcomes))
        )
