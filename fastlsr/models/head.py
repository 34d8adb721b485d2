"""The classifier of any model, whatever its family calls it: its parameters, and what it sees."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlsr.errors import InputError

TOLERANCE = 0.01  # of the largest logit: above what TF32 and a fused classifier round away


class Penultimate(NamedTuple):
    """What enters the classifier, and the classifier: logits = features @ templates.T + bias.

    Attributes:
        features: float32[B, D].
        templates: float32[K, D], a row a class.
        bias: float32[K], zeros where the classifier has none.
    """

    features: Tensor
    templates: Tensor
    bias: Tensor


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the layer, or the layers, whose output is the logits; the rest of a model is its backbone.

    Own models and timm's answer `get_classifier()`; a distilled timm model has two classifiers and answers with both.
    """
    return [parameter for layer in _classifiers(model) for parameter in layer.parameters()]


def features_and_templates(model: nn.Module, images: Tensor) -> Penultimate:
    """Penultimate features of images and the class templates, of any own or timm model, from one forward pass.

    The features are caught where they enter the linear layer, because timm's `forward_head(pre_logits=True)` leaves out
    what some families put in between (a normalisation), and averages what distilled ones keep apart. A model whose
    logits are the mean of several classifiers has their inputs and their templates side by side.

    Args:
        model: in eval mode, not compiled.
        images: normalised, float[B, 3, H, W], on the model's device.

    Raises:
        InputError: when the logits are not linear in what enters the classifier, which is checked on the images given.
    """
    caught: dict[nn.Module, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for classifier in _classifiers(model):
            for layer in classifier.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    hook = layer.register_forward_pre_hook(lambda layer, inputs: caught.update({layer: inputs[0]}))
                    hooks.callback(hook.remove)
        logits = model(images).float()
    layers = [layer for layer in caught if layer.weight.shape[0] == logits.shape[1]]
    if layers and all(caught[layer][0].numel() == layer.weight[0].numel() for layer in layers):
        found = _side_by_side({layer: caught[layer].flatten(1).float() for layer in layers})
        if _differ_by_rounding(found.features @ found.templates.T + found.bias, logits):
            return found
    raise InputError(f"{type(model).__name__}: its logits are not linear in what enters its classifier")


def _classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    classifier = model.get_classifier()
    return tuple(classifier) if isinstance(classifier, (tuple, list)) else (classifier,)


def _side_by_side(inputs: dict[nn.Module, Tensor]) -> Penultimate:
    """The mean of the linear layers as one linear layer of all their inputs."""
    templates = torch.cat([layer.weight.flatten(1).float() for layer in inputs], 1) / len(inputs)
    biases = [templates.new_zeros(len(templates)) if layer.bias is None else layer.bias.float() for layer in inputs]
    return Penultimate(torch.cat(list(inputs.values()), 1), templates, torch.stack(biases).mean(0))


def _differ_by_rounding(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
