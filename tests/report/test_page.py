"""The report's page: complete, self-contained, escaped, the same for the same runs."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from fastlsr.drawing import INK
from fastlsr.report.charts import csv_text, make_figure
from fastlsr.report.collect import collect
from fastlsr.report.comparisons import all_pairs, compare
from fastlsr.report.figures import report_figures
from fastlsr.report.page import inline_svg, page_html, write_page
from fastlsr.report.tables import aside_table, comparison_table, setting_tables

EVIL = "<script>alert('&amp;')</script>"


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, and the text of each table cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self._cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cells.append(self._cell.strip())
            self._cell = None

    def values(self, name):
        return [attributes[name] for _, attributes in self.tags if attributes.get(name)]


@pytest.fixture(scope="module")
def report(tmp_path_factory, write_run):
    """(folder, its report's parts) of two settings of three seeds, and of folders with an evil name and no run."""
    folder = tmp_path_factory.mktemp("page")
    for method in ("hard", "colam"):
        for seed in range(3):
            options = {"method.name": method, "method.stages": 2, "train.seed": seed}
            write_run(folder / "runs" / f"{method}{seed}", options, top1=[50 + seed, 60, 70, 80 + seed * len(method)])
    (folder / "runs" / EVIL.replace("/", "")).mkdir()
    collection = collect([folder / "runs"])
    comparisons = compare(all_pairs(collection.settings), "top1")
    figures = report_figures(collection, comparisons)
    tables = setting_tables(collection, comparisons)
    page = write_page(folder / "out", collection, comparisons, tables, figures, command=f"report {EVIL}")
    return folder, page.read_text(encoding="utf-8"), collection, comparisons, figures, tables


def test_the_page_loads_nothing_from_elsewhere(report):
    _, text, *_ = report
    page = Page(text)
    for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
        for address in page.values(name):
            assert address.startswith(("#", "data:", "figures/")), address
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert "link" not in {tag for tag, _ in page.tags}
    assert "http-equiv" not in text


def test_what_the_page_links_beside_it_is_there(report):
    folder, text, *_ = report
    files = [address for address in Page(text).values("href") if address.startswith("figures/")]
    assert files
    assert all((folder / "out" / file).stat().st_size for file in files)


def test_every_cell_of_every_table_is_in_the_page(report):
    _, text, collection, comparisons, _, tables = report
    shown = Page(text).cells
    tables = [*tables, comparison_table(collection.settings, comparisons), aside_table(collection)]
    for table in tables:
        for cell in (*(cell for row in table.rows for cell in row), *table.heads):
            assert (cell.text if hasattr(cell, "text") else cell.title) in shown


def test_no_number_of_a_figure_s_text_is_rounded_on_the_page():
    document = '<svg viewBox="0 0 9 9"><path d="M 1.23456 2"/><text x="3.14159">0.0005</text></svg>'
    assert inline_svg(document, "a", "b").endswith('<path d="M 1.23 2"/><text x="3.14">0.0005</text></svg>')


def test_names_are_text_and_never_markup(report):
    _, text, *_ = report
    page = Page(text)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]  # the page's own
    assert "<script>alert" not in text
    assert any(cell.endswith("<script>alert('&amp;')<script>") for cell in page.cells)


def test_each_figure_has_its_numbers_as_a_download(report):
    folder, text, _, _, figures, _ = report
    downloads = {a["download"]: a["href"] for _, a in Page(text).tags if "download" in a}
    assert downloads.keys() == {f"{figure.name}.csv" for figure in figures}
    for figure in figures:
        head, _, body = downloads[f"{figure.name}.csv"].partition(",")
        assert head == "data:text/csv;charset=utf-8"
        assert unquote(body) == figure.csv == (folder / "out" / "figures" / f"{figure.name}.csv").read_text("utf-8")


def test_the_first_heading_is_what_may_be_claimed(report):
    _, text, _, comparisons, _, _ = report
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert headings[:2] == ["What may be claimed", "Accuracy in %"]
    assert headings[-2:] == ["How it was made", "Folders set aside"]
    assert comparisons[0].claim in text.split("Accuracy in %</h2>")[0]


def test_every_id_is_there_once_and_every_reference_has_its_target(report):
    _, text, *_ = report
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#(.*?)\)", text) + [href[1:] for href in page.values("href") if href[0] == "#"]
    assert set(references) <= set(ids)


def test_text_in_figures_has_the_colour_of_the_page(report):
    _, text, *_ = report
    assert INK not in text
    assert "currentColor" in text


def test_a_column_is_sorted_by_the_numbers_behind_it(report):
    _, text, collection, _, _, _ = report
    values = {float(value) for value in Page(text).values("data-value")}
    mean = sum(collection.settings[0].numbers("last", "nll")) / 3
    assert any(value == pytest.approx(mean) for value in values)


def test_the_same_runs_give_the_same_bytes(report, tmp_path):
    folder, text, collection, comparisons, _, tables = report
    figures = report_figures(collection, comparisons)
    again = write_page(tmp_path, collection, comparisons, tables, figures, command=f"report {EVIL}")
    assert again.read_text(encoding="utf-8") == text
    for file in (folder / "out" / "figures").iterdir():
        assert file.read_bytes() == (tmp_path / "figures" / file.name).read_bytes()


def test_a_page_of_runs_under_way_renews_itself(report):
    _, _, collection, _, _, tables = report
    text = page_html(collection, [], tables, [], {}, command="", refresh=7)
    assert '<meta http-equiv="refresh" content="7">' in text
    assert "Nothing yet" in text


def test_seeds_and_targets_of_each_setting_are_told(report):
    _, text, *_ = report
    assert {"0 to 2", "4 epochs towards onehot(y)"} <= set(Page(text).cells)


def test_a_figure_keeps_its_shape_within_a_page():
    figure = make_figure("x", "", "x", "", lambda axes: axes.plot([0, 1], [0, 1], "o", label="a <b> & c"), csv_text([]))
    from fastlsr.drawing import svg

    document = svg(figure.figure)
    body = inline_svg(document, "x", "&lt;label&gt;")
    assert re.search(r'viewBox="[^"]*"', document)[0] in body
    assert "a &lt;b&gt; &amp; c" in body
    assert body.count("<g") == body.count("</g>")
    assert len(body) < len(document)
    numbers = [float(number) for number in re.findall(r"(?<= )-?\d+\.\d+(?= )", body)]
    assert numbers
    assert all(number == round(number, 2) for number in numbers)
