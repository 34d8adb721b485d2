"""Turns run folders into tables, and says which differences their seeds carry: python -m fastlsr.report RUN ...

Runs that differ in seed and fold alone are one setting. Tables and comparisons are printed, and written to DIR with all
numbers. Nothing is written into the runs' folders, and runs that are under way are not disturbed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypedDict

from rich.console import Console

from fastlsr.cli import Parser, exit_on_input_error, interrupts_raised
from fastlsr.errors import InputError, unknown
from fastlsr.files import check_can_be_written, replace_text
from fastlsr.plugins import load_named
from fastlsr.report.collect import UNFINISHED, Collection, ReportedSetting, collect
from fastlsr.report.columns import COLUMNS
from fastlsr.report.comparisons import Comparison, all_pairs, compare, planned_pairs
from fastlsr.report.exports import comparisons_csv, numbers_of, rows_csv, runs_csv, settings_csv
from fastlsr.report.figures import report_figures
from fastlsr.report.formats import latex, markdown, print_lines, print_table
from fastlsr.report.page import write_page
from fastlsr.report.recipes import PaperTable, paper_table
from fastlsr.report.supplements import notes_html
from fastlsr.report.tables import Table, aside_table, comparison_table, setting_tables
from fastlsr.report.unfinished import unfinished_settings
from fastlsr.report.watch import watch

_WIDTH = 100  # of what is printed where no terminal tells its own
_MOST_UNDECIDED = 20  # comparisons on the terminal; all are in the files
_MOST_PATHS = 3  # of folders that are set aside for the same reason, on the terminal
_REFRESH = 10  # seconds after which the page of runs under way loads itself anew
_PRINTED = ("accuracy", "last", "last_scaled")  # tables; all are in the files


class _About(TypedDict):
    """What the page says of itself: the command that makes it, and a file of notes."""

    command: str
    notes: Path | None


class _Chosen(TypedDict):
    """What the report shows; as the arguments of `make_report`."""

    only: Sequence[str]
    planned: str
    column: str
    paper: str


@dataclass(frozen=True)
class Report:
    """All that is printed and written.

    Attributes:
        collection: settings with their runs.
        comparisons: of the settings' last epochs.
        paper: the table that is set beside them, if any.
        tables: of settings.
        unfinished: settings of runs that may still finish.
    """

    collection: Collection
    comparisons: Sequence[Comparison]
    paper: PaperTable | None
    tables: Sequence[Table]
    unfinished: Sequence[ReportedSetting]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes the report that the command line requests; returns the exit code."""
    with exit_on_input_error():
        words = load_named(arguments)
        options = _parser().parse_intermixed_args(words)
        out = Path(options.out)
        check_can_be_written(out)
        command = shlex.join(["python", "-m", "fastlsr.report", *(sys.argv[1:] if arguments is None else arguments)])
        if options.notes:
            notes_html(options.notes)  # raises before anything is computed
        about: _About = {"command": command, "notes": options.notes}
        chosen = _Chosen(only=options.only, planned=options.compare, column=options.metric, paper=options.paper)
        if options.watch:
            with interrupts_raised():
                ended = watch(options.runs, lambda to_come: _renew(options.runs, chosen, out, about, to_come))
            print("all runs are finished" if ended else "no run is under way, and none has written for an hour")
        else:
            report = make_report(options.runs, **chosen)
            print_report(report)
            write_report(out, report, about)
            print(f"written: {out}/, with a page: {out / 'index.html'}")
    return 0


def _renew(paths: Sequence[Path], chosen: _Chosen, out: Path, about: _About, to_come: bool) -> bool:
    """Writes the report as it is now, and prints a line; returns whether a run is unfinished."""
    report = make_report(paths, **chosen, unfinished=True)
    states = Counter(each.what for each in report.collection.aside)
    unfinished = any(states[what] for what in UNFINISHED)
    if not (report.collection.settings or unfinished or to_come):
        raise InputError(f"there is no run in {', '.join(map(str, paths))}")
    if not (unfinished or to_come):
        report = make_report(paths, **chosen, unfinished=False)  # no comparison waits for its settings any more
    write_report(out, report, about, refresh=_REFRESH if unfinished or to_come else 0)
    finished = sum(len(setting.runs) for setting in report.collection.settings)
    counts = f"{finished} finished, {states['running']} running, {states['stopped']} stopped"
    print(f"{time.strftime('%H:%M:%S')} {counts}: {out / 'index.html'}", flush=True)
    return unfinished


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fastlsr.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_plugin()
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a folder of them")
    parser.add_argument("--out", default="report", metavar="DIR", help="where files are written (default report)")
    parser.add_argument("--paper", default="", metavar="PAPER:TABLE", help="the table set beside, as tsla:2 or colam:2")
    parser.add_argument(
        "--compare", default="", metavar="A:B,...", help="planned comparisons of settings; else all pairs"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY=VALUE",
        help="only finished runs with this option, as data.dataset=digits; repeatable",
    )  # fmt: skip
    parser.add_argument("--metric", default="top1", metavar="NAME", help="the figure compared, as nll or scaled/nll")
    parser.add_argument("--notes", type=Path, metavar="FILE", help="Markdown that the page begins with")
    parser.add_argument(
        "--watch", action="store_true", help="renew the report until all runs are finished, or none goes on"
    )
    return parser


def make_report(
    paths: Sequence[Path],
    *,
    only: Sequence[str] = (),
    planned: str = "",
    column: str = "top1",
    paper: str = "",
    unfinished: bool = False,
) -> Report:
    """The report of run folders.

    Args:
        paths: run folders, and folders of them.
        only: options that a finished run must have, as `collect` takes them.
        planned: comparisons, as `planned_pairs` takes them; "" for all pairs.
        column: a key of `COLUMNS`, the figure that is compared.
        paper: a table, as `paper_table` takes it; "" for none.
        unfinished: whether runs may still finish. Then planned comparisons wait for their settings.

    Raises:
        InputError: for a name that is not known, or, unless `unfinished`, where there is no run.
    """
    if column not in COLUMNS:
        raise InputError("--metric=" + unknown("figure", column, list(COLUMNS)))
    table = paper_table(paper) if paper else None
    collection = collect(paths, only=only, unfinished=unfinished)
    if collection.settings and not any(setting.numbers("last", column) for setting in collection.settings):
        raise InputError(f"--metric={column}: no run has it; it needs the logits of the last epoch (run.logits)")
    try:
        pairs = planned_pairs(planned, collection.settings) if planned else all_pairs(collection.settings)
    except InputError:
        if collection.settings and not unfinished:
            raise
        pairs = []
    comparisons = compare(pairs, column)
    tables = setting_tables(collection, comparisons, table)
    return Report(collection, comparisons, table, tables, unfinished_settings(collection.aside))


def print_report(report: Report) -> None:
    """Prints tables, what may be claimed, and the folders set aside."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    if not report.collection.settings:
        print_lines(console, ["No run is finished yet.", ""])
    for table in report.tables:
        if table.name in _PRINTED and table.rows:
            print_table(console, table)
            console.print()
    if report.comparisons:
        print_lines(console, _claims(report))
        console.print()
    if report.collection.aside:
        print_lines(console, _aside(report.collection))
        console.print()


def _claims(report: Report) -> Iterator[str]:
    """A line for each comparison, decided ones first, and how they were made; many that n cannot decide share one."""
    table = comparison_table(report.collection.settings, report.comparisons)
    yield f"{table.title}, mean over common seeds"
    beyond = [each for each in report.comparisons if each.is_out_of_reach]
    many = len(beyond) > _MOST_UNDECIDED
    order = sorted(
        (each for each in report.comparisons if each not in beyond or not many), key=lambda each: not each.decided
    )
    shown = sum(each.decided for each in order) + _MOST_UNDECIDED
    for each in order[:shown]:
        so_far = "" if each.mean is None else f" ({each.mean:+.{COLUMNS[each.column].decimals}f})"
        yield f"  {each.one} - {each.other}, n {len(each.differences)}{so_far}: {each.claim}"
    if len(order) > shown:
        yield f"  and {len(order) - shown} more that are not decided, in comparisons.md"
    if many:
        seeds = max(each.needed for each in beyond)
        yield f"  {len(beyond)} comparisons: n cannot decide; {seeds} seeds could, or fewer planned ones (--compare)"
    yield from table.notes


def _aside(collection: Collection) -> Iterator[str]:
    """A line for each reason for which folders are set aside."""
    yield "Set aside, or not wholly in the tables"
    order = sorted(collection.aside, key=lambda each: (each.what, each.reason))
    for (what, reason), group in groupby(order, key=lambda each: (each.what, each.reason)):
        paths = [str(each.path) for each in group]
        more = f" and {len(paths) - _MOST_PATHS} more" if len(paths) > _MOST_PATHS else ""
        yield f"  {what}: {', '.join(paths[:_MOST_PATHS])}{more}: {reason}"


def files_of(report: Report) -> dict[str, str]:
    """Name to content of the files of a report."""
    settings, comparisons = report.collection.settings, report.comparisons
    tables = [comparison_table(settings, comparisons)] if comparisons else []
    aside = [aside_table(report.collection)] if report.collection.aside else []
    numbers = numbers_of(report.collection, comparisons, report.paper)
    return {
        "table.csv": settings_csv(report.collection, report.paper),
        "runs.csv": runs_csv(report.collection),
        "rows.csv": rows_csv([*settings, *report.unfinished]),
        "table.md": "\n".join(map(markdown, [*report.tables, *aside])),
        "table.tex": "\n".join(map(latex, report.tables)),
        "comparisons.csv": comparisons_csv(comparisons),
        "comparisons.md": "\n".join(map(markdown, tables)),
        "comparisons.tex": "\n".join(map(latex, tables)),
        "numbers.json": json.dumps(numbers, indent=1) + "\n",
    }


def write_report(out: Path, report: Report, about: _About, *, refresh: int = 0) -> None:
    """Writes all files of a report; see `page.write_page`.

    Raises:
        InputError: if the folder cannot be written to.
    """
    write_files(out, files_of(report))
    figures = report_figures(report.collection, report.comparisons, report.unfinished)
    write_page(
        out, report.collection, report.comparisons, report.tables, figures, **about, refresh=refresh
    )  # fmt: skip


def write_files(out: Path, files: Mapping[str, str]) -> None:
    """Writes each file into the folder, which is made.

    Raises:
        InputError: if it cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_text(out / name, content)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
