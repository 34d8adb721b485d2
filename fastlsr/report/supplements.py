"""What a report's page shows besides the runs: the user's notes, and analyses that lie in the report's folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastlsr.errors import InputError

ANALYSES = "analysis"  # the folder in a report's own from which its page takes what `fastlsr.analyze --out` wrote


@dataclass(frozen=True)
class WrittenAnalysis:
    """The files of one analysis.

    Attributes:
        title: its kind, and its folder's name where that is below `ANALYSES`.
        name: unique in the report, for an id.
        about: what it shows, of which runs.
        text: the command, and what it printed.
        svg: its picture, as a document; "" where there is none.
        links: paths from the report's folder to its numbers and its pictures.
    """

    title: str
    name: str
    about: str
    text: str
    svg: str
    links: tuple[str, ...]


def written_analyses(out: Path) -> Iterator[WrittenAnalysis]:
    """The analyses below OUT/analysis, by path."""
    for text in sorted((out / ANALYSES).rglob("*.txt")):
        files = [file for suffix in (".json", ".svg", ".png") if (file := text.with_suffix(suffix)).is_file()]
        below = text.relative_to(out / ANALYSES).with_suffix("").parts
        picture = text.with_suffix(".svg")
        about, _, said = text.read_text(encoding="utf-8").rstrip().partition("\n")
        yield WrittenAnalysis(
            title=below[-1].replace("_", " ") + (f": {', '.join(below[:-1])}" if len(below) > 1 else ""),
            name="-".join([ANALYSES, *below]),
            about=about,
            text=said,
            svg=picture.read_text(encoding="utf-8") if picture in files else "",
            links=tuple(file.relative_to(out).as_posix() for file in files),
        )


def notes_html(path: Path) -> str:
    """A Markdown file as HTML. HTML inside it is shown as text.

    Raises:
        InputError: if it cannot be read.
    """
    from markdown_it import MarkdownIt

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--notes={path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))
