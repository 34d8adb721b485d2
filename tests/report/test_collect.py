"""What a report reads of run folders, and what it makes of those that are not whole."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from fastlsr.errors import InputError
from fastlsr.files import sole_use
from fastlsr.logits import read_logits
from fastlsr.report.collect import SCALED, TEMPERATURE, collect
from fastlsr.runs import RunFolder
from fastlsr.scores import SCORES, Predictions, risk_coverage, temperature_scaled


def test_runs_are_settings_with_their_repeats_in_order(runs):
    found = collect(sorted(runs.iterdir(), reverse=True))
    assert [setting.label for setting in found.settings] == ["lsr", "hard"], "in the order given"
    assert [[run.repeat for run in setting.runs] for setting in found.settings] == [[(0, 0), (1, 0), (2, 0)]] * 2
    assert found.varying == ("method.name",) and found.common["train.epochs"] == 4 and found.aside == ()
    assert "train.seed" not in found.common


def test_a_folder_of_runs_stands_for_the_runs_in_it(runs):
    whole, single = collect([runs]), collect(sorted(runs.iterdir()))
    assert [setting.runs for setting in whole.settings] == [setting.runs for setting in single.settings]
    assert collect([runs, runs / "hard0"]) == whole, "and no run counts twice"


def test_figures_are_the_row_s_own_and_for_the_rest_those_of_the_kept_logits(runs):
    setting, _ = collect([runs]).settings
    for run in setting.runs:
        for kind, figures in run.figures.items():
            row = run.trial.summary[kind]
            kept = read_logits(run.trial.folder.logits(kind))
            raw = Predictions(kept.logits, kept.labels)
            scaled, temperatures = temperature_scaled(kept.logits, kept.labels, kept.index)
            expected = {name: score.value(raw) for name, score in SCORES.items()}
            expected |= {SCALED + name: score.value(scaled) for name, score in SCORES.items()}
            expected |= {name: row[f"test/{name}"] for name in ("top1", "top5", "nll", "ece")}
            assert figures == pytest.approx({**expected, TEMPERATURE: sum(temperatures) / 2}, rel=1e-5)
        assert run.hours == pytest.approx(4 * 36 / 3600)


def test_curves_are_those_of_the_last_epoch(runs):
    run = collect([runs]).settings[0].runs[0]
    kept = read_logits(run.trial.folder.logits("last"))
    predictions = Predictions(kept.logits, kept.labels)
    coverage, risk = risk_coverage(predictions.confidence, predictions.correct)
    assert run.reliability[0].sum() == len(kept.labels) == 120
    for at, percent in zip(run.risk, range(1, 101), strict=True):
        assert at == risk[coverage >= percent / 100 - 1e-12][0], "of the fewest samples that are at least this share"


def test_accuracies_are_without_the_rounding_to_float32_that_rows_have(write_run, tmp_path):
    run = write_run(tmp_path / "a", top1=float(np.float32(0.7)) * 100)
    assert RunFolder(run).read_rows()[-1]["test/top1"] != 70.0
    assert collect([run]).settings[0].numbers("last", "top1") == [70.0]


def test_the_logits_of_the_last_epoch_serve_the_best_one_where_it_is_the_same(write_run, tmp_path):
    run = write_run(tmp_path / "a", {"run.logits": "last"}, top1=[1.0, 2.0, 3.0, 4.0])
    found = collect([run])
    (figures,) = [each.figures for each in found.settings[0].runs]
    assert figures["best"] == figures["last"] and "brier" in figures["best"] and found.aside == ()


def _row_changed(run):
    rows = run.read_rows()
    run.write_rows([*rows[:-1], {**rows[-1], "test/nll": 9.0}])


def _kept(change):
    def damage(run):
        change(read_logits(run.logits("last"))).write(run.logits("last"))

    return damage


LEFT_OUT = {
    "options cut off": (lambda run: (run.path / "config.yaml").write_text("data: {"), "broken", "config.yaml"),
    "unknown option": (lambda run: (run.path / "config.yaml").write_text("data: {x: 1}"), "broken", "data.x"),
    "no origin": (lambda run: (run.path / "environment.json").unlink(), "broken", "environment.json"),
    "summary damaged": (lambda run: (run.path / "summary.json").write_text("{}"), "broken", "summary.json"),
    "row damaged": (lambda run: (run.path / "metrics.jsonl").write_text("{}\nx\n"), "broken", "metrics.jsonl"),
    "rows missing": (lambda run: run.write_rows(run.read_rows()[:-1]), "mixed", "4 epochs"),
    "rows of another run": (_row_changed, "mixed", "the last row of summary.json"),
    "not finished": (lambda run: run.write_summary(run.read_rows(), finished=False), "stopped", "after 4 of 4 epochs"),
    "just begun": (lambda run: [(run.path / f).unlink() for f in ("summary.json", "metrics.jsonl")], "stopped",
                   "after 0 of 4 epochs"),
    "emptied": (lambda run: [shutil.rmtree(run.path), run.path.mkdir()], "no run", "none of a run's files"),
    "a file": (lambda run: [shutil.rmtree(run.path), run.path.touch()], "no run", "it is a file"),
}  # fmt: skip
WITHOUT_SCORES = {
    "of another epoch": (_kept(lambda kept: replace(kept, epoch=3)), "mixed", "is of epoch 3, its row of epoch 4"),
    "of other data": (_kept(lambda kept: replace(kept, data="ff" * 32)), "mixed", "ffffff"),
    "of another run": (_kept(lambda kept: replace(kept, logits=kept.logits * 2)), "mixed", "has NLL"),
    "absent": (lambda run: run.logits("last").unlink(), "incomplete", "last.safetensors does not exist"),
    "cut": (lambda run: run.logits("last").write_bytes(b"x"), "incomplete", "last.safetensors"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_a_folder_that_is_no_finished_run_is_listed_with_its_reason(write_run, tmp_path, what):
    damage, kind, reason = LEFT_OUT[what]
    whole, damaged = write_run(tmp_path / "whole"), write_run(tmp_path / "damaged", {"train.seed": 1})
    damage(RunFolder(damaged))
    found = collect([damaged, whole])
    (aside,) = found.aside
    assert (aside.path, aside.what) == (damaged, kind) and reason in aside.reason and "\n" not in aside.reason
    assert [run.trial.folder.path for setting in found.settings for run in setting.runs] == [whole]


@pytest.mark.parametrize("what", WITHOUT_SCORES)
def test_a_run_whose_logits_do_not_fit_its_row_has_the_figures_of_its_row_alone(write_run, tmp_path, what):
    damage, kind, reason = WITHOUT_SCORES[what]
    run = write_run(tmp_path / "run", top1=[1.0, 9.0, 3.0, 4.0])
    damage(RunFolder(run))
    found = collect([run])
    (aside,), (reported,) = found.aside, found.settings[0].runs
    assert (aside.path, aside.what) == (run, kind) and reason in aside.reason
    assert set(reported.figures["last"]) == {"top1", "top5", "nll", "ece"} and reported.risk is None
    assert "brier" in reported.figures["best"], "whose logits are there"


def test_a_run_that_was_told_to_keep_no_logits_is_incomplete(write_run, tmp_path):
    (aside,) = collect([write_run(tmp_path / "run", {"run.logits": "none"})]).aside
    assert aside.what == "incomplete" and "run.logits=none" in aside.reason


def test_a_run_under_way_is_told_from_a_stopped_one_and_not_disturbed(write_run, tmp_path):
    write_run(tmp_path / "whole")
    stopped, begun = write_run(tmp_path / "stopped", {"train.seed": 1}, done=2), tmp_path / "begun"
    assert [each.what for each in collect([tmp_path]).aside] == ["stopped"]
    with sole_use(stopped, "busy"), sole_use(begun, "busy"):
        found = {each.path: each for each in collect([tmp_path]).aside}
        assert (found[stopped].what, found[stopped].reason) == ("running", "after 2 of 4 epochs")
        assert found[begun].what == "running"
    with sole_use(stopped, "busy"):
        pass


def test_the_same_run_in_another_folder_counts_once(write_run, tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", {"data.workers": 3})
    found = collect([first, second])
    assert [len(setting.runs) for setting in found.settings] == [1]
    (aside,) = found.aside
    assert (aside.path, aside.what) == (second, "copy") and aside.reason.endswith(str(first))


def test_runs_on_other_data_or_of_another_teacher_are_other_settings_and_labelled_so(write_run, tmp_path):
    write_run(tmp_path / "a", {"train.seed": 0})
    write_run(tmp_path / "b", {"train.seed": 1}, data=("c3" * 32, "b2" * 32))
    write_run(tmp_path / "c", {"method.name": "lsr"})
    for name, teacher in (("d", "d4" * 32), ("e", "e5" * 32)):
        run = write_run(tmp_path / name, {"method.name": "lsr_pre", "method.teacher": "file"})
        RunFolder(run).write_environment({"data": ["a1" * 32, "b2" * 32], "teacher": teacher})
    labels = [setting.label for setting in collect([tmp_path]).settings]
    assert labels[:3] == ["hard train_data=a1a1a1", "hard train_data=c3c3c3", "lsr"]
    assert [label.split()[-1] for label in labels[3:]] == ["teacher=d4d4d4", "teacher=e5e5e5"]


def test_what_an_unchanged_folder_gave_is_remembered_and_a_changed_one_is_read_again(write_run, tmp_path):
    run = write_run(tmp_path / "a", top1=[1.0, 9.0, 3.0, 4.0])
    ((first,),) = [setting.runs for setting in collect([run]).settings]
    ((again,),) = [setting.runs for setting in collect([run]).settings]
    assert again is first
    RunFolder(run).logits("last").unlink()
    ((changed,),) = [setting.runs for setting in collect([run]).settings]
    assert "brier" in first.figures["last"] and "brier" not in changed.figures["last"]


def test_nothing_in_a_run_s_folder_is_changed(runs):
    def state():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in runs.rglob("*")}

    before = state()
    collect([runs])
    assert state() == before


@pytest.mark.parametrize("missing", [True, False])
def test_no_run_at_all_is_one_line_that_names_a_reason(tmp_path, missing):
    path = tmp_path / "absent"
    if not missing:
        path.mkdir()
    with pytest.raises(InputError, match=str(path)) as error:
        collect([path])
    assert "\n" not in str(error.value)
    assert missing or "none of a run's files" in str(error.value)


def test_numbers_are_those_of_the_runs_that_have_them(write_run, tmp_path):
    for seed, logits in enumerate(("both", "none")):
        write_run(tmp_path / str(seed), {"train.seed": seed, "run.logits": logits})
    (setting,) = collect([tmp_path]).settings
    assert len(setting.numbers("last", "top1")) == 2 and len(setting.numbers("last", "brier")) == 1


def test_a_summary_with_an_infinite_loss_still_fits_its_rows(write_run, tmp_path):
    run = RunFolder(write_run(tmp_path / "a"))
    rows = run.read_rows()
    rows[-1]["test/loss"] = float("nan")
    run.write_rows(rows)
    run.write_summary(rows, finished=True)
    assert "NaN" in (run.path / "summary.json").read_text() and json.loads("NaN") != json.loads("NaN")
    assert len(collect([run.path]).settings) == 1


def test_a_figure_that_is_not_finite_is_left_out(write_run, tmp_path):
    run = RunFolder(write_run(tmp_path / "hard", {"run.logits": "none"}))
    rows = run.read_rows()
    rows[-1]["test/nll"] = float("nan")
    run.write_rows(rows)
    run.write_summary(rows, finished=True)
    (setting,) = collect([run.path]).settings
    assert setting.numbers("last", "nll") == [] and len(setting.numbers("last", "top1")) == 1


@pytest.mark.parametrize("damage", [{"data": 5}, {"data": [[1], [2]]}, {"data": ["a"], "teacher": ["b"]}], ids=str)
def test_an_origin_of_other_types_is_a_broken_folder(write_run, tmp_path, damage):
    write_run(tmp_path / "lsr", {"method.name": "lsr"})
    RunFolder(write_run(tmp_path / "hard")).write_environment(damage)
    found = collect([tmp_path])
    assert [(each.path.name, each.what) for each in found.aside] == [("hard", "broken")]


def test_a_folder_of_runs_may_hold_a_sweep_s_logs_and_a_stray_config(write_run, tmp_path):
    write_run(tmp_path / "hard")
    (tmp_path / "sweeps" / "grid").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("{}", encoding="utf-8")
    found = collect([tmp_path])
    assert [setting.label for setting in found.settings] == ["hard"] and found.aside == ()
