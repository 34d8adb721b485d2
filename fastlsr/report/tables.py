"""The tables of a report as data, rounded to what the standard deviation carries; `formats` writes them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastlsr.report.collect import Collection, ReportedSetting
from fastlsr.report.columns import ACCURACIES, COLUMNS, RAW, SCALED_SCORES, TEMPERATURES, ReportColumn, full_title
from fastlsr.report.comparisons import Comparison, carried_winners
from fastlsr.report.comparisons import notes as comparison_notes
from fastlsr.report.recipes import PaperRow, PaperTable, label_beside, recipe_notes
from fastlsr.runs import KINDS, Kind, best_meaning
from fastlsr.trials import carried_decimals, mean_and_std

NONE, NOT_RUN = "-", "not run"


@dataclass(frozen=True)
class Head:
    """The head of a column: `group` stands above the title; `meaning` is for those who ask."""

    title: str
    group: str = ""
    meaning: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number behind it, by which a column can be sorted."""

    text: str
    number: float | None = None
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table, with a title and the lines of `lead` above, and notes below; the first column names the row."""

    name: str
    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Cell, ...], ...]
    lead: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def setting_tables(
    collection: Collection, comparisons: Sequence[Comparison] = (), paper: PaperTable | None = None
) -> list[Table]:
    """Accuracies, with a paper's beside them; then the scores of the last and of the best epoch, raw and scaled.

    The column that is compared has those settings in bold that `carried_winners` has.
    """
    column = comparisons[0].column if comparisons else ""
    bold = carried_winners(collection.settings, comparisons)
    tables = [_accuracies(collection.settings, column, bold, paper)]
    scores = (("", RAW), (", after temperature scaling", (TEMPERATURES, *SCALED_SCORES)))
    for kind in KINDS:
        for suffix, columns in scores:
            name = f"{kind}{'_scaled' * bool(suffix)}"
            heads = _name_heads() + [Head(each.title, "", each.meaning) for each in columns]
            winners = bold if kind == "last" else set()
            cells = [_figures(collection.settings, kind, each, winners if each.key == column else set())
                     for each in columns]  # fmt: skip
            if all(cell.number is None for column in cells for cell in column):
                continue  # no run kept the logits
            rows = tuple(zip(*_names(collection.settings), *cells, strict=True))
            tables.append(Table(name, f"Calibration and risk, {kind} epoch{suffix}", tuple(heads), rows))
    return [replace(table, notes=(*table.notes, *_notes(table, bold))) for table in tables]


def _accuracies(settings: Sequence[ReportedSetting], column: str, bold: set[str], paper: PaperTable | None) -> Table:
    """Accuracies and hours; and what a paper quotes, whose rows that were not run stand below the settings."""
    heads, columns = _name_heads(), _names(settings)
    matches = [paper.row_of(setting) if paper else None for setting in settings]
    missing = [row for row in paper.rows if row not in matches] if paper else []
    for each in ACCURACIES:
        for kind in KINDS:
            heads.append(Head(f"{kind} epoch", each.title, each.meaning))
            columns.append(_figures(settings, kind, each, bold if (kind, each.key) == ("last", column) else set()))
        if paper and each.key in paper.metrics:
            heads.append(Head(f"quoted, {paper.name}", each.title, "as the paper prints it, not measured"))
            columns.append([_quoted(row, each.key) for row in (*matches, *missing)])
    heads.append(
        Head("hours", "", "of all epochs of a run, with their evaluation; without what a stop within an epoch lost")
    )
    columns.append(_cells([[run.hours for run in setting.runs] for setting in settings], 4, settings))
    columns[0] += [Cell(label_beside(row, settings)) for row in missing]
    columns[1] += [Cell("0", 0)] * len(missing)
    columns[2] += [Cell(NOT_RUN)] * len(missing)
    rows = tuple(itertools.zip_longest(*columns, fillvalue=Cell(NONE)))
    best = f"Best: the epoch with the {_best_words(settings)}." if settings else ""
    notes = ("Mean ± standard deviation (n - 1) over seeds and folds.", *filter(None, [best]))
    lead = tuple(recipe_notes(paper, settings)) if paper else ()
    return Table("accuracy", "Accuracy in %", tuple(heads), rows, lead, notes)


def _best_words(settings: Sequence[ReportedSetting]) -> str:
    """By which metric and on which split the best epochs were chosen."""
    configs = [setting.config for setting in settings]
    chosen = " or ".join(sorted({best_meaning(each.train.best_by, each.data.evaluated_split) for each in configs}))
    if any(each.data.selects_on_val for each in configs):
        chosen += "; with data.val=val its figures are of the test split, and are there where its weights were kept"
    if all(each.data.selects_on_val for each in configs):
        return chosen
    return f"{chosen}, chosen on the evaluation split itself"


def _name_heads() -> list[Head]:
    return [Head("setting", is_text=True), Head("n", "", "finished runs")]


def _names(settings: Sequence[ReportedSetting]) -> list[list[Cell]]:
    return [[Cell(each.label) for each in settings], [Cell(str(len(each.runs)), len(each.runs)) for each in settings]]


def _figures(settings: Sequence[ReportedSetting], kind: Kind, column: ReportColumn, bold: set[str]) -> list[Cell]:
    cells = _cells([setting.numbers(kind, column.key) for setting in settings], column.decimals, settings)
    return [replace(cell, bold=s.label in bold) for cell, s in zip(cells, settings, strict=True)]


def _cells(numbers: Sequence[Sequence[float]], decimals: int, settings: Sequence[ReportedSetting]) -> list[Cell]:
    """A cell of each setting's numbers; where some of its runs have none, it shows of how many it is."""
    decimals = column_decimals(numbers, decimals)
    texts = [mean_and_std(each, decimals) for each in numbers]
    lacking = [f" (n {len(each)})" if 0 < len(each) < len(s.runs) else ""
               for each, s in zip(numbers, settings, strict=True)]  # fmt: skip
    means = [statistics.fmean(each) if each else None for each in numbers]
    return [Cell(text + note, mean) for text, note, mean in zip(texts, lacking, means, strict=True)]


def column_decimals(numbers: Sequence[Sequence[float]], most: int) -> int:
    """Decimals for a column of mean ± std: those of the smallest deviation that is not 0, and at most `most`."""
    deviations = [std for each in numbers if len(each) > 1 and (std := statistics.stdev(each)) > 0]
    return min(most, carried_decimals(min(deviations))) if deviations else most


def _quoted(row: PaperRow | None, name: str) -> Cell:
    figure = row.figures.get(name) if row else None
    return Cell(str(figure), figure.mean) if figure else Cell(NONE)


def _notes(table: Table, bold: set[str]) -> Iterator[str]:
    if any(cell.bold for row in table.rows for cell in row):
        yield "Bold: decided against every other setting in this column."
    if any("(n " in cell.text for row in table.rows for cell in row):
        yield "(n …): of so many runs alone; the others kept no logits, or not those of that epoch."


def comparison_table(settings: Sequence[ReportedSetting], comparisons: Sequence[Comparison]) -> Table:
    """A row for each comparison, with what may be claimed."""
    title = full_title(comparisons[0].column)
    heads = (
        Head("one", is_text=True), Head("other", is_text=True), Head("n", "", "seeds that both have"),
        Head("difference", "", "mean of one - other; above 0 where the first is higher"),
        Head("95% interval", "", "BCa bootstrap"), Head("p", "", "sign-flip test"), Head("p, Holm"),
        Head("what may be claimed", is_text=True),
    )  # fmt: skip
    rows = tuple(tuple(_comparison_cells(each)) for each in comparisons)
    return Table("comparisons", f"Differences of {title}, last epoch: one - other", heads, rows,
                 notes=tuple(comparison_notes(settings, comparisons)))  # fmt: skip


def _comparison_cells(each: Comparison) -> Iterator[Cell]:
    decimals = COLUMNS[each.column].decimals
    yield from (Cell(each.one), Cell(each.other), Cell(str(len(each.differences)), len(each.differences)))
    yield Cell(f"{each.mean:+.{decimals}f}", each.mean) if each.mean is not None else Cell(NONE)
    low_high = " to ".join(f"{end:+.{decimals}f}" for end in each.interval) if each.interval else NONE
    yield Cell(low_high, each.interval[0] if each.interval else None)
    yield from (Cell(f"{each.p:.2g}", each.p), Cell(f"{each.p_holm:.2g}", each.p_holm), Cell(each.claim))


def aside_table(collection: Collection) -> Table:
    """The folders that are not, or not wholly, in the tables."""
    heads = tuple(Head(title, is_text=True) for title in ("folder", "what it is", "why"))
    rows = tuple((Cell(str(each.path)), Cell(each.what), Cell(each.reason)) for each in collection.aside)
    return Table("aside", "Folders set aside", heads, rows)
