"""A table of a paper beside runs: which of its rows a setting is, and how its options differ from the paper's recipe.

The recipe of a table is the shipped config that its `# table:` line names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastlsr.config import Config, differences, load
from fastlsr.errors import InputError, unknown
from fastlsr.labels.methods import options_of
from fastlsr.report.collect import ReportedSetting
from fastlsr.report.papers import QuotedFigure, quoted_figures
from fastlsr.shipped import CONFIGS
from fastlsr.trials import REPEATS

_MEASURED = ("top1", "top5")
# Options that differ between machines, or name files, or are compared by `_is_of`.
_NO_RECIPE = {*REPEATS, "model.name", "method.teacher", "data.train", "data.val", "train.device", "train.compile",
              "train.channels_last", "train.deterministic", "train.precision"}  # fmt: skip


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of a paper.

    Attributes:
        label: as a setting's.
        figures: "top1" or "top5" to what the paper prints.
        recipe: the options that train it; None where no config has them.
        source: the recipe's file and what its header says of the figures; "" without one.
    """

    label: str
    figures: dict[str, QuotedFigure]
    recipe: Config | None
    source: str

    @property
    def first(self) -> QuotedFigure:
        """A figure of the row: data set, network and method are the same in all."""
        return next(iter(self.figures.values()))


@dataclass(frozen=True)
class PaperTable:
    """A table of accuracies of a paper; `name` is as "TSLA Table 2"."""

    name: str
    rows: tuple[PaperRow, ...]

    def row_of(self, setting: ReportedSetting) -> PaperRow | None:
        """The row that a setting repeats, though perhaps with another recipe; None if it is none."""
        return next((row for row in self.rows if _is_of(setting.config, row)), None)

    @property
    def metrics(self) -> list[str]:
        """Those of "top1" and "top5" that the table has."""
        return [name for name in _MEASURED if any(name in row.figures for row in self.rows)]


@functools.cache
def paper_table(text: str) -> PaperTable:
    """The table that "tsla:2" names.

    Raises:
        InputError: if there is no such table of accuracies.
    """
    tables: dict[str, list[QuotedFigure]] = {}
    for figure in quoted_figures():
        tables.setdefault(f"{figure.paper}:{figure.table}", []).append(figure)
    if text not in tables:
        raise InputError("--paper=" + unknown("table of a paper", text, list(tables)))
    figures = [figure for figure in tables[text] if figure.metric in _MEASURED]
    if not figures:
        raise InputError(f"--paper={text} has no accuracies; python -m fastlsr.analyze clusters measures its figures")
    paper, number = text.split(":")
    return PaperTable(f"{paper.upper()} Table {number}", tuple(_rows(figures)))


def _rows(figures: Sequence[QuotedFigure]) -> Iterable[PaperRow]:
    rows: dict[tuple[str, ...], dict[str, QuotedFigure]] = {}
    for figure in figures:
        rows.setdefault((figure.dataset, figure.model, figure.method), {})[figure.metric] = figure
    several = [name for name in ("dataset", "model") if len({getattr(figure, name) for figure in figures}) > 1]
    for row in rows.values():
        first = next(iter(row.values()))
        method = {key.removeprefix("method."): value for key, value in first.options.items()}
        options = method | {name: getattr(first, name) for name in several}
        label = " ".join([options.pop("name"), *(f"{key}={value}" for key, value in options.items())])
        yield PaperRow(label, row, *_recipe(first))


def _recipe(figure: QuotedFigure) -> tuple[Config | None, str]:
    """(the options that train a row of a paper, their file and what it says of the figures)."""
    for path in sorted(CONFIGS.glob(f"{figure.paper}_*.yaml")):
        lines = [line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()]
        said = dict(line.split(": ", 1) for line in lines if re.match(r"(table|expected): ", line))
        if str(figure.table) not in re.findall(r"\d+", said["table"].split("Fig")[0]):
            continue
        variants = [dict(word[2:].split("=", 1) for word in line.split()) for line in lines if line.startswith("--")]
        for variant in ({}, *variants):
            config = load(path, {**variant, **figure.options})
            if (config.data.dataset, _plain(config.model.name)) == (figure.dataset, figure.model):
                return config, f"configs/{path.name}: {said['expected'].partition(' for ')[0]}"
    return None, ""


def _plain(model: str) -> str:
    """The name of a network without timm's prefix and tag."""
    return model.removeprefix("timm/").partition(".")[0]


def _is_of(config: Config, row: PaperRow) -> bool:
    """Whether a run has the row's data set, network and method, with the options that tell its methods apart."""
    figure = row.first
    if (config.data.dataset, _plain(config.model.name)) != (figure.dataset, figure.model):
        return False
    wanted = {key.removeprefix("method."): value for key, value in figure.options.items()}
    if row.recipe and "smoothing" in options_of(wanted["name"]):
        wanted = {"smoothing": str(row.recipe.method.smoothing), **wanted}
    return all(_value(config, key) == value for key, value in wanted.items())


def _value(config: Config, key: str) -> str:
    if key == "drop_epoch" and config.method.drop_epoch < 0:
        return str(config.train.epochs // 2)
    return str(getattr(config.method, key))


def recipe_notes(table: PaperTable, settings: Sequence[ReportedSetting]) -> list[str]:
    """What the head of a table says of the quoted figures, and how the runs differ from what the paper trained."""
    found = [(setting, row) for setting in settings if (row := table.row_of(setting))]
    nearest = found or [(setting, _nearest(setting, table)) for setting in settings]
    sources = list(dict.fromkeys(row.source for _, row in nearest if row.source))
    lines = [f"quoted: as printed in {table.name}, not measured here", *sources]
    if not found:
        lines.append("none of the runs is a row of this table")
    if not sources:
        return [*lines, "no config has the recipe: what differs is not shown"]
    here: dict[str, list[str]] = {}
    for setting, row in nearest:
        for difference in _differences(setting.config, row):
            here.setdefault(difference, []).append(setting.label)
    everywhere = {setting.label for setting, _ in nearest}
    of = {line: "" if set(labels) == everywhere else f" ({', '.join(labels)})" for line, labels in here.items()}
    if not here:
        return [*lines, "the options are those of the paper's recipe"]
    return [*lines, "what differs from the paper's recipe:", *(line + of[line] for line in here)]


def label_beside(row: PaperRow, settings: Sequence[ReportedSetting]) -> str:
    """The label of a row that was not run; with data set and network where no setting has them."""
    figure = row.first
    known = {(setting.config.data.dataset, _plain(setting.config.model.name)) for setting in settings}
    return row.label + ("" if (figure.dataset, figure.model) in known else f" ({figure.dataset}, {figure.model})")


def _nearest(setting: ReportedSetting, table: PaperTable) -> PaperRow:
    """The first row of the setting's method, or the first of all."""
    name = setting.config.method.name
    return next((row for row in table.rows if row.first.options["method.name"] == name), table.rows[0])


def _differences(config: Config, row: PaperRow) -> list[str]:
    """A line `key: here X, paper Y` for each option of the recipe that a run has otherwise."""
    if not row.recipe:
        return []
    # What tells the paper's rows apart is in their labels; a method that it does not have has no options there.
    own = config.method.name == row.first.options["method.name"]
    read = {f"method.{name}" for name in options_of(config.method.name)} - row.first.options.keys() if own else set()
    mine, papers = config.decisive(), row.recipe.decisive()
    lines = [
        f"{key}: here {mine[key]}, paper {papers[key]}"
        for key in differences(config, row.recipe)
        if key not in _NO_RECIPE and (key in read or not key.startswith("method."))
    ]
    model = _plain(config.model.name)
    return lines if model == row.first.model else [*lines, f"model.name: here {model}, paper {row.first.model}"]
