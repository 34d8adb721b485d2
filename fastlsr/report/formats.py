"""How tables are written: to the terminal, in Markdown, in LaTeX."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable
from rich.text import Text

from fastlsr.report.tables import NONE, Cell, Head, Table

_GAP = 2  # spaces between columns on the terminal


def markdown(table: Table) -> str:
    """The table in Markdown, under a heading."""
    heads = [f"{head.group}: {head.title}" if head.group else head.title for head in table.heads]
    rules = ["---" if head.is_text else "---:" for head in table.heads]
    rows = [[f"**{_plain(cell.text)}**" if cell.bold else _plain(cell.text) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)]
    above, below = ([f"- {_plain(line)}" for line in part] for part in (table.lead, table.notes))
    parts = [f"## {table.title}"], above, lines, below
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\|*_`<":
        text = text.replace(mark, "\\" + mark)
    return text


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$", ">": "$>$",
})  # fmt: skip


def latex(table: Table) -> str:
    """The table in LaTeX."""
    spec = "".join("l" if head.is_text else "r" for head in table.heads)
    groups = _groups(table.heads)
    lines = [r"% needs \usepackage{booktabs}"]
    lines += [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}", rf"\label{{tab:{table.name}}}",
             rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]  # fmt: skip
    if any(name for name, _, _ in groups):
        lines.append(" & ".join(rf"\multicolumn{{{last - first + 1}}}{{c}}{{{_tex(name)}}}" if name else
                                "&" * (last - first) for name, first, last in groups) + r" \\")  # fmt: skip
        lines.append(" ".join(rf"\cmidrule(lr){{{first}-{last}}}" for name, first, last in groups if name))
    lines += [" & ".join(_tex(head.title) for head in table.heads) + r" \\", r"\midrule"]
    for row in table.rows:
        lines.append(" & ".join(rf"\textbf{{{_tex(c.text)}}}" if c.bold else _tex(c.text) for c in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [r"\par\smallskip\footnotesize " + _tex(note) for note in (*table.lead, *table.notes)]
    return "\n".join([*lines, r"\end{table}", ""])


def _groups(heads: Sequence[Head]) -> list[tuple[str, int, int]]:
    """(group, first, last column, from 1) of neighbours in one group."""
    found: list[tuple[str, int, int]] = []
    for at, head in enumerate(heads, start=1):
        if found and found[-1][0] == head.group:
            found[-1] = (head.group, found[-1][1], at)
        else:
            found.append((head.group, at, at))
    return found


def _tex(text: str) -> str:
    return text.translate(_LATEX)


def print_table(console: Console, table: Table) -> None:
    """Prints the table; columns that do not fit the width come below, beside the row names again."""
    print_lines(console, [table.title], style="bold")
    print_lines(console, table.lead)
    for columns in _fitting(table, console.width):
        shown = TerminalTable(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), show_edge=False, pad_edge=False)
        has_groups = any(table.heads[column].group for column in columns)
        for column in columns:
            head = table.heads[column]
            title = f"{head.group}\n{head.title}" if has_groups else head.title
            shown.add_column(
                escape(title), justify="left" if head.is_text else "right", overflow="fold", no_wrap=column > 0
            )
        for row in table.rows:
            if any(row[column].text != NONE for column in columns[1:]):
                shown.add_row(*(_styled(row[column]) for column in columns))
        console.print(shown)
    print_lines(console, table.notes)


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Prints each line, wrapped at the width."""
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=False)


def _styled(cell: Cell) -> str:
    return f"[bold]{escape(cell.text)}[/bold]" if cell.bold else escape(cell.text)


def _fitting(table: Table, width: int) -> Iterator[list[int]]:
    """The columns of each part of a table that fits the width; the first one is in all, groups stay together."""
    widths = [max(map(len, _texts(table, column))) + _GAP for column in range(len(table.heads))]
    room = width + _GAP - min(widths[0], width // 2)  # longer names are folded
    part: list[int] = []
    for _, group in itertools.groupby(range(1, len(widths)), key=lambda column: table.heads[column].group or column):
        columns = list(group)
        fits = sum(widths[column] for column in columns) <= room
        for piece in [columns] if fits else [[column] for column in columns]:
            if part and sum(widths[column] for column in [*part, *piece]) > room:
                yield [0, *part]
                part = []
            part += piece
    yield [0, *part]


def _texts(table: Table, column: int) -> Iterator[str]:
    yield from (table.heads[column].title, table.heads[column].group)
    yield from (row[column].text for row in table.rows)
