"""Dropping the smoothing: the share given back by hand, and runs on real digits along their epochs."""

import json
import shutil
from operator import itemgetter

import numpy as np
import pytest

from fastlsr import analyze
from fastlsr.analysis import dropping
from fastlsr.analysis.dropping import share_given_back
from fastlsr.config import Method
from fastlsr.engine.trained import open_run
from fastlsr.inference.linear_probe import probe
from fastlsr.labels.methods import make_plan
from fastlsr.runs import RunFolder


def test_the_share_given_back_by_hand():
    """Means: tsla - lsr = 2, hard - lsr = 4. Without each seed: 2.5 / 4.5, 2 / 4, 1.5 / 3.5."""
    found = share_given_back(tsla=[2.0, 4.0, 6.0], lsr=[1.0, 2.0, 3.0], hard=[4.0, 6.0, 8.0])
    without = np.array([2.5 / 4.5, 2 / 4, 1.5 / 3.5])
    error = np.sqrt(2 / 3 * np.square(without - without.mean()).sum())
    assert found == {"share": 0.5, "standard_error": pytest.approx(error), "reason": ""}


@pytest.mark.parametrize(("tsla", "share"), [([5.0, 7.0, 8.0], 1), ([1.0, 2.0, 3.0], 0), ([9.0, 12.0, 13.0], 2)])
def test_the_share_is_0_at_lsr_and_1_at_hard_and_may_lie_beyond(tsla, share):
    assert share_given_back(tsla=tsla, lsr=[1.0, 2.0, 3.0], hard=[5.0, 7.0, 8.0])["share"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("hard", "reason"),
    [
        ([2.0], "one seed"),
        ([1.0, 2.0], "not apart"),
        ([5.0, 7.0], "not apart"),  # 4.5 ± 12.7 · 0.5
        ([0.0, 4.0, 3.0], "not apart"),
    ],
)
def test_there_is_no_share_of_a_difference_that_seeds_do_not_show(hard, reason):
    found = share_given_back(tsla=hard, lsr=[1.0, 2.0, 3.0][: len(hard)], hard=hard)
    assert found == {"share": None, "standard_error": None, "reason": reason}


@pytest.mark.parametrize(
    ("method", "drop"),
    [("hard", None), ("lsr", None), ("tsla", 6), ("colam", None), ("confidence_penalty", None)],
)
def test_the_smoothing_is_dropped_where_hard_labels_follow_others(method, drop):
    assert dropping.drop_epoch(make_plan(Method(name=method, drop_epoch=6, stages=5), 10)) == drop


def test_smoothing_that_is_never_there_is_not_dropped():
    assert dropping.drop_epoch(make_plan(Method(name="tsla", drop_epoch=0), 10)) is None


@pytest.fixture(scope="module")
def found(six_runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    names = "hard-0 hard-1 lsr-1 lsr-0 tsla-0 tsla-1".split()  # lsr comes with another seed first
    assert analyze.main(["dropping", *(str(six_runs[name]) for name in names), f"--out={out}"]) == 0
    assert (out / "dropping.svg").exists()
    return json.loads((out / "dropping.json").read_text())


def test_the_figures_of_each_epoch_are_those_that_the_run_logged(found, six_runs):
    for method, setting in found["settings"].items():
        assert setting["drop"] == (1 if method == "tsla" else None)
        for run in setting["runs"]:
            rows = RunFolder(six_runs[f"{method}-{run['seed']}"]).read_rows()
            assert list(run["epochs"]) == [str(row["epoch"]) for row in rows]
            for row, figures in zip(rows, run["epochs"].values(), strict=True):
                assert figures["top1"] == pytest.approx(row["test/top1"], abs=0.6)  # float16 makes ties: two images
                assert [figures["nll"], figures["ece"]] == pytest.approx([row["test/nll"], row["test/ece"]], abs=0.003)
                assert 0 < figures["intra_class_variation"] < 1


def test_until_it_drops_the_smoothing_tsla_is_lsr_to_the_digit(found):
    compared = found["compared"]["tsla"]
    assert compared["settings"] == {"tsla": "tsla", "lsr": "lsr", "hard": "hard"}
    assert compared["epochs"] == {"before": 1, "end": 2}
    assert compared["seeds"] == [0, 1]
    for figure in compared["figures"].values():
        assert figure["before"]["tsla"] == figure["before"]["lsr"]
        assert figure["before"]["tsla - lsr"]["values"] == [0, 0]
    for name in ("nll", "aurc", "intra_class_variation"):
        assert compared["figures"][name]["end"]["tsla"] != compared["figures"][name]["end"]["lsr"]


def test_differences_are_taken_within_a_seed(found):
    seed = itemgetter("seed")
    for name, figure in found["compared"]["tsla"]["figures"].items():
        ends = {
            method: [run["epochs"]["2"][name] for run in sorted(found["settings"][method]["runs"], key=seed)]
            for method in dropping.ROLES
        }
        by_hand = np.subtract(ends["tsla"], ends["hard"])
        assert figure["end"]["tsla - hard"]["mean"] == pytest.approx(by_hand.mean(), abs=1e-12)
        assert figure["end"]["tsla - hard"]["std"] == pytest.approx(by_hand.std(ddof=1), abs=1e-12)
        assert figure["given_back"] == share_given_back(**ends)


def test_every_second_checkpoint_is_taken_with_the_last_and_probed(six_runs, both_data, tmp_path, capsys):
    words = ["--every=2", "--to=photos", f"--data.dir={both_data}", f"--out={tmp_path}"]
    assert analyze.main(["dropping", str(six_runs["tsla-1"]), *words]) == 0
    found = json.loads((tmp_path / "dropping.json").read_text())
    (run,) = found["settings"]["tsla"]["runs"]
    assert list(run["epochs"]) == ["2"]
    assert list(run["epochs"]["2"]) == list(dropping.FIGURES)
    last = probe(open_run(six_runs["tsla-1"], {"data.dir": str(both_data)}), "photos", quiet=True)
    assert run["epochs"]["2"]["transfer_nll"] == last["nll"]
    assert found["compared"]["tsla"]["epochs"] == {"before": None, "end": 2}
    assert "no lsr and no hard" in capsys.readouterr().out


def test_a_run_without_kept_checkpoints_is_an_error(six_runs, tmp_path, capsys):
    folder = shutil.copytree(six_runs["hard-0"], tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(SystemExit) as exited:
        analyze.main(["dropping", str(folder)])
    assert exited.value.code == 2
    assert "has no checkpoints along its epochs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        analyze.main(["dropping", str(six_runs["hard-0"]), "--every=0"])
    assert "--every=0" in capsys.readouterr().err
