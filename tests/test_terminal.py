"""What the terminal shows of a run: lines that fit it, and the time that is left."""

import contextlib
import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import load
from fastlsr.logs.run_log import RunLog
from fastlsr.runs import Column, RunFolder, columns, epoch_line, keys
from fastlsr.terminal import clock, progress, terminal

number = st.floats(0, 1e7) | st.floats(0, 1e-7)
row_of = st.fixed_dictionaries(
    {"epoch": st.integers(1, 99_999), "phase": st.integers(1, 9_999)}
    | {key: number | st.none() for key in keys() if key not in ("epoch", "phase") and not key.startswith("val/")}
)
name = st.tuples(st.sampled_from("abc_"), st.integers(1, 40)).map(lambda drawn: drawn[0] * drawn[1])


def of_metrics(names):
    """The columns of a program that has these metrics, too."""
    more = [Column(f"test/{each}", "", "one more", f"{each} {{:.4f}}") for each in names]
    return (*columns()[:-5], *more, *columns()[-5:])


@given(row_of, st.lists(name, max_size=6, unique=True), number, st.integers(0, 10**6))
def test_the_lines_of_an_epoch_fit_any_terminal_and_hold_all_that_one_line_holds(row, names, value, left):
    with pytest.MonkeyPatch.context() as patch:
        there = of_metrics(names)
        patch.setattr("fastlsr.runs.columns", lambda: there)
        row = row | {f"test/{each}": value for each in names}
        whole = epoch_line(row, 99_999, left=clock(left))
        shown = {width: epoch_line(row, 99_999, left=clock(left), width=width) for width in range(70, 200)}
    assert "\n" not in whole
    for width, text in shown.items():
        lines = text.split("\n")
        assert max(map(len, lines)) <= width and text.split() == whole.split()
        assert (len(lines) == 1) == (len(whole) <= width)
        assert all(line.startswith("  ") and line[2] != " " for line in lines[1:])


@given(
    st.fixed_dictionaries(
        {"epoch": st.integers(1, 999), "phase": st.integers(1, 9), "lr": st.floats(1e-5, 10),
         "train/loss": st.floats(0, 9.9), "train/top1": st.floats(0, 100), "test/nll": st.floats(0, 9.9),
         "test/top1": st.floats(0, 100), "test/top5": st.floats(0, 100), "test/ece": st.floats(0, 1),
         "images_per_second": st.floats(0, 99_999), "seconds": st.floats(0, 9_999)}
    ),
    st.floats(1, 35_000),
)  # fmt: skip
def test_an_epoch_of_a_usual_run_takes_two_lines_of_80(row, left):
    lines = epoch_line(row, 999, left=clock(left), width=80).split("\n")
    assert len(lines) <= 2 and lines[-1].startswith("  test ")


@given(row_of, row_of, st.lists(name, max_size=6, unique=True), number)
def test_the_table_of_results_fits_60_columns_and_cuts_nothing_off(tmp_path_factory, last, best, names, value):
    folder = RunFolder(tmp_path_factory.getbasetemp())
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
        there = of_metrics(names)
        patch.setattr("fastlsr.runs.columns", lambda: there)
        log = RunLog(folder, load(), 9)
        log.rows = [each | {f"test/{name}": value for name in names} | {"test/top1": top1}
                    for each, top1 in ((best, 2.0), (last, 1.0))]  # fmt: skip
        log.show_results()
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= 60
    assert lines[-1] == f"results: {folder.path}"
    table = "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))
    assert all(f"test/{each}" in table for each in names), "a long name is broken, not cut"


@given(st.integers(0, 10**7))
def test_the_clock_holds_all_seconds(seconds):
    hours, minutes, rest = map(int, clock(seconds).split(":"))
    assert seconds == (hours * 60 + minutes) * 60 + rest and minutes < 60 and rest < 60


def test_piped_lines_hold_the_words_and_what_is_left_of_epoch_and_run(monkeypatch, capsys):
    monkeypatch.setattr("fastlsr.terminal.SECONDS_BETWEEN_LINES", -1.0)
    seconds = iter((0.0, 100.0, 100.0, 100.0, 110.0, 110.0, 110.0, 120.0, 120.0, 120.0))
    monkeypatch.setattr("fastlsr.terminal.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with progress(terminal(), "epoch 1/3", steps=10, following=lambda seconds: 2 * seconds) as advance:
        for done in (4, 5, 6):  # resumed at 4: 10 seconds a step
            advance(done, f"loss {done}")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3  step 4/10  loss 4",
        "epoch 1/3  step 5/10  loss 5  left 0:00:50, run 0:04:10",
        "epoch 1/3  step 6/10  loss 6  left 0:00:40, run 0:04:00",
    ]


def test_the_time_left_goes_by_this_process_s_epochs_and_forgets_its_first(tmp_path, capsys):
    log = RunLog(RunFolder(tmp_path), load(), 5)
    blank = dict.fromkeys(keys())
    log.restore([blank | {"epoch": 1, "seconds": 10_000.0}])
    for epoch, seconds in ((2, 100.0), (3, 10.0), (4, 20.0), (5, 30.0)):
        log.row(blank | {"epoch": epoch, "seconds": seconds})
    heads = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert heads == ["epoch 2/5, 0:05:00 left", "epoch 3/5, 0:00:20 left", "epoch 4/5, 0:00:15 left", "epoch 5/5"]
