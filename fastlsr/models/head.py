"""The classifier of any of our or timm's models: its parameters, its inputs, and the class templates."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlsr.errors import InputError

TOLERANCE = 0.01  # of the largest logit: more than the rounding errors of TF32 and of a fused classifier
LinearLayer = nn.Linear | nn.Conv2d


class Penultimate(NamedTuple):
    """The inputs of the classifier and the classifier itself: logits = features @ templates.T + bias.

    Attributes:
        features: float32[B, D].
        templates: float32[K, D], one row per class.
        bias: float32[K], zeros if the classifier has none.
    """

    features: Tensor
    templates: Tensor
    bias: Tensor


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the classifier, or of both in timm's distilled models; all others are the backbone's."""
    return [parameter for layer in _classifiers(model) for parameter in layer.parameters()]


def features_and_templates(model: nn.Module, images: Tensor) -> Penultimate:
    """The penultimate features of images, and the class templates, from one forward pass.

    A hook reads the features at the input of the linear layer, because timm's `forward_head(pre_logits=True)` skips the
    normalisation that some families have in between, and averages the two features of distilled models. If the logits
    are the mean of several classifiers, their inputs are concatenated, and so are their templates.

    Args:
        model: ours or timm's, in eval mode, not compiled.
        images: normalised, float[B, 3, H, W], on the model's device.

    Raises:
        InputError: if the logits of these images are not linear in the inputs of the classifier.
    """
    inputs: dict[LinearLayer, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for classifier in _classifiers(model):
            for layer in classifier.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    hook = layer.register_forward_pre_hook(lambda layer, args: inputs.update({layer: args[0]}))
                    hooks.callback(hook.remove)
        logits = model(images).float()
    last = {layer: x for layer, x in inputs.items() if layer.weight.shape[0] == logits.shape[1]}
    if last and all(x[0].numel() == layer.weight[0].numel() for layer, x in last.items()):
        found = _merged({layer: x.flatten(1).float() for layer, x in last.items()})
        if _differ_by_rounding(found.features @ found.templates.T + found.bias, logits):
            return found
    raise InputError(f"{type(model).__name__}: its logits are not linear in the inputs of its classifier")


def _classifiers(model: nn.Module) -> tuple[nn.Module, ...]:
    get_classifier: Any = getattr(model, "get_classifier", None)  # our models and timm's have it
    if get_classifier is None:
        layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        return tuple(layers[-1:])
    classifier = get_classifier()
    return tuple(classifier) if isinstance(classifier, (tuple, list)) else (classifier,)


def _merged(inputs: dict[LinearLayer, Tensor]) -> Penultimate:
    """The mean of the linear layers, as one linear layer of their concatenated inputs."""
    templates = torch.cat([layer.weight.flatten(1).float() for layer in inputs], 1) / len(inputs)
    biases = [templates.new_zeros(len(templates)) if layer.bias is None else layer.bias.float() for layer in inputs]
    return Penultimate(torch.cat(list(inputs.values()), 1), templates, torch.stack(biases).mean(0))


def _differ_by_rounding(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
