"""Run folders as training leaves them, written in milliseconds by the package's own writers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastlsr.config import load
from fastlsr.labels.methods import make_plan
from fastlsr.logits import EvaluationLogits
from fastlsr.report.collect import ReportedRun, ReportedSetting
from fastlsr.runs import KINDS, Kind, RunFolder, Summary, keys
from fastlsr.scores import Predictions, ece, nll
from fastlsr.trials import Trial


def _write_run(
    folder: Path,
    options: dict[str, object] | None = None,
    *,
    top1: float | Sequence[float] | None = None,
    sharpness: float = 3.0,
    samples: int = 120,
    classes: int = 10,
    done: int | None = None,
    data: Sequence[str] = ("a1" * 32, "b2" * 32),
) -> Path:
    """Writes a run's folder, without checkpoints; returns it.

    The logits of epoch e are `sharpness * e / epochs` in favour of the label, in noise that the seed decides. Rows have
    the accuracy, NLL and ECE of these logits, unless `top1` is given: of each epoch, or of all.

    Args:
        options: `section.key` to value; by default 4 epochs. With `data.val=val` the evaluations are of `val`, and the
            last one is also that of the test split, its logits halved.
        done: epochs after which the run was stopped; None for a finished one.
        data: digests of the training and the evaluation file, and of the test file that a val split has beside it.
    """
    config = load(overrides={"train.epochs": 4, **(options or {})})
    plan = make_plan(config.method, config.train.epochs)
    evaluations = [_logits(config.train.seed, epoch, plan.epochs, sharpness, samples, classes, data[1])
                   for epoch in range(1, (plan.epochs if done is None else done) + 1)]  # fmt: skip
    split = config.data.evaluated_split
    rows = [_row(plan, each, split) for each in evaluations]
    if top1 is not None:
        for row, value in zip(rows, [top1] * len(rows) if isinstance(top1, int | float) else top1, strict=True):
            row[f"{split}/top1"] = value
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    if config.data.selects_on_val and done is None:
        at_end = replace(evaluations[-1], logits=evaluations[-1].logits / 2, data=data[2])
        rows[-1] |= {key: value for key, value in _row(plan, at_end, "test").items() if key.startswith("test/")}
        if config.run.logits in ("last", "both"):
            at_end.write(run.logits("last", at_end=True))
    run.write_config(config)
    run.write_environment({"data": list(data), "teacher": None})
    run.write_rows(rows)
    if rows:
        summary = run.write_summary(rows, finished=done is None)
        for kind in KINDS:
            if config.run.logits in (kind, "both") and (kind == "best" or summary["finished"]):
                evaluations[summary[kind]["epoch"] - 1].write(run.logits(kind))
    return folder


def _logits(seed: int, epoch: int, epochs: int, sharpness: float, samples: int, classes: int, data: str):
    rng = np.random.default_rng([seed, epoch])
    labels = np.arange(samples) % classes
    logits = rng.normal(size=(samples, classes)) + sharpness * epoch / epochs * np.eye(classes)[labels]
    return EvaluationLogits(logits.astype(np.float16), labels, np.arange(samples), epoch, data)


def _row(plan, kept: EvaluationLogits, split: str):
    predictions = Predictions(kept.logits, kept.labels)
    top5 = (np.argsort(-kept.logits, axis=1)[:, :5] == kept.labels[:, None]).any(1)
    values = {
        "epoch": kept.epoch,
        "phase": plan.at(kept.epoch - 1).number + 1,
        f"{split}/nll": nll(predictions),
        f"{split}/loss": nll(predictions),
        f"{split}/ece": ece(predictions),
        f"{split}/top1": 100 * float(predictions.correct.mean()),
        f"{split}/top5": 100 * float(top5.mean()),
        "train/top1": 100 - 50 / kept.epoch,
        "train/loss": 2 / kept.epoch,
        "target_entropy": 0.0,
        "seconds": 36.0,
    }
    assert values.keys() <= set(keys())
    other = "test/" if split == "val" else "val/"
    return {key: values.get(key, 1.0) for key in keys() if not key.startswith(other)}


@pytest.fixture(scope="session")
def write_run():
    """The function `_write_run`: (folder, options, ...) -> the folder with a run in it."""
    return _write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with two settings of three seeds each, `hard` and `lsr`. Only to be read."""
    folder = tmp_path_factory.mktemp("reported") / "runs"
    for method in ("hard", "lsr"):
        for seed in range(3):
            _write_run(folder / f"{method}{seed}", {"method.name": method, "train.seed": seed})
    return folder


@pytest.fixture(scope="session")
def make_setting():
    """The function `_make_setting`: (label, top1 by seed, ...) -> a setting without any files."""
    return _make_setting


def _make_setting(
    label: str,
    top1: Mapping[int, float] | Mapping[tuple[int, int], float],
    options: Mapping[str, object] | None = None,
    *,
    data: tuple[str, ...] = ("a", "b"),
    **figures: float,
) -> ReportedSetting:
    """A setting with the `top1` of each seed, or (seed, fold), at the last epoch, and equal further figures."""
    runs = []
    for repeat, value in top1.items():
        seed, fold = repeat if isinstance(repeat, tuple) else (repeat, 0)
        config = load(overrides={**(options or {}), "train.seed": seed, "data.fold": fold})
        folder = RunFolder(Path(f"{label}-{seed}-{fold}"))
        row = {"epoch": 1, "test/top1": value}
        summary = Summary(name="", finished=True, last=row, best=row)
        last = {"top1": value, **figures}
        kinds: dict[Kind, dict[str, float]] = {"last": last, "best": {"top1": value + 1}}
        runs.append(ReportedRun(Trial(config, summary, folder, data), [row], kinds, 0.5, None, None))
    config = runs[0].trial.config
    return ReportedSetting(label, config, make_plan(config.method, config.train.epochs), tuple(runs))
