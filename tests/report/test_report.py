"""The command: what it prints and writes, what it leaves alone, and its errors."""

import csv
import html
import io
import json
import subprocess
import sys

import pytest

from fastlsr.report.__main__ import main
from fastlsr.runs import RunFolder

FILES = {"table.csv", "runs.csv", "table.md", "table.tex", "comparisons.csv", "comparisons.md", "comparisons.tex",
         "numbers.json"}  # fmt: skip


@pytest.fixture
def decided(write_run, tmp_path):
    """A folder of runs: `hard`, and `lsr` that is better by a point for each of six seeds; one run is stopped."""
    for seed in range(6):
        for method, gain in (("hard", 0), ("lsr", 1)):
            options = {"method.name": method, "train.seed": seed}
            write_run(tmp_path / "runs" / f"{method}{seed}", options, top1=50.0 + gain + seed / 10, samples=40)
    write_run(tmp_path / "runs" / "late", {"train.seed": 9}, done=1, samples=40)
    return tmp_path / "runs"


def test_the_report_prints_tables_claims_and_what_is_set_aside_and_writes_them(decided, tmp_path, capsys):
    out = tmp_path / "new" / "report"
    assert main([str(decided), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "hard below lsr by 1.00 (95% interval 1.00 to 1.00), p 0.031 after Holm" in said
    assert f"stopped: {decided / 'late'}: after 1 of 4 epochs" in " ".join(said.split())
    assert all(len(line) <= 100 for line in said.split("\n") if str(tmp_path) not in line)
    assert {path.name for path in out.iterdir()} >= FILES
    rows = {row["setting"]: row for row in csv.DictReader(io.StringIO((out / "table.csv").read_text()))}
    assert {name: float(row["last/top1/mean"]) for name, row in rows.items()} == pytest.approx(
        {"hard": 50.25, "lsr": 51.25}
    )
    assert len((out / "runs.csv").read_text().splitlines()) == 1 + 12
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["comparisons"][0]["decided"] and [each["what"] for each in numbers["aside"]] == ["stopped"]
    assert "**51.25 ± 0.19**" in (out / "table.md").read_text()
    assert r"\textbf{51.25 $\pm$ 0.19}" in (out / "table.tex").read_text()


def test_every_row_of_every_run_is_in_one_file_as_it_was_written(decided, tmp_path):
    with open(decided / "late" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"epoch": 2, "test/top1": 1 / 3, "test/of_a_plugin": 0.1 + 0.2}) + "\n")
    assert main([str(decided), "--out", str(tmp_path / "out")]) == 0
    expected = {(str(folder.path), row["epoch"]): row for folder in map(RunFolder, decided.iterdir())
                for row in folder.read_rows()}  # fmt: skip
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "rows.csv").read_text())))
    assert {(row["run"], int(row["epoch"])) for row in table} == set(expected) and len(table) == len(expected) > 12
    for row in table:
        written = expected[row["run"], int(row["epoch"])]
        held = {
            key: float(value) for key, value in row.items() if value and key not in ("setting", "run", "fold", "seed")
        }
        assert held == {key: value for key, value in written.items() if value is not None}
    labels = {row["run"]: row["setting"] for row in table}
    assert labels[str(decided / "lsr0")] == "lsr" and labels[str(decided / "late")] == "hard (unfinished)"


def test_planned_comparisons_of_any_figure_are_made_and_no_others(decided, tmp_path, capsys):
    words = [str(decided), "--out", str(tmp_path / "out"), "--compare", "lsr:hard", "--metric", "scaled/nll"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Differences of NLL after temperature scaling, last epoch: one - other" in said and "lsr - hard, n 6" in said
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out" / "comparisons.csv").read_text()))
    assert (row["figure"], row["one"], row["other"]) == ("last/scaled/nll", "lsr", "hard")


def test_runs_with_an_option_are_reported_as_if_there_were_no_others(decided, tmp_path, capsys):
    assert main([str(decided), "--out", str(tmp_path / "out"), "--only=method.name=lsr", "--only=train.seed=2"]) == 0
    (row,) = csv.DictReader(io.StringIO((tmp_path / "out" / "runs.csv").read_text()))
    assert row["run"] == str(decided / "lsr2")
    capsys.readouterr()
    for words, line in (
        (["--only=method.name=tsla"], "--only method.name=tsla: none of"),
        (["--only=method.name"], "--only method.name: expected KEY=VALUE"),
        (["--only=method.names=lsr"], "did you mean method.name?"),
    ):
        with pytest.raises(SystemExit) as exited:
            main([str(decided), "--out", str(tmp_path / "none"), *words])
        assert exited.value.code == 2 and line in capsys.readouterr().err


def test_quoted_figures_are_in_every_file_of_tables(decided, tmp_path, capsys):
    assert main([str(decided), "--out", str(tmp_path / "out"), "--paper", "colam:2"]) == 0
    said = capsys.readouterr().out
    assert "COLAM Table 2" in said and "78.69 ± 0.23" in said and "not run" in said
    for name, figure in (("table.csv", "78.69"), ("table.md", "78.69 ± 0.23"), ("table.tex", r"78.69 $\pm$ 0.23")):
        assert figure in (tmp_path / "out" / name).read_text()


def test_runs_of_which_none_is_finished_are_reported_by_their_curves(write_run, tmp_path, capsys):
    write_run(tmp_path / "runs" / "hard", done=2)
    assert main([str(tmp_path / "runs"), "--compare=hard:lsr", f"--out={tmp_path / 'out'}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "No run is finished yet." in shown and "after 2 of 4 epochs" in shown
    assert "hard (unfinished)" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_of_one_setting_nothing_is_compared(write_run, tmp_path, capsys):
    write_run(tmp_path / "a", samples=40)
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
    assert "Differences" not in capsys.readouterr().out
    assert (tmp_path / "out" / "comparisons.md").read_text() == ""


def test_the_same_runs_give_the_same_files(decided, tmp_path):
    for name in ("one", "other"):
        main([str(decided), "--out", str(tmp_path / name)])
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_many_folders_set_aside_for_one_reason_are_one_line(write_run, tmp_path, capsys):
    write_run(tmp_path / "runs" / "whole", samples=40)
    for seed in range(5):
        write_run(tmp_path / "runs" / f"late{seed}", {"train.seed": seed + 1}, done=1, samples=40)
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("stopped:") == 1 and "and 2 more: after 1 of 4 epochs" in said
    assert (tmp_path / "out" / "table.md").read_text().count("| stopped |") == 5


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--metric=nil"], "nil: no such figure; did you mean nll?"),
        (["--compare=lsr:haard"], "haard: no such setting; did you mean hard?"),
        (["--paper=tsla:7"], "no such table of a paper"),
        (["absent"], "absent does not exist"),
        (["--out=FILE"], "is no folder"),
        (["--colour=red"], "--help lists the options"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(runs, tmp_path, capsys, words, complaint):
    (tmp_path / "file").touch()
    words = [word.replace("FILE", str(tmp_path / "file")) for word in words]
    with pytest.raises(SystemExit) as exited:
        main([str(runs), "--out", str(tmp_path / "out"), *words])
    said = capsys.readouterr()
    assert exited.value.code == 2 and complaint in said.err and said.err.count("\n") == 1 and said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_figure_that_no_run_has_is_one_line(write_run, tmp_path, capsys):
    write_run(tmp_path / "a", {"run.logits": "none"}, samples=40)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "a"), "--out", str(tmp_path / "out"), "--metric=brier"])
    assert "needs the logits" in capsys.readouterr().err


def test_the_whole_command_loads_no_torch(runs, tmp_path):
    code = (
        "import sys; from fastlsr.report.__main__ import main; main(sys.argv[1:]); "
        "assert not {'torch', 'ffcv', 'wandb', 'timm'} & set(sys.modules)"
    )
    words = [sys.executable, "-c", code, str(runs), "--out", str(tmp_path)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def test_the_page_has_every_line_on_what_differs_from_the_paper_s_recipe(runs, tmp_path):
    assert main([str(runs), "--paper=tsla:2", f"--out={tmp_path}"]) == 0
    lead = (tmp_path / "table.md").read_text(encoding="utf-8").partition("\n|")[0]
    lines = [line.removeprefix("- ") for line in lead.splitlines() if line.startswith("- ")]
    page = html.unescape((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert any("epochs" in line for line in lines)
    assert [line for line in lines if line.replace("\\", "") not in page] == []
