"""The plan of a sweep: which trials can run, in which folders, and which of them are finished."""

from dataclasses import replace

import pytest

from fastlsr.data.splits import data_digests
from fastlsr.errors import InputError
from fastlsr.sweep import __main__ as command
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.plan import by_module, finished_run, plan_text, plan_trials, trainer_config


def planned_of(path):
    return plan_trials(read_sweep(path), None)[0]


def error_of(words, capsys):
    """The one line on stderr of the sweep command, which ends with code 2."""
    with pytest.raises(SystemExit) as exit:
        command.main([str(word) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and len(lines) == 1
    return lines[0]


def test_a_metric_that_no_run_has_is_an_error_before_anything_starts(sweep_file, capsys):
    path = sweep_file({"optim.lr": {"value": 1}}, metric={"name": "best/test/acc", "goal": "maximize"})
    line = error_of([path, "--dry-run"], capsys)
    assert "trials.yaml: metric: best/test/acc is none of a run's; did you mean best/test/" in line


def test_one_typing_error_is_an_error_before_anything_starts(sweep_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = error_of([sweep_file({"method.smothing": {"values": [0.1, 0.2]}})], capsys)
    assert "did you mean method.smoothing?" in line and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "²"])
def test_jobs_are_a_number_of_at_least_one(sweep_file, capsys, jobs):
    line = error_of([sweep_file({"optim.lr": {"value": 1}}), f"--jobs={jobs}"], capsys)
    assert f"--jobs: {jobs}: expected a whole number of at least 1" in line


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path, capsys):
    assert error_of([tmp_path], capsys).endswith(f"{tmp_path}: Is a directory")


def test_a_trial_that_cannot_run_is_set_apart_and_the_others_stay(sweep_file):
    parameters = {"method.name": {"value": "colam"}, "method.stages": {"value": 2}, "train.epochs": {"value": 4}}
    for name, values, line in [
        ("method.smoothing", [0.1, 7, 0.3], "method.smoothing=7: expected a number from 0 to 1"),
        ("method.stages", [1, 3, 2], "method.stages=3 does not divide train.epochs=4; these do: 1, 2, 4"),
        ("data.dataset", ["a", "b/c", "d"], "data.dataset=b/c: expected a plain name"),
    ]:
        planned, rejected = plan_trials(read_sweep(sweep_file({**parameters, name: {"values": values}})), None)
        assert [trial.number for trial in planned] == [1, 3]
        assert [trial.number for trial in rejected] == [2] and rejected[0].line.startswith(line)


def test_trials_that_scaling_makes_alike_are_named(sweep_file):
    words = ["--train.epochs=200", "--train.scale_to=5"]
    sweep = read_sweep(
        sweep_file({"method.name": {"value": "tsla"}, "method.drop_epoch": {"values": [150, 160, 199]}}, words)
    )
    planned, rejected = plan_trials(sweep, None)
    assert [(trial.number, trial.same) for trial in planned] == [(1, [2]), (3, [])] and not rejected
    assert "the same run as trial 1, with all that its method uses: trial 2" in plan_text(planned, rejected)


def test_trials_that_are_one_run_are_run_once(sweep_file):
    planned = planned_of(sweep_file({"optim.lr": {"values": [1, 1.0, 2]}}))
    assert [trial.number for trial in planned] == [1, 3]


@pytest.mark.parametrize("name", ["run.name", "data.dir"])
def test_names_alone_make_no_trial(sweep_file, name):
    """The same run twice is no repeat, and a folder of other data would be planned as the same run."""
    with pytest.raises(InputError, match=f"trials 1 and 2 differ in {name} alone"):
        planned_of(sweep_file({name: {"values": ["a", "b"]}}))


def test_different_options_in_one_folder_are_an_error(sweep_file):
    with pytest.raises(InputError, match="trials 1 and 2 differ in optim.lr and share"):
        planned_of(sweep_file({"optim.lr": {"values": [1, 2]}}, words=["--run.name=mine"]))


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("/usr/bin/env fastlsr train --a.b=1", "/usr/bin/env python -m fastlsr.train --a.b=1"),
        ("/venv/bin/fastlsr train", "python -m fastlsr.train"),
        ("python -u -m fastlsr train --a.b=1", "python -u -m fastlsr.train --a.b=1"),
        ("python -m fastlsr.train --data.dir train", "python -m fastlsr.train --data.dir train"),
        ("python train.py fastlsr", "python train.py fastlsr"),
    ],
)
def test_the_console_script_in_a_command_is_the_trainer_by_module(typed, run):
    assert by_module(typed.split()) == run.split()


def test_a_command_without_the_trainer_is_an_error(sweep_file):
    sweep = read_sweep(sweep_file({"optim.lr": {"value": 1}}))
    with pytest.raises(InputError, match="does not start fastlsr.train"):
        plan_trials(replace(sweep, command=("python", "other.py", "${args}")), None)
    assert trainer_config(["torchrun", "-m", "fastlsr.train", "--optim.lr=2"]).optim.lr == 2
    assert trainer_config(["python", "fastlsr/train.py", "--optim.lr", "3"]).optim.lr == 3


@pytest.fixture
def finished_trial(sweep_file, digits_dir, tmp_path):
    """A planned trial whose folder holds a finished run of it, with a teacher of these bytes."""
    (tmp_path / "teacher").write_bytes(b"teacher")
    words = [f"--data.dir={digits_dir}", "--data.dataset=digits", f"--run.dir={tmp_path / 'runs'}"]
    (trial,) = planned_of(sweep_file({"method.teacher": {"value": str(tmp_path / "teacher")}}, words=words))
    trial.folder.path.mkdir(parents=True)
    trial.folder.write_config(trial.config)
    trial.folder.write_environment({"data": data_digests(trial.config), "teacher": None})
    trial.folder.write_summary([{"test/top1": 50.0}], finished=True)
    return trial


def test_a_finished_run_of_the_same_options_data_and_teacher_is_found(finished_trial):
    summary, reason = finished_run(finished_trial)
    assert summary["last"] == {"test/top1": 50.0} and reason == ""
    assert plan_text([finished_trial], []).endswith("(finished)")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder, config: folder.write_summary([{"test/top1": 50.0}], finished=False), ""),
        (lambda folder, config: (folder.path / "summary.json").unlink(), ""),
        (
            lambda folder, config: folder.write_config(replace(config, optim=replace(config.optim, lr=7.0))),
            "holds a run with other values of optim.lr",
        ),
        (lambda folder, config: folder.write_environment({"data": ["0", "1"]}), "other data of the same name"),
        (lambda folder, config: folder.write_environment({}), "other data of the same name"),
        (
            lambda folder, config: folder.write_environment(folder.read_environment() | {"teacher": "0" * 64}),
            "another teacher",
        ),
        *(
            (lambda folder, config, name=name: (folder.path / name).write_text("{"), f"{name} is damaged")
            for name in ("summary.json", "environment.json")
        ),
        (lambda folder, config: (folder.path / "summary.json").write_text("{}"), "summary.json is damaged"),
        (lambda folder, config: (folder.path / "config.yaml").write_text("{"), "config.yaml is not YAML"),
        (lambda folder, config: (folder.path / "environment.json").unlink(), "environment.json cannot be read"),
    ],
    ids="unfinished no-summary other-options other-data no-data other-teacher cut-summary cut-environment "
    "empty-summary cut-config no-environment".split(),
)
def test_any_other_run_is_not_that_of_the_trial_and_the_reason_is_a_line(finished_trial, change, reason):
    change(finished_trial.folder, finished_trial.config)
    summary, given = finished_run(finished_trial)
    assert summary is None and "\n" not in given
    assert reason in given if reason else given == ""
    assert plan_text([finished_trial], []).endswith("(there, not known to be finished)")
