"""A report's page shows the analyses in its folder and the notes that it is given."""

import re

import pytest

from fastlsr.analysis import Finding
from fastlsr.analyze import write
from fastlsr.drawing import panels
from fastlsr.errors import InputError
from fastlsr.report.__main__ import main
from fastlsr.report.supplements import notes_html, written_analyses


@pytest.fixture
def out(tmp_path):
    """A folder for a report, with two analyses in it, one without a picture."""
    figure, (axes,) = panels()
    axes.plot([0, 1], [0, 1])
    folder = tmp_path / "out"
    write(Finding({"a": 1}, "one & <two>", figure), folder / "analysis" / "soft_labels", "python -m x", "Shows <x>.")
    write(Finding({"b": 2}, "three"), folder / "analysis" / "colam" / "variance", "python -m y", "Shows y.")
    return folder


def test_analyses_are_found_with_their_text_pictures_and_files(out):
    below, top = written_analyses(out)
    assert (top.title, below.title) == ("soft labels", "variance: colam")
    assert (top.about, below.about) == ("Shows <x>.", "Shows y.")
    assert top.text == "$ python -m x\n\none & <two>" and top.svg.startswith("<svg") and not below.svg
    assert below.links == ("analysis/colam/variance.json",)
    assert [link.rpartition(".")[2] for link in top.links] == ["json", "svg", "png"]
    assert all((out / link).is_file() for each in (below, top) for link in each.links)


def test_the_page_shows_them_under_the_notes(out, runs, tmp_path, capsys):
    notes = tmp_path / "notes.md"
    notes.write_text("# What & why\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n<script>alert()</script>\n", encoding="utf-8")
    assert main([str(runs), f"--out={out}", f"--notes={notes}"]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<h1>") == 1 and "<h1>What &amp; why</h1>" in page and "<td>2</td>" in page
    assert "&lt;script&gt;alert()" in page
    assert "Shows &lt;x&gt;." in page and "one &amp; &lt;two&gt;" in page and 'id="analyses"' in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "two pictures share an id"


def test_a_page_without_them_has_neither_section(runs, tmp_path):
    assert main([str(runs), f"--out={tmp_path / 'plain'}"]) == 0
    page = (tmp_path / "plain/index.html").read_text(encoding="utf-8")
    assert 'id="analyses"' not in page and 'class="notes"' not in page


def test_notes_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(InputError, match="--notes=.* cannot be read: No such file"):
        notes_html(tmp_path / "none.md")
