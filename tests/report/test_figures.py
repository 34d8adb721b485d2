"""Figures of a report: what is drawn, where it is marked, and the numbers behind it."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import load
from fastlsr.drawing import INK, method_colour
from fastlsr.labels.methods import make_plan
from fastlsr.report.charts import MOST_LINES, Line, band_words, split_by_method
from fastlsr.report.collect import Collection, ReportedRun, ReportedSetting
from fastlsr.report.comparisons import Comparison
from fastlsr.report.figures import (
    CHANGES,
    DIFFERENCE,
    cost_figures,
    curve,
    curve_figures,
    difference_figures,
    option_figures,
    reliability_figures,
    report_figures,
    risk_figures,
)
from fastlsr.runs import RunFolder, Summary, best_of
from fastlsr.trials import Trial

# Of each epoch of each run, worked by hand: the mean of 40, 44 and 45 is 43, their deviation sqrt(7).
TOP1 = ((10.0, 20.0, 30.0, 40.0), (12.0, 20.0, 34.0, 44.0), (14.0, 20.0, 38.0, 45.0))


def setting(method="hard", top1=TOP1, label="", **options):
    """A setting in memory: a run for each row of `top1`, an epoch for each of its numbers."""
    options = {"stages": 2, **options} if method == "colam" else options
    chosen = {f"method.{key}": str(value) for key, value in options.items()}
    runs = []
    for seed, values in enumerate(top1):
        config = load(overrides={"method.name": method, "train.epochs": len(values), "train.seed": seed, **chosen})
        rows = [
            {
                "epoch": epoch,
                "test/top1": value,
                "train/top1": value,
                "test/nll": 100 / (1 + value),
                "target_entropy": 0.5,
            }
            for epoch, value in enumerate(values, 1)
        ]
        summary = Summary(name="", finished=True, last=rows[-1], best=best_of(rows, "top1"))
        trial = Trial(config, summary, RunFolder(Path(label)))
        bins = np.zeros((3, 15))
        bins[:, 14] = 10, 9.5, 8 - seed
        figures = {"last": {"top1": values[-1]}, "best": {"top1": max(values)}}
        runs.append(ReportedRun(trial, rows, figures, 2.0 + seed, bins, np.linspace(0, 0.5, 100)))
    plan = make_plan(config.method, config.train.epochs)
    return ReportedSetting(label or " ".join([method, *map(str, options.values())]), config, plan, tuple(runs))


MIXED = [setting(), setting("lsr", smoothing=0.1), setting("lsr", smoothing=0.2), setting("tsla"),
         setting("colam", stages=2), setting("online"), setting("cs_kd")]  # fmt: skip


def numbers(figure):
    """The columns of a figure's CSV, by name; NaN for an empty cell."""
    head, *rows = list(csv.reader(figure.csv.splitlines()))
    columns = zip(*rows, strict=True)
    return {
        name: [float(cell) if cell else math.nan for cell in each] for name, each in zip(head, columns, strict=True)
    }


def axes_of(figure):
    return figure.figure.axes[0]


def drawn(figure, gid):
    return [line for line in axes_of(figure).lines if line.get_gid() == gid]


def test_the_numbers_of_a_curve_are_mean_std_and_n_over_the_runs():
    figure = next(each for each in curve_figures([setting()]) if each.name == "test-top1")
    found = numbers(figure)
    assert found["epoch"] == [1, 2, 3, 4]
    assert found["hard: mean"] == [12, 20, 34, 43]
    assert found["hard: std"] == pytest.approx([2, 0, 4, math.sqrt(7)], rel=1e-5)
    assert found["hard: n"] == [3, 3, 3, 3]
    assert list(axes_of(figure).lines[0].get_ydata()) == found["hard: mean"]


def test_a_run_that_is_shorter_or_lacks_a_number_counts_where_it_has_one():
    whole = setting()
    short = replace(whole.runs[0], rows=whole.runs[0].rows[:2])
    lacking = replace(whole.runs[1], rows=[{**row, "test/top1": None} for row in whole.runs[1].rows])
    line = curve(replace(whole, runs=(short, lacking, whole.runs[2])), "test/top1")
    assert line.count.tolist() == [2, 2, 1, 1]
    assert line.mean.tolist() == [12, 20, 38, 45]


def test_the_band_is_the_deviation_for_three_runs_the_range_for_two_and_nothing_for_one():
    three = curve(setting(), "test/top1")
    assert np.allclose(three.band[1] - three.mean, three.std)
    low, high = curve(setting(top1=TOP1[:2]), "test/top1").band
    assert np.allclose(low, TOP1[0])
    assert np.allclose(high, TOP1[1])
    assert np.isnan(curve(setting(top1=TOP1[:1]), "test/top1").band).all()


@pytest.mark.parametrize(
    ("method", "options", "changes"),
    [
        ("hard", {}, []),
        ("tsla", {"drop_epoch": 3}, [3]),
        ("colam", {"stages": 4}, [1, 2, 3]),
        ("lsr", {}, []),
    ],
)
def test_dots_mark_the_epochs_after_which_the_plan_changes_targets(method, options, changes):
    figure = curve_figures([setting(method, **options)])[0]
    (dots,) = drawn(figure, CHANGES)
    assert dots.get_xdata().tolist() == changes
    assert dots.get_ydata().tolist() == [[12, 20, 34, 43][epoch - 1] for epoch in changes]
    assert dots.get_color() == method_colour(method)


def test_changes_after_each_of_many_epochs_are_not_marked():
    figure = curve_figures([setting("online", top1=[[10.0] * 30])])[0]
    assert all(not len(dots.get_xdata()) for dots in drawn(figure, CHANGES))


def test_entropy_is_left_out_where_all_targets_are_hard():
    def with_entropy(value):
        made = setting()
        rows = [[{**row, "target_entropy": value} for row in run.rows] for run in made.runs]
        return replace(made, runs=tuple(replace(run, rows=r) for run, r in zip(made.runs, rows, strict=True)))

    names = [[each.name for each in curve_figures([with_entropy(value)])] for value in (0.0, None, 0.3)]
    assert [("target_entropy" in each) for each in names] == [False, False, True]


@given(st.integers(2, 3000), st.integers(50, 200), st.lists(st.integers(1, 2999), max_size=20))
def test_a_thinned_line_keeps_its_ends_its_marks_and_few_points(epochs, points, marks):
    marks = tuple(mark for mark in marks if mark <= epochs)
    line = Line(MIXED[0], np.arange(1.0, epochs + 1), np.ones((1, epochs)), marks).thinned(points)
    assert {1.0, float(epochs), *map(float, marks)} <= set(line.x)
    assert len(line.x) <= points + len(marks)


def test_a_method_has_one_colour_in_all_figures():
    colours = {}
    for figure in report_figures(Collection(tuple(MIXED), (), {}, ()), []):
        for line in axes_of(figure).lines:
            name = line.get_label().split(" ")[0]
            if name in {each.config.method.name for each in MIXED}:
                colours.setdefault(name, set()).add(line.get_color())
    assert colours == {each.config.method.name: {method_colour(each.config.method.name)} for each in MIXED}


def test_settings_of_one_method_differ_in_dashes():
    eight = [setting("lsr", smoothing=at / 10) for at in range(1, 9)]
    lines = axes_of(curve_figures(eight)[0]).lines
    styles = [str(line._unscaled_dash_pattern) for line in lines if line.get_label().startswith("lsr")]
    assert len(set(styles)) == 8


@given(st.lists(st.sampled_from(["hard", "lsr", "tsla", "colam", "online"]), max_size=40))
def test_panels_hold_every_setting_once_and_the_only_hard_one_each(methods):
    by_method = {each.config.method.name: each for each in MIXED}
    parts = split_by_method([replace(by_method[name], label=str(at)) for at, name in enumerate(methods)])
    single = [at for at, name in enumerate(methods) if name == "hard"] if methods.count("hard") == 1 else []
    shown = [at for _, indices in parts for at in indices if at not in single]
    assert sorted(shown) == [at for at in range(len(methods)) if at not in single]
    for _, indices in parts:
        assert set(single) <= set(indices)
        assert len(indices) <= MOST_LINES or len({methods[at] for at in indices if at not in single}) == 1


def test_more_settings_than_a_panel_holds_share_the_limits_of_their_panels():
    many = [setting("lsr", smoothing=at / 100, top1=[[1.0, 2.0, at]]) for at in range(6)]
    many += [setting("tsla", smoothing=at / 100, top1=[[1.0, 2.0, at]]) for at in range(6)]
    one, other = (each for each in curve_figures(many) if each.name.startswith("test-top1"))
    assert axes_of(one).get_ylim() == axes_of(other).get_ylim()
    assert (one.name, other.name) == ("test-top1-lsr", "test-top1-tsla")


def test_one_number_that_varies_is_a_line_and_two_are_a_heat_map():
    line = [setting("colam", temperature=t) for t in (0.5, 1, 10)]
    (figure,) = option_figures(line)
    assert numbers(figure) == {
        "method.temperature": [0.5, 1, 10], "mean": [43] * 3, "std": pytest.approx([math.sqrt(7)] * 3, rel=1e-5),
        "n": [3] * 3,
    }  # fmt: skip
    grid = [setting("colam", stages=stages, peers=peers, top1=[[0, 0, 0, 10 * stages + peers]])
            for stages in (1, 2) for peers in (5, 0)]  # fmt: skip
    (figure,) = option_figures(grid)
    cells = axes_of(figure).collections[0].get_array()
    assert cells.tolist() == [[15, 25], [10, 20]]  # `peers` upward, and 0, which stands for all, above 5
    assert [tick.get_text() for tick in axes_of(figure).get_yticklabels()] == ["5", "all"]


def test_options_that_are_no_numbers_or_do_not_vary_make_no_figure():
    assert option_figures([setting("colam"), setting("lsr")]) == []
    assert option_figures([setting("colam", label_pass="extra"), setting("colam", label_pass="in_pass")]) == []


def test_reliability_is_over_all_runs_together():
    (figure,) = reliability_figures([setting()])
    rows = {row["bin"]: row for row in csv.DictReader(figure.csv.splitlines())}
    last = {key: float(rows["15"][key]) for key in ("samples", "mean confidence", "accuracy")}
    assert last == {"samples": 30, "mean confidence": 0.95, "accuracy": 0.7}
    assert (rows["1"]["samples"], rows["1"]["accuracy"]) == ("0", "")


def test_risk_is_in_percent_over_coverage():
    (figure,) = risk_figures([setting()])
    found = numbers(figure)
    assert found["coverage (%)"] == list(range(1, 101))
    assert found["hard: mean"] == pytest.approx(np.linspace(0, 50, 100), rel=1e-4)


def test_runs_without_logits_have_no_risk_and_no_reliability():
    made = setting()
    bare = replace(made, runs=tuple(replace(run, risk=None, reliability=None) for run in made.runs))
    assert risk_figures([bare]) == reliability_figures([bare]) == []


def test_cost_has_hours_and_accuracy_with_their_deviations():
    (figure,) = cost_figures([setting(), setting("lsr")])
    row = next(csv.DictReader(figure.csv.splitlines()))
    assert [float(row[key]) for key in ("hours", "hours std", "top1", "n")] == [3, 1, 43, 3]
    assert cost_figures([setting()]) == []


def comparison(mean, p_holm):
    return Comparison("lsr", "hard", "top1", ((0, 0),), np.array([mean]), (mean - 1, mean + 1), p_holm, p_holm, 6)


def test_differences_that_the_test_decides_are_filled_and_others_open():
    (figure,) = difference_figures([setting(), setting("lsr")], [comparison(2.0, 0.01), comparison(0.5, 0.4)])
    decided, undecided = drawn(figure, DIFFERENCE)
    assert (decided.get_markerfacecolor(), undecided.get_markerfacecolor()) == (method_colour("lsr"), "none")
    assert [decided.get_xdata()[0], undecided.get_xdata()[0]] == [2.0, 0.5]
    assert [row["decided"] for row in csv.DictReader(figure.csv.splitlines())] == ["True", "False"]


@pytest.mark.parametrize("differences", [[], [1.0]])
def test_a_difference_without_two_common_seeds_is_not_drawn(differences):
    assert difference_figures([], [Comparison("lsr", "hard", "top1", (), np.array(differences))]) == []


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([1, 1], "one run each"),
        (
            [2],
            "the mean over the runs of a setting, the band goes from the lower to the higher run where there are two",
        ),
        ([3], "the mean over the runs of a setting, the band is ± one standard deviation"),
        ([1, 3], "the mean over the runs of a setting, the band is ± one standard deviation, none where there is one"),
    ],
)
def test_a_caption_tells_what_the_band_is(runs, words):
    assert band_words([curve(setting(top1=TOP1[:count]), "test/top1") for count in runs]) == words


def test_a_caption_tells_of_marks_where_there_are_some():
    crowd = [setting("colam", temperature=1 + at) for at in range(9)]
    captions = [curve_figures(each)[0].caption for each in (crowd[:8], crowd, [setting()])]
    assert ["A dot" in caption for caption in captions] == [True, False, False]


def test_text_is_in_the_ink_of_figures_so_that_a_page_can_replace_it():
    figure = curve_figures([setting(label="a $ b $ \\frac c")])[0]
    legend = figure.figure.legends[0].get_texts()
    assert {text.get_color() for text in (*legend, axes_of(figure).xaxis.label)} == {INK}
    assert [text.get_text() for text in legend] == ["a $ b $ \\frac c"]
    figure.figure.draw_without_rendering()  # dollar signs are no formula
