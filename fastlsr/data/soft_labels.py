"""A teacher's soft labels on disk: by class and by sample, with what they were made of.

A `.safetensors` file with any of

    by_class            float[K, K], or soft_labels, as a run's stages have it
    by_sample           float16[N, K], row i that of the sample with index i in the training file
    values, indices     float16[N, k] and int16 or int32[N, k]: the k largest of a sample's row, the rest of its weight
                        spread evenly over the other classes

and, under the metadata key `teacher`, a JSON object: `data` (the digest of the training file), `classes`, `fold`
(`folds.fold_name`), `model`, and how it was made. What the object does not name is not checked. ImageNet's 1.28 million
rows of 1000 would take 2.6 GB as float16 and take 0.1 GB with k = 20.

Reading: on the CPU the rows stay in the file, which is mapped into the address space. A batch's rows are read when
they are gathered, and what was read stays in the operating system's cache, whose pages it takes back when memory runs
short; rows that were not read before wait for the disk. On CUDA all rows lie on the device, as stored, and the gather
is part of the compiled step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastlsr.data.manifest import Manifest
from fastlsr.errors import InputError
from fastlsr.files import replace_file

LARGEST_DENSE_BYTES = 1 << 29  # above this, rows are kept as their largest entries
LARGEST_ENTRIES = 20
_METADATA = "teacher"  # one key: safetensors writes several in a random order, and equal files are to be equal bytes
_SUM_TOLERANCE = 0.02  # of a row of float16
_BLOCK_VALUES = 1 << 20  # of the rows that are looked at together


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
    """A teacher's predictions as they come in, batch by batch, held in as much memory as their file takes.

    The row of a sample that is never added stays uniform.

    Args:
        samples, classes: N and K. Rows that would take more than half a gigabyte keep their largest entries only.
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
        """Takes in the rows float32[B, K] of samples int64[B] `index` with int64[B] `labels`, on any one device."""
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

    def save(self, path: Path, manifest: Manifest, *, fold: str, model: str, **made: Any) -> None:
        """Writes the file, whole or not at all; the same rows and words give the same bytes.

        Args:
            manifest: of the training file the samples are of.
            fold: which part of it was held out (`folds.fold_name`).
            model: what made the rows.
            made: how, in plain values.

        Raises:
            InputError: if a row is not finite.
        """
        if not self._sums.isfinite().all():
            raise InputError(f"{model} answers with numbers that are not finite")
        tensors = {"by_class": self.by_class()}
        if self._indices is None:
            tensors["by_sample"] = self._values
        else:
            tensors |= {"values": self._values, "indices": self._indices}
        save_labels(path, tensors, manifest, fold=fold, model=model, **made)


def save_labels(
    path: Path, tensors: dict[str, Tensor], manifest: Manifest, *, fold: str, model: str, **made: Any
) -> None:
    """Writes a file of soft labels with what they were made of, whole or not at all.

    The arguments after `tensors` are those of `TeacherRows.save`.
    """
    said = {"data": manifest.digest, "classes": manifest.classes, "fold": fold, "model": model, **made}
    content = save(tensors, {_METADATA: json.dumps(said, sort_keys=True)})
    replace_file(path, lambda part: part.write_bytes(content))  # save_file would hide it from all but its owner


def class_labels(path: Path, manifest: Manifest, *, fold: str = "") -> Tensor:
    """float32[K, K]: a file's soft labels by class, rows summing to 1.

    Args:
        manifest: of the training file.
        fold: which part of it is held out (`folds.fold_name`).

    Raises:
        InputError: if the file cannot be read, has none, or is for other data, classes or folds.
    """
    with _opened(path, manifest, fold) as file:
        name = next((name for name in ("by_class", "soft_labels") if name in file.keys()), None)  # noqa: SIM118
        if name is None:
            raise InputError(f"{path} has no soft labels by class; it has {', '.join(file.keys())}")
        table = file.get_tensor(name).float()
    classes = len(manifest.classes)
    if table.shape != (classes, classes):
        raise InputError(f"{path} is for {'x'.join(map(str, table.shape))} soft labels, the data has {classes} classes")
    _refuse_improper(path, table)
    return table / table.sum(1, keepdim=True)


def sample_labels(path: Path, manifest: Manifest, *, fold: str = "", device: torch.device) -> SampleLabels:
    """A file's soft labels by sample: mapped on the CPU, copied to a CUDA device.

    Every row is looked at once, a block at a time.

    Args:
        manifest, fold: as for `class_labels`.

    Raises:
        InputError: if the file cannot be read, has none, or is for other data, classes, samples or folds.
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
        _refuse_improper(path, block[0], partial=indices is not None)
        if indices is not None:
            _refuse_other_classes(path, block[1], classes)
    return SampleLabels(values.to(device), None if indices is None else indices.to(device), classes)


def _opened(path: Path, manifest: Manifest, fold: str):
    try:
        file = safe_open(path, framework="pt")
        said = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"method.teacher={path} cannot be read as safetensors: {str(error).splitlines()[0]}") from None
    if said.get("data", manifest.digest) != manifest.digest:
        raise InputError(f"{path} was made for other data: its training file has another digest")
    if tuple(said.get("classes", manifest.classes)) != manifest.classes:
        raise InputError(f"{path} was made for other classes")
    if said.get("fold", fold) != fold:
        made, here = (f"fold {name}" if name else "nothing" for name in (said["fold"], fold))
        raise InputError(f"{path} was made with {made} held out, this run holds out {here}")
    return file


def _blocks(path: Path, names: Sequence[str], shape: Sequence[int]) -> Iterator[list[Tensor]]:
    """The rows of the tensors `names`, of one shape, a block at a time."""
    size = max(1, _BLOCK_VALUES // max(1, shape[1]))
    for start in range(0, shape[0], size):
        # A mapping for each: what is read through the lasting one would count as this process's memory.
        with safe_open(path, framework="pt") as file:
            yield [file.get_slice(name)[start : start + size] for name in names]


def _refuse_improper(path: Path, rows: Tensor, *, partial: bool = False) -> None:
    """Refuses rows that are no distributions; `partial` ones may leave weight to the classes that they do not name."""
    rows = rows.float()
    excess = rows.sum(1) - 1
    off = excess.clamp(min=0) if partial else excess.abs()
    if not (rows.isfinite().all() and (rows >= 0).all() and (off < _SUM_TOLERANCE).all()):
        raise InputError(f"{path}: soft labels must be nonnegative rows that sum to 1")


def _refuse_other_classes(path: Path, indices: Tensor, classes: int) -> None:
    indices = indices.long()
    if indices.numel() and (indices.min() < 0 or indices.max() >= classes):
        raise InputError(f"{path} has entries outside the {classes} classes")
    if (indices.sort(1).values.diff() == 0).any():
        raise InputError(f"{path} names a class twice in one row")
