"""The own networks: their size, their shapes, and that nothing in them is dead or depends on the memory format."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastlsr.models import build_model, head_parameters
from fastlsr.models.registry import SMALL_IMAGE_NETWORKS
from fastlsr.models.resnet import PaddedShortcut, cifar_resnet

ALL = sorted(SMALL_IMAGE_NETWORKS)


def build(name, *, classes=10, resolution=32, seed=0):
    torch.manual_seed(seed)
    return build_model(name, classes=classes, resolution=resolution)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def basic_block(channels_in, channels_out, shortcut=0):
    return 9 * channels_in * channels_out + 9 * channels_out**2 + 4 * channels_out + shortcut


@pytest.mark.parametrize(
    ("name", "classes", "literature"),
    [
        ("resnet20", 10, 0.27e6),  # He et al. 2016, Table 6
        ("resnet56", 10, 0.85e6),  # He et al. 2016, Table 6
        ("resnet56", 100, 0.86e6),
        ("resnet18", 100, 11.2e6),
    ],
)
def test_parameter_count_is_the_literature_s_within_a_percent(name, classes, literature):
    assert count(build(name, classes=classes)) == pytest.approx(literature, rel=0.01)


@pytest.mark.parametrize(("depth", "blocks"), [(8, 1), (20, 3), (56, 9)])
def test_6n_plus_2_layers_have_the_parameters_counted_by_hand(depth, blocks):
    stem, classifier = 3 * 16 * 9 + 2 * 16, 64 * 10 + 10
    stages = basic_block(16, 16) + basic_block(16, 32) + basic_block(32, 64)
    rest = (blocks - 1) * (basic_block(16, 16) + basic_block(32, 32) + basic_block(64, 64))
    assert count(build(f"resnet{depth}")) == stem + stages + rest + classifier


def test_resnet18_has_the_parameters_counted_by_hand():
    stem, classifier = 3 * 64 * 9 + 2 * 64, 512 * 100 + 100
    widths = [64, 64, 128, 256, 512]
    first = [basic_block(a, b, shortcut=0 if a == b else a * b + 2 * b) for a, b in zip(widths, widths[1:])]
    second = [basic_block(width, width) for width in widths[1:]]
    assert count(build("resnet18", classes=100)) == stem + sum(first) + sum(second) + classifier


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20), ("resnet56", 56), ("resnet18", 18)])
def test_name_counts_the_weighted_layers(name, layers):
    kinds = [type(module) for name, module in build(name).named_modules() if "shortcut" not in name]
    assert kinds.count(nn.Conv2d) + kinds.count(nn.Linear) == layers


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("classes", "resolution"), [(2, 8), (10, 32), (100, 64)])
def test_logits_are_batch_by_classes(name, classes, resolution):
    logits = build(name, classes=classes, resolution=resolution)(torch.randn(2, 3, resolution, resolution))
    assert logits.shape == (2, classes) and logits.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_every_parameter(name):
    model = build(name)
    F.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
    dead = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("name", ALL)
def test_channels_last_gives_the_logits_of_the_contiguous_format(name):
    model, images = build(name).eval(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_channels_last_is_kept_by_every_layer(name):
    model = build(name).to(memory_format=torch.channels_last)
    lost = []

    def note(module, _, output):
        if output.dim() == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            lost.append(module)

    for module in model.modules():
        module.register_forward_hook(note)
    model(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last))
    assert lost == []


@pytest.mark.parametrize("name", ALL)
def test_graph_is_captured_whole(name):
    # The eager backend captures as any other does and generates no code, which would take a minute.
    captured = torch.compile(build(name).eval(), fullgraph=True, backend="eager")
    assert captured(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ALL)
def test_head_is_the_classifier_alone(name):
    model = build(name)
    assert [tuple(p.shape) for p in head_parameters(model)] == [(10, model.num_features), (10,)]


@pytest.mark.parametrize("name", ALL)
def test_what_enters_the_classifier_times_its_templates_is_the_logits(name):
    model, images = build(name).eval(), torch.randn(2, 3, 32, 32)
    penultimate = model.forward_head(model.forward_features(images), pre_logits=True)
    templates = model.get_classifier()
    torch.testing.assert_close(penultimate @ templates.weight.T + templates.bias, model(images))


def test_option_a_takes_every_second_pixel_and_appends_zeros():
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    y = PaddedShortcut(2, 4, 2)(x)
    assert y[0, 0].tolist() == [[0, 2], [8, 10]] and y[0, 1].tolist() == [[16, 18], [24, 26]]
    assert y.shape == (1, 4, 2, 2) and not y[0, 2:].any()


def test_convolutions_start_with_variance_two_over_fan_out():
    weight = build("resnet18").features.stage4[1].conv2.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 512), rel=0.01)


def test_same_seed_gives_the_same_weights():
    one, same, other = (build("resnet8", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("depth", [2, 7, 18, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match="6n\\+2"):
        cifar_resnet(10, depth=depth)
