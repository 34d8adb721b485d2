"""The classifier of any model, whatever its family calls it."""

from __future__ import annotations

from torch import nn


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the layer, or the layers, whose output is the logits; the rest of a model is its backbone.

    Own models and timm's answer `get_classifier()`; a distilled timm model has two classifiers and answers with both.
    """
    classifier = model.get_classifier()
    layers = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    return [parameter for layer in layers for parameter in layer.parameters()]
