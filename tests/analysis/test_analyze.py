"""Where the command writes what an analysis finds."""

import json
import shutil

import pytest

from fastlsr import analyze, train
from fastlsr.config import load


@pytest.fixture(scope="module")
def run(train_digits, tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("runs") / "a", {"run.keep": 1})


def test_checkpoints_of_one_run_are_analysed_into_its_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = sorted(map(str, (run / "checkpoints").iterdir()))
    assert analyze.main(["variance", "--parameters", "head", *kept, "--samples=20"]) == 0
    assert (run / "analysis" / "variance.json").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_stands_for_the_runs_in_it(six_runs, tmp_path, capsys):
    folder = next(iter(six_runs.values())).parent
    runs = tmp_path / "runs"
    shutil.copytree(folder, runs, ignore=shutil.ignore_patterns("analysis", "checkpoints", "tsla-*"))
    (runs / "sweeps").mkdir()
    (runs / "begun").mkdir()
    (runs / "begun" / "environment.json").touch()
    assert analyze.main(["selective", str(runs), f"--out={tmp_path}"]) == 0
    assert f"note: {runs / 'begun'} holds no checkpoint, and is left out" in capsys.readouterr().err
    found = json.loads((tmp_path / "selective.json").read_text())
    assert {name: len(each["runs"]) for name, each in found["settings"].items()} == {"hard": 2, "lsr": 2}
    assert (
        found["command"] == f"python -m fastlsr.analyze selective {runs} --out={tmp_path}"
        and "4 runs of digits" in found["about"]
    )


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_computed(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        with pytest.raises(SystemExit) as exited:
            analyze.main(["calibration", str(run), f"--out={tmp_path / out}"])
        said = capsys.readouterr()
        assert exited.value.code == 2 and "is no folder" in said.err and not said.out


def test_a_run_that_is_not_finished_is_noted(run, tmp_path, capsys):
    begun = shutil.copytree(run, tmp_path / "begun")
    shutil.copy(run / "checkpoints" / "epoch_0001.pt", begun / "checkpoint.pt")
    for folder, note in ((begun, "1 of 2 epochs"), (run, "")):
        assert analyze.main(["calibration", str(folder), f"--out={tmp_path / 'out'}"]) == 0
        assert note in (said := capsys.readouterr().err) and ("not finished" in said) == bool(note)


def test_what_is_of_no_run_is_written_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--smoothness=1 --pl=0.1 --sigma2=1 --delta=0.1 --loss=10 --epsilon=0.5".split()
    assert analyze.main(["theory", *words]) == 0
    assert (tmp_path / "analysis" / "theory.json").exists()


def test_a_run_that_logs_to_wandb_gets_its_analyses_there(run, tmp_path):
    wandb = pytest.importorskip("wandb")
    config = load(run / "config.yaml", {"log.wandb": "offline", "run.dir": str(tmp_path)})
    words = [f"--{key}={value}" for key, value in config.flat().items() if value != ""]
    assert train.main(words) == 0
    assert analyze.main(["calibration", str(tmp_path / "a")]) == 0
    wandb.teardown()  # its service has then written what it was given
    first, second = sorted(tmp_path.glob("a/wandb/offline-run-*/*.wandb"), key=lambda path: path.parent.name)
    assert first.name == second.name, "both are records of one run"
    assert b"analysis/calibration" in second.read_bytes() and b"analysis/calibration" not in first.read_bytes()
    assert wandb.run is None, "the record is closed"


def test_help_describes_every_kind_and_the_options_of_one(capsys):
    assert analyze.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [kind for kind in analyze.kinds() if f"  {kind} " not in shown] == []
    assert analyze.main(["variance", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--samples=1000" in shown and "samples: training samples that are drawn" in shown
