"""Runs that are not finished: their curves are all that a report shows of them."""

from __future__ import annotations

from collections.abc import Sequence

from fastlsr.errors import InputError
from fastlsr.labels.methods import make_plan
from fastlsr.report.collect import UNFINISHED, ReportedRun, ReportedSetting, SetAside
from fastlsr.runs import Row, RunFolder
from fastlsr.trials import Trial, read_trial, run_labels, settings_of


def unfinished_settings(aside: Sequence[SetAside]) -> list[ReportedSetting]:
    """The settings, without figures, of running and stopped runs that have a row; "(unfinished)" ends their labels."""
    rows, trials = {}, []
    for each in aside:
        if each.what in UNFINISHED and (read := _read(RunFolder(each.path))):
            trials.append(read[0])
            rows[each.path] = read[1]
    settings = settings_of(trials)
    found = []
    for label, setting in zip(run_labels([each.trials[0].config for each in settings]), settings, strict=True):
        config = setting.trials[0].config
        runs = [ReportedRun(trial, rows[trial.folder.path], {"last": {}, "best": {}}, 0.0, None, None)
                for trial in setting.trials]  # fmt: skip
        plan = make_plan(config.method, config.train.epochs)
        found.append(ReportedSetting(f"{label} (unfinished)", config, plan, tuple(runs)))
    return found


def _read(folder: RunFolder) -> tuple[Trial, list[Row]] | None:
    """A run and its rows; None without any, or while its files are being written for the first time."""
    try:
        rows = folder.read_rows()
        return (read_trial(folder), rows) if rows else None
    except InputError:
        return None
