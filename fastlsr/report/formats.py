"""How tables are written: to the terminal, in Markdown, in LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable

from fastlsr.report.tables import Cell, Head, Table

_GAP = 2  # spaces between columns on the terminal


def markdown(table: Table) -> str:
    """The table in Markdown, under a heading."""
    heads = [f"{head.group}: {head.title}" if head.group else head.title for head in table.heads]
    rules = ["---" if head.is_text else "---:" for head in table.heads]
    rows = [[f"**{_plain(cell.text)}**" if cell.bold else _plain(cell.text) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)]
    notes = [f"- {_plain(note)}" for note in table.notes]
    return "\n".join([f"## {table.title}", "", *lines, *([""] if notes else []), *notes, ""])


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
    """The table in LaTeX; it needs the package booktabs."""
    spec = "".join("l" if head.is_text else "r" for head in table.heads)
    groups = _groups(table.heads)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}", rf"\label{{tab:{table.name}}}",
             rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]  # fmt: skip
    if any(name for name, _, _ in groups):
        lines.append(" & ".join(rf"\multicolumn{{{last - first + 1}}}{{c}}{{{_tex(name)}}}" if name else
                                "&" * (last - first) for name, first, last in groups) + r" \\")  # fmt: skip
        lines.append(" ".join(rf"\cmidrule(lr){{{first}-{last}}}" for name, first, last in groups if name))
    lines += [" & ".join(_tex(head.title) for head in table.heads) + r" \\", r"\midrule"]
    for row in table.rows:
        lines.append(" & ".join(rf"\textbf{{{_tex(c.text)}}}" if c.bold else _tex(c.text) for c in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [r"\par\smallskip\footnotesize " + _tex(note) for note in table.notes]
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
    for at, columns in enumerate(_fitting(table, console.width)):
        shown = TerminalTable(box=box.SIMPLE_HEAD, padding=(0, _GAP, 0, 0), show_edge=False, pad_edge=False,
                              title=None if at else escape(table.title), title_justify="left")  # fmt: skip
        has_groups = any(table.heads[column].group for column in columns)
        for column in columns:
            head = table.heads[column]
            above = f"{head.group}\n" if has_groups else ""
            shown.add_column(escape(above + head.title), justify="left" if head.is_text else "right", no_wrap=True)
        for row in table.rows:
            shown.add_row(*(_styled(row[column]) for column in columns))
        console.print(shown)
    for note in table.notes:
        console.print(escape(note), soft_wrap=False, highlight=False)


def _styled(cell: Cell) -> str:
    return f"[bold]{escape(cell.text)}[/bold]" if cell.bold else escape(cell.text)


def _fitting(table: Table, width: int) -> Iterator[list[int]]:
    """The columns of each part of a table that fits the width; the first column is in all."""
    widths = [max(len(text) for text in _texts(table, column)) + _GAP for column in range(len(table.heads))]
    part, used = [0], widths[0]
    for column in range(1, len(widths)):
        if used + widths[column] > width and len(part) > 1:
            yield part
            part, used = [0], widths[0]
        part.append(column)
        used += widths[column]
    yield part


def _texts(table: Table, column: int) -> Iterator[str]:
    yield from (table.heads[column].title, table.heads[column].group)
    yield from (row[column].text for row in table.rows)
