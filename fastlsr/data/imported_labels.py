"""From a table of annotations, such as CIFAR-10H's counts, to a file of soft labels by sample.

The CSV's first column is `name`, a sample's name in its source (`sample_names`), or `index`, its position in the
`.beton`. The others are the classes by name, in any order, with probabilities or counts; each row is divided by its
sum.
"""

import csv
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fastlsr.data.manifest import Manifest, digest_of, verify
from fastlsr.data.sample_names import names_path, read_names
from fastlsr.data.soft_labels import TeacherRows
from fastlsr.data.tables import read_tables
from fastlsr.errors import InputError, unknown

MISSING = ("error", "onehot")  # what becomes of samples that the table lacks
_ROWS_AT_ONCE = 1024
_MOST_NAMED = 3


class Annotation(NamedTuple):
    """A row of the table: the position of its sample in the `.beton`, and K probabilities by label."""

    sample: int
    probabilities: list[float]


def import_labels(table: Path, beton: Path, out: Path, *, missing: str = "error") -> TeacherRows:
    """Writes the labels of `table` for the samples of `beton` to `out`; returns them.

    Args:
        missing: "error", or "onehot": samples that the table lacks get their own one-hot label.

    Raises:
        InputError: a file cannot be read, or they do not fit together; nothing is written then.
    """
    manifest = verify(beton)
    labels = torch.from_numpy(read_tables(beton, manifest).labels.copy())
    rows, lacking = TeacherRows(manifest.count, len(manifest.classes)), torch.ones(manifest.count, dtype=torch.bool)
    annotations = read_annotations(table, beton, manifest)
    for block in iter(lambda: list(itertools.islice(annotations, _ROWS_AT_ONCE)), []):
        samples = torch.tensor([each.sample for each in block])
        rows.add(samples, labels[samples], torch.tensor([each.probabilities for each in block]))
        lacking[samples] = False
    rest = lacking.nonzero().flatten()
    if len(rest) and missing == "error":
        raise InputError(
            f"{table} lacks {_lacked(rest.tolist(), beton, manifest)}; --missing=onehot keeps their labels"
        )
    for samples in rest.split(_ROWS_AT_ONCE):
        rows.add(samples, labels[samples], torch.eye(len(manifest.classes))[labels[samples]])
    rows.save(out, manifest, fold=None, model=table.name, how="imported", digest=digest_of(table), missing=len(rest))
    return rows


def read_annotations(table: Path, beton: Path, manifest: Manifest) -> Iterator[Annotation]:
    """The rows of a CSV file, each checked as it is read.

    Raises:
        InputError: names the line of the file that is wrong.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            head = [cell.strip() for cell in next(lines, [])]
            order = _label_columns(head, table, manifest)
            position = _positions(head[0], beton, manifest)
            seen: dict[int, int] = {}
            for cells in filter(None, lines):
                where = f"{table}, line {lines.line_num}"
                if len(cells) != len(head):
                    raise InputError(f"{where}: it has {len(cells)} columns, the head has {len(head)}")
                sample = position(cells[0].strip(), where)
                if seen.setdefault(sample, lines.line_num) != lines.line_num:
                    raise InputError(f"{where}: {cells[0]} is the sample of line {seen[sample]}, too")
                yield Annotation(sample, _normalised([cells[at] for at in order], where))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _label_columns(head: Sequence[str], table: Path, manifest: Manifest) -> list[int]:
    """The column of each label, in the order of the labels."""
    if head[:1] not in (["name"], ["index"]):
        raise InputError(f"{table}: its first column is {head[0] if head else 'missing'!r}, not name or index")
    if odd := next((name for name in head[1:] if name not in manifest.classes), None):
        raise InputError(f"{table}: column {unknown('class', odd, manifest.classes)}")
    if lacking := [name for name in manifest.classes if head[1:].count(name) != 1]:
        raise InputError(f"{table}: the class {lacking[0]} has {head[1:].count(lacking[0])} columns, not one")
    return [head.index(name, 1) for name in manifest.classes]


def _positions(key: str, beton: Path, manifest: Manifest) -> Callable[[str, str], int]:
    """A function from a cell of the first column, and where it stands, to the position of its sample."""
    if key == "index":
        return lambda cell, where: _index(cell, where, manifest.count)
    names = read_names(beton, manifest)
    whole = {name: at for at, name in enumerate(names)}
    files: dict[str, int] = {}
    for at, name in enumerate(names):  # a file's name alone will do where no other sample has it
        file = name.rpartition("/")[2]
        files[file] = -1 if file in files else at

    def position(cell: str, where: str) -> int:
        at = whole.get(cell, files.get(cell, -2))
        if at < 0:
            fault = "several samples are" if at == -1 else "no sample is"
            raise InputError(f"{where}: {fault} called {cell!r}; {names_path(beton)} lists them, as {names[0]}")
        return at

    return position


def _index(cell: str, where: str, count: int) -> int:
    if not cell.isdecimal() or int(cell) >= count:
        raise InputError(f"{where}: index {cell!r} is not one of 0 to {count - 1}")
    return int(cell)


def _normalised(cells: Sequence[str], where: str) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    total = math.fsum(values)
    if min(values) < 0 or not 0 < total < math.inf:
        raise InputError(f"{where}: expected numbers of at least 0, not all of them 0")
    return [value / total for value in values]


def _lacked(samples: Sequence[int], beton: Path, manifest: Manifest) -> str:
    names = read_names(beton, manifest) if manifest.names else [f"index {at}" for at in range(manifest.count)]
    others = f" and {len(samples) - _MOST_NAMED} others" if len(samples) > _MOST_NAMED else ""
    return f"{', '.join(names[at] for at in samples[:_MOST_NAMED])}{others} of the {manifest.count} samples of {beton}"
