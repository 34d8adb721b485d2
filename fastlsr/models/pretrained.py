"""Pretrained weights, from a file or downloaded by timm, and the input normalisation that they expect."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from fastlsr.errors import InputError
from fastlsr.models.head import head_parameters
from fastlsr.models.weight_files import Statistics, file_and_key, plain_line, read_weights

DOWNLOAD_SILENCE_SECONDS = 30.0


def expected_normalization(model: nn.Module, pretrained: str) -> tuple[Statistics, Statistics] | None:
    """(mean, std) per channel, for pixels in [0, 1], that the pretrained weights expect; None: the data's own.

    Pretrained weights need the normalisation they were trained with: for nearly every timm model ImageNet's mean and
    std, whatever the new data. COLAM's transfer tasks "normalize as done in common practice" (section 4.2), which is
    this. The weights of a run, or of its export, expect what the run was normalised by. Those of any other file for a
    timm model are assumed to be normalised as timm's own for it. Networks trained from scratch, and our small ones,
    take the data's statistics from the manifest.

    Args:
        model: as `build_model` returned it.
        pretrained: the option it was built with.
    """
    source = timm_config(model) if pretrained else {}
    return (tuple(source["mean"]), tuple(source["std"])) if source.keys() >= {"mean", "std"} else None


def has_fresh_classifier(model: nn.Module) -> bool:
    """Whether the classifier was not among the pre-trained weights that the model was built with."""
    classes = timm_config(model).get("num_classes")
    return bool(getattr(model, "has_fresh_classifier", classes and classes != getattr(model, "num_classes", classes)))


def timm_config(model: nn.Module) -> dict[str, Any]:
    """What is known of the pre-trained weights of a network, as timm notes it; empty for our own without such."""
    return cast(dict[str, Any], getattr(model, "pretrained_cfg", {}))


def load_weights(model: nn.Module, pretrained: str) -> None:
    """Copies a file's weights into the model; a classifier for another number of classes stays as initialised.

    Where the file knows the normalisation that its weights were trained with, `expected_normalization` returns it.

    Args:
        model: ours or timm's, on any device.
        pretrained: `FILE`, `FILE#KEY` or a run's folder (see `weight_files.read_weights`).

    Raises:
        InputError: for a file that is missing, damaged or of another kind, and for weights that do not fit; it names
            the first keys that are missing, unexpected or of another shape.
    """
    weights = read_weights(pretrained)
    noted: Any = model  # nn.Module does not declare what we note, nor what timm's models have
    try:
        network = network_of(weights.state, model.state_dict(), file_and_key(pretrained)[1])
        noted.has_fresh_classifier = _copy(network, model)
    except InputError as error:
        of = f" (weights of {weights.model})" if weights.model else ""
        raise InputError(f"model.pretrained={pretrained}: {error}{of}") from None
    if weights.normalization:
        mean, std = weights.normalization
        noted.pretrained_cfg = {**timm_config(model), "mean": mean, "std": std}


def network_of(state: Mapping[str, Tensor], own: Collection[str], below: str = "") -> Mapping[str, Tensor]:
    """The network among a file's tensors: all of them, or the one part, below a prefix, that has all of its names.

    Lightning's checkpoints have the tensors of losses and metrics beside `model.`; DDP and torch.compile put `module.`
    and `_orig_mod.` before every name. BatchNorm's counters may be missing. If no part has all names, it is the one
    with most of them, which the error about its keys then describes.

    Args:
        own: the names of the network's tensors.
        below: where in the file `state` is, for the error.

    Raises:
        InputError: if several parts have all names.
    """
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    found = Counter(prefix for name in state for prefix, rest in _splits(name) if rest in needed)
    fitting = [prefix for prefix, names in found.items() if names == len(needed)]
    if len(fitting) > 1:
        parts = sorted((".".join(filter(None, (below, prefix[:-1]))) for prefix in fitting), key=bool)
        listed = " and ".join(part or "its top level" for part in parts)
        raise InputError(f"holds the network in {listed}: choose one, as in FILE#{parts[-1]}")
    prefix = max(found, key=lambda prefix: found[prefix], default="")
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """("", "a.b.c"), ("a.", "b.c") and ("a.b.", "c") of "a.b.c"."""
    starts = [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]
    return ((name[:start], name[start:]) for start in starts)


def _copy(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Copies the tensors; returns whether the classifier stays as initialised."""
    own = model.state_dict()
    fresh = _classifier_to_keep(model, state, own)
    _check_shapes({key: value for key, value in state.items() if key not in fresh}, own)
    # Not strict: only load_state_dict knows which buffers may be missing (BatchNorm's counters, in old files).
    outcome = model.load_state_dict({**state, **fresh}, strict=False)
    _check_keys(outcome.missing_keys, outcome.unexpected_keys)
    return bool(fresh)


def download(name: str, *, classes: int, **options: Any) -> nn.Module:
    """Timm's model with the weights that timm downloads or has in its cache, and a head for `classes`.

    Args:
        name: timm's, with or without a tag.
        options: further arguments of `timm.create_model`.

    Raises:
        InputError: if timm has no weights for the name, or they cannot be downloaded; without a network this takes
            about 50 seconds, the retries of the Hugging Face client.
        TypeError: for an option that the model does not take.
    """
    import timm

    if not timm.is_model_pretrained(name):
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise InputError(f"model.pretrained=timm: timm has no weights for {name} (it has: {tags})")
    try:
        with _socket_timeout(DOWNLOAD_SILENCE_SECONDS):
            return timm.create_model(name, pretrained=True, num_classes=classes, **options)
    except TypeError:
        raise
    except Exception as error:  # DNS, HTTP, disk, checksum: each library has its own exceptions
        raise InputError(
            f"model.pretrained=timm: no weights for {name}: {plain_line(error)} "
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


def _classifier_to_keep(model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's classifier parameters, by name, whose counterparts in the file are for another number of classes."""
    head = {id(parameter) for parameter in head_parameters(model)}
    keys = [name for name, parameter in model.named_parameters() if id(parameter) in head and name in state]
    return {
        key: own[key]
        for key in keys
        if state[key].shape != own[key].shape and state[key].shape[1:] == own[key].shape[1:]
    }


def _check_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        if key in own and value.shape != own[key].shape:
            raise InputError(f"{key} has shape {tuple(value.shape)}, the model's {tuple(own[key].shape)}")


def _check_keys(missing: list[str], unexpected: list[str]) -> None:
    found = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if found:
        raise InputError(f"its keys are not the model's: {', '.join(found)}")
