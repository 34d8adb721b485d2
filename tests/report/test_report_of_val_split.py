"""Runs that choose on a validation split: their tables are of the test split, their curves of the other."""

import pytest

from fastlsr.report.collect import collect
from fastlsr.report.figures import curve_figures
from fastlsr.report.tables import setting_tables
from fastlsr.runs import RunFolder

DATA = ("a1" * 32, "b2" * 32, "c3" * 32)


@pytest.fixture
def run(write_run, tmp_path):
    return write_run(tmp_path / "a", {"data.val": "val"}, data=DATA)


def test_the_figures_of_the_last_epoch_are_those_of_the_test_split(run):
    (found,) = collect([run]).settings
    last = RunFolder(run).read_rows()[-1]
    assert last["val/nll"] != pytest.approx(last["test/nll"])
    assert found.numbers("last", "nll") == [last["test/nll"]]
    assert found.numbers("last", "top1") == [pytest.approx(last["test/top1"])]
    assert found.numbers("last", "brier"), "what logits alone can give is there, too"


def test_a_best_epoch_whose_weights_are_gone_has_no_figures_even_where_it_was_the_last(write_run, tmp_path):
    options = {"data.val": "val"}
    runs = [write_run(tmp_path / f"{seed}", options | {"train.seed": seed}, data=DATA, top1=top1)
            for seed, top1 in enumerate(([1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 3.0, 2.0]))]  # fmt: skip
    (found,) = collect(runs).settings
    assert [run.trial.summary["best"]["epoch"] for run in found.runs] == [4, 2]
    assert found.numbers("last", "top1") and not found.numbers("best", "top1")


def test_nothing_is_set_aside_and_the_note_tells_where_the_best_epoch_was_chosen(run):
    collection = collect([run])
    assert collection.aside == ()
    accuracy, *_ = setting_tables(collection)
    assert any(
        "highest val top1; with data.val=val its figures are of the test split" in note for note in accuracy.notes
    )


def test_logits_of_the_validation_split_are_not_taken_for_the_test_split_s(run):
    logits = RunFolder(run)
    logits.logits("last", at_end=True).write_bytes(logits.logits("last").read_bytes())
    (aside,) = collect([run]).aside
    assert aside.what == "mixed" and "other data" in aside.reason


def test_curves_are_of_the_split_that_every_epoch_was_evaluated_on(run, write_run, tmp_path):
    settings = collect([run, write_run(tmp_path / "b", {"method.name": "lsr"})]).settings
    figures = {figure.name: figure.csv for figure in curve_figures(settings)}
    assert "hard" in figures["val-top1"] and "lsr" not in figures["val-top1"]
    assert "lsr" in figures["test-top1"] and "hard" not in figures["test-top1"]


def test_a_report_of_validation_runs_alone_has_no_empty_figure(run):
    names = {figure.name for figure in curve_figures(collect([run]).settings)}
    assert {"val-top1", "val-nll"} <= names and not {"test-top1", "test-nll"} & names
