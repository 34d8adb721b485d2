"""A run's folder: the names of its files, what a row holds, reading and writing. Loads no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from fastlsr.config import TEST, VAL, Config, Train, load
from fastlsr.errors import InputError, unknown
from fastlsr.files import replace_text
from fastlsr.metrics import METRICS
from fastlsr.plugins import Plugin

# One epoch of a run: the key of each column to its value, None where there is none.
Row = dict[str, Any]

Kind = Literal["last", "best"]  # of a row, or of what is kept with it
MARKS = ("environment.json", "metrics.jsonl", "checkpoint.pt")  # files of which one makes a folder a run
_SWEEPS = "sweeps"  # where `fastlsr.sweep` keeps its logs beside the runs
KINDS: tuple[Kind, ...] = ("last", "best")


@dataclass(frozen=True)
class Column:
    """One value of a row.

    Attributes:
        key: its name in metrics.jsonl, summary.json and W&B, and in a sweep's `metric`.
        unit: "" where it has none.
        meaning: a phrase for a table of columns.
        line: how the line of an epoch shows it, as for `str.format`; "" leaves it out. What is before the slash of the
            key, `train` or `test`, is shown once before all of its columns.
    """

    key: str
    unit: str
    meaning: str
    line: str = ""


def columns() -> tuple[Column, ...]:
    """The values of a row, in order; a plugin's metrics are among them once it is loaded."""
    return (
        Column("epoch", "", "whole epochs trained"),
        Column("phase", "", "number of the method's phase, from 1", "phase {}"),
        Column(
            "lr", "", "learning rate of the epoch's last step (of the classifier, with optim.backbone_lr)", "lr {:.3g}"
        ),
        Column("train/loss", "nats", "mean training objective over the epoch, as the weights moved", "loss {:.4f}"),
        Column("train/top1", "%", "accuracy on the training batches, as the weights moved", "top1 {:.2f}"),
        *_evaluated(VAL),
        *_evaluated(TEST),
        Column("images_per_second", "1/s", "training images, without the evaluation", "{:.0f} images/s"),
        Column("data_wait", "", "share of the training time spent waiting for the loader"),
        Column("target_entropy", "nats", "mean entropy of the training targets; null where a network makes them"),
        Column("seconds", "s", "the epoch with its evaluation", "{:.1f} s"),
        Column("peak_memory_bytes", "bytes", "most memory held so far: on the CUDA device, else by the process"),
    )


def _evaluated(split: str) -> tuple[Column, ...]:
    """The columns of an evaluation on a split."""
    loss = "training objective of the phase on the evaluation split, as far as it applies there"
    metrics = (Column(f"{split}/{m.name}", m.unit, m.meaning, f"{m.name} {{:{m.format}}}") for m in METRICS.values())
    return Column(f"{split}/loss", "nats", loss), *metrics


def keys() -> tuple[str, ...]:
    """The keys of a row, in order."""
    return tuple(column.key for column in columns())


class Summary(TypedDict):
    """What summary.json holds."""

    name: str
    finished: bool
    last: Row
    best: Row


def finite_row(row: Row) -> Row:
    """The row with None for what is no finite number, which JSON does not have: the entropy of negative targets."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def epoch_line(row: Row, epochs: int, *, left: str = "", width: int | None = None) -> str:
    """The terminal's line for one of `epochs` epochs, from the columns that define a `line`.

    Args:
        left: the time that is left of the run.
        width: above which it is broken into lines, between groups and else between values; None: never.
    """
    groups, former = [[f"epoch {row['epoch']}/{epochs}" + (f", {left} left" if left else "")]], ""
    for column in columns():
        if not column.line or row.get(column.key) is None:
            continue
        group, shown = column.key.rpartition("/")[0], column.line.format(row[column.key])
        if group and group == former:
            groups[-1].append(shown)
        else:
            groups.append([f"{group} {shown}" if group else shown])
        former = group
    text = "  ".join(map(" ".join, groups))
    return text if width is None or len(text) <= width else _broken(groups, width)


def _broken(groups: Iterable[Sequence[str]], width: int) -> str:
    """The words of groups in lines of `width` characters, those after the first indented."""
    lines = [""]
    for group in groups:
        whole = " ".join(group)
        for place, word in enumerate([whole] if len(whole) + 2 <= width else group):
            gap = " " if place else "  "
            if lines[-1] and len(lines[-1] + gap + word) > width:
                lines.append("  " + word)
            else:
                lines[-1] += (gap if lines[-1] else "") + word
    return "\n".join(lines)


def compared_keys(rows: Sequence[Row]) -> list[str]:
    """The keys that a table of rows shows: the epoch, and what `epoch_line` has of training and evaluations."""
    groups = {key.partition("/")[0] for row in rows for key in row if row[key] is not None}
    shown = (column.key for column in columns() if column.line and "/" in column.key)
    return ["epoch", *(key for key in shown if key.partition("/")[0] in groups)]


def summary_of(name: str, rows: Sequence[Row], *, best_by: str, finished: bool) -> Summary:
    """The last and the best, by `train.best_by`, of one or more rows of the run `name`."""
    return Summary(name=name, finished=finished, last=rows[-1], best=best_of(rows, best_by))


def best_of(rows: Iterable[Row], best_by: str) -> Row:
    """The first of the rows with the best value of a metric on the split that every epoch is evaluated on."""
    return METRICS[best_by].best(rows, key=lambda row: row[best_key(row, best_by)])


def best_key(row: Row, best_by: str) -> str:
    """The column that decides which row of a run is the best, from one of its rows: test/METRIC or val/METRIC."""
    return f"{evaluated_split(row)}/{best_by}"


def evaluated_split(row: Row) -> str:
    """The split that each epoch of a run is evaluated on, "val" or "test", from one of its rows.

    With "val", only the rows of networks that were evaluated at the run's end have columns of the test split, too.
    """
    return VAL if any(key.startswith(f"{VAL}/") and value is not None for key, value in row.items()) else TEST


def best_meaning(best_by: str, split: str) -> str:
    """What the best row is: "highest test top1"."""
    return f"{'highest' if METRICS[best_by].best is max else 'lowest'} {split} {best_by}"


def check_best_by(train: Train) -> None:
    """Checks that `train.best_by` is a metric.

    Raises:
        InputError: if it is not.
    """
    if train.best_by not in METRICS:
        name = train.best_by.rpartition("/")[2].lower()  # test/nll is how rows and sweeps call it
        hint = f"{train.best_by}: no such metric; did you mean {name}?" if name in METRICS else ""
        raise InputError(f"train.best_by={hint or unknown('metric', train.best_by, METRICS)}")


def is_whole(rows: Sequence[Row], train: Train, *, epochs: int, last_phase: int) -> bool:
    """Whether these are all rows of a run: those of all `epochs`, or of as many as `train.patience` makes it train.

    Patience counts in the last phase, which begins after `last_phase` epochs: what comes before makes it what it is, as
    TSLA's smoothing and COLAM's stages do.
    """
    if len(rows) >= epochs or not train.patience:
        return len(rows) >= epochs
    tail = rows[last_phase:]
    return bool(tail) and tail[-1]["epoch"] - best_of(tail, train.best_by)["epoch"] >= train.patience


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Reading raises InputError, with the file's name, for what is not there or is damaged."""

    path: Path

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def newest_checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the newest one."""
        return self.path / "checkpoint.previous.pt"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint of the best epoch, that `run.keep_best` has kept for analyses."""
        return self.path / "best.pt"

    @property
    def damaged_checkpoint(self) -> Path:
        """Where a damaged newest checkpoint is set aside."""
        return self.path / "checkpoint.damaged.pt"

    def plugin(self, plugin: Plugin) -> Path:
        """The copy of a plugin's file; two of one name lie side by side."""
        return self.path / "plugins" / f"{Path(plugin.name).stem}_{plugin.digest[:8]}.py"

    def soft_labels(self, stage: int) -> Path:
        """The soft labels that phase `stage`, counted from 1, learned."""
        return self.path / "soft_labels" / f"stage_{stage:02d}.safetensors"

    def logits(self, kind: Kind, *, at_end: bool = False) -> Path:
        """The evaluation split's logits after the last or the best epoch; `at_end`, the test split's at the end."""
        return self.path / "logits" / f"{kind}{'_test' * at_end}.safetensors"

    def kept_checkpoint(self, epoch: int) -> Path:
        """The checkpoint that `run.keep` has kept after so many epochs, for analyses."""
        return self.path / "checkpoints" / f"epoch_{epoch:04d}.pt"

    def kept_checkpoints(self) -> dict[int, Path]:
        """Epoch to file of the checkpoints that `run.keep` has kept, in order."""
        files = sorted((self.path / "checkpoints").glob("epoch_*.pt"))
        return {int(path.stem.removeprefix("epoch_")): path for path in files}

    def write_config(self, config: Config) -> None:
        """Writes the resolved options."""
        replace_text(self.path / "config.yaml", config.as_yaml())

    def read_config(self) -> Config:
        """The resolved options."""
        config = load(self.path / "config.yaml")
        if not config.given:
            raise InputError(f"{self.path / 'config.yaml'} is damaged: it has no options")
        return config

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes what produced the run."""
        self._write_json("environment.json", environment)

    def read_environment(self) -> dict[str, Any]:
        """What produced the run."""
        return self._read_json("environment.json")

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Replaces all rows."""
        replace_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def append_row(self, row: Row) -> None:
        """Adds a row."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_rows(self) -> list[Row]:
        """The rows so far, without a last one that is only half written."""
        *lines, _ = self._read("metrics.jsonl").split("\n")
        return [self._parsed("metrics.jsonl", line) for line in lines]

    def write_summary(self, rows: Sequence[Row], *, best_by: str = "top1", finished: bool) -> Summary:
        """Writes the last and the best of one or more rows; returns what it wrote."""
        summary = summary_of(self.path.name, rows, best_by=best_by, finished=finished)
        self._write_json("summary.json", summary)
        return summary

    def read_summary(self) -> Summary:
        """The last and the best row."""
        summary = self._read_json("summary.json")
        kinds = {"finished": bool, "last": dict, "best": dict}
        wrong = [key for key, kind in kinds.items() if not isinstance(summary.get(key), kind)]
        if wrong:
            raise InputError(f"{self.path / 'summary.json'} is damaged: it has no {', '.join(wrong)}")
        return summary

    def finished_summary(self) -> Summary | None:
        """The last and the best row of a finished run; None as long as it is not finished."""
        if not (self.path / "summary.json").exists():
            return None
        summary = self.read_summary()
        return summary if summary["finished"] else None

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        replace_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def _read_json(self, name: str) -> Any:
        return self._parsed(name, self._read(name))

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{self.path / name} cannot be read: {reason}") from None

    def _parsed(self, name: str, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InputError(f"{self.path / name} is damaged: {error}") from None
        if not isinstance(value, dict):
            raise InputError(f"{self.path / name} is damaged: it holds {text[:20]!r}")
        return value


def folder_of(path: Path) -> RunFolder:
    """The folder of the run that `path`, a folder or one of its checkpoints, is of."""
    if path.is_dir():
        return RunFolder(path)
    return RunFolder(path.parent.parent if path.parent.name == "checkpoints" else path.parent)


def runs_below(path: Path) -> list[Path]:
    """The folders of runs in `path`, by name, and whatever lies beside them; `path` itself if none of them is a run.

    Raises:
        InputError: if it does not exist.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir() or has_begun(path):
        return [path]
    inside = sorted(each for each in path.glob("[!.]*") if each.is_dir() and (each.name != _SWEEPS or has_begun(each)))
    return inside if any(map(has_begun, inside)) else [path]


def has_begun(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return any(os.path.exists(path / name) for name in MARKS)  # Path.exists raises for a folder of somebody else's


def run_folder(config: Config) -> RunFolder:
    """The folder of a configured run.

    Raises:
        InputError: for a name that is no plain name.
    """
    return RunFolder(Path(config.run.dir) / config.run_name())
