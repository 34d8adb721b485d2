"""The optimizer of a run, by name: our fused SGD or one of timm's, and its groups of parameters."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastlsr.config import Optim
from fastlsr.errors import InputError, unknown

SGD = "sgd"
_USUAL = (SGD, "adamw", "lamb", "lion", "muon", "adam", "rmsprop", "adafactorbv", "lars")  # of timm's, named first
Group = dict[str, Any]


def build_optimizer(model: nn.Module, head: Iterable[nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters, by groups that keep their peak rate under "peak_lr".

    The classifier's parameters `head` are trained at `lr`, the others at `backbone_lr`. With `layer_decay` d, a layer
    that is n layers before the last has d^n times that. Without `decay_norm_bias`, the parameters of one dimension
    (biases, scales and shifts of normalisations, layer scales) and those that a timm model names itself (such as
    position embeddings) have no weight decay.

    Raises:
        InputError: for options that the optimizer or the model does not take.
    """
    groups = parameter_groups(model, head, optim)
    return _fused_sgd(groups, optim) if optim.name == SGD else _of_timm(groups, optim)


def parameter_groups(model: nn.Module, head: Iterable[nn.Parameter], optim: Optim) -> list[Group]:
    """Groups of parameters with "params", "peak_lr" and, where it is not `optim.weight_decay`, "weight_decay".

    Raises:
        InputError: for `layer_decay` and a model that does not tell its layers apart.
    """
    head_ids = {id(parameter) for parameter in head}
    factors = _layer_factors(model, optim.layer_decay)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    backbone = [(name, parameter) for name, parameter in named if id(parameter) not in head_ids]
    classifier = [(name, parameter) for name, parameter in named if id(parameter) in head_ids]
    groups = []
    for part, rate in ((backbone, optim.backbone_lr or optim.lr), (classifier, optim.lr)):
        for factor in sorted({factors.get(name, 1.0) for name, _ in part}) or [1.0]:
            alike = {name: parameter for name, parameter in part if factors.get(name, 1.0) == factor}
            groups += _by_decay(alike, rate * factor, optim, _undecayed(model))
    return groups


def _by_decay(alike: Mapping[str, nn.Parameter], rate: float, optim: Optim, undecayed: set[str]) -> list[Group]:
    group: Group = {"params": list(alike.values()), "peak_lr": rate}
    if optim.decay_norm_bias:
        return [group]
    weights = [each for name, each in alike.items() if each.ndim > 1 and name not in undecayed]
    others = [each for name, each in alike.items() if each.ndim <= 1 or name in undecayed]
    return [{**group, "params": weights}, {**group, "params": others, "weight_decay": 0.0}]


def _undecayed(model: nn.Module) -> set[str]:
    """The names of parameters that a timm model exempts from weight decay."""
    named = getattr(model, "no_weight_decay", None)
    return set(named()) if callable(named) else set()


def _layer_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Parameter's name to the factor of its learning rate: decay^n, n layers before the last (BEiT, Bao et al. 2022).

    Empty without decay.
    """
    if decay == 1:
        return {}
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise InputError(f"optim.layer_decay={decay:g}: only timm's models name their layers, and this is none of them")
    from timm.models import group_parameters

    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def _fused_sgd(groups: list[Group], optim: Optim) -> torch.optim.Optimizer:
    if optim.nesterov and not optim.momentum:
        raise InputError("optim.nesterov=true needs optim.momentum above 0")
    if given := [name for name in ("betas", "eps") if getattr(optim, name)]:
        raise InputError(f"optim.{given[0]} is no option of {SGD}")
    optimizer = torch.optim.SGD(
        groups,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
        fused=True,
    )
    # SGD would make its buffers in the first step, uninitialised; when fp16's scaler skips that one, they stay so.
    for group in optimizer.param_groups if optim.momentum else []:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _of_timm(groups: list[Group], optim: Optim) -> torch.optim.Optimizer:
    """One of timm's optimizers, with timm's defaults for what the options leave open."""
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    names = [*_USUAL, *sorted({str(name) for name in list_optimizers()} - set(_USUAL))]
    if optim.name not in names:
        close = f"; did you mean {optim.name.lower()}?" if optim.name.lower() in names else ""
        raise InputError(f"optim.name={optim.name}: no such optimizer of timm{close}" if close else
                         f"optim.name={unknown('optimizer of timm', optim.name, names)}")  # fmt: skip
    info = get_optimizer_info(optim.name)
    if info.second_order:
        raise InputError(f"optim.name={optim.name} needs second derivatives, which the training step does not compute")
    options: dict[str, Any] = {}
    if optim.betas:
        options["betas"] = parse_betas(optim.betas)
    if optim.eps:
        options["eps"] = optim.eps
    for name in options:
        if not getattr(info, f"has_{name}"):
            raise InputError(f"optim.{name} is no option of {optim.name}")
    if optim.nesterov:
        raise InputError(f"optim.nesterov is an option of {SGD} alone, not of {optim.name}")
    if info.opt_class in (torch.optim.Adam, torch.optim.AdamW):
        options["fused"] = True  # one kernel a group, which also takes fp16's scale without waiting for the device
    try:
        return create_optimizer_v2(
            [group for group in groups if group["params"]],
            opt=optim.name,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            **options,
        )
    except IndexError:
        raise InputError(f"optim.betas={optim.betas}: {optim.name} takes another number of them") from None
    except Exception as error:  # each optimizer has checks of its own; some need packages that are not here
        raise InputError(f"optim.name={optim.name}: {str(error).splitlines()[0] or type(error).__name__}") from error


def parse_betas(text: str) -> tuple[float, ...]:
    """Decay rates in [0, 1) from a text such as "0.9,0.999".

    Raises:
        InputError: for anything else.
    """
    try:
        betas = tuple(float(part) for part in text.split(","))
    except ValueError:
        betas = ()
    if not betas or not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"optim.betas={text!r}: expected numbers from 0 to 1 such as 0.9,0.999")
    return betas


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's rate to `factor` times its peak; on CUDA in float32, as which a recorded step reads it."""
    for group in optimizer.param_groups:
        rate = group["peak_lr"] * factor
        on_cuda = any(parameter.is_cuda for parameter in group["params"][:1])
        group["lr"] = ctypes.c_float(rate).value if on_cuda else rate
