"""Penultimate features, class templates and bias of every model give its logits."""

import pytest
import torch
from torch import nn

from fastlsr.errors import InputError
from fastlsr.models import build_model, features_and_templates
from fastlsr.models.registry import SMALL_IMAGE_NETWORKS

ONE_OF_EACH_FAMILY = [
    ("timm/resnet18", 32, 512),
    ("vit_tiny_patch16_224", 32, 192),
    ("mobilenetv3_small_050", 32, 1024),
    ("convnext_atto", 32, 320),
    ("efficientnet_lite0", 32, 1280),
    ("densenet121", 32, 1024),
    ("dla34", 32, 512),  # its classifier is a convolution
    ("deit_tiny_distilled_patch16_224", 32, 2 * 192),  # the mean of two classifiers
    ("levit_conv_128s", 64, 2 * 384),  # two classifiers, each with a normalisation of its own
    ("efficientvit_m0", 64, 192),  # its classifier normalises
]


def unsettled(model):
    """The model in eval mode, with scales, shifts and biases that are not 1 and 0."""
    for parameter in model.parameters():
        if parameter.dim() <= 1:
            nn.init.uniform_(parameter, 0.5, 1.0)
    return model.eval()


def build(name, *, classes=5, resolution=32):
    torch.manual_seed(0)
    return unsettled(build_model(name, classes=classes, resolution=resolution))


@torch.no_grad()
def assert_features_times_templates_are_the_logits(model, *, classes, resolution, width):
    images = torch.randn(2, 3, resolution, resolution)
    features, templates, bias = features_and_templates(model, images)
    assert features.shape == (2, width) and templates.shape == (classes, width) and bias.shape == (classes,)
    torch.testing.assert_close(features @ templates.T + bias, model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL_IMAGE_NETWORKS)
@pytest.mark.parametrize("classes", [2, 10])
def test_features_times_templates_are_the_logits_of_own_networks(name, classes):
    model = build(name, classes=classes, resolution=16)
    width = model.num_features
    assert_features_times_templates_are_the_logits(model, classes=classes, resolution=16, width=width)


@pytest.mark.parametrize(("name", "resolution", "width"), ONE_OF_EACH_FAMILY)
def test_features_times_templates_are_the_logits_of_timm_s_families(name, resolution, width):
    model = build(name, resolution=resolution)
    assert_features_times_templates_are_the_logits(model, classes=5, resolution=resolution, width=width)


@torch.no_grad()
def test_features_of_own_networks_are_the_means_of_the_maps():
    model, images = build("resnet8"), torch.randn(2, 3, 32, 32)
    found = features_and_templates(model, images)
    torch.testing.assert_close(found.features, model.forward_features(images).mean((2, 3)))
    assert torch.equal(found.templates, model.fc.weight) and torch.equal(found.bias, model.fc.bias)


def test_no_hook_stays_behind_not_even_after_an_error():
    model = build("resnet8")
    features_and_templates(model, torch.randn(2, 3, 16, 16))
    with pytest.raises(RuntimeError):
        features_and_templates(model, torch.randn(2, 4, 16, 16))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_under_autocast_the_features_are_float32_and_near():
    model, images = build("resnet8"), torch.randn(2, 3, 16, 16)
    exact = features_and_templates(model, images).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = features_and_templates(model, images)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert (found.features - exact).abs().max() < 0.05 * exact.abs().max()


class Toy(nn.Module):
    """A linear classifier of the pixels, followed by the function `after`."""

    def __init__(self, after, *, bias=True):
        super().__init__()
        self.fc, self.after = nn.Linear(12, 4, bias=bias), after

    def get_classifier(self):
        return self.fc

    def forward(self, images):
        return self.after(self.fc(images.flatten(1)))


def test_a_classifier_without_bias_has_zeros():
    images = torch.randn(3, 3, 2, 2)
    features, templates, bias = features_and_templates(Toy(lambda logits: logits, bias=False), images)
    assert torch.equal(features, images.flatten(1)) and templates.shape == (4, 12) and bias.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("after", [torch.tanh, lambda logits: logits[:, :3], lambda logits: 1.1 * logits])
def test_logits_that_are_not_linear_in_the_features_are_an_error(after):
    with pytest.raises(InputError, match="Toy: its logits are not linear"):
        features_and_templates(Toy(after), 3 * torch.randn(3, 3, 2, 2))
