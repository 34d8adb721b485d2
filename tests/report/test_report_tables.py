"""The tables of a report: what stands in which column, beside what, in bold or not, and how each writer shows it."""

import csv
import io
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fastlsr.config import load
from fastlsr.errors import InputError
from fastlsr.report import recipes
from fastlsr.report.collect import Collection, SetAside
from fastlsr.report.columns import COLUMNS
from fastlsr.report.comparisons import all_pairs, compare
from fastlsr.report.exports import numbers_of, settings_csv
from fastlsr.report.formats import latex, markdown, print_table
from fastlsr.report.papers import quoted_figures
from fastlsr.report.recipes import paper_table, recipe_notes
from fastlsr.report.tables import (
    NONE,
    NOT_RUN,
    Cell,
    Head,
    Table,
    aside_table,
    column_decimals,
    comparison_table,
    setting_tables,
)
from fastlsr.shipped import CONFIGS

TSLA_2 = {"data.dataset": "cifar100", "model.name": "resnet18", "train.epochs": 200, "optim.step_epochs": 60,
          "optim.weight_decay": 5e-4}  # fmt: skip
ACCURACY_TABLES = sorted({f"{f.paper}:{f.table}" for f in quoted_figures() if f.metric in ("top1", "top5")})


def collection(*settings):
    return Collection(settings, (), {}, ("method.name",))


def cells(table, title, group=""):
    """Row name to the text in one column."""
    (at,) = [at for at, head in enumerate(table.heads) if (head.title, head.group) == (title, group)]
    return {row[0].text: row[at].text for row in table.rows}


@pytest.mark.parametrize(
    ("deviations", "most", "decimals"),
    [([], 2, 2), ([0.0], 2, 2), ([0.31], 2, 2), ([1.4], 2, 1), ([1.4, 0.91], 2, 2), ([23.0], 2, 0), ([0.0052], 4, 4),
     ([0.0011, 0.2], 3, 3), ([100.0], 2, 0), ([0.1], 4, 2)],
)  # fmt: skip
def test_a_column_has_two_digits_of_its_smallest_deviation(deviations, most, decimals):
    numbers = [[50 - each / 2**0.5, 50 + each / 2**0.5] for each in deviations]  # the sample deviation of two
    assert column_decimals([*numbers, [1.0], []], most) == decimals


def test_last_and_best_epoch_have_columns_of_their_own(make_setting):
    accuracy, *_ = setting_tables(collection(make_setting("hard", {0: 50.0, 1: 52.0})))
    assert cells(accuracy, "last epoch", "top-1") == {"hard": "51.0 ± 1.4"}
    assert cells(accuracy, "best epoch", "top-1") == {"hard": "52.0 ± 1.4"}
    assert cells(accuracy, "n") == {"hard": "2"} and cells(accuracy, "hours") == {"hard": "0.5000 ± 0.0000"}


def test_every_figure_has_its_column_last_and_best_raw_and_scaled(make_setting):
    names = [column.key for column in COLUMNS.values() if column.key not in ("top1", "top5")]
    setting = make_setting("hard", {0: 50.0}, **{name: at / 10 for at, name in enumerate(names)})
    tables = {table.name: table for table in setting_tables(collection(setting))}
    assert list(tables) == ["accuracy", "last", "last_scaled"], "no table without any figure"
    shown = [cell.number for name in ("last", "last_scaled") for cell in tables[name].rows[0][2:]]
    assert shown == [at / 10 for at in range(len(names))]


def test_of_a_score_the_lowest_is_set_in_bold_in_the_table_of_the_last_epoch(make_setting):
    settings = [make_setting(name, dict.fromkeys(range(6), 50.0), nll=nll) for name, nll in (("a", 2.0), ("b", 1.0))]
    tables = setting_tables(collection(*settings), compare(all_pairs(settings), "nll"))
    assert [
        (table.name, row[0].text, cell.text) for table in tables for row in table.rows for cell in row if cell.bold
    ] == [("last", "b", "1.0000 ± 0.0000")]


def test_a_mean_over_fewer_runs_than_the_setting_has_states_how_many(make_setting):
    setting = make_setting("hard", {0: 50.0, 1: 52.0}, brier=0.5)
    del setting.runs[0].figures["last"]["brier"]
    _, last, *_ = setting_tables(collection(setting))
    assert cells(last, "Brier") == {"hard": "0.5000 (n 1)"}
    assert any("kept no logits" in note for note in last.notes)


def test_bold_is_only_who_is_decided_against_all_and_only_in_the_column_compared(make_setting):
    settings = [make_setting(name, {seed: 50.0 + gain + seed for seed in range(8)}, nll=1.0)
                for gain, name in enumerate(("hard", "lsr", "tsla"))]  # fmt: skip
    tables = setting_tables(collection(*settings), compare(all_pairs(settings), "top1"))
    bold = [(table.name, table.heads[at].title, table.heads[at].group, row[0].text)
            for table in tables for row in table.rows for at, cell in enumerate(row) if cell.bold]  # fmt: skip
    assert bold == [("accuracy", "last epoch", "top-1", "tsla")]
    assert any("Bold" in note for note in tables[0].notes)
    for unplanned in ([], compare([(settings[2], settings[1])], "top1"), compare(all_pairs(settings), "nll")):
        tables = setting_tables(collection(*settings), unplanned)
        assert not any(cell.bold for table in tables for row in table.rows for cell in row)
        assert not any("Bold" in note for table in tables for note in table.notes)


def test_quoted_figures_stand_in_columns_of_their_own_beside_the_setting_that_repeats_them(make_setting):
    lsr = make_setting("lsr", {0: 50.0, 1: 52.0}, {**TSLA_2, "method.name": "lsr"})
    tsla = make_setting("tsla", {0: 60.0}, {**TSLA_2, "method.name": "tsla", "method.drop_epoch": 180})
    accuracy, *others = setting_tables(collection(tsla, lsr), paper=paper_table("tsla:2"))
    measured, quoted = cells(accuracy, "last epoch", "top-1"), cells(accuracy, "quoted, TSLA Table 2", "top-1")
    assert (measured["lsr"], quoted["lsr"]) == ("51.0 ± 1.4", "77.77 ± 0.18")
    assert (measured["tsla"], quoted["tsla"]) == ("60.0", "78.04 ± 0.27")
    assert cells(accuracy, "quoted, TSLA Table 2", "top-5")["lsr"] == "93.55 ± 0.11"
    assert len(accuracy.rows) == 11, "the table's rows, of which two were run"
    assert (measured["hard"], quoted["hard"], cells(accuracy, "n")["hard"]) == (NOT_RUN, "76.87 ± 0.04", "0")
    printed = {str(figure) for figure in quoted_figures()}
    for at, head in enumerate(accuracy.heads):
        assert "quoted" in head.title or printed.isdisjoint(row[at].text for row in accuracy.rows)
    assert not any("quoted" in head.title + head.group for table in others for head in table.heads)


@pytest.mark.parametrize("name", ACCURACY_TABLES)
def test_each_row_of_a_paper_is_run_by_its_recipe_without_a_difference(make_setting, name):
    table = paper_table(name)
    for row in table.rows:
        options = {**row.recipe.decisive(), "method.teacher": "file", "train.seed": 4}
        setting = make_setting("own", {4: 50.0}, options)
        assert table.row_of(setting) is row
        assert recipe_notes(table, [setting])[-1] == "the options are those of the paper's recipe"


def test_what_differs_from_the_recipe_is_listed_with_both_values_and_who_differs(make_setting):
    shorter = {**TSLA_2, "train.epochs": 15}
    settings = [make_setting("lsr", {0: 1.0}, {**shorter, "method.name": "lsr"}),
                make_setting("hard", {0: 1.0}, {**shorter, "optim.lr": 0.2, "train.device": "cpu"})]  # fmt: skip
    said = recipe_notes(paper_table("tsla:2"), settings)
    assert "train.epochs: here 15, paper 200" in said
    assert "optim.lr: here 0.2, paper 0.1 (hard)" in said
    assert not any("device" in line or "seed" in line for line in said)


def test_a_setting_with_another_smoothing_is_not_the_paper_s_row(make_setting):
    setting = make_setting("lsr", {0: 1.0}, {**TSLA_2, "method.name": "lsr", "method.smoothing": 0.2})
    assert paper_table("tsla:2").row_of(setting) is None
    assert paper_table("tsla:3").row_of(setting).label == "lsr smoothing=0.2"


def test_the_default_drop_epoch_is_half_of_the_epochs(make_setting):
    options = {**TSLA_2, "method.name": "tsla", "method.drop_epoch": -1, "train.epochs": 320}
    assert paper_table("tsla:2").row_of(make_setting("tsla", {0: 1.0}, options)).label == "tsla drop_epoch=160"


def test_runs_of_another_experiment_are_beside_a_table_of_which_none_was_run(make_setting):
    setting = make_setting("hard", {0: 50.0}, {"data.dataset": "digits", "model.name": "resnet8"})
    accuracy, *_ = setting_tables(collection(setting), paper=paper_table("tsla:2"))
    assert cells(accuracy, "last epoch", "top-1")["hard"] == "50.00"
    assert cells(accuracy, "quoted, TSLA Table 2", "top-1")["hard"] == NONE
    assert cells(accuracy, "quoted, TSLA Table 2", "top-1")["hard (cifar100, resnet18)"] == "76.87 ± 0.04"
    assert {"none of the runs is a row of this table", "data.dataset: here digits, paper cifar100",
            "model.name: here resnet8, paper resnet18"} <= set(accuracy.lead)  # fmt: skip


def test_without_a_recipe_rows_are_still_found_and_what_is_missing_is_stated(make_setting, monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "CONFIGS", tmp_path)
    paper_table.cache_clear()
    try:
        setting = make_setting("hard", {0: 1.0}, TSLA_2)
        table = paper_table("tsla:2")
        assert table.row_of(setting).label == "hard"
        assert "no config has the recipe" in recipe_notes(table, [setting])[-1]
    finally:
        paper_table.cache_clear()


@pytest.mark.parametrize("name", ["tsla:9", "tlsa:2", "colam:5", "x"])
def test_a_table_that_cannot_be_set_beside_is_one_line(name):
    with pytest.raises(InputError, match=f"--paper={name}") as error:
        paper_table(name)
    assert "\n" not in str(error.value)


def test_the_csv_has_the_numbers_unrounded_and_a_row_for_what_was_not_run(make_setting):
    setting = make_setting("lsr", {0: 50.1, 1: 52.3}, {**TSLA_2, "method.name": "lsr"}, nll=1.23456789)
    first, *others = csv.DictReader(io.StringIO(settings_csv(collection(setting), paper_table("tsla:2"))))
    assert (first["setting"], first["n"], first["method.name"]) == ("lsr", "2", "lsr")
    assert float(first["last/top1/mean"]) == statistics.fmean([50.1, 52.3])
    assert float(first["last/top1/std"]) == statistics.stdev([50.1, 52.3])
    assert float(first["best/top1/mean"]) == statistics.fmean([51.1, 53.3])
    assert float(first["last/nll/mean"]) == pytest.approx(1.23456789) and first["best/nll/mean"] == ""
    assert (first["quoted/TSLA Table 2/top1/mean"], first["quoted/TSLA Table 2/top1/std"]) == ("77.77", "0.18")
    assert {row["n"] for row in others} == {"0"} and len(others) == 10
    assert {row[key] for row in others for key in row if key.startswith(("last", "best", "hours"))} == {""}


def test_the_numbers_for_programs_hold_every_run_comparison_and_folder_set_aside(make_setting, tmp_path):
    settings = [make_setting(name, {0: 50.0, 1: 51.0}) for name in ("hard", "lsr")]
    aside = SetAside(tmp_path, "broken", "it is")
    whole = Collection(tuple(settings), (aside,), {"train.epochs": 3}, ())
    numbers = numbers_of(whole, compare(all_pairs(settings), "top1"), paper_table("colam:1"))
    assert [len(each["runs"]) for each in numbers["settings"]] == [2, 2]
    assert numbers["settings"][0]["last"]["top1"] == {"mean": 50.5, "std": pytest.approx(0.5**0.5), "n": 2}
    assert numbers["comparisons"][0]["differences"] == [0.0, 0.0]
    assert numbers["aside"] == [{"path": str(tmp_path), "what": "broken", "reason": "it is"}]
    assert len(numbers["paper"]["rows"]) == 20


words = st.text("ab &%$#_{}~^\\|*<>±`", min_size=1, max_size=12)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_every_row_of_latex_and_markdown_has_as_many_cells_as_the_head_whatever_the_texts_are(rows):
    heads = (Head("a_b", is_text=True), Head("50%", "g & h"))
    table = Table(
        "t", "100 %", heads, tuple((Cell(one), Cell(other, bold=True)) for one, other in rows), ("#1",), ("~",)
    )
    body = latex(table).split(r"\midrule")[1].split(r"\bottomrule")[0].strip().split("\n")
    assert len(body) == len(rows)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 1 and line.endswith(r"\\")
        assert not re.search(r"(?<!\\)[%#_]", line) and line.count(r"\textbf{") >= 1
    lines = [line for line in markdown(table).split("\n") if line.startswith("| ")]
    assert len(lines) == len(rows) + 2
    assert all(len(re.findall(r"(?<!\\)\|", re.sub(r"\\\\", "", line))) == 3 for line in lines)


def test_latex_groups_span_their_columns():
    heads = (Head("setting", is_text=True), Head("n"), Head("last", "top-1"), Head("best", "top-1"), Head("hours"))
    text = latex(Table("t", "t", heads, ()))
    assert r"& & \multicolumn{2}{c}{top-1} & \\" in " ".join(text.split()).replace("&  ", "& ")
    assert r"\cmidrule(lr){3-4}" in text and r"\begin{tabular}{lrrrr}" in text


def printed(table, width):
    out = io.StringIO()
    print_table(Console(file=out, width=width, highlight=False), table)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 100, 200])
@pytest.mark.parametrize(
    "label", ["hard", "tsla drop_epoch=120 smoothing=0.2 model=timm/resnet18.tv_in1k batch_size=64"]
)
def test_the_terminal_shows_every_number_whole_within_its_width(make_setting, label, width):
    figures = {column.key: 0.123456 for column in COLUMNS.values() if column.key != "top1"}
    settings = [make_setting(label, {0: 50.0, 1: 51.0}, TSLA_2, **figures), make_setting("lsr", {0: 1.0})]
    for table in setting_tables(collection(*settings), paper=paper_table("tsla:2")):
        text = printed(table, width)
        assert max(map(len, text.split("\n"))) <= width and "…" not in text
        for row in table.rows:
            assert all(cell.text in text for cell in row[1:])


def test_columns_of_one_group_are_not_torn_apart():
    heads = (Head("setting", is_text=True), *(Head(f"{name}{at}", name) for name in ("one", "two") for at in range(3)))
    text = printed(Table("t", "t", heads, ((Cell("x"), *[Cell("0123456789")] * 6),)), 60)
    assert [line.split() for line in text.split("\n") if "setting" in line] == [
        ["setting", "one0", "one1", "one2"],
        ["setting", "two0", "two1", "two2"],
    ]


def test_the_table_of_comparisons_names_who_is_subtracted_and_what_may_be_claimed(make_setting):
    settings = [make_setting(name, dict.fromkeys(range(8), 50.0 + gain)) for gain, name in enumerate("ab")]
    table = comparison_table(settings, compare(all_pairs(settings), "top1"))
    assert table.title.endswith("one - other")
    (row,) = [dict(zip((head.title for head in table.heads), row, strict=True)) for row in table.rows]
    assert {name: cell.text for name, cell in row.items()} == {
        "one": "a", "other": "b", "n": "8", "difference": "-1.00", "95% interval": "-1.00 to -1.00", "p": "0.0078",
        "p, Holm": "0.0078",
        "what may be claimed": "a below b by 1.00 (95% interval 1.00 to 1.00), p 0.0078 after Holm",
    }  # fmt: skip


def test_folders_set_aside_are_a_table(tmp_path):
    aside = (SetAside(tmp_path, "broken", "x"), SetAside(tmp_path / "b", "running", "after 1 of 2 epochs"))
    table = aside_table(Collection((), aside, {}, ()))
    assert [[cell.text for cell in row] for row in table.rows] == [
        [str(tmp_path), "broken", "x"],
        [str(tmp_path / "b"), "running", "after 1 of 2 epochs"],
    ]


def test_a_recipe_is_the_config_that_the_header_s_table_names():
    row = next(row for row in paper_table("colam:2").rows if row.label == "colam model=densenet_bc_100")
    path = CONFIGS / "colam_cifar100.yaml"
    options = {"model.name": "densenet_bc_100", "train.epochs": "240", "optim.milestones": "120,180"}
    assert row.recipe == load(path, options)
    assert row.source == "configs/colam_cifar100.yaml: test top-1 in %, as printed in the paper"
