"""Pretrained weights, from a file or downloaded by timm, and the input normalisation that they expect."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlsr.errors import InputError
from fastlsr.models.head import head_parameters

Statistics = tuple[float, float, float]

WRAPPERS = ("state_dict", "model")  # keys under which checkpoints hold the weights
PREFIXES = ("module.", "_orig_mod.")  # added to names by DistributedDataParallel and torch.compile
DOWNLOAD_SILENCE_SECONDS = 30.0


def expected_normalization(model: nn.Module, pretrained: str) -> tuple[Statistics, Statistics] | None:
    """(mean, std) per channel, for pixels in [0, 1], that the pretrained weights expect; None: the data's own.

    Pretrained weights need the normalisation they were trained with: for nearly every timm model ImageNet's mean and
    std, whatever the new data. COLAM's transfer tasks "normalize as done in common practice" (section 4.2), which is
    this. Networks trained from scratch, and our small ones, take the data's statistics from the manifest. The weights
    of a file for a timm model are assumed to be normalised as timm's own for it.

    Args:
        model: as `build_model` returned it.
        pretrained: the option it was built with, also when its weights now come from a checkpoint.
    """
    source = getattr(model, "pretrained_cfg", None) if pretrained else None
    if not source or "mean" not in source or "std" not in source:
        return None
    return tuple(source["mean"]), tuple(source["std"])


def load_weights(model: nn.Module, path: Path) -> None:
    """Copies a file's weights into the model; a classifier for another number of classes stays as initialised.

    Args:
        model: ours or timm's, on any device.
        path: .safetensors, .pt or .pth, holding a state dict, plain or under `state_dict` or `model`.

    Raises:
        InputError: for a file that is missing, damaged or of another kind, and for weights that do not fit; it names
            the first keys that are missing, unexpected or of another shape.
    """
    state = read_state(path)
    own = model.state_dict()
    fresh = _classifier_to_keep(model, state, own)
    _check_shapes({key: value for key, value in state.items() if key not in fresh}, own, path)
    # Not strict: only load_state_dict knows which buffers may be missing (BatchNorm's counters, in old files).
    outcome = model.load_state_dict({**state, **fresh}, strict=False)
    _check_keys(outcome.missing_keys, outcome.unexpected_keys, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: names, without prefixes, to tensors on the CPU.

    Only tensors and plain containers are unpickled.

    Raises:
        InputError: if the file is missing, of another kind, damaged, or holds no state dict.
    """
    if not path.is_file():
        raise InputError(f"model.pretrained={path}: no such file (an empty value, `timm`, or a file)")
    if path.suffix not in _READERS:
        raise InputError(f"model.pretrained={path}: expected a file that ends in {', '.join(_READERS)}")
    try:
        state = _READERS[path.suffix](path)
    except Exception as error:  # damaged files make the readers raise almost anything
        raise InputError(f"model.pretrained={path}: not readable as weights: {_first_line(error)}") from error
    state = next((state[key] for key in WRAPPERS if isinstance(state, Mapping) and key in state), state)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"model.pretrained={path}: holds no state dict (names of parameters and their tensors)")
    return {_without_prefixes(key): value for key, value in state.items()}


def download(name: str, *, classes: int, **options: Any) -> nn.Module:
    """Timm's model with the weights that timm downloads or has in its cache, and a head for `classes`.

    Args:
        name: timm's, with or without a tag.
        options: further arguments of `timm.create_model`.

    Raises:
        InputError: if timm has no weights for the name, or they cannot be downloaded; without a network this takes
            about 50 seconds, the retries of the Hugging Face client.
    """
    import timm

    if not timm.is_model_pretrained(name):
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise InputError(f"model.pretrained=timm: timm has no weights for {name} (it has: {tags})")
    try:
        with _socket_timeout(DOWNLOAD_SILENCE_SECONDS):
            return timm.create_model(name, pretrained=True, num_classes=classes, **options)
    except Exception as error:  # DNS, HTTP, disk, checksum: each library has its own exceptions
        raise InputError(
            f"model.pretrained=timm: no weights for {name}: {_first_line(error)} "
            "(give a file instead: model.pretrained=FILE)"
        ) from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # torch.hub, which timm uses for plain URLs, sets no timeout: a server that stays silent would block it for ever.
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(former)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


_READERS = {".safetensors": _read_safetensors, ".pt": _read_pickle, ".pth": _read_pickle}


def _without_prefixes(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _classifier_to_keep(model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's classifier parameters, by name, whose counterparts in the file are for another number of classes."""
    head = {id(parameter) for parameter in head_parameters(model)}
    keys = [name for name, parameter in model.named_parameters() if id(parameter) in head and name in state]
    return {
        key: own[key]
        for key in keys
        if state[key].shape != own[key].shape and state[key].shape[1:] == own[key].shape[1:]
    }


def _check_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    for key, value in state.items():
        if key in own and value.shape != own[key].shape:
            raise InputError(
                f"model.pretrained={path}: {key} has shape {tuple(value.shape)}, the model's {tuple(own[key].shape)}"
            )


def _check_keys(missing: list[str], unexpected: list[str], path: Path) -> None:
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if found:
        raise InputError(f"model.pretrained={path}: its keys are not the model's: {', '.join(found)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
