"""The plane of three templates: by hand, and the features of runs on real digits on it."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlsr import analyze
from fastlsr.analysis import projection
from fastlsr.engine.trained import open_run
from fastlsr.errors import InputError
from fastlsr.inference.features import split_features

seeds = st.integers(0, 2**32 - 1)


def random(*shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_templates_lie_with_the_first_at_the_left_and_the_third_above():
    templates = torch.tensor([[0.0, 5.0, 0.0, 0.0], [0.0, 5.0, 2.0, 0.0], [0.0, 5.0, 1.0, -3.0]])
    expected = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(projection.plane_through(templates).coordinates(templates), expected)


@given(seeds, st.integers(2, 9))
def test_points_of_the_plane_keep_their_distances(seed, dimensions):
    templates = random(3, dimensions, seed=seed)
    weights = random(6, 3, seed=seed + 1)
    points = (weights + (1 - weights.sum(1, keepdim=True)) / 3) @ templates  # affine combinations
    everything = torch.cat([points, templates])
    found = projection.plane_through(templates).coordinates(everything)
    torch.testing.assert_close(torch.pdist(found), torch.pdist(everything), rtol=1e-6, atol=1e-9)


@given(seeds, st.integers(3, 9))
def test_what_is_orthogonal_to_the_plane_is_dropped(seed, dimensions):
    templates, points = random(3, dimensions, seed=seed), random(5, dimensions, seed=seed + 1)
    sides = templates[1:] - templates[0]
    away = random(5, dimensions, seed=seed + 2)
    away -= away @ torch.linalg.pinv(sides) @ sides
    plane = projection.plane_through(templates)
    torch.testing.assert_close(plane.coordinates(points + 100 * away), plane.coordinates(points), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("third", [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_templates_on_a_line_are_an_error(third):
    with pytest.raises(InputError, match="lie on a line"):
        projection.plane_through(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], third]))


def test_spreads_by_hand():
    points = [
        torch.tensor(each, dtype=torch.float64) for each in ([[-1, 0], [1, 0]], [[3, 2], [3, -2]], [[0, 4], [0, 4]])
    ]  # means (0, 0), (3, 0), (0, 4): 3, 4 and 5 apart
    templates = torch.tensor([[0, 0], [3, 1], [2, 4]], dtype=torch.float64)
    found = projection.spreads(points, templates)
    assert [each["spread"] for each in found] == [1, 2, 0]
    assert [each["relative_spread"] for each in found] == [1 / 4, 2 / 4, 0]
    assert [each["to_template"] for each in found] == [0, 1, 2]


@pytest.fixture
def runs(six_runs):
    return [six_runs["hard-0"], six_runs["lsr-0"]]


def test_the_command_projects_the_same_images_of_every_run(runs, tmp_path, capsys):
    words = ["projection", *map(str, runs), "--classes=0,3,7", "--samples=30", f"--out={tmp_path}"]
    assert analyze.main(words) == 0
    assert "hard  train" in capsys.readouterr().out
    assert (tmp_path / "projection.png").exists() and (tmp_path / "projection.svg").exists()
    found = json.loads((tmp_path / "projection.json").read_text())
    assert found["classes"] == ["0", "3", "7"] and [each["label"] for each in found["runs"]] == ["hard", "lsr"]
    assert [[one["index"] for one in each[split]] for split in ("train", "test") for each in found["runs"][:1]] == [
        [one["index"] for one in each[split]] for split in ("train", "test") for each in found["runs"][1:]
    ]
    run = open_run(runs[1])
    everything = split_features(run, run.evaluation_loader(), "test")
    plane = projection.plane_through(everything.templates[[0, 3, 7]])
    for label, one in zip((0, 3, 7), found["runs"][1]["test"], strict=True):
        assert len(one["index"]) == len(set(one["index"])) == 30
        at = [everything.index.tolist().index(index) for index in one["index"]]
        assert set(everything.labels[at].tolist()) == {label}
        torch.testing.assert_close(
            torch.tensor(one["points"]).double(), plane.coordinates(everything.values[at]), rtol=1e-4, atol=1e-4
        )


def test_the_features_of_chosen_samples_are_those_of_the_whole_split(runs):
    run = open_run(runs[0])
    loader = run.evaluation_loader()
    whole = split_features(run, loader, "test")
    chosen = torch.tensor([300, 7, 358])
    found = split_features(run, loader, "test", chosen)
    assert found.index.tolist() == sorted(chosen.tolist())
    at = torch.isin(whole.index, chosen)
    assert torch.equal(found.labels, whole.labels[at]) and torch.equal(found.templates, whole.templates)
    torch.testing.assert_close(found.values, whole.values[at], rtol=1e-4, atol=1e-4)


def test_a_class_with_fewer_images_shows_all_of_them(runs):
    run = open_run(runs[0])
    found = projection.analyze([run], classes="1,2,3", samples=10**6).numbers["runs"][0]["test"]
    counts = run.evaluation_loader().class_counts
    assert [len(each["index"]) for each in found] == counts[1:4].tolist()
    assert all(math.isfinite(each["relative_spread"]) for each in found)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--classes=0,1"], "takes three classes"),
        (["--classes=0,1,1"], "takes three classes"),
        (["--classes=0,1,2,3"], "takes three classes"),
        (["--classes=0,1,owl"], "owl: no such class"),
        (["--classes=0,1,2", "--samples=0"], "expected at least 1"),
        (["--classes=0,1,2", "--samples=many"], "expected a whole number"),
        ([], "projection needs --classes"),
    ],
)
def test_what_does_not_fit_is_an_error_in_one_line(runs, words, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["projection", str(runs[0]), *words, f"--out={tmp_path / 'out'}"])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
