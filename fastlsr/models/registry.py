"""Networks by name.

To add a network for small images: a file with a function from the number of classes to a `SmallImageNetwork`, and a
line in `SMALL_IMAGE_NETWORKS`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from fastlsr.config import LARGEST_SMALL_IMAGE
from fastlsr.errors import InputError
from fastlsr.models import pretrained as weights
from fastlsr.models.densenet import densenet_bc
from fastlsr.models.preact_resnet import preact_resnet, wide_resnet
from fastlsr.models.resnet import cifar_resnet, resnet18
from fastlsr.models.resnext import resnext29
from fastlsr.plugins import failure, register

# Name -> (number of classes -> network). A timm model of the same name is `timm/NAME`.
SMALL_IMAGE_NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {
    "densenet_bc_100": partial(densenet_bc, depth=100, growth=12),
    "preact_resnet18": partial(preact_resnet, blocks=(2, 2, 2, 2)),
    "preact_resnet34": partial(preact_resnet, blocks=(3, 4, 6, 3)),
    "resnet8": partial(cifar_resnet, depth=8),
    "resnet18": resnet18,
    "resnet20": partial(cifar_resnet, depth=20),
    "resnet56": partial(cifar_resnet, depth=56),
    "resnext29_8x64d": partial(resnext29, cardinality=8, base_width=64),
    "wide_resnet_40x4": partial(wide_resnet, depth=40, widening=4),
}
FORCE_TIMM = "timm/"
_DROPS = {"drop_path": "drop_path_rate", "dropout": "drop_rate"}  # options of `model` to timm's
OWN_NETWORKS: dict[str, Callable[..., nn.Module]] = {}  # of plugins


def network(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Makes a plugin's function a network under its name.

    It takes the number of `classes` and the `resolution`, the side of the square images in pixels, by name, and returns
    a module from float[B, 3, resolution, resolution] to logits float[B, classes]. Its classifier is what its
    `get_classifier()` returns, or else its last linear layer.
    """
    if function.__name__ in SMALL_IMAGE_NETWORKS:
        raise InputError(f"there is a network {function.__name__} already; take another name")
    register(OWN_NETWORKS, "network", function.__name__, function)
    return function


def build_model(
    name: str, *, classes: int, pretrained: str = "", resolution: int, drop_path: float = 0.0, dropout: float = 0.0
) -> nn.Module:
    """The network `name` for `classes` classes, in train mode, on torch's default device.

    Args:
        name: one of `SMALL_IMAGE_NETWORKS`, a plugin's network, or a timm model: its name, with or without a tag, or
            `timm/NAME`.
        classes: number of outputs.
        pretrained: "" for random weights, "timm" for those that timm downloads, or a file or run (see
            `pretrained.load_weights`). Normalise the inputs by `expected_normalization`.
        resolution: side of the square images, in pixels.
        drop_path: of timm's networks, the probability in [0, 1) that a sample skips the last block, less for the
            blocks before it (stochastic depth, Huang et al. 2016); 0: the network's own.
        dropout: of timm's networks, the probability in [0, 1) of dropout; 0: the network's own.

    Raises:
        InputError: for an unknown name (with the nearest known ones), images of a size or a kind of dropout that the
            network does not take, and weights that are not available or do not fit.
    """
    drops = {key: value for key, value in (("drop_path", drop_path), ("dropout", dropout)) if value}
    if drops and (name in OWN_NETWORKS or name in SMALL_IMAGE_NETWORKS):
        raise _not_taken(name, drops)
    if name in OWN_NETWORKS:
        return _build_own(name, classes=classes, pretrained=pretrained, resolution=resolution)
    if name in SMALL_IMAGE_NETWORKS:
        return _build_small(name, classes=classes, pretrained=pretrained, resolution=resolution)
    name = name.removeprefix(FORCE_TIMM)
    return _build_timm(name, classes=classes, pretrained=pretrained, resolution=resolution, drops=drops)


def _build_own(name: str, *, classes: int, pretrained: str, resolution: int) -> nn.Module:
    build = OWN_NETWORKS[name]
    try:
        model = build(classes=classes, resolution=resolution)
    except Exception as error:
        file = inspect.getsourcefile(build) or ""
        raise InputError(f"model.name={name} cannot be built: {file}{failure(error, file)}") from error
    outputs = _check_resolution(model, name, resolution).shape[1:]
    if outputs != (classes,):
        raise InputError(f"model.name={name} has {' x '.join(map(str, outputs))} outputs for {classes} classes")
    if pretrained == "timm":
        raise InputError(f"model.pretrained=timm: {name} is a plugin's; give a file")
    if pretrained:
        weights.load_weights(model, pretrained)
    return model


def _build_small(name: str, *, classes: int, pretrained: str, resolution: int) -> nn.Module:
    if resolution > LARGEST_SMALL_IMAGE:
        raise InputError(
            f"model.name={name} is the network for images up to {LARGEST_SMALL_IMAGE} pixels, these have {resolution}: "
            f"take {_timm_counterpart(name)}, or set data.resolution"
        )
    if pretrained == "timm":
        raise InputError(f"model.pretrained=timm: {name} is not timm's; take {_timm_counterpart(name)}, or a file")
    model = SMALL_IMAGE_NETWORKS[name](classes)
    if pretrained:
        weights.load_weights(model, pretrained)
    return model


def _build_timm(name: str, *, classes: int, pretrained: str, resolution: int, drops: Mapping[str, float]) -> nn.Module:
    import timm  # here, because it takes seconds and our own networks do not need it

    _check_name(name)
    options = size_option(name, resolution) | {_DROPS[key]: value for key, value in drops.items()}
    try:
        if pretrained == "timm":
            model = weights.download(name, classes=classes, **options)
        else:
            model = timm.create_model(name, num_classes=classes, **options)
    except (AssertionError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        if refused := {key: value for key, value in drops.items() if _DROPS[key] in str(error)}:
            raise _not_taken(name, refused) from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"model.name={name} cannot be built for {resolution} pixels: {reason}") from error
    _check_resolution(model, name, resolution)
    if pretrained and pretrained != "timm":
        weights.load_weights(model, pretrained)
    return model


def _not_taken(name: str, drops: Mapping[str, float]) -> InputError:
    given = " ".join(f"model.{key}={value:g}" for key, value in drops.items())
    return InputError(f"{given} is no option of {name}, but of most of timm's networks, such as {FORCE_TIMM}resnet18")


def _check_resolution(model: nn.Module, name: str, resolution: int) -> torch.Tensor:
    """The logits of one black image; raises InputError if the network fails. timm does not know the least size."""
    try:
        with torch.no_grad():  # not inference_mode: some networks cache tensors that training needs
            logits = model.eval()(torch.zeros(1, 3, resolution, resolution))
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"model.name={name} does not take images of {resolution} pixels: {reason}") from None
    model.train()
    return logits


def size_option(name: str, resolution: int) -> dict[str, Any]:
    """The option `img_size` for timm's models of a fixed image size (mostly transformers), if it is not theirs."""
    import timm

    source = timm.get_pretrained_cfg(name)
    if source is None or not source.fixed_input_size or tuple(source.input_size[1:]) == (resolution, resolution):
        return {}
    return {"img_size": resolution}


def _check_name(name: str) -> None:
    """Raises InputError, with the nearest names, if timm does not know the name or its tag."""
    import timm

    architecture, _, tag = name.partition(".")
    known_tags = timm.list_pretrained(f"{architecture}.*") if tag else []
    if "/" in name or ":" in name or not timm.is_model(architecture):
        known = {known.lower(): known for known in [*OWN_NETWORKS, *SMALL_IMAGE_NETWORKS, *timm.list_models()]}
        near = [known[close] for close in difflib.get_close_matches(architecture.lower(), known, 3)]
    elif tag and name not in known_tags:
        near = difflib.get_close_matches(name, known_tags, 3, cutoff=0.0)
    else:
        return
    hint = f"the nearest names are {', '.join(near)}" if near else "see timm.list_models()"
    raise InputError(f"model.name={name} is not known: {hint}")


def _timm_counterpart(name: str) -> str:
    import timm

    return f"{FORCE_TIMM}{name}" if timm.is_model(name) else f"a timm model, such as {FORCE_TIMM}resnet18"
