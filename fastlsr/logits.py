"""The logits of an evaluation, as a run keeps them for metrics that are computed later. Loads no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fastlsr.errors import InputError
from fastlsr.files import replace_file

_METADATA = "evaluation"  # one key: safetensors writes several in a random order, and equal files must be equal bytes
_TENSORS = {"logits": np.float16, "labels": np.int64, "index": np.int64}


@dataclass(frozen=True)
class EvaluationLogits:
    """A network's logits on its evaluation split.

    Attributes:
        logits: float16[N, K], finite.
        labels: int64[N].
        index: int64[N], each sample's position in the `.beton` file.
        epoch: whole epochs that the network was trained for.
        data: digest of the `.beton` file.
    """

    logits: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    epoch: int
    data: str

    def write(self, path: Path) -> None:
        """Writes the file atomically, and its folder where there is none."""
        path.parent.mkdir(exist_ok=True)
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        content = save(tensors, {_METADATA: json.dumps({"epoch": self.epoch, "data": self.data})})
        replace_file(path, lambda temporary: temporary.write_bytes(content))


def read_logits(path: Path) -> EvaluationLogits:
    """What a file that `EvaluationLogits.write` wrote holds.

    Raises:
        InputError: if it is not there, or is damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})[_METADATA])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        logits = EvaluationLogits(**tensors, epoch=int(about["epoch"]), data=str(about["data"]))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no logits of an evaluation: {error}") from None
    _check(logits, path)
    return logits


def _check(read: EvaluationLogits, path: Path) -> None:
    shapes = [read.logits.ndim == 2, read.labels.shape == read.index.shape == read.logits.shape[:1]]
    kinds = [getattr(read, name).dtype == kind for name, kind in _TENSORS.items()]
    if not all(shapes + kinds) or not len(read.labels):
        raise InputError(f"{path} holds no logits of an evaluation: its shapes or types are others")
    if not np.isfinite(read.logits).all() or not 0 <= read.labels.min() <= read.labels.max() < read.logits.shape[1]:
        raise InputError(f"{path} is damaged: a logit is not finite, or a label is of no class")
