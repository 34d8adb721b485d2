"""Figures of clusters: by hand, by their definitions, and of runs on real digits."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlsr import analyze
from fastlsr.analysis import clusters
from fastlsr.engine import checkpoint
from fastlsr.engine.trained import open_run
from fastlsr.errors import InputError
from fastlsr.inference.features import split_features
from fastlsr.runs import RunFolder

seeds = st.integers(0, 2**32 - 1)
E1, E2, E3 = torch.eye(3)


def random_clusters(seed, sizes=(3, 5, 4), dimensions=6):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dimensions, generator=generator) + torch.randn(dimensions, generator=generator)
            for size in sizes]  # fmt: skip


def simplex(classes, dimensions):
    """K vertices of a simplex ETF, turned and moved in a larger space."""
    vertices = torch.eye(classes, dtype=torch.float64) - 1 / classes
    turn, _ = torch.linalg.qr(torch.randn(dimensions, classes, generator=torch.Generator().manual_seed(0)).double())
    return 3 * vertices @ turn.T + torch.arange(dimensions)


def test_templates_are_compared_at_length_one():
    rows = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0], [1.0, 1e-4]])
    distances = clusters.template_distances(rows)
    right, opposite = math.sqrt(2), 2.0
    expected = torch.tensor([[0, right, opposite], [right, 0, right], [opposite, right, 0]], dtype=torch.float64)
    torch.testing.assert_close(distances[:3, :3], expected)
    torch.testing.assert_close(distances[0, 3].item(), 1e-4, rtol=1e-3, atol=0)


def test_average_distances_by_hand():
    own, mixed, opposite = torch.stack([2 * E1, 7 * E1]), torch.stack([E1, 3 * E2]), -E2[None]
    right = math.sqrt(2)
    expected = [[0, right / 2, right], [right, right / 2, 2]]
    found = clusters.average_distances(torch.stack([9 * E1, E2]), [own, mixed, opposite])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_the_samples_of_a_centroid_count_at_length_one():
    (centroid,) = clusters.centroids([torch.stack([100 * E1, E2])])
    assert centroid.tolist() == [0.5, 0.5, 0]


def test_variation_and_separation_by_hand():
    # Class means of unit vectors (E1 + E2) / 2 and E3: d_within = 1 - (1/2 + 1) / 2, d_total = 1 - (1/8 + 1/4).
    found = clusters.variation_and_separation([torch.stack([E1, 4 * E2]), torch.stack([E3, 2 * E3])])
    assert found == pytest.approx((1 / 4, 1 - (1 / 4) / (5 / 8)))


@given(seeds)
def test_variation_and_separation_are_the_sums_of_their_definition(seed):
    groups = random_clusters(seed)

    def distance(one, other):
        return np.mean([1 - torch.cosine_similarity(x, y, dim=0).item() for x in one for y in other])

    within = np.mean([distance(each, each) for each in groups])
    total = np.mean([distance(one, other) for one in groups for other in groups])
    assert clusters.variation_and_separation(groups) == pytest.approx((within, 1 - within / total), abs=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_simplex_without_variation_has_collapsed(classes):
    groups = [vertex.expand(5, -1) for vertex in simplex(classes, 9)]
    assert clusters.neural_collapse(groups) == pytest.approx((0, 0, 0), abs=1e-9)
    within, separation = clusters.variation_and_separation(groups)
    assert within == pytest.approx(0, abs=1e-9) and separation == pytest.approx(1)
    own = clusters.average_distances(clusters.centroids(groups), groups).diagonal()
    assert own.tolist() == pytest.approx([0] * classes, abs=1e-6)


def test_classes_at_right_angles_are_a_simplex_around_their_mean():
    assert clusters.neural_collapse([E1[None], E2[None], E3[None]]) == pytest.approx((0, 0, 0), abs=1e-7)


def test_variability_along_and_across_the_classes_by_hand():
    # Σ_B = 4 E1 E1', Σ_W = E1 E1' + 9 E2 E2': only what lies along the class means counts, so NC1 = (1 / 4) / 2.
    corners = [a * E1 + b * E2 for a, b in itertools.product((-1, 1), (-3, 3))]
    groups = [torch.stack([mean + corner for corner in corners]) for mean in (2 * E1 + 5 * E3, -2 * E1 + 5 * E3)]
    assert clusters.neural_collapse(groups) == pytest.approx((1 / 8, 0, 0), abs=1e-7)


def test_unequal_norms_and_angles_by_hand():
    # Centred means of norms 3, 3 and 0, and cosines -1, 0 and 0, each 1/2 from -1 / (3 - 1).
    groups = [(3 * E1 + E2)[None], (-3 * E1 + E2)[None], E2[None]]
    nc1, norms, angles = clusters.neural_collapse(groups)
    assert (nc1, norms, angles) == pytest.approx((0, math.sqrt(2) / 2, 1 / 2), abs=1e-6)


@given(seeds)
def test_variability_is_the_trace_of_its_definition(seed):
    groups = [each.double().numpy() for each in random_clusters(seed)]
    means = np.stack([each.mean(0) for each in groups])
    within = np.mean([np.cov(each.T, bias=True) for each in groups], axis=0)
    between = np.cov(means.T, bias=True)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3
    nc1, _, _ = clusters.neural_collapse([torch.from_numpy(each) for each in groups])
    assert nc1 == pytest.approx(expected, rel=1e-6)


@given(seeds, st.floats(0.01, 100))
def test_the_size_of_all_features_does_not_matter(seed, size):
    groups = random_clusters(seed)
    scaled = [size * each for each in groups]
    assert clusters.neural_collapse(scaled) == pytest.approx(clusters.neural_collapse(groups), rel=1e-3, abs=1e-6)
    assert clusters.variation_and_separation(scaled) == pytest.approx(
        clusters.variation_and_separation(groups), rel=1e-4, abs=1e-6
    )


@pytest.fixture
def runs(six_runs):
    return [six_runs["hard-0"], six_runs["hard-1"]]


def test_the_command_prints_each_pair_of_templates_and_their_average(runs, capsys):
    assert analyze.main(["clusters", str(runs[0]), "--classes=0,3,7"]) == 0
    assert "0|3" in capsys.readouterr().out
    found = json.loads((runs[0] / "analysis" / "clusters.json").read_text())
    state, _ = checkpoint.load_newest(runs[0])
    (weight,) = [w for w in state["model"].values() if w.ndim == 2 and len(w) == 10]
    unit = weight.double() / weight.double().norm(dim=1, keepdim=True)
    expected = {f"{a}|{b}": (unit[a] - unit[b]).norm().item() for a, b in ((0, 3), (0, 7), (3, 7))}
    distances = found["runs"][0]["template_distances"]
    assert list(distances) == [*expected, "average"]
    assert distances == pytest.approx({**expected, "average": sum(expected.values()) / 3}, rel=1e-5)
    assert (runs[0] / "analysis" / "clusters.png").exists()


def test_the_chosen_classes_are_those_of_the_tables_and_the_other_figures_are_of_all(runs):
    run = open_run(runs[0])
    chosen, every = (clusters.analyze([run], classes=names).numbers for names in ("7,0", ""))
    assert chosen["classes"] == ["7", "0"] and every["classes"] == run.classes
    features = split_features(run, run.evaluation_loader(), "test")
    groups = [features.values[features.labels == label] for label in range(10)]
    (few,), (many,) = chosen["runs"], every["runs"]
    assert few["test"]["adt"][0][1] == pytest.approx(many["test"]["adt"][7][0]), "row: template, column: samples"
    unit = torch.nn.functional.normalize(features.templates[7], dim=0)
    expected = (torch.nn.functional.normalize(groups[0], dim=1) - unit).norm(dim=1).mean()
    assert few["test"]["adt"][0][1] == pytest.approx(expected.item(), rel=1e-5)
    assert many["test"]["adt_own"] == pytest.approx(np.mean([many["test"]["adt"][k][k] for k in range(10)]))
    everything = clusters.variation_and_separation(groups), clusters.neural_collapse(groups)
    for one in (few, many):
        figures = [
            one["test"][key] for key in ("intra_class_variation", "separation", "nc1", "nc2_norms", "nc2_angles")
        ]
        assert figures == pytest.approx([*everything[0], *everything[1]])


def test_repeats_are_dots_of_one_bar(runs):
    finding = clusters.analyze([open_run(run) for run in runs])
    assert [each["label"] for each in finding.numbers["runs"]] == ["hard, seed 0", "hard, seed 1"]
    for panel in finding.picture.axes:
        train_dots, test_dots = (dots.get_offsets()[:, 0].tolist() for dots in panel.collections)
        assert [len(train_dots), len(test_dots)] == [2, 2]
        assert [bar.get_width() for bar in panel.patches] == pytest.approx([np.mean(train_dots), np.mean(test_dots)])


def test_earlier_checkpoints_of_a_run_are_no_repeats_of_it(runs):
    paths = [*RunFolder(runs[0]).kept_checkpoints().values(), runs[1]]
    found = clusters.analyze([open_run(path) for path in paths]).numbers["runs"]
    assert [each["setting"] for each in found] == ["hard, epoch 1", "hard", "hard"]


def test_runs_with_other_classes_are_compared_on_chosen_ones_alone(runs):
    one = open_run(runs[0])
    other = replace(one, decided={**one.decided, "classes": one.classes[::-1]})
    with pytest.raises(InputError, match="choose some, --classes=A,B"):
        clusters.analyze([one, other])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--classes=0,owl"], "owl: no such class"),
        (["--classes=0"], "two classes"),
        (["--clases=0,1"], "did you mean --classes"),
        (["--classes=0,1", "--optim.lr=1"], "--optim.lr is the run's own"),
    ],
)
def test_classes_that_do_not_fit_are_an_error_in_one_line(runs, words, complaint, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["clusters", str(runs[0]), *words])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        analyze.main(["clusters", str(tmp_path), "--classes=0,1"])
    assert "holds no checkpoint" in capsys.readouterr().err
