#!/usr/bin/env python3
"""Writes the tables that the code knows into README.md, CONTRIBUTING.md and docs/, between markers.

python scripts/write_docs.py           # rewrites what lies between <!-- generated: NAME --> and <!-- end -->
python scripts/write_docs.py --check   # writes nothing; exit code 1 and a line for each file whose tables are stale
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout without installation

from fastlsr import runs
from fastlsr.cli import Parser, exit_on_input_error
from fastlsr.config import SECTIONS, Config, load, usage
from fastlsr.data.prepare.sources import SOURCES
from fastlsr.errors import InputError
from fastlsr.labels.methods import METHODS, options_of
from fastlsr.metrics import METRICS
from fastlsr.report.papers import QuotedFigure, quoted_figures
from fastlsr.scores import SCORES

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?P<begin><!-- generated: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
# Folders of fastlsr/ whose files a page lists.
DESCRIBED = ("labels", "data", "data/prepare", "engine", "inference", "logs", "report")
GENERATED: dict[str, Callable[[], str]] = {}


def generated(function: Callable[[], str]) -> Callable[[], str]:
    """Makes a function the text of the blocks of its name, with - for _."""
    GENERATED[function.__name__.replace("_", "-")] = function
    return function


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@dataclass(frozen=True)
class Header:
    """The comment lines at the beginning of a file in configs/."""

    path: Path
    title: str
    fields: dict[str, str]

    @property
    def paper(self) -> str:
        """TSLA, COLAM, or "" for what is no experiment of a paper."""
        return next((name.upper() for name in ("tsla", "colam") if self.path.stem.startswith(name)), "")

    @property
    def experiment(self) -> str:
        """The paper, its table, and the title."""
        if not self.paper or self.fields["table"].startswith("none"):
            return self.title
        return f"{self.paper}, {self.fields['table']}: {self.title}"

    @property
    def setting(self) -> str:
        """The data set and the network of a title "METHOD for NETWORK on DATA", and where the paper has them."""
        network, data = self.title.partition(";")[0].partition(" for ")[2].replace("an ", "").split(" on ")
        return f"{data}, {network} ({self.paper}, Table {re.findall(r'[0-9]+', self.fields['table'])[0]})"

    def cell(self, folder: str) -> str:
        """A link to the file from a page in `folder`."""
        name = self.path.relative_to(ROOT).as_posix()
        return f"[`{self.path.stem}`]({'../' if folder else ''}{name})"


def headers(folder: Path) -> list[Header]:
    """The headers of a folder's YAML files, by name, those of no paper last."""
    found = []
    for path in folder.glob("*.yaml"):
        lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        fields = [line.split(": ", 1) for line in lines if re.match(r"(table|command|trials): ", line)]
        found.append(Header(path, lines[0].rstrip("."), dict(reversed(fields))))  # of two commands the first
    return sorted(found, key=lambda header: (header.paper or "z", header.path.stem))


def main_figures(path: Path) -> dict[str, QuotedFigure]:
    """Method -> the paper's top-1 for the network, the data set and the method options of a config as it is."""
    paper, config = path.stem.split("_")[0], load(path)
    return {
        figure.options["method.name"]: figure
        for figure in reversed(quoted_figures())  # so that of two tables with the same setting the first one wins
        if (figure.paper, figure.dataset, figure.metric) == (paper, config.data.dataset, "top1")
        and figure.model == config.model.name.removeprefix("timm/").removesuffix(".tv_in1k")
        and _agrees(figure, config)
    }


def _agrees(figure: QuotedFigure, config: Config) -> bool:
    options = {key: value for key, value in figure.options.items() if key != "method.name"}
    return all(str(getattr(config.method, key.removeprefix("method."))) == value for key, value in options.items())


@generated
def reproduced() -> str:
    """The papers' figures of each config's own setting, beside ours."""
    rows = []
    for header in headers(ROOT / "configs"):
        if header.paper:
            figures, own = main_figures(header.path), load(header.path).method.name
            quoted = [str(figures["hard"]), str(figures["lsr"]), f"{figures[own].method} {figures[own]}"]
            rows.append([header.cell(""), header.setting, *quoted, "not yet"])
    return markdown_table(["`configs/`", "experiment", "hard", "LSR", "the paper's method", "ours"], rows)


@generated
def experiments() -> str:
    """Each config with the papers' figures and its command."""
    rows = []
    for header in headers(ROOT / "configs"):
        figures = main_figures(header.path).items() if header.paper else ()
        methods = load(header.path).method.name, "lsr", "hard"
        quoted = "; ".join(f"{f.method.replace('baseline', 'hard')} {f}" for m in methods for n, f in figures if n == m)
        rows.append([header.cell("docs"), header.experiment, quoted or "none", f"`{header.fields['command']}`"])
    return markdown_table(["config", "experiment", "quoted from the paper, top-1 in %", "command"], rows)


@generated
def sweeps() -> str:
    """Each sweep file with its trials."""
    return markdown_table(
        ["`configs/sweeps/`", "experiment", "trials"],
        ([h.cell("docs"), h.experiment, h.fields["trials"]] for h in headers(ROOT / "configs" / "sweeps")),
    )


@generated
def methods() -> str:
    """Each method with the first line of its docstring and its options."""
    return markdown_table(
        ["`method.name`", "targets", "options"],
        (
            [f"`{name}`", (made.__doc__ or "").strip().partition("\n")[0], " ".join(f"`{o}`" for o in options_of(name))]
            for name, made in METHODS.items()
        ),
    )


@generated
def options() -> str:
    """Each section's options, with defaults."""
    lines = [line for line in usage().splitlines() if line]
    pairs = [(name.strip(" -").split("=", 1), text.strip()) for name, text in zip(lines[::2], lines[1::2], strict=True)]
    parts = []
    for section, kind in SECTIONS.items():
        rows = [[f"`{name}`", default if default != "..." else "", text] for (name, default), text in pairs
                if name.startswith(f"{section}.")]  # fmt: skip
        parts.append(f"## {section}\n\n{kind.__doc__}\n\n{markdown_table(['option', 'default', 'meaning'], rows)}")
    return "\n" + "\n".join(parts) + "\n"


@generated
def columns() -> str:
    """The columns of a row."""
    return markdown_table(["column", "unit", "meaning"], ([f"`{c.key}`", c.unit, c.meaning] for c in runs.columns()))


@generated
def columns_short() -> str:
    """The names of a row's columns; those of a validation split are as those of the test split."""
    names = runs.keys()
    return " ".join(f"`{key}`" for key in names if not key.startswith("val/")) + "\n"


@generated
def metrics() -> str:
    """The names of the metrics."""
    return " ".join(f"`test/{name}`" for name in METRICS) + "\n"


@generated
def datasets() -> str:
    """The data sets that can be written."""
    return markdown_table(
        ["name", "downloaded", "stored as", "splits", "notes"],
        (
            [
                f"`{name}`",
                "yes" if source.downloads else "no",
                _stored(source.encoding),
                ", ".join(source.splits),
                source.note,
            ]
            for name, source in SOURCES.items()
        ),
    )


def _stored(encoding) -> str:
    side = f", at most {encoding.max_resolution} pixels" if encoding.max_resolution else ""
    share = f" {encoding.compress_probability:g}" if encoding.mode == "proportion" else ""
    return f"{encoding.mode}{share}{side}"


@generated
def scores() -> str:
    """The scores that a report computes from kept logits."""
    return markdown_table(["column", "unit", "meaning"], ([s.title, s.unit, s.meaning] for s in SCORES.values()))


@generated
def analyses() -> str:
    """The kinds of analysis, what each takes, and its options."""
    rows = []
    for path in sorted((ROOT / "fastlsr/analysis").glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (made,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "analyze")
        takes = {"run": "one run", "runs": "runs"}.get(made.args.args[0].arg if made.args.args else "", "no run")
        options = " ".join(f"`--{option.arg}`" for option in made.args.kwonlyargs)
        rows.append([f"`{path.stem}`", takes, options, (ast.get_docstring(tree) or "").partition("\n")[0]])
    return markdown_table(["kind", "of", "options", "what it shows"], rows)


def _files_of(folder: str) -> Callable[[], str]:
    """A block with the first line of each module's docstring."""

    def files() -> str:
        rows = []
        for path in sorted((ROOT / "fastlsr" / folder).glob("[!_]*.py")):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            rows.append([f"`{path.name}`", said.partition("\n")[0]])
        return markdown_table(["file", "what is in it"], rows)

    return files


GENERATED |= {f"files-{folder.replace('/', '-')}": _files_of(folder) for folder in DESCRIBED}


def pages() -> list[Path]:
    """The pages that may have generated blocks."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def rewritten(text: str) -> str:
    """The text with its generated blocks as the code has them now.

    Raises:
        InputError: for a block of an unknown name, or one that does not end.
    """

    def fill(block: re.Match[str]) -> str:
        if block["name"] not in GENERATED:
            raise InputError(f"no generated block {block['name']}; there are {', '.join(GENERATED)}")
        return block["begin"] + GENERATED[block["name"]]() + block["end"]

    result, count = BLOCK.subn(fill, text)
    if count != text.count("<!-- generated:") or count != text.count("<!-- end -->"):
        raise InputError("a generated block has no end, or an end has no block")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites or checks the pages; the exit code."""
    with exit_on_input_error():
        parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is stale")
        check = parser.parse_args(arguments).check
        stale = []
        for page in pages():
            text = page.read_text(encoding="utf-8")
            try:
                now = rewritten(text)
            except InputError as error:
                raise InputError(f"{page.relative_to(ROOT)}: {error}") from None
            if now != text:
                stale.append(page)
                if not check:
                    page.write_text(now, encoding="utf-8")
        for page in stale:
            name = page.relative_to(ROOT)
            print(f"{name} is stale: run python scripts/write_docs.py" if check else f"{name} rewritten")
        return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
