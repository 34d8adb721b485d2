"""Soft labels by stage: their figures by hand, and those of a run on real digits."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastlsr import analyze
from fastlsr.analysis import soft_labels
from fastlsr.config import Method
from fastlsr.data.superclasses import SUPERCLASS
from fastlsr.engine.trained import open_run
from fastlsr.labels.methods import make_plan
from fastlsr.runs import RunFolder

STAGES = 8
TABLE = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.0, 0.1, 0.9]])


def test_entropy_and_peaks_by_hand():
    rows = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.0, 0.0, 0.5]])
    assert soft_labels.mean_entropy(rows) == pytest.approx((2 + 0 + 4 + 2) / 4 * math.log(2) / 2)
    assert soft_labels.own_peaks(TABLE) == 2


def test_pairs_are_ordered_by_what_they_lend_each_other():
    pairs = soft_labels.lending_pairs(TABLE, 2)
    assert [pair[:2] for pair in pairs] == [(0, 1), (1, 2)]
    assert [pair[2] for pair in pairs] == pytest.approx([0.3, 0.2])
    assert len(soft_labels.lending_pairs(TABLE, 10)) == 3


def test_the_share_inside_groups_by_hand():
    # Off the diagonal 1.1; between the first two 0.2 + 0.4.
    assert soft_labels.share_inside(TABLE, "aab") == pytest.approx(100 * 0.6 / 1.1)
    assert soft_labels.share_inside(TABLE, "aaa") == pytest.approx(100) and soft_labels.share_inside(TABLE, "abc") == 0
    assert math.isnan(soft_labels.share_inside(torch.eye(3), "aab"))


def test_evenly_spread_labels_keep_in_a_superclass_what_chance_gives():
    assert soft_labels.share_inside(torch.full((100, 100), 0.01), list(SUPERCLASS.values())) == pytest.approx(400 / 99)


@pytest.fixture(scope="module")
def run(train_digits, tmp_path_factory):
    """The folder of a run of eight stages of an epoch each."""
    options = {"train.epochs": STAGES, "method.name": "colam", "method.stages": STAGES, "run.keep": 3}
    return train_digits(tmp_path_factory.mktemp("runs") / "a", options)


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return RunFolder(tmp_path / "copy")


def test_the_command_shows_every_stage_with_the_row_of_its_end(run, capsys):
    assert analyze.main(["soft_labels", str(run)]) == 0
    found = json.loads((run / "analysis" / "soft_labels.json").read_text())
    folder, rows = RunFolder(run), RunFolder(run).read_rows()
    assert [(each["stage"], each["epoch"]) for each in found["stages"]] == [(n, n) for n in range(1, STAGES + 1)]
    for each, row in zip(found["stages"], rows, strict=True):
        table = load_file(folder.soft_labels(each["stage"]))["soft_labels"].double()
        assert each["entropy"] == pytest.approx(torch.special.entr(table).sum(1).mean().item(), abs=1e-6)
        assert [each["train/top1"], each["test/top1"]] == [row["train/top1"], row["test/top1"]]
        best = each["pairs"][0]
        a, b = map(found["classes"].index, best["classes"])
        assert best["lent"] == pytest.approx([table[a, b].item(), table[b, a].item()], abs=1e-6)
        assert best["weight"] == pytest.approx(((table + table.T) / 2).fill_diagonal_(0).max().item(), abs=1e-6)
        assert "inside_superclass" not in each, "digits have none"
    printed = capsys.readouterr().out
    assert [f"\nstage {n}: " in printed for n in range(1, STAGES + 1)].count(True) == 6
    assert "\nstage 1: " in printed and f"\nstage {STAGES}: " in printed


def test_a_picture_shows_the_first_the_last_and_four_stages_between(run):
    finding = soft_labels.analyze([open_run(run)])
    titles = [panel.get_title() for panel in finding.picture.axes if panel.get_title()]
    assert len(titles) == 6 and titles[0].startswith("stage 1,") and titles[-1].startswith(f"stage {STAGES},")


def test_an_earlier_checkpoint_has_the_stages_before_it(run):
    kept = RunFolder(run).kept_checkpoints()[3]
    assert [each.number for each in soft_labels.learned_stages(open_run(kept))] == [1, 2, 3]


def test_classes_of_cifar100_tell_what_stays_inside_the_superclass(run):
    opened = open_run(run)
    names = "maple_tree oak_tree palm_tree pine_tree willow_tree baby boy girl man woman".split()
    numbers = soft_labels.analyze([replace(opened, decided={**opened.decided, "classes": names})]).numbers
    assert numbers["inside_superclass_by_chance"] == pytest.approx(400 / 9)
    table = load_file(RunFolder(run).soft_labels(1))["soft_labels"]
    inside = table[:5, :5].sum() + table[5:, 5:].sum() - table.diagonal().sum()
    expected = 100 * inside / (table.sum() - table.diagonal().sum())
    assert numbers["stages"][0]["inside_superclass"] == pytest.approx(expected.item(), rel=1e-4)


def mixed(own):
    """Labels that keep `own` of their weight and spread the rest evenly."""
    return own * torch.eye(10) + (1 - own) / 9 * (1 - torch.eye(10))


@pytest.mark.parametrize(
    ("first", "last", "blur"),
    [
        (mixed(0.9), mixed(0.95), False),
        (mixed(0.9), mixed(0.899), False),
        (mixed(0.9), mixed(0.6), True),
        (mixed(0.6), mixed(0.9).roll(1, 0), True),
    ],
)
def test_labels_that_get_softer_or_lose_peaks_are_warned_of(copy, first, last, blur):
    for stage, table in ((1, first), (STAGES, last)):
        save_file({"soft_labels": table}, copy.soft_labels(stage))
    text = soft_labels.analyze([open_run(copy.path)]).text
    assert ("warning: the labels blur" in text) == blur
    assert ("no sign that the labels blur" in text) != blur


def test_of_several_runs_each_setting_shows_its_first_and_last_stage_and_others_are_counted(run, copy):
    opened = open_run(run)
    blurring = replace(opened, folder=copy, config=replace(opened.config, train=replace(opened.config.train, seed=1)))
    for stage, table in ((1, mixed(0.9)), (STAGES, mixed(0.6).roll(1, 0))):
        save_file({"soft_labels": table}, copy.soft_labels(stage))
    hard = replace(opened, plan=make_plan(Method(name="hard"), STAGES))
    finding = soft_labels.analyze([opened, blurring, hard])
    alone = soft_labels.analyze([opened]).numbers["stages"]
    (setting,) = finding.numbers["settings"].values()
    first, second = setting["runs"]
    assert first["stages"] == [{key: stage[key] for key in first["stages"][0]} for stage in alone]
    assert second["blurred"] and second["stages"][-1]["peaks"] == 0
    assert second["stages"][0]["entropy"] == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1 / 9), abs=1e-6)
    assert finding.numbers["without_soft_labels"] == 1 and finding.text.endswith("by class: 1 of the runs")
    assert f"{1 + first['blurred']} of 2" in finding.text


def fails(path, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["soft_labels", str(path)])
    assert exited.value.code == 2
    assert not (path / "analysis").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "torn", "another table", "no distribution"])
def test_a_table_that_cannot_be_read_is_an_error_in_one_line(copy, damage, capsys):
    path = copy.soft_labels(2)
    {
        "missing": path.unlink,
        "torn": lambda: path.write_bytes(b"torn"),
        "another table": lambda: save_file({"by_class": mixed(0.5)}, path),
        "no distribution": lambda: save_file({"soft_labels": 2 * mixed(0.5)}, path),
    }[damage]()
    shutil.rmtree(copy.path / "analysis", ignore_errors=True)
    complaint = fails(copy.path, capsys)
    assert str(path) in complaint and len(complaint.splitlines()) == 1


def test_a_run_without_tables_is_an_error_in_one_line(run, copy, capsys):
    opened = open_run(run)
    config = replace(opened.config, method=replace(opened.config.method, name="hard"))
    shutil.rmtree(copy.path / "analysis", ignore_errors=True)
    copy.write_config(config)
    state = torch.load(copy.newest_checkpoint, weights_only=True)
    torch.save({**state, "config": config.as_dict()}, copy.newest_checkpoint)
    assert "method hard learns none by class" in fails(copy.path, capsys)
