"""Files of soft labels: by class and by sample, with their origin.

A `.safetensors` file with any of

    by_class            float[K, K]; a run's stages call it soft_labels
    by_sample           float16[N, K], row i for the sample with index i in the training file
    values, indices     float16[N, k] and int16 or int32[N, k]: the k largest entries of each sample's row; the rest of
                        its weight is spread evenly over the other classes

and, under the metadata key `teacher`, a JSON object: `data` (the digest of the training file), `classes`, `fold`
(`splits.fold_name`), `model`, and how it was made. A field that is missing is not checked. ImageNet's 1.28 million rows
of 1000 would take 2.6 GB as float16; with k = 20 they take 0.1 GB.

On the CPU the rows stay in the file, which is mapped into the address space: a batch's rows are read when they are
gathered, and the operating system keeps in memory what fits. On CUDA all rows lie on the device, as stored, and the
gather is part of the compiled step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from fastlsr.data.manifest import Manifest
from fastlsr.errors import InputError
from fastlsr.files import replace_file

LARGEST_DENSE_BYTES = 1 << 29  # of whole rows; above this, only the largest entries are kept
LARGEST_ENTRIES = 20
_METADATA = "teacher"  # one key: safetensors writes several in a random order, and equal files must be equal bytes
_SUM_TOLERANCE = 0.02  # of a row of float16
_BLOCK_VALUES = 1 << 20  # checked at a time


@dataclass
class SampleLabels:
    """Soft labels by sample: whole rows, or the largest entries of each.

    Attributes:
        values: float16[N, K], or float16[N, k]; on the CPU a view of the mapped file.
        indices: None, or int[N, k], the classes of `values`.
        classes: K.
    """

    values: Tensor
    indices: Tensor | None
    classes: int

    def rows(self, index: Tensor) -> Tensor:
        """float32[B, K]: the soft labels of the samples int64[B] `index`, each row summing to 1 in float32."""
        values = self.values[index].float()
        if self.indices is not None:
            rest = (1 - values.sum(1, keepdim=True)).clamp(min=0) / max(self.classes - values.shape[1], 1)
            values = rest.expand(-1, self.classes).scatter(1, self.indices[index].long(), values)
        return values / values.sum(1, keepdim=True)


class TeacherRows:
    """A teacher's predictions, collected batch by batch in as much memory as their file takes.

    The row of a sample that is never added stays uniform.

    Args:
        samples: N.
        classes: K.
    """

    def __init__(self, samples: int, classes: int):
        self.seen, self.correct, self.entropy_sum = 0, 0, 0.0
        self._sums = torch.zeros(classes, classes, dtype=torch.float64)
        self._counts = torch.zeros(classes, dtype=torch.int64)
        kept = classes
        if samples * classes * 2 > LARGEST_DENSE_BYTES:
            kept = min(LARGEST_ENTRIES, classes - 1)
        self._values = torch.full((samples, kept), 1 / classes, dtype=torch.float16)
        self._indices = None
        if kept < classes:
            kind = torch.int16 if classes <= 1 << 15 else torch.int32
            self._indices = torch.arange(kept, dtype=kind).repeat(samples, 1)

    @property
    def top1(self) -> float:
        """Accuracy of the teacher on the samples added, in percent."""
        return 100 * self.correct / max(self.seen, 1)

    @property
    def entropy(self) -> float:
        """Mean entropy of the rows added, in nats."""
        return self.entropy_sum / max(self.seen, 1)

    def add(self, index: Tensor, labels: Tensor, probabilities: Tensor) -> None:
        """Adds the rows float32[B, K] of samples int64[B] `index` with int64[B] `labels`, all on one device."""
        self.seen += len(index)
        self.correct += int((probabilities.argmax(1) == labels).sum())
        self.entropy_sum += float(torch.special.entr(probabilities).sum(dtype=torch.float64))
        index, labels = index.cpu(), labels.cpu()
        self._sums.index_add_(0, labels, probabilities.double().cpu())
        self._counts += torch.bincount(labels, minlength=len(self._counts))
        if self._indices is None:
            self._values[index] = probabilities.half().cpu()
        else:
            values, indices = probabilities.topk(self._values.shape[1])
            self._values[index] = values.half().cpu()
            self._indices[index] = indices.to(self._indices.dtype).cpu()

    def by_class(self) -> Tensor:
        """float32[K, K]: the mean of the rows of each class; the one-hot label for a class of no sample."""
        means = self._sums / self._counts.clamp(min=1)[:, None]
        return torch.where((self._counts == 0)[:, None], torch.eye(len(means)).double(), means).float()

    def save(self, path: Path, manifest: Manifest, *, fold: str | None, model: str, **made: Any) -> None:
        """Writes the file, whole or not at all; the same rows and arguments give the same bytes.

        Args:
            manifest: of the training file the samples are of.
            fold: the part of it that was held out (`splits.fold_name`); None for labels that were learned from no part.
            model: the name of the teacher.
            made: how it was made, in plain values.

        Raises:
            InputError: a row is not finite.
        """
        if not self._sums.isfinite().all():
            raise InputError(f"{model} predicts numbers that are not finite")
        tensors = {"by_class": self.by_class()}
        if self._indices is None:
            tensors["by_sample"] = self._values
        else:
            tensors |= {"values": self._values, "indices": self._indices}
        save_labels(path, tensors, manifest, fold=fold, model=model, **made)


def save_labels(
    path: Path, tensors: dict[str, Tensor], manifest: Manifest, *, fold: str | None, model: str, **made: Any
) -> None:
    """Writes a file of soft labels with their origin, whole or not at all.

    The arguments after `tensors` are those of `TeacherRows.save`.
    """
    origin = {"data": manifest.digest, "classes": manifest.classes, "model": model, **made}
    if fold is not None:
        origin["fold"] = fold
    content = save(tensors, {_METADATA: json.dumps(origin, sort_keys=True)})
    replace_file(path, lambda part: part.write_bytes(content))  # save_file's would be readable by its owner only


def class_labels(path: Path, manifest: Manifest, *, fold: str = "") -> Tensor:
    """float32[K, K]: a file's soft labels by class, rows summing to 1.

    Args:
        manifest: of the training file.
        fold: the part of it that is held out (`splits.fold_name`).

    Raises:
        InputError: the file cannot be read, has none, or is for other data, classes or folds.
    """
    with _opened(path, manifest, fold) as file:
        name = next((name for name in ("by_class", "soft_labels") if name in file.keys()), None)  # noqa: SIM118
        if name is None:
            raise InputError(f"{path} has no soft labels by class; it has {', '.join(file.keys())}")
        table = file.get_tensor(name).float()
    return _checked_table(path, table, len(manifest.classes))


def stage_labels(path: Path, classes: int) -> Tensor:
    """float32[K, K]: the soft labels that a run keeps of one of its stages, rows summing to 1. Needs no data.

    Args:
        classes: K of the run.

    Raises:
        InputError: the file cannot be read, or holds no such table.
    """
    try:
        table = load_file(path)["soft_labels"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} cannot be read as a stage's soft labels: {str(error).splitlines()[0]}") from None
    return _checked_table(path, table, classes)


def _checked_table(path: Path, table: Tensor, classes: int) -> Tensor:
    if table.shape != (classes, classes):
        raise InputError(f"{path} is for {'x'.join(map(str, table.shape))} soft labels, the data has {classes} classes")
    _check_distributions(path, table)
    return table / table.sum(1, keepdim=True)


def sample_labels(path: Path, manifest: Manifest, *, fold: str = "", device: torch.device) -> SampleLabels:
    """A file's soft labels by sample: mapped on the CPU, copied to a CUDA device.

    Every row is checked now, a block at a time. The arguments are those of `class_labels`.

    Raises:
        InputError: the file cannot be read, has none, or is for other data, classes, samples or folds.
    """
    classes = len(manifest.classes)
    with _opened(path, manifest, fold) as file:
        held = set(file.keys())
        names = next((names for names in (("by_sample",), ("values", "indices")) if held.issuperset(names)), None)
        if names is None:
            raise InputError(f"{path} has no soft labels by sample; try method.teacher_key=class")
        shapes = [tuple(file.get_slice(name).get_shape()) for name in names]
        if any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
            raise InputError(f"{path}: {' and '.join(names)} have the shapes {', '.join(map(str, shapes))}")
        values, indices = file.get_tensor(names[0]), None if len(names) == 1 else file.get_tensor(names[1])
    if len(values) != manifest.count:
        raise InputError(f"{path} has soft labels of {len(values)} samples, the data has {manifest.count}")
    if values.shape[1] > classes or (indices is None and values.shape[1] != classes):
        raise InputError(f"{path} has soft labels for {values.shape[1]} classes, the data has {classes}")
    for block in _blocks(path, names, values.shape):
        _check_distributions(path, block[0], partial=indices is not None)
        if indices is not None:
            _check_indices(path, block[1], classes)
    return SampleLabels(values.to(device), None if indices is None else indices.to(device), classes)


def _opened(path: Path, manifest: Manifest, fold: str) -> Any:
    try:
        file = safe_open(path, framework="pt")
        origin = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        if not isinstance(origin, dict):
            raise ValueError(f"its metadata {_METADATA} is no JSON object")
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"method.teacher={path} cannot be read as safetensors: {str(error).splitlines()[0]}") from None
    if origin.get("data", manifest.digest) != manifest.digest:
        raise InputError(f"{path} was made for other data: its training file has another digest")
    if origin.get("classes", list(manifest.classes)) != list(manifest.classes):
        raise InputError(f"{path} was made for other classes")
    if origin.get("fold", fold) != fold:
        made, here = (f"fold {name}" if name else "nothing" for name in (origin["fold"], fold))
        raise InputError(f"{path} was made with {made} held out, this run holds out {here}")
    return file


def _blocks(path: Path, names: Sequence[str], shape: Sequence[int]) -> Iterator[list[Tensor]]:
    """The rows of the tensors `names`, of one shape, a block at a time."""
    size = max(1, _BLOCK_VALUES // max(1, shape[1]))
    for start in range(0, shape[0], size):
        # Opened anew for each block: pages read through a mapping that stays open count as this process's memory.
        with safe_open(path, framework="pt") as file:
            yield [file.get_slice(name)[start : start + size] for name in names]


def _check_distributions(path: Path, rows: Tensor, *, partial: bool = False) -> None:
    """Checks that rows are distributions; `partial` ones may leave weight to the classes that they do not name."""
    rows = rows.float()
    excess = rows.sum(1) - 1
    off = excess.clamp(min=0) if partial else excess.abs()
    if not (rows.isfinite().all() and (rows >= 0).all() and (off < _SUM_TOLERANCE).all()):
        raise InputError(f"{path}: soft labels must be nonnegative rows that sum to 1")


def _check_indices(path: Path, indices: Tensor, classes: int) -> None:
    indices = indices.long()
    if indices.numel() and (indices.min() < 0 or indices.max() >= classes):
        raise InputError(f"{path} has entries outside the {classes} classes")
    if (indices.sort(1).values.diff() == 0).any():
        raise InputError(f"{path} names a class twice in one row")
