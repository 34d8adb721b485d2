"""Our networks: sizes, shapes, gradients, memory format, and the details of their papers."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastlsr.models import build_model, head_parameters
from fastlsr.models.densenet import DenseLayer, densenet_bc
from fastlsr.models.preact_resnet import PreActBlock, wide_resnet
from fastlsr.models.registry import SMALL_IMAGE_NETWORKS
from fastlsr.models.resnet import PaddedShortcut, cifar_resnet
from fastlsr.models.resnext import AggregatedBlock

ALL = sorted(SMALL_IMAGE_NETWORKS)


def build(name, *, classes=10, resolution=32, seed=0):
    torch.manual_seed(seed)
    return build_model(name, classes=classes, resolution=resolution)


def on_meta(name, *, classes=10):
    with torch.device("meta"):
        return build_model(name, classes=classes, resolution=32)


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
        ("densenet_bc_100", 100, 0.8e6),  # Huang et al. 2017, Table 2
        ("wide_resnet_40x4", 10, 8.9e6),  # Zagoruyko and Komodakis 2016, Table 4
        ("wide_resnet_40x4", 100, 8.9e6),
        ("preact_resnet18", 100, 11.2e6),
        ("preact_resnet34", 100, 21.3e6),
        ("resnext29_8x64d", 10, 34.4e6),  # Xie et al. 2017, Table 7
        ("resnext29_8x64d", 100, 34.4e6),
    ],
)
def test_parameter_count_is_the_literature_s_within_a_percent(name, classes, literature):
    assert count(on_meta(name, classes=classes)) == pytest.approx(literature, rel=0.01)


@pytest.mark.parametrize(("depth", "blocks"), [(8, 1), (20, 3), (56, 9)])
def test_6n_plus_2_layers_have_the_parameters_counted_by_hand(depth, blocks):
    stem, classifier = 3 * 16 * 9 + 2 * 16, 64 * 10 + 10
    stages = basic_block(16, 16) + basic_block(16, 32) + basic_block(32, 64)
    rest = (blocks - 1) * (basic_block(16, 16) + basic_block(32, 32) + basic_block(64, 64))
    assert count(build(f"resnet{depth}")) == stem + stages + rest + classifier


def test_resnet18_has_the_parameters_counted_by_hand():
    stem, classifier = 3 * 64 * 9 + 2 * 64, 512 * 100 + 100
    widths = [64, 64, 128, 256, 512]
    first = [basic_block(a, b, shortcut=0 if a == b else a * b + 2 * b) for a, b in pairwise(widths)]
    second = [basic_block(width, width) for width in widths[1:]]
    assert count(build("resnet18", classes=100)) == stem + sum(first) + sum(second) + classifier


def test_densenet_has_the_parameters_counted_by_hand():
    k, channels, total = 12, 24, 3 * 24 * 9
    for block in range(3):
        for _ in range(16):
            total += 2 * channels + channels * 4 * k + 2 * 4 * k + 4 * k * k * 9
            channels += k
        total += 2 * channels  # of the transition, or of the end
        if block < 2:
            total += channels * (channels // 2)
            channels //= 2
    assert channels == 342
    assert count(on_meta("densenet_bc_100", classes=10)) == total + 342 * 10 + 10


@pytest.mark.parametrize(
    ("name", "stem", "widths", "blocks"),
    [
        ("preact_resnet18", 64, [64, 128, 256, 512], [2, 2, 2, 2]),  # He et al. 2016, Table 1
        ("preact_resnet34", 64, [64, 128, 256, 512], [3, 4, 6, 3]),
        ("wide_resnet_40x4", 16, [64, 128, 256], [6, 6, 6]),  # Zagoruyko and Komodakis 2016, Table 1
    ],
)
def test_preactivation_networks_have_the_parameters_counted_by_hand(name, stem, widths, blocks):
    total, channels = 3 * stem * 9, stem
    for width, number in zip(widths, blocks, strict=True):
        for _ in range(number):
            total += 2 * channels + 9 * channels * width + 2 * width + 9 * width**2
            total += channels * width if channels != width else 0
            channels = width
    assert count(on_meta(name, classes=100)) == total + 2 * channels + channels * 100 + 100


def test_resnext_has_the_parameters_counted_by_hand():
    total, channels = 3 * 64 * 9 + 2 * 64, 64
    for width, out in [(8 * 64, 256), (8 * 128, 512), (8 * 256, 1024)]:
        total += channels * out + 2 * out
        for _ in range(3):
            paths = 8 * (width // 8) * (width // 8) * 9
            total += channels * width + 2 * width + paths + 2 * width + width * out + 2 * out
            channels = out
    assert count(on_meta("resnext29_8x64d", classes=10)) == total + 1024 * 10 + 10


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20), ("resnet56", 56), ("resnet18", 18),
                                              ("preact_resnet18", 18), ("preact_resnet34", 34),
                                              ("resnext29_8x64d", 29), ("densenet_bc_100", 100)])  # fmt: skip
def test_name_counts_the_weighted_layers(name, layers):
    kinds = [type(module) for name, module in on_meta(name).named_modules() if "shortcut" not in name]
    assert kinds.count(nn.Conv2d) + kinds.count(nn.Linear) == layers


def test_name_of_a_wide_network_counts_its_convolutions_shortcuts_and_all():
    assert [type(module) for module in on_meta("wide_resnet_40x4").modules()].count(nn.Conv2d) == 40


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("densenet_bc_100", [(24, 32), (216, 32), (108, 16), (300, 16), (150, 8), (342, 8)]),
        ("wide_resnet_40x4", [(16, 32), (64, 32), (128, 16), (256, 8)]),
        ("preact_resnet18", [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)]),
        ("preact_resnet34", [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)]),
        ("resnext29_8x64d", [(64, 32), (256, 32), (512, 16), (1024, 8)]),
    ],
)
def test_maps_have_the_papers_channels_and_sides(name, shapes):
    model, x, found = on_meta(name), torch.empty(1, 3, 32, 32, device="meta"), []
    for part, module in model.features.named_children():
        x = module(x)
        if part.startswith(("stem", "stage", "block", "transition")):
            found.append((x.shape[1], x.shape[2]))
    assert found == shapes


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
    # The eager backend captures the graph as any other does, without a minute of code generation. Without the reset,
    # all networks together would exceed the limit of recompilations of SmallImageNetwork.forward.
    torch.compiler.reset()
    captured = torch.compile(build(name).eval(), fullgraph=True, backend="eager")
    assert captured(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ALL)
def test_head_is_the_classifier_alone(name):
    model = build(name)
    assert [tuple(p.shape) for p in head_parameters(model)] == [(10, model.num_features), (10,)]


def test_option_a_takes_every_second_pixel_and_appends_zeros():
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    y = PaddedShortcut(2, 4, 2)(x)
    assert y[0, 0].tolist() == [[0, 2], [8, 10]] and y[0, 1].tolist() == [[16, 18], [24, 26]]
    assert y.shape == (1, 4, 2, 2) and not y[0, 2:].any()


def test_the_gradient_of_option_a_is_channels_last_like_its_input():
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(PaddedShortcut(16, 32, 2)(x).square().sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(gradient[:, :, ::2, ::2], 2 * x[:, :, ::2, ::2])
    assert gradient.count_nonzero() == 2 * 16 * 4 * 4


def test_a_dense_layer_hands_on_what_it_got_and_appends_k_maps():
    x = torch.randn(2, 30, 8, 8)
    y = DenseLayer(30, 12)(x)
    assert y.shape == (2, 42, 8, 8) and torch.equal(y[:, :30], x)


def test_every_dense_layer_reads_all_maps_before_it_in_its_block():
    blocks = [getattr(on_meta("densenet_bc_100").features, f"block{number}") for number in (1, 2, 3)]
    for block, first in zip(blocks, [24, 108, 150], strict=True):
        assert [layer.conv1.in_channels for layer in block] == [first + 12 * number for number in range(16)]


def test_densenet_keeps_no_map_twice_for_the_backward_pass():
    model, side = densenet_bc(10, depth=40, growth=12), 16
    kept, parameters = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        if tensor.dim() == 4 and tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(1, 3, side, side))
    channels, maps = 24, 3 * side**2
    for block in range(3):
        for _ in range(6):  # two of each width: before and after its normalisation and ReLU
            maps += 2 * (channels + 4 * 12) * side**2
            channels += 12
        maps += 2 * channels * side**2
        if block < 2:
            maps += channels // 2 * side**2
            channels, side = channels // 2, side // 2
    assert sum(size for size, _ in kept.values()) <= 4 * maps


def settled(block):
    """The block in eval mode, with scales and shifts that are not 1 and 0."""
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return block.eval()


def test_a_preactivation_block_whose_residual_is_zero_is_the_identity():
    block = settled(PreActBlock(6, 6, 1))
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 6, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["preact_resnet18", "wide_resnet_40x4"])
def test_the_first_unit_and_those_that_change_the_shape_activate_before_they_split(name):
    model, x = settled(build(name)), torch.randn(2, 3, 16, 16)
    for part, module in model.features.named_children():
        if part.startswith("stage"):
            first = module[0]
            nn.init.zeros_(first.conv2.weight)
            assert torch.equal(first(x), first.shortcut(F.relu(first.norm1(x))))
            assert not any(block.activated_shortcut for block in module[1:])
        x = module(x)


@pytest.mark.parametrize("name", ["preact_resnet18", "preact_resnet34", "wide_resnet_40x4", "densenet_bc_100"])
def test_preactivation_networks_end_in_a_normalisation_and_a_relu(name):
    kinds = [type(module) for module in on_meta(name).features.children()]
    assert kinds[-2:] == [nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize("stride", [1, 2])
def test_an_aggregated_block_is_the_sum_over_its_paths(stride):
    block = settled(AggregatedBlock(16, 512, stride, cardinality=8, base_width=4))  # paths of 4 * 512 / 256 channels
    assert block.conv2.weight.shape == (64, 8, 3, 3)
    x, total = torch.randn(2, 16, 6, 6), 0
    entered = F.relu(block.norm1(block.conv1(x)))
    for path in torch.arange(64).split(8):
        inner = F.conv2d(entered[:, path], block.conv2.weight[path], stride=stride, padding=1)
        mean, scale = block.norm2.running_mean[path], block.norm2.running_var[path]
        inner = F.batch_norm(inner, mean, scale, block.norm2.weight[path], block.norm2.bias[path])
        total = total + F.conv2d(F.relu(inner), block.conv3.weight[:, path])
    torch.testing.assert_close(block(x), F.relu(block.shortcut(x) + block.norm3(total)), rtol=1e-4, atol=1e-5)


def test_resnext_has_8_paths_that_double_in_width_with_the_stages():
    stages = list(on_meta("resnext29_8x64d").features.children())[1:]
    found = [[(block.conv2.groups, block.conv2.weight.shape[1]) for block in stage] for stage in stages]
    assert found == [[(8, 64)] * 3, [(8, 128)] * 3, [(8, 256)] * 3]


@pytest.mark.parametrize("name", ["densenet_bc_100", "preact_resnet18", "resnext29_8x64d", "wide_resnet_40x4"])
def test_networks_start_as_their_authors_code_does(name):
    model = build(name)
    assert not model.fc.bias.any()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight, fan_out = module.weight, module.out_channels * math.prod(module.kernel_size)
            error = 5 * math.sqrt(2 / weight.numel())  # five deviations of a variance estimated from so many
            assert weight.var().item() * fan_out / 2 == pytest.approx(1, abs=error) and module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()


@pytest.mark.parametrize("name", ALL)
def test_a_small_step_against_the_gradient_lowers_the_loss(name):
    model, images, labels = build(name, classes=2), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 0, 1])
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    slope = sum(parameter.grad.square().sum() for parameter in model.parameters())
    length = 1e-3 / slope.item()  # to first order the loss falls by a thousandth
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= length * parameter.grad
        fall = loss - F.cross_entropy(model(images), labels)
    assert fall.item() == pytest.approx(1e-3, rel=0.2)


def test_convolutions_start_with_variance_two_over_fan_out():
    weight = build("resnet18").features.stage4[1].conv2.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 512), rel=0.01)


def test_same_seed_gives_the_same_weights():
    one, same, other = (build("resnet8", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize("depth", [4, 12, 41])
def test_a_depth_that_is_not_6n_plus_4_is_an_error(depth):
    with pytest.raises(ValueError, match="6n\\+4"):
        densenet_bc(10, depth=depth, growth=12)
    with pytest.raises(ValueError, match="6n\\+4"):
        wide_resnet(10, depth=depth, widening=1)


@pytest.mark.parametrize("depth", [2, 7, 18, 21])
def test_a_depth_that_is_not_6n_plus_2_is_an_error(depth):
    with pytest.raises(ValueError, match="6n\\+2"):
        cifar_resnet(10, depth=depth)
