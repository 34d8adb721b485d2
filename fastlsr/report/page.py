"""The report as one HTML page that needs nothing beside it: text, tables, figures and the numbers behind them."""

from __future__ import annotations

import html
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastlsr.drawing import INK, save_figure
from fastlsr.errors import InputError
from fastlsr.files import replace_text
from fastlsr.report.charts import ReportFigure
from fastlsr.report.collect import Collection, ReportedSetting
from fastlsr.report.columns import full_title
from fastlsr.report.comparisons import Comparison
from fastlsr.report.supplements import WrittenAnalysis, notes_html, written_analyses
from fastlsr.report.tables import Cell, Head, Table, aside_table, comparison_table

_MOST_CLAIMS = 8  # that are shown at once
_SECTIONS = {"accuracy": "Accuracy in %", "comparisons": "Differences"}  # of tables; of all others:
_OTHER_TABLES = "Calibration and risk"
_MOST_ROWS = 200  # of the table of comparisons


def write_page(
    out: Path,
    collection: Collection,
    comparisons: Sequence[Comparison],
    tables: Sequence[Table],
    figures: Sequence[ReportFigure],
    *,
    command: str,
    notes: Path | None = None,
    refresh: int = 0,
) -> Path:
    """Writes OUT/index.html, and each figure as SVG, PNG and CSV in OUT/figures; returns the page's path.

    Args:
        command: that makes the report.
        notes: a Markdown file that the page begins with.
        refresh: seconds after which the page loads itself anew; 0 where it does not.

    Raises:
        InputError: if a file cannot be written, or the notes cannot be read.
    """
    page, documents = out / "index.html", {}
    text_of_notes = notes_html(notes) if notes else ""
    try:
        folder = out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        for figure in figures:
            vector, _ = save_figure(figure.figure, folder / figure.name)
            documents[figure.name] = vector.read_text(encoding="utf-8")
            replace_text(folder / f"{figure.name}.csv", figure.csv)
        text = page_html(
            collection, comparisons, tables, figures, documents,
            analyses=list(written_analyses(out)), command=command, notes=text_of_notes, refresh=refresh,
        )  # fmt: skip
        replace_text(page, text)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None
    return page


def page_html(
    collection: Collection,
    comparisons: Sequence[Comparison],
    tables: Sequence[Table],
    figures: Sequence[ReportFigure],
    documents: Mapping[str, str],
    *,
    analyses: Sequence[WrittenAnalysis] = (),
    command: str,
    notes: str = "",
    refresh: int = 0,
) -> str:
    """The page; equal arguments give equal text. See `write_page`.

    Args:
        documents: each figure's SVG, by its name.
        notes: HTML.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["groups"] = _head_groups
    shown = [
        *(table for table in tables if table.rows),
        *([_comparison_table(collection, comparisons)] if comparisons else []),
    ]
    heading, notes = _heading_and_rest(notes)
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=heading or _title(collection), subtitle=_subtitle(collection), refresh=refresh, live=_live(collection),
        notes=notes, analyses=[(each, _drawing(each.svg, each.name, each.title)) for each in analyses],
        claims=_claims(comparisons), sections=_sections(shown, figures, documents), command=command,
        origin=_origin(collection), aside=aside_table(collection),
    )  # fmt: skip


def _comparison_table(collection: Collection, comparisons: Sequence[Comparison]) -> Table:
    """A row for each comparison; of very many, those with the smallest p."""
    smallest = sorted(range(len(comparisons)), key=lambda at: comparisons[at].p)[:_MOST_ROWS]
    table = comparison_table(collection.settings, comparisons)
    if len(table.rows) == len(smallest):
        return table
    note = f"The {len(smallest)} of {len(table.rows)} comparisons with the smallest p; all are in comparisons.csv."
    return replace(table, rows=tuple(table.rows[at] for at in sorted(smallest)), notes=(*table.notes, note))


def _head_groups(heads: Sequence[Head]) -> list[tuple[str, int]]:
    """(group, columns) of neighbours in one group; [] if no head has one."""
    groups = [(name, len(list(same))) for name, same in itertools.groupby(head.group for head in heads)]
    return groups if any(name for name, _ in groups) else []


def _sections(
    tables: Sequence[Table], figures: Sequence[ReportFigure], documents: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Tables and figures under their headings, that of the first table first."""
    by_title: dict[str, dict[str, Any]] = {}

    def section(title: str) -> dict[str, Any]:
        anchor = re.sub(r"\W+", "-", title.lower())
        return by_title.setdefault(title, {"title": title, "anchor": anchor, "tables": [], "figures": []})

    for table in (table for table in tables if table.name in _SECTIONS):
        section(_SECTIONS[table.name])["tables"].append(table)
    for _, alike in itertools.groupby(figures, key=lambda figure: figure.caption):
        for at, figure in enumerate(alike):  # one caption stands for all parts of a figure
            drawn = _page_figure(figure, documents[figure.name])
            section(figure.group)["figures"].append({**drawn, "caption": "" if at else figure.caption})
    for table in (table for table in tables if table.name not in _SECTIONS):
        section(_OTHER_TABLES)["tables"].append(table)
    return list(by_title.values())


def _page_figure(figure: ReportFigure, document: str) -> dict[str, Any]:
    drawing = _drawing(document, f"figure-{figure.name}", figure.title)
    return {"name": figure.name, "svg": drawing, "csv": data_uri(figure.csv)}


def _drawing(document: str, name: str, title: str) -> str:
    return inline_svg(document, name, html.escape(title)) if document else ""


def _title(collection: Collection) -> str:
    named = [collection.common.get(key) for key in ("data.dataset", "model.name")]
    return "Report" + (f": {', '.join(str(name) for name in named if name)}" if any(named) else "")


def _heading_and_rest(notes: str) -> tuple[str, str]:
    """(the heading that HTML begins with, or "", the rest): a page has one heading."""
    found = re.match(r"<h1>(.*?)</h1>\s*", notes, re.DOTALL)
    return (html.unescape(re.sub(r"<[^>]*>", "", found[1])), notes[found.end() :]) if found else ("", notes)


def _subtitle(collection: Collection) -> str:
    runs = sum(len(setting.runs) for setting in collection.settings)
    seeds = {run.trial.config.train.seed for setting in collection.settings for run in setting.runs}
    epochs = sorted({setting.plan.epochs for setting in collection.settings})
    lengths = f", {' or '.join(map(str, epochs))} epochs" if 0 < len(epochs) < 4 else ""
    counts = [(len(collection.settings), "setting"), (runs, "finished run"), (len(seeds), "seed")]
    return ", ".join(_count(number, noun) for number, noun in counts) + lengths


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _live(collection: Collection) -> str:
    states = Counter(each.what for each in collection.aside)
    return f"{_count(states['running'], 'run')} under way, {states['stopped']} stopped."


def _claims(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """What the comparisons carry: decided ones, those that enough seeds left open, how many n cannot decide."""
    decided = [each.claim for each in comparisons if each.decided]
    undecided = [each for each in comparisons if not each.decided]
    lacking = [each for each in undecided if len(each.differences) < each.needed]
    open_ = [each.claim for each in undecided if len(each.differences) >= each.needed]
    if len(lacking) > 2:
        total = _count(len(comparisons), "comparison")
        open_ += [f"{count} of {total}: {claim}" for claim, count in Counter(each.claim for each in lacking).items()]
    else:
        open_ += [f"{each.one} and {each.other}: {each.claim}" for each in lacking]
    room = max(2, _MOST_CLAIMS - len(decided))
    return {
        "column": full_title(comparisons[0].column) if comparisons else "",
        "decided": decided[:_MOST_CLAIMS],
        "open": open_[-room:],
        "folded": decided[_MOST_CLAIMS:] + open_[:-room],
    }


def inline_svg(document: str, name: str, label: str) -> str:
    """A figure's SVG document as a part of a page: scaled to its box, in the page's colour and font.

    Coordinates are rounded to hundredths of a point. Ids that nothing refers to go, and the others begin with `name`,
    so that they are unique in the page.

    Args:
        name: unique in the page.
        label: the figure in words, escaped for HTML.
    """
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", document, flags=re.DOTALL)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor")
    body = re.sub(r"font-family: [^;\"]*;? ?| ?transform=\"rotate\(-?0 [^\"]*\"", "", body)
    body = _TAG.sub(lambda tag: _NUMBER.sub(_in_hundredths, tag[0]), body)  # and no number between tags: a label's
    used = set(_REFERENCE.findall(body))
    body = _ID.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = _REFERENCE.sub(lambda found: found[0].replace(f"#{found[1]}", f"#{name}-{found[1]}"), body)
    box = re.search(r'viewBox="([^"]*)"', body)
    assert box is not None
    inner = re.sub(r"\s+", " ", body[body.index(">") + 1 :]).replace("> <", "><").replace("<defs></defs>", "")
    return f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">{inner}'


def _in_hundredths(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


_TAG = re.compile(r"<[^>]*>")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')


def data_uri(text: str) -> str:
    """CSV as the address of a link that downloads it."""
    return "data:text/csv;charset=utf-8," + quote(text, safe=" ,;:/=().±")


def _origin(collection: Collection) -> dict[str, Any]:
    """How the runs were made: settings with their seeds and targets, machines and versions, options, commands."""
    environments = {
        setting.label: [run.trial.folder.read_environment() for run in setting.runs] for setting in collection.settings
    }
    return {
        "settings": _settings_table(collection.settings),
        "facts": _facts([each for of_setting in environments.values() for each in of_setting]),
        "commands": [f"# {label}\n{_command(first)}" for label, (first, *_) in environments.items() if _command(first)],
        "varying": ", ".join(collection.varying),
        "common": [(key, str(value)) for key, value in collection.common.items()],
    }


def _command(environment: Mapping[str, Any]) -> str:
    return shlex.join(environment.get("command") or ())


def _settings_table(settings: Sequence[ReportedSetting]) -> Table:
    rows = []
    for setting in settings:
        seeds = [run.trial.config.train.seed for run in setting.runs]
        phases = [(text, len(list(same))) for text, same in itertools.groupby(map(str, setting.plan.phases))]
        targets = "; ".join(f"{count} times {text}" if count > 1 else text for text, count in phases)
        rows.append((Cell(setting.label), Cell(str(len(seeds)), len(seeds)), Cell(_ranges(seeds)), Cell(targets)))
    heads = (Head("setting", is_text=True), Head("n"), Head("seeds"), Head("trained for", is_text=True))
    return Table("settings", "Settings and their runs", heads, tuple(rows))


def _ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in words: "0 to 7, 11"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _facts(environments: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(name, the runs' values, with how many have each where they differ) of what produced the runs."""
    facts: dict[str, Counter[str]] = {}
    for environment in environments:
        for name, value in _facts_of(environment):
            facts.setdefault(name, Counter())[value] += 1
    return [
        (
            name,
            "; ".join(
                f"{value} ({_count(runs, 'run')})" if len(counts) > 1 else value for value, runs in counts.items()
            ),
        )
        for name, counts in facts.items()
    ]


def _facts_of(environment: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if (git := environment.get("git")) and git.get("commit"):
        yield "commit", git["commit"][:12] + (", with uncommitted changes" if git["changed"] else "")
    if {"device", "cores", "threads"} <= environment.keys():
        yield (
            "device",
            f"{environment['device']}, {environment['cores']} cores, {_count(environment['threads'], 'thread')}",
        )
    if "platform" in environment:
        yield "platform", environment["platform"]
    if {"fastlsr", "python", "versions"} <= environment.keys():
        versions = {"fastlsr": environment["fastlsr"], "python": environment["python"], **environment["versions"]}
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    for name, digest in zip(("training data", "evaluation data"), environment.get("data") or (), strict=False):
        yield name, f"sha256 {digest[:12]}"
    if environment.get("teacher"):
        yield "teacher", f"sha256 {environment['teacher'][:12]}"
