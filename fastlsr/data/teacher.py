"""A teacher's soft labels on disk: by class and by sample, with what they were made of.

A `.safetensors` file with any of

    by_class            float[K, K], or soft_labels, as a run's stages have it
    by_sample           float16[N, K]
    values, indices     float16[N, k] and int16 or int32[N, k]: the k largest of a sample's row, the rest of its weight
                        spread evenly over the other classes

and metadata `data` (the digest of the training file), `classes` and `model`. ImageNet's 1.28 million rows of 1000 take
2.6 GB as float16 and 0.1 GB with k = 20.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastlsr.data.manifest import Manifest
from fastlsr.errors import InputError
from fastlsr.files import replace_file

LARGEST_DENSE_BYTES = 1 << 29  # above this, rows are kept as their largest entries
LARGEST_ENTRIES = 20
_SUM_TOLERANCE = 0.02  # of a row of float16


@dataclass
class SampleLabels:
    """Soft labels by sample, on the device: whole rows, or the largest entries of each.

    Attributes:
        values: float16[N, K], or float16[N, k].
        indices: None, or int[N, k], the classes of `values`.
        classes: K.
    """

    values: Tensor
    indices: Tensor | None
    classes: int

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(table, key): rows of soft labels, and which of them are those of the samples int64[B] `index`."""
        if self.indices is None:
            return self.values, index
        values = self.values[index].float()
        rest = (1 - values.sum(1, keepdim=True)).clamp(min=0) / (self.classes - values.shape[1])
        rows = rest.expand(-1, self.classes).scatter(1, self.indices[index].long(), values)
        return rows, torch.arange(len(index), device=index.device)


def save_teacher(path: Path, probabilities: Tensor, labels: Tensor, manifest: Manifest, *, model: str) -> None:
    """Writes a teacher's file: float[N, K] probabilities by sample, and their means over each class.

    Rows that would take more than half a gigabyte are kept as their largest entries.

    Args:
        labels: int64[N].
        manifest: of the training file the samples are of.
        model: what made them.
    """
    samples, classes = probabilities.shape
    sums = torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, labels, probabilities.double())
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    tensors = {"by_class": (sums / counts[:, None]).float()}
    if samples * classes * 2 > LARGEST_DENSE_BYTES:
        values, indices = probabilities.topk(min(LARGEST_ENTRIES, classes - 1))
        tensors |= {"values": values.half().contiguous(), "indices": indices.to(torch.int32).contiguous()}
    else:
        tensors["by_sample"] = probabilities.half()
    metadata = {"data": manifest.digest, "classes": json.dumps(manifest.classes), "model": model}
    replace_file(path, lambda part: save_file(tensors, part, metadata))


def class_labels(path: Path, manifest: Manifest) -> Tensor:
    """float32[K, K]: a file's soft labels by class, rows summing to 1.

    Raises:
        InputError: if the file cannot be read, has none, or is for other data or classes.
    """
    with _opened(path, manifest) as file:
        name = next((name for name in ("by_class", "soft_labels") if name in file.keys()), None)  # noqa: SIM118
        if name is None:
            raise InputError(f"{path} has no soft labels by class; it has {', '.join(file.keys())}")
        table = file.get_tensor(name).float()
    classes = len(manifest.classes)
    if table.shape != (classes, classes):
        raise InputError(f"{path} is for {'x'.join(map(str, table.shape))} soft labels, the data has {classes} classes")
    _refuse_improper(path, table)
    return table / table.sum(1, keepdim=True)


def sample_labels(path: Path, manifest: Manifest, *, device: torch.device) -> SampleLabels:
    """A file's soft labels by sample, on the device.

    Raises:
        InputError: if the file cannot be read, has none, or is for other data, classes or samples.
    """
    classes = len(manifest.classes)
    with _opened(path, manifest) as file:
        names = set(file.keys())
        if "by_sample" in names:
            values, indices = file.get_tensor("by_sample"), None
        elif {"values", "indices"} <= names:
            values, indices = file.get_tensor("values"), file.get_tensor("indices")
        else:
            raise InputError(f"{path} has no soft labels by sample; try method.teacher_key=class")
    if len(values) != manifest.count:
        raise InputError(f"{path} has soft labels of {len(values)} samples, the data has {manifest.count}")
    if indices is None:
        if values.shape[1] != classes:
            raise InputError(f"{path} has soft labels for {values.shape[1]} classes, the data has {classes}")
        _refuse_improper(path, values)
    elif indices.shape != values.shape or indices.min() < 0 or indices.max() >= classes:
        raise InputError(f"{path} has entries outside the {classes} classes")
    return SampleLabels(values.to(device), None if indices is None else indices.to(device), classes)


def _opened(path: Path, manifest: Manifest):
    try:
        file = safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(f"method.teacher={path}: {str(error).splitlines()[0]}") from None
    said = file.metadata() or {}
    if said.get("data", manifest.digest) != manifest.digest:
        raise InputError(f"{path} was made for other data: its training file has another digest")
    if tuple(json.loads(said.get("classes", "null")) or manifest.classes) != manifest.classes:
        raise InputError(f"{path} was made for other classes")
    return file


def _refuse_improper(path: Path, rows: Tensor, block: int = 1 << 16) -> None:
    for part in rows.split(block):
        part = part.float()
        if not (part.isfinite().all() and (part >= 0).all() and ((part.sum(1) - 1).abs() < _SUM_TOLERANCE).all()):
            raise InputError(f"{path}: soft labels must be nonnegative rows that sum to 1")
