"""The papers' figures as data: complete, read without torch, and with the options that select each method."""

import subprocess
import sys
from collections import Counter

import pytest

from fastlsr.config import load
from fastlsr.labels.methods import METHODS
from fastlsr.report.papers import quoted_figures


def test_every_table_of_the_papers_has_all_its_figures():
    """Rows x columns of each table, counted in the papers."""
    assert Counter((figure.paper, figure.table) for figure in quoted_figures()) == {
        ("tsla", 1): 9 * 2 * 2,  # methods, data sets, top-1 and top-5
        ("tsla", 2): 11 * 2,
        ("tsla", 3): 5 * 3,  # methods, values of theta; top-1 alone
        ("colam", 1): 5 * 4,  # methods, networks
        ("colam", 2): 5 * 4,
        ("colam", 3): 7 * 2,
        ("colam", 4): 3 * 4,  # methods, data sets
        ("colam", 5): 3 * 4,  # methods; three distances and their average
    }


def test_no_figure_is_there_twice():
    keys = [(f.paper, f.table, f.dataset, f.model, f.method, f.metric) for f in quoted_figures()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("method", ["hard", "lsr", "colam"])
def test_average_template_distance_is_that_of_the_three_pairs(method):
    """To the rounding of the paper's third digit."""
    of_method = {f.metric: f.mean for f in quoted_figures() if f.table == 5 and f.method == method}
    average = of_method.pop("template_distance:average")
    assert sum(of_method.values()) / 3 == pytest.approx(average, abs=1.1e-3)


@pytest.mark.parametrize("figure", quoted_figures(), ids=str)
def test_a_figure_s_options_select_a_method_of_ours(figure):
    assert load(overrides=figure.options).method.name in METHODS


def test_a_figure_is_printed_with_the_digits_of_the_paper():
    texts = {(f.table, f.model, f.method, f.metric): str(f) for f in quoted_figures() if f.paper == "colam"}
    assert texts[2, "preact_resnet34", "colam", "top1"] == "78.69 ± 0.23"
    assert texts[1, "densenet_bc_100", "colam", "top1"] == "94.84 ± 0.10"
    assert texts[5, "resnet56", "lsr", "template_distance:average"] == "1.410"


def test_the_figures_are_read_without_torch():
    code = "import sys; from fastlsr.report import papers; papers.quoted_figures(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
