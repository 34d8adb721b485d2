"""The numbers of a report for other programs, unrounded: CSV and JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from fastlsr.report.collect import Collection, ReportedRun, ReportedSetting
from fastlsr.report.columns import COLUMNS
from fastlsr.report.comparisons import Comparison
from fastlsr.report.recipes import PaperRow, PaperTable, label_beside, recipe_notes
from fastlsr.runs import KINDS
from fastlsr.runs import keys as row_keys


def settings_csv(collection: Collection, paper: PaperTable | None = None) -> str:
    """A row for each setting, and for each row of the paper that was not run; unrounded, last and best apart."""
    keys = [(kind, key) for kind in KINDS for key in COLUMNS]
    head = ["setting", "n", *collection.varying, *_statistics_heads([f"{k}/{key}" for k, key in keys]),
            *_statistics_heads(["hours"])]  # fmt: skip
    metrics = [f"quoted/{paper.name}/{name}" for name in paper.metrics] if paper else []
    head += [f"{name}/{what}" for name in metrics for what in ("mean", "std")]
    lines: list[list[object]] = []
    matches = []
    for setting in collection.settings:
        line: list[object] = [setting.label, len(setting.runs), *_varied(setting, collection)]
        for kind, key in keys:
            line += _statistics(setting.numbers(kind, key))
        matches.append(paper.row_of(setting) if paper else None)
        lines.append([*line, *_statistics([run.hours for run in setting.runs]), *_quoted_numbers(matches[-1], paper)])
    for row in paper.rows if paper else ():
        if row not in matches:
            blank = [None] * (len(head) - 2 - 2 * len(metrics))
            lines.append([label_beside(row, collection.settings), 0, *blank, *_quoted_numbers(row, paper)])
    return _csv(head, lines)


def _statistics_heads(names: Iterable[str]) -> list[str]:
    return [f"{name}/{what}" for name in names for what in ("mean", "std", "n")]


def _statistics(numbers: Sequence[float]) -> list[object]:
    return [
        statistics.fmean(numbers) if numbers else None,
        statistics.stdev(numbers) if len(numbers) > 1 else None,
        len(numbers),
    ]


def _quoted_numbers(row: PaperRow | None, paper: PaperTable | None) -> list[object]:
    figures = [row.figures.get(name) if row else None for name in paper.metrics] if paper else []
    return [number for figure in figures for number in ((figure.mean, figure.std) if figure else (None, None))]


def runs_csv(collection: Collection) -> str:
    """A row for each run, unrounded."""
    head = ["setting", "run", "seed", "fold", *collection.varying, "hours", "best/epoch"]
    keys = [(kind, key) for kind in KINDS for key in COLUMNS]
    lines = [
        [setting.label, str(run.trial.folder.path), *run.repeat, *_varied(setting, collection), run.hours,
         _best_epoch(run), *(run.figures[kind].get(key, "") for kind, key in keys)]
        for setting in collection.settings for run in setting.runs
    ]  # fmt: skip
    return _csv([*head, *(f"{kind}/{key}" for kind, key in keys)], lines)


def rows_csv(settings: Sequence[ReportedSetting]) -> str:
    """A row for each epoch of each run, unrounded, with every column that any of them has."""
    runs = [(setting.label, run) for setting in settings for run in setting.runs]
    keys = list(dict.fromkeys([*row_keys(), *(key for _, run in runs for row in run.rows for key in row)]))
    lines = [
        [label, str(run.trial.folder.path), *run.repeat, *(row.get(key) for key in keys)]
        for label, run in runs for row in run.rows
    ]  # fmt: skip
    return _csv(["setting", "run", "seed", "fold", *keys], lines)


def _varied(setting: ReportedSetting, collection: Collection) -> list[object]:
    options = setting.config.decisive()
    return [options[key] for key in collection.varying]


def _best_epoch(run: ReportedRun) -> int:
    assert run.trial.summary is not None
    return run.trial.summary["best"]["epoch"]


def comparisons_csv(comparisons: Sequence[Comparison]) -> str:
    """A row for each comparison, unrounded."""
    head = ["figure", "one", "other", "n", "difference", "low", "high", "p", "p_holm", "needed_n", "claim"]
    lines = [
        [f"last/{each.column}", each.one, each.other, len(each.differences), each.mean,
         *(each.interval or (None, None)), each.p, each.p_holm, each.needed, each.claim]
        for each in comparisons
    ]  # fmt: skip
    return _csv(head, lines)


def _csv(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()


def numbers_of(
    collection: Collection, comparisons: Sequence[Comparison], paper: PaperTable | None = None
) -> dict[str, Any]:
    """All of a report's numbers, as `json` writes them."""
    return {
        "settings": [_setting(setting) for setting in collection.settings],
        "common": collection.common,
        "varying": list(collection.varying),
        "comparisons": [_comparison(each) for each in comparisons],
        "aside": [{"path": str(each.path), "what": each.what, "reason": each.reason} for each in collection.aside],
        "paper": _paper(paper, collection.settings) if paper else None,
    }


def _setting(setting: ReportedSetting) -> dict[str, Any]:
    figures = {
        kind: {key: _named(numbers) for key in COLUMNS if (numbers := setting.numbers(kind, key))} for kind in KINDS
    }
    return {
        "label": setting.label,
        "options": setting.config.decisive(),
        "phases": [str(phase) for phase in setting.plan.phases],
        "last": figures["last"],
        "best": figures["best"],
        "hours": _named([run.hours for run in setting.runs]),
        "runs": [
            {"path": str(run.trial.folder.path), "seed": run.repeat[0], "fold": run.repeat[1], "hours": run.hours,
             "data": list(run.trial.data), "best_epoch": _best_epoch(run), "last": run.figures["last"],
             "best": run.figures["best"]}
            for run in setting.runs
        ],
    }  # fmt: skip


def _named(numbers: Sequence[float]) -> dict[str, object]:
    return dict(zip(("mean", "std", "n"), _statistics(numbers), strict=True))


def _comparison(each: Comparison) -> dict[str, Any]:
    return {
        "figure": f"last/{each.column}", "one": each.one, "other": each.other,
        "seeds": each.seeds,
        "differences": each.differences.tolist(), "difference": each.mean, "interval": each.interval,
        "p": each.p, "p_holm": each.p_holm, "decided": each.decided, "needed_n": each.needed, "claim": each.claim,
    }  # fmt: skip


def _paper(paper: PaperTable, settings: Sequence[ReportedSetting]) -> dict[str, Any]:
    found = [(setting.label, paper.row_of(setting)) for setting in settings]
    rows = [
        {"row": row.label, "settings": [label for label, match in found if match == row],
         "quoted": {name: {"mean": figure.mean, "std": figure.std} for name, figure in row.figures.items()}}
        for row in paper.rows
    ]  # fmt: skip
    return {"table": paper.name, "notes": recipe_notes(paper, settings), "rows": rows}
