"""A report that is renewed while runs go on, and the curves of runs that are not finished."""

import contextlib
import functools
import shutil
import signal
import subprocess
import sys

import pytest

from fastlsr.files import sole_use
from fastlsr.report.__main__ import main
from fastlsr.report.collect import SetAside, collect
from fastlsr.report.figures import curve_figures
from fastlsr.report.unfinished import unfinished_settings
from fastlsr.report.watch import watch
from fastlsr.runs import RunFolder


def write_row(folder):
    run = RunFolder(folder)
    run.append_row(run.read_rows()[-1])


def test_a_report_is_renewed_at_first_and_whenever_a_run_wrote_something(write_run, tmp_path):
    run = write_run(tmp_path / "runs" / "hard", done=2)
    happenings = iter([
        lambda: None,
        lambda: write_row(run),
        lambda: None,
        lambda: write_run(tmp_path / "runs" / "lsr", {"method.name": "lsr"}, done=1),
        lambda: shutil.rmtree(run),
    ])  # fmt: skip
    renewals, looks = [], []

    def renew(to_come):
        renewals.append(len(looks))
        return len(renewals) < 4

    def pause():
        looks.append(True)
        next(happenings)()

    watch([tmp_path / "runs"], renew, pause=pause)
    assert renewals == [0, 2, 4, 5]


@pytest.mark.parametrize("given", ["runs", "runs/hard"])
def test_a_run_that_finishes_meanwhile_ends_it(write_run, tmp_path, given):
    run = write_run(tmp_path / "runs" / "hard", done=3)
    reports = []

    def renew(to_come):
        reports.append(RunFolder(run).finished_summary())
        return reports[-1] is None

    pauses = iter([lambda: RunFolder(run).write_summary(RunFolder(run).read_rows(), finished=True)])
    watch([tmp_path / given], renew, pause=lambda: next(pauses)())
    assert [report is None for report in reports] == [True, False]


def test_what_is_written_during_a_renewal_is_seen_at_the_next_look(write_run, tmp_path):
    run = write_run(tmp_path / "hard", done=2)
    reports = []

    def renew(to_come):
        reports.append(len(RunFolder(run).read_rows()))
        if len(reports) == 1:
            write_row(run)
        return len(reports) < 2

    pauses = iter([None])  # a second one would be the end
    watch([run], renew, pause=lambda: next(pauses))
    assert reports == [2, 3]


@pytest.mark.parametrize("under_way", [False, True])
def test_it_gives_up_on_a_stopped_run_after_an_hour_but_not_while_one_is_under_way(write_run, tmp_path, under_way):
    run = write_run(tmp_path / "runs" / "hard", done=2)
    hours, looks = iter(range(1, 99)), []

    def pause():
        looks.append(True)
        if len(looks) == 5:
            RunFolder(run).write_summary(RunFolder(run).read_rows(), finished=True)

    with sole_use(run, "busy") if under_way else contextlib.nullcontext():
        ended = watch(
            [tmp_path / "runs"], lambda to_come: len(looks) < 5, pause=pause, clock=lambda: 1800.0 * next(hours)
        )
    assert (ended, len(looks)) == ((True, 5) if under_way else (False, 2))


def test_unfinished_runs_have_curves_and_no_figures(write_run, tmp_path):
    write_run(tmp_path / "hard")
    for seed in (0, 1):
        write_run(tmp_path / f"lsr{seed}", {"method.name": "lsr", "train.seed": seed}, done=seed + 1)
    write_run(tmp_path / "tsla", {"method.name": "tsla"}, done=0)
    (lsr,) = unfinished_settings(collect([tmp_path]).aside)
    assert lsr.label == "lsr (unfinished)"
    assert [len(run.rows) for run in lsr.runs] == [1, 2]
    assert [run.figures for run in lsr.runs] == [{"last": {}, "best": {}}] * 2
    assert "lsr (unfinished): n" in curve_figures([lsr])[0].csv


def test_folders_set_aside_for_other_reasons_have_no_curves(write_run, tmp_path):
    run = write_run(tmp_path / "copy")
    kinds = [SetAside(run, what, "") for what in ("copy", "broken", "mixed", "no run", "incomplete")]
    assert unfinished_settings(kinds) == []


def test_a_sweep_that_may_begin_further_runs_keeps_it_going(write_run, tmp_path):
    write_run(tmp_path / "hard")
    reports = []

    def renew(to_come):
        reports.append(to_come)
        return False

    sweep = sole_use(tmp_path / "sweeps" / "grid", "busy")
    sweep.__enter__()
    watch([tmp_path], renew, pause=lambda: sweep.__exit__(None, None, None))
    assert reports == [True, False]


def test_the_command_ends_once_all_runs_are_finished_and_leaves_a_page_that_stays(runs, tmp_path, capsys):
    assert main([str(runs), "--watch", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.endswith("all runs are finished\n")
    assert "http-equiv" not in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_the_command_shows_the_curves_of_runs_before_any_is_finished_until_ctrl_c(write_run, tmp_path):
    write_run(tmp_path / "runs" / "hard", done=2)
    command = [sys.executable, "-m", "fastlsr.report", "runs", "--watch", "--compare=hard:lsr"]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a background job ignores
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **pipes) as watching:
        try:
            assert "0 finished, 0 running, 1 stopped: report/index.html" in watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            _, problem = watching.communicate(timeout=60)
        finally:
            watching.kill()
    assert (watching.returncode, problem) == (130, "interrupted\n")
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "hard (unfinished)" in text
    assert '<meta http-equiv="refresh"' in text


def test_a_comparison_that_names_no_setting_is_an_error_once_all_runs_are_finished(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(runs), "--watch", "--compare=hard:lrs", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "did you mean lsr" in capsys.readouterr().err


def test_there_is_something_to_watch(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path), "--watch", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "there is no run in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
