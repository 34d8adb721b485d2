"""Convolutions whose weights' gradients are taken in parts."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn

from fastlsr.config import load
from fastlsr.engine import convolutions
from fastlsr.engine.convolutions import (
    IN_PARTS,
    WHOLE,
    ConvolutionsInParts,
    choose_weight_gradients,
    gradient_in_parts,
    may_share_channels,
)
from fastlsr.engine.session import Session
from fastlsr.labels.methods import make_plan

CPU = torch.device("cpu")
BF16 = 2.0**-8  # the distance of numbers around 1


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    """torch's number of threads."""
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(former)


@pytest.fixture
def small_parts(monkeypatch):
    """Also a small batch is divided."""
    monkeypatch.setattr(convolutions, "_LEAST_PART", 1)


def gradients(network, images, *, autocast=True):
    """[output, gradient of the images, of the weight, of the bias] for one drawn gradient of the output."""
    images = images.clone().requires_grad_()
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = network(images)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    output.backward(upstream.bfloat16().to(output.dtype))
    return [output.detach(), images.grad, *(parameter.grad for parameter in network.parameters())]


class InParts(nn.Module):
    """A network that takes its convolutions' weight gradients in parts."""

    def __init__(self, network):
        super().__init__()
        self.network, self.mode = network, ConvolutionsInParts(torch.get_num_threads())

    def forward(self, images):
        with self.mode:
            return self.network(images)


def drawn(shape, *, layout=torch.channels_last, **options):
    """(network of one convolution, the same in parts, images that bf16 has)."""
    torch.manual_seed(0)
    network = nn.Conv2d(shape[1], 32, **options).to(memory_format=layout)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())
    images = torch.randn(shape).bfloat16().float().contiguous(memory_format=layout)
    return network, InParts(copy.deepcopy(network)), images


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 8, 9, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((7, 16, 8, 8), {"kernel_size": 3, "padding": 1, "bias": False}),
        ((4, 32, 8, 8), {"kernel_size": 3, "padding": 1}),
        ((2, 64, 3, 3), {"kernel_size": 3, "padding": 1}),  # the weight is larger than the output
        ((5, 8, 8, 7), {"kernel_size": 1, "stride": 2, "layout": torch.contiguous_format}),
        ((4, 16, 6, 6), {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1), "groups": 4}),
        ((1, 3, 12, 12), {"kernel_size": 7, "stride": 2, "padding": 3, "groups": 1}),
    ],
)
def test_a_weight_s_gradient_in_parts_is_that_of_float64_and_all_else_is_torch_s_own(
    shape, options, threads, small_parts, monkeypatch
):
    network, in_parts, images = drawn(shape, **options)
    parts = []
    monkeypatch.setattr(convolutions, "gradient_in_parts", lambda *given: parts.append(1) or gradient_in_parts(*given))
    exact = gradients(copy.deepcopy(network).double(), images.double(), autocast=False)
    whole, found = gradients(network, images), gradients(in_parts, images)
    assert (parts != []) == may_share_channels(images.shape, network.weight, network.stride, threads)
    assert torch.equal(found[0], whole[0]) and torch.equal(found[1], whole[1])
    assert found[2].stride() == whole[2].stride()
    for one, other in zip(found[2:], exact[2:], strict=True):
        assert (one - other).norm() <= BF16 * other.norm()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_each_part_has_one_thread_and_its_samples_or_channels_once(threads, small_parts, monkeypatch):
    parts = []
    of_weight = convolutions._of_weight

    def noting(gradient, weight, images, where):
        parts.append((torch.get_num_threads(), len(gradient), len(images), len(weight)))
        return of_weight(gradient, weight, images, where)

    monkeypatch.setattr(convolutions, "_of_weight", noting)
    _, in_parts, images = drawn((8, 8, 9, 9), kernel_size=3, stride=2)
    gradients(in_parts, images)
    assert sorted(parts) == [(1, 2, 2, 32), (1, 3, 3, 32), (1, 3, 3, 32)]
    parts.clear()
    _, in_parts, images = drawn((2, 64, 3, 3), kernel_size=3)
    gradients(in_parts, images)
    assert sorted(parts) == [(1, 2, 2, 10), (1, 2, 2, 11), (1, 2, 2, 11)], "by channel, where the weight is large"


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_a_helper_has_one_thread_also_after_torch_s_number_was_set(threads):
    convolutions._helpers.cache_clear()
    helpers = convolutions._helpers(threads)
    torch.set_num_threads(threads)
    assert {helpers.submit(torch.get_num_threads).result() for _ in range(4)} == {1}


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_a_small_gradient_is_one_part(threads, monkeypatch):
    def fail(threads):
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(convolutions, "_helpers", fail)
    _, in_parts, images = drawn((8, 8, 9, 9), kernel_size=3)
    gradients(in_parts, images)


def test_the_number_of_threads_is_as_before_after_a_failure():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        convolutions._at_once([lambda: torch.tensor(1 // 0)], before)
    assert torch.get_num_threads() == before


class Circular(nn.Conv2d):
    """One that torch itself pads by more than zeros."""

    def __init__(self, *shape, **options):
        super().__init__(*shape, **options, padding=1, padding_mode="circular")


KINDS = [Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, Circular]


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_parts_are_also_of_a_module_that_computes_its_weight_or_pads(kind, threads, small_parts, monkeypatch):
    torch.manual_seed(0)
    whole, images = kind(8, 32, 3, stride=2).to(memory_format=torch.channels_last), torch.randn(8, 8, 9, 9)
    parts = []
    monkeypatch.setattr(convolutions, "gradient_in_parts", lambda *given: parts.append(1) or gradient_in_parts(*given))
    exact = gradients(copy.deepcopy(whole).double(), images.double(), autocast=False)
    alone, found = gradients(whole, images), gradients(InParts(copy.deepcopy(whole)), images)
    assert parts
    assert torch.equal(found[0], alone[0]) and torch.equal(found[1], alone[1])
    for one, other, true in zip(found[2:], alone[2:], exact[2:], strict=True):
        assert one.dtype == other.dtype == torch.float32 and one.stride() == other.stride()
        rounding = (other - true).norm()  # also of the output's gradient and of the weight, both ways alike
        assert (one - true).norm() <= rounding + BF16 * true.norm()


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_compiled_it_is_one_graph_that_gives_the_same(threads, small_parts):
    torch.manual_seed(0)
    layers = [kind(32, 32, 3, stride=2) for kind in KINDS]
    in_parts = InParts(nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), *layers).to(memory_format=torch.channels_last))
    images = torch.randn(8, 8, 65, 65).contiguous(memory_format=torch.channels_last)
    traced = torch.compile(copy.deepcopy(in_parts), backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(traced, images), gradients(in_parts, images), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


@pytest.mark.parametrize(
    ("convolution", "shape", "by_threads"),
    [
        (nn.Conv2d(16, 16, 3, stride=2), (128, 16, 32, 32), []),
        (nn.Conv2d(3, 16, 3), (128, 3, 32, 32), []),
        (nn.Conv2d(3, 64, 7, stride=2), (64, 3, 224, 224), [2, 3, 4, 16]),
        (nn.Conv2d(16, 32, 3, stride=2), (128, 16, 32, 32), [2, 3, 4, 16]),
        (nn.Conv2d(32, 32, 3, stride=(1, 2)), (128, 32, 32, 32), [2, 3, 4, 16]),
        (nn.Conv2d(64, 256, 1), (16, 64, 56, 56), [2, 3, 4, 16]),
        (nn.Conv2d(32, 32, 3, padding=1), (128, 32, 16, 16), [4, 16]),
        (nn.Conv2d(512, 512, 3, padding=1), (64, 512, 4, 4), [2, 3, 4, 16]),
        (nn.Conv2d(64, 64, 3, padding=1), (128, 64, 2, 2), [2, 3, 4, 16]),
    ],
    ids=str,
)
def test_only_what_may_share_channels_is_divided(convolution, shape, by_threads):
    """By hand, from oneDNN's estimate; those that stall on a busy machine with two threads are among them."""
    weight, stride = convolution.weight, convolution.stride
    found = [threads for threads in (1, 2, 3, 4, 16) if may_share_channels(torch.Size(shape), weight, stride, threads)]
    assert found == by_threads


@pytest.mark.parametrize("threads", [3], indirect=True)
def test_in_float32_nothing_changes(threads):
    network, in_parts, images = drawn((8, 8, 9, 9), kernel_size=3, stride=2)
    pairs = zip(gradients(network, images, autocast=False), gradients(in_parts, images, autocast=False), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_only_bf16_on_a_cpu_is_in_parts():
    assert choose_weight_gradients("bf16", CPU) == IN_PARTS
    assert choose_weight_gradients("bf16", torch.device("cuda", 0)) == WHOLE
    assert choose_weight_gradients("fp32", CPU) == choose_weight_gradients("fp16", CPU) == WHOLE


def in_parts(session):
    """Whether a session's network takes them in parts."""
    return isinstance(session.network.mode, ConvolutionsInParts)


def test_a_run_keeps_how_it_takes_gradients_and_one_begun_before_there_were_parts_goes_on_whole(digits_dir):
    options = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "data.flip": "false",
               "train.epochs": 2, "train.precision": "bf16", "train.compile": "off"}  # fmt: skip
    config = load(overrides=options)
    plan = make_plan(config.method, config.train.epochs)

    def session(state=None):
        return Session(config, plan, CPU, state=state, report=lambda text: None)

    begun = session()
    state = begun.state_dict()
    assert begun.decided["weight_gradients"] == IN_PARTS
    assert in_parts(begun) and in_parts(session(state))
    former = {name: value for name, value in state["decided"].items() if name != "weight_gradients"}
    resumed = session({**state, "decided": former})
    assert not in_parts(resumed) and resumed.decided == former
