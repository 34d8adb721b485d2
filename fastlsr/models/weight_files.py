"""Files of weights, whichever program wrote them, read without running any code that they hold."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fastlsr.errors import InputError
from fastlsr.files import check_archive
from fastlsr.runs import RunFolder

Statistics = tuple[float, float, float]

METADATA = "fastlsr"  # the key of a safetensors file under which a run's export describes itself, as one JSON object
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".bin")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MOST_NAMED = 3


@dataclass(frozen=True)
class Weights:
    """The weights of a file.

    Attributes:
        state: names, without the KEY that they are below, to tensors on the CPU.
        normalization: (mean, std) per channel, for pixels in [0, 1], that they were trained with, where it is known.
        model: name of the network, where it is known, or "".
    """

    state: dict[str, Tensor]
    normalization: tuple[Statistics, Statistics] | None = None
    model: str = ""


class _Unread:
    """Stands for an object of a class or function that is not called; what it was made of is dropped."""

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


def file_and_key(pretrained: str) -> tuple[Path, str]:
    """(file, KEY or "") of `FILE` or `FILE#KEY`; the file of a run's folder is its newest checkpoint.

    Raises:
        InputError: if there is no such file.
    """
    name, mark, key = pretrained.rpartition("#")
    path, key = (Path(name), key) if mark and not Path(pretrained).exists() else (Path(pretrained), "")
    if path.is_dir():
        path = RunFolder(path).newest_checkpoint
        if not path.is_file():
            raise InputError(f"model.pretrained={pretrained}: a folder without the checkpoint of a run")
    if not path.is_file():
        raise InputError(f"model.pretrained={pretrained}: no such file (an empty value, `timm`, a file or a run)")
    return path, key


def read_weights(pretrained: str) -> Weights:
    """The weights of `FILE`, `FILE#KEY` or a run's folder; of a run those that it evaluated.

    Only tensors, plain containers and argparse's namespaces are unpickled; any other object is dropped.

    Raises:
        InputError: if the file is missing, of another kind, damaged, or holds no state dict, or several and no KEY
            chooses.
    """
    path, key = file_and_key(pretrained)
    if path.suffix not in SUFFIXES:
        raise InputError(f"model.pretrained={pretrained}: expected a file that ends in {', '.join(SUFFIXES)}")
    try:
        content, description = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    except Exception as error:  # damaged files make the readers raise almost anything
        raise InputError(f"model.pretrained={pretrained}: not readable as weights: {_reason(error)}") from error
    try:
        state = _chosen(content, key)
    except InputError as error:
        raise InputError(f"model.pretrained={pretrained}: {error}") from None
    return Weights(state, *_origin(content, description))


def evaluated_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a run's checkpoint, the state dict that the run evaluates: its moving average where there is one."""
    return checkpoint["ema"] or checkpoint["model"]


def plain_line(error: Exception) -> str:
    """An exception's first line, without the escapes that colour a terminal; the exception's name if it has none."""
    return next(iter(_ANSI.sub("", str(error)).splitlines()), "").strip() or type(error).__name__


def _reason(error: Exception) -> str:
    """The first sentence of an exception of a file's reader."""
    if isinstance(error, EOFError | OSError | zipfile.BadZipFile):
        return f"damaged or cut off ({plain_line(error)})"
    return plain_line(error).partition(". ")[0]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        description = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        if not isinstance(description, dict):
            raise ValueError(f"its metadata {METADATA} is no JSON object")
        return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118


def _read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, with `_Unread` in the place of whatever torch does not take for harmless."""
    others: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
            others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins = [(type(name, (_Unread,), {}), name) for name in others if name != "argparse.Namespace"]
        with torch.serialization.safe_globals([argparse.Namespace, *stand_ins]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, pickle.UnpicklingError) as error:
        names = others or re.findall(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"holds Python objects other than tensors ({_some(names)}); where you trust it, save its state dict alone"
            if names
            else "damaged, or not written by torch.save with its default pickle protocol"
        ) from None


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")


def _chosen(content: Any, key: str) -> dict[str, Tensor]:
    """The state dict that a file is, or holds as its only one; with a key the one of this name, or what is below it.

    Raises:
        InputError: if there is none, or several; the file is not named.
    """
    held = {name: value for name, value in content.items() if _is_state(value)} if isinstance(content, Mapping) else {}
    if key in held:
        return dict(held[key])
    if key:
        return _below(content if _is_state(content) else {}, held, key)
    if _is_run(content):
        return evaluated_weights(content)
    if _is_state(content):
        return dict(content)
    if len(held) > 1:
        raise InputError(f"holds {' and '.join(held)}: choose one, as in FILE#{list(held)[-1]}")
    if not held:
        instead = f", but a {type(content).__name__}" if isinstance(content, _Unread) else ""
        raise InputError(f"holds no state dict (names of parameters and their tensors){instead}")
    return dict(*held.values())


def _below(state: Mapping[str, Tensor], held: Mapping[str, Mapping[str, Tensor]], key: str) -> dict[str, Tensor]:
    """The tensors whose names go on after `key`: of a file's state dict, or of those that it holds.

    `NAME.PART` is PART in the state dict NAME; where only one is held, `PART` will do.

    Raises:
        InputError: if there are none.
    """
    for only in held.values() if len(held) == 1 else ():
        state = only
    within = {f"{name}.{each}": value for name, values in held.items() for each, value in values.items()} | {**state}
    below = {name.removeprefix(f"{key}."): value for name, value in within.items() if name.startswith(f"{key}.")}
    if not below:
        parts = [*held, *sorted({name.partition(".")[0] for name in state})]
        raise InputError(f"holds no state dict {key}" + (f"; it holds {', '.join(parts)}" if parts else ""))
    return below


def _is_state(value: Any) -> bool:
    """Whether it maps names to tensors, of which one has several dimensions, as the scalars of a log have not."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and isinstance(each, Tensor) for name, each in value.items())
        and any(each.ndim > 1 for each in value.values())
    )


def _is_run(content: Any) -> bool:
    """Whether it is a run's checkpoint, rather than another program's with an entry of the same name."""
    keys = {"config", "decided", "model", "ema", "position"}
    return isinstance(content, Mapping) and content.keys() >= keys and _is_state(evaluated_weights(content))


def _origin(content: Any, description: Mapping[str, Any]) -> tuple[tuple[Statistics, Statistics] | None, str]:
    """(normalization, model) of a run's checkpoint or export, or of timm's, as far as the file has them."""
    if _is_run(content):
        mean, std = content["decided"]["normalization"]
        description = {"mean": mean, "std": std, "model": content["config"]["model"]["name"]}
    elif isinstance(content, Mapping) and isinstance(content.get("args"), argparse.Namespace):
        description = vars(content["args"])
    mean, std = (_statistics(description.get(name)) for name in ("mean", "std"))
    model = description.get("model")
    return (mean, std) if mean and std else None, model if isinstance(model, str) else ""


def _statistics(values: Any) -> Statistics | None:
    """A number for each of three channels; None for anything else."""
    is_one = isinstance(values, (list, tuple)) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)
    return cast(Statistics, tuple(values)) if is_one else None
