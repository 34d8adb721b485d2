"""A run that is evaluated on a validation split each epoch: the test split judges it once, at its end."""

import json
import shutil

import pytest
import torch

from fastlsr import evaluate, train
from fastlsr.config import load
from fastlsr.data.manifest import read_manifest
from fastlsr.data.prepare.sources import SOURCES, read_dataset, subset
from fastlsr.data.prepare.writing import write_beton
from fastlsr.engine import checkpoint
from fastlsr.engine.trained import open_run
from fastlsr.inference import exporting
from fastlsr.logits import read_logits
from fastlsr.metrics import METRICS
from fastlsr.report import __main__ as report
from fastlsr.runs import RunFolder, evaluated_split


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """three_train, three_val and three_test: 300, 200 and 100 of the digits."""
    folder = tmp_path_factory.mktemp("three")
    digits = read_dataset("digits", None, folder)
    splits = {"train": ("train", 300, 0), "val": ("test", 200, 1), "test": ("train", 100, 2)}
    for name, (of, size, seed) in splits.items():
        path, encoding = folder / f"three_{name}.beton", SOURCES["digits"].encoding
        samples = subset(digits.splits[of], size, seed)
        write_beton(samples, path, dataset="three", split=name, classes=digits.classes, encoding=encoding)
    return folder


@pytest.fixture(scope="module")
def words(data):
    def words(folder, **options):
        base = {
            "data.dataset": "three", "data.dir": data, "data.batch_size": 100, "model.name": "resnet8",
            "optim.lr": 0.05, "train.epochs": 3, "train.device": "cpu", "train.precision": "fp32",
            "train.compile": "off", "log.wandb": "disabled", "run.dir": folder.parent, "run.name": folder.name,
        }  # fmt: skip
        return [f"--{k}={v}" for k, v in (base | {k.replace("__", "."): v for k, v in options.items()}).items()]

    return words


@pytest.fixture(scope="module")
def run(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "on_val"
    assert train.main(words(folder, data__val="val")) == 0
    return RunFolder(folder)


@pytest.fixture(scope="module")
def on_file(words, data, tmp_path_factory):
    """The same run, the same images named as a file."""
    folder = tmp_path_factory.mktemp("runs") / "on_file"
    assert train.main(words(folder, data__val=data / "three_val.beton")) == 0
    return RunFolder(folder)


def columns(row, split):
    return {key.partition("/")[2] for key in row if key.startswith(f"{split}/")}


def test_every_row_is_of_the_validation_split_and_the_last_one_of_the_test_split_too(run):
    rows = run.read_rows()
    assert all(columns(row, "val") == {"loss", *METRICS} and evaluated_split(row) == "val" for row in rows)
    assert [columns(row, "test") for row in rows] == [set(), set(), {"loss", *METRICS}]
    summary = run.read_summary()
    assert summary["last"] == rows[-1] and summary["best"] == max(rows, key=lambda row: row["val/top1"])


def test_what_judges_an_epoch_changes_nothing_of_its_training(run, on_file):
    for own, other in zip(run.read_rows(), on_file.read_rows(), strict=True):
        assert all(own[key] == other[key] for key in ("train/loss", "train/top1", "lr"))
        assert all(own[f"val/{name}"] == other[f"test/{name}"] for name in ("loss", *METRICS))
    weights = [checkpoint.load_newest(each.path)[0]["model"] for each in (run, on_file)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluate_gives_the_figures_of_either_split_and_names_it(run, capsys):
    last = run.read_rows()[-1]
    for words, split in (([], "val"), (["--data.val=test"], "test")):
        capsys.readouterr()
        assert evaluate.main([str(run.path), *words]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert {key: figures[key] for key in figures if "/" in key} == {
            f"{split}/{name}": last[f"{split}/{name}"] for name in ("loss", *METRICS)
        }


def test_evaluate_takes_a_run_and_its_places_as_teach_does(run, data, tmp_path, capsys):
    (tmp_path / "places.yaml").write_text(f"data: {{dir: {shutil.copytree(data, tmp_path / 'moved')}}}")
    capsys.readouterr()
    assert evaluate.main(["--checkpoint", str(run.path), "--cfg", str(tmp_path / "places.yaml")]) == 0
    assert json.loads(capsys.readouterr().out)["val/top1"] == run.read_rows()[-1]["val/top1"]
    for words in ([str(run.path), f"--checkpoint={run.path}"], ["--data.val=test"], [str(run.path), "--optim.lr=1"]):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main(words)
        assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_logits_are_kept_of_both_splits_and_know_which_they_are(run, data):
    digests = {name: read_manifest(data / f"three_{name}.beton").digest for name in ("val", "test")}
    assert read_logits(run.logits("last")).data == digests["val"]
    at_end = read_logits(run.logits("last", at_end=True))
    assert (at_end.data, len(at_end.labels), at_end.epoch) == (digests["test"], 100, 3)
    accuracy = 100 * (at_end.logits.argmax(1) == at_end.labels).mean()
    assert accuracy == pytest.approx(run.read_rows()[-1]["test/top1"], rel=1e-6)


def test_the_best_epoch_is_tested_at_the_end_with_the_weights_that_were_kept_of_it(words, data, tmp_path, capsys):
    """Also where patience ends the run: then the last epoch is not known to be it before it was evaluated."""
    folder = RunFolder(tmp_path / "kept")
    options = {"train__best_by": "ece", "train__patience": 1, "run__keep_best": "true", "train__epochs": 9}
    assert train.main(words(folder.path, data__val="val", optim__lr=0.2, **options)) == 0
    rows, summary = folder.read_rows(), folder.read_summary()
    assert len(rows) < 9 and summary["best"]["epoch"] == len(rows) - 1
    assert [row["epoch"] for row in rows if columns(row, "test")] == [len(rows) - 1, len(rows)]
    assert rows[-2:] == [summary["best"], summary["last"]]
    figures = evaluate.evaluate_run(folder.best_checkpoint, {"data.val": "test"})
    assert {f"test/{name}": figures[f"test/{name}"] for name in METRICS}.items() <= summary["best"].items()
    kept = read_logits(folder.logits("best", at_end=True))
    assert (kept.epoch, kept.data) == (len(rows) - 1, read_manifest(data / "three_test.beton").digest)
    assert checkpoint.load_newest(folder.path)[0]["rows"] == rows
    exported = exporting.description(open_run(folder.best_checkpoint), open_run(folder.best_checkpoint).state["model"])
    assert exported["epoch"] == len(rows) - 1
    folder.best_checkpoint.unlink()
    (folder.path / "checkpoint.pt").unlink()  # the last epoch is trained again, without the weights of the best one
    capsys.readouterr()
    assert train.main(words(folder.path, data__val="val", optim__lr=0.2, **options)) == 0
    assert "which is not evaluated on the test split" in capsys.readouterr().out
    assert not columns(folder.read_summary()["best"], "test") and columns(folder.read_rows()[-1], "test")


def test_a_report_shows_the_best_epoch_s_test_figures(words, tmp_path, capsys):
    folder = RunFolder(tmp_path / "kept")
    options = {"train__best_by": "ece", "run__keep_best": "true"}
    assert train.main(words(folder.path, data__val="val", optim__lr=0.2, **options)) == 0
    summary = folder.read_summary()
    capsys.readouterr()
    assert report.main([str(folder.path), "--out", str(tmp_path / "report")]) == 0
    assert f"{summary['best']['test/top1']:.2f}" in capsys.readouterr().out


def test_with_folds_the_held_out_part_is_the_validation_split(words, data, tmp_path, capsys):
    assert train.main(words(tmp_path / "fold", data__val="val", data__folds=3, data__fold=1, train__epochs=1)) == 0
    (row,) = RunFolder(tmp_path / "fold").read_rows()
    for split, words_ in (("val", []), ("test", ["--data.val=test"])):
        capsys.readouterr()
        assert evaluate.main([str(tmp_path / "fold"), *words_]) == 0
        assert json.loads(capsys.readouterr().out)[f"{split}/nll"] == row[f"{split}/nll"]
    assert len(read_logits(RunFolder(tmp_path / "fold").logits("last")).labels) == 100
    digests = RunFolder(tmp_path / "fold").read_environment()["data"]
    assert digests == [read_manifest(data / f"three_{name}.beton").digest for name in ("train", "train", "test")]


def test_a_finished_run_is_shown_without_its_data_and_no_other_is(run, words, tmp_path, capsys):
    gone = {"data__val": "val", "data__dir": tmp_path}
    assert train.main(words(run.path, **gone)) == 0
    shown = capsys.readouterr().out
    assert "three_train.beton does not exist" in shown and f"{run.read_rows()[-1]['test/top1']:.4g}" in shown
    for options in ({"train__seed": 1}, {"run__resume": "never"}):
        with pytest.raises(SystemExit) as stopped:
            train.main(words(run.path, **gone, **options))
        assert stopped.value.code == 2 and "does not exist" in capsys.readouterr().err


def test_a_run_whose_data_are_gone_names_data_dir(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(run.path), f"--data.dir={tmp_path}"])
    assert stopped.value.code == 2 and "--data.dir=FOLDER" in capsys.readouterr().err


def test_the_test_split_must_be_there_before_the_first_epoch(words, data, tmp_path, capsys):
    for path in data.glob("three_*"):
        if "_test" not in path.name:
            shutil.copy(path, tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train.main(words(tmp_path / "run", data__val="val", data__dir=tmp_path))
    assert stopped.value.code == 2 and "three_test.beton does not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_naming_the_default_leaves_a_run_s_name():
    assert load(overrides={"data.val": "test"}).run_name() == load().run_name()
    assert load(overrides={"data.val": "val"}).run_name() != load().run_name()
