"""What a step is expected to take of memory, and what is warned of."""

import pytest
import torch
from torch import nn

from fastlsr.config import load
from fastlsr.engine import footprint
from fastlsr.engine.classifier import Classifier
from fastlsr.ranks import ALONE, Ranks

CPU, GIB = torch.device("cpu"), 1 << 30


@pytest.mark.parametrize(("precision", "size", "copies"), [("fp32", 4, 0), ("bf16", 2, 2 * (6 + 224))])
def test_a_step_holds_what_its_layers_need_backward_and_its_weights_three_times(precision, size, copies):
    """By hand: of each image, the convolution's input and the ReLU's output; autocast's copies of the weights, once."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(32, 7, bias=False))
    network = Classifier(model, [0.0] * 3, [1.0] * 3, precision=precision, channels_last=False)
    for images in (5, 50):
        weights, saved = footprint.step_bytes(network, 4, images)
        assert weights == 3 * 4 * (6 + 224)
        assert saved == images * size * (48 + 32) + copies


@pytest.fixture
def free(monkeypatch):
    """8 GiB are free."""
    monkeypatch.setattr(footprint, "free_bytes", lambda device: 8 * GIB)


def lines(step, data, ranks=ALONE, device=CPU, **options):
    overrides = {name.replace("__", "."): str(value) for name, value in options.items()}
    return list(footprint.memory_warnings(load(overrides=overrides), device, ranks, step * GIB, data * GIB))


def test_what_fits_is_not_warned_of(free):
    assert lines(3, 5) == []
    assert lines(7, 8, device=torch.device("cuda", 0)) == []
    assert lines(3, 50, data__os_cache="false", data__order="quasi_random") == []


def test_a_step_that_does_not_fit_names_a_batch_that_does_with_the_same_steps(free):
    (line,) = lines(20, 0, data__batch_size=256, optim__accumulate=2)
    assert line.endswith("take data.batch_size=64 optim.accumulate=8")
    (line,) = lines(6, 0, Ranks(0, 4, 0, 2), data__batch_size=256)  # two on this machine share its memory
    assert line.startswith("a step takes at least 12.0 GiB") and line.endswith("data.batch_size=128 optim.accumulate=2")
    for size, ranks in ((1, 1), (100, 8), (12, 4)):  # which cannot be halved
        (line,) = lines(20, 0, Ranks(0, ranks, 0, 1), data__batch_size=size)
        assert line.endswith("take more ranks, a smaller data.resolution or a smaller network")


def test_images_that_do_not_fit_beside_the_steps_are_warned_of(free):
    (line,) = lines(3, 6)
    assert line.startswith("the images have 6.0 GiB, and 5.0 are free to cache them")
    assert "data.os_cache=false data.order=quasi_random" in line


@pytest.mark.parametrize(
    ("line", "folder", "limit", "used"),
    [
        ("0::/job/step", "job", "memory.max", "anon"),
        ("4:memory:/job", "memory/job", "memory.limit_in_bytes", "total_rss"),
    ],
)
def test_what_a_container_may_take_and_has_taken_is_read(line, folder, limit, used, tmp_path):
    (tmp_path / "listed").write_text(f"7:cpu:/other\n{line}\n")
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / limit).write_text("5000\n")
    (tmp_path / folder / "memory.stat").write_text(f"file 3000\n{used} 2000\n")
    assert footprint._limits_of_groups(tmp_path / "listed", tmp_path) == [(5000, 2000)]
    (tmp_path / folder / limit).write_text("max\n")
    assert footprint._limits_of_groups(tmp_path / "listed", tmp_path) == []
    assert footprint._limits_of_groups(tmp_path / "none", tmp_path) == []
