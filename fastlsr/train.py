"""Trains one run: python -m fastlsr.train --cfg FILE --section.key=value [--dry-run].

Reads downward: main -> train -> train_epoch -> one step. Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143
stopped by SIGINT and SIGTERM with a checkpoint.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fastlsr.config import Config, differences, from_dict, load, read_arguments, usage
from fastlsr.data.folds import training_count
from fastlsr.data.manifest import read_manifest
from fastlsr.engine import checkpoint
from fastlsr.engine.log import Row, RunLog, read_rows, results_table, wandb_mode, write_json
from fastlsr.engine.runtime import choose_device, environment, peak_memory_bytes, set_up_torch
from fastlsr.engine.schedule import Schedule
from fastlsr.engine.session import Session, build_network, split_paths
from fastlsr.engine.step import EpochTotals
from fastlsr.errors import InputError, exit_on_input_error
from fastlsr.files import replace_file, replace_text
from fastlsr.labels.methods import options_of, phases


class TrainingFailed(Exception):
    """Training cannot go on, through no fault of the input's form; the message says where it stopped."""


class StopRequest:
    """Remembers SIGINT or SIGTERM until the step under way is done; a second signal acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> StopRequest:
        self._former = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: object) -> None:
        self.signal = number
        for each in self._former:
            signal.signal(each, signal.SIG_DFL)


def main(arguments: list[str] | None = None) -> int:
    """The exit code of a run as the command line asks for it."""
    with exit_on_input_error():
        words = sys.argv[1:] if arguments is None else arguments
        path, overrides, flags = read_arguments(words, flags=("dry-run", "help"))
        if "help" in flags:
            print(f"{__doc__}\nOptions, with their defaults:\n{usage()}")
            return 0
        config = load(path, overrides)
        warn_of_unused(config)
        if "dry-run" in flags:
            print(describe(config))
            return 0
        try:
            return train(config)
        except TrainingFailed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:  # before the first step, or the second one: nothing is left to save
            return 128 + signal.SIGINT


def warn_of_unused(config: Config) -> None:
    """Names, in one line on stderr, the method options that were set and that the method does not read."""
    used = {"method.name", *(f"method.{name}" for name in options_of(config.method.name))}
    unused = sorted(key for key in config.given if key.startswith("method.") and key not in used)
    if unused:
        print(f"warning: method {config.method.name} does not use {', '.join(unused)}", file=sys.stderr)


def describe(config: Config) -> str:
    """The resolved options, the phases, the learning rate where it turns, and the network's size.

    Raises:
        InputError: as training would.
    """
    inspect(config)
    train, _ = split_paths(config)
    manifest = read_manifest(train)
    resolution = config.data.resolution or (manifest.heights[1] if manifest.heights[1] <= 64 else 224)
    model = build_network(config, len(manifest.classes), resolution, pretrained=config.model.pretrained)
    count = sum(parameter.numel() for parameter in model.parameters())
    images = training_count(manifest.count, config.data)
    batches = images / config.data.batch_size
    batches = math.floor(batches) if config.data.drop_last else math.ceil(batches)
    schedule = Schedule(config.optim, config.train.epochs, math.ceil(batches / config.optim.accumulate))
    first, lines = 1, [config.as_yaml(), f"run: {Path(config.run.dir) / config.run_name()}", "phases:"]
    for number, phase in enumerate(phases(config.method, config.train.epochs), start=1):
        lines.append(f"  {number}. epochs {first} to {first + phase.epochs - 1}: {phase}")
        first += phase.epochs
    lines.append("learning rate:")
    lines += [f"  from epoch {epoch + 1}: {rate:.6g}" for epoch, rate in schedule.milestones()]
    lines.append(f"model: {config.model.name}, {count:,} parameters, {len(manifest.classes)} classes")
    lines.append(f"data: {images:,} training images, {batches:,} batches an epoch")
    return "\n".join(lines)


def train(config: Config) -> int:
    """Trains the configured run, from its checkpoint where there is one; returns the exit code.

    Raises:
        InputError: before anything is written.
        TrainingFailed: with the last good checkpoint kept.
    """
    started = time.perf_counter()
    folder, device, state, remark = inspect(config)
    log = RunLog(folder, config)
    log.say(f"run: {folder}")
    if remark:
        log.say(f"warning: {remark}")
    if state and state["position"][0] == config.train.epochs:
        return show_results(log, read_rows(folder))
    session = Session(config, device, decided=state["decided"] if state else {}, say=log.say)
    set_up_torch(device, deterministic=config.train.deterministic)
    if state:
        session.load_before_steps(state)
    session.prepare_steps()
    if state:
        session.load_after_steps(state)
        log.say(f"resuming after {session.position.epochs} epochs and {session.position.batches} batches")
    make_folder(folder)
    replace_text(folder / "config.yaml", config.as_yaml())
    write_json(folder / "environment.json", environment(device))
    log.open(epochs_done=session.position.epochs, wandb_id=session.wandb_id)
    session.wandb_id = log.wandb_id
    log.say(f"ready after {time.perf_counter() - started:.1f} s; training on {device}")
    code = 1
    try:
        with StopRequest() as stop:
            code = run_epochs(session, log, stop)
    finally:
        log.close(code)
    return code


def inspect(config: Config) -> tuple[Path, torch.device, dict[str, Any] | None, str]:
    """(folder, device, state or None, remark): where a run goes, what on, and what it goes on from.

    Raises:
        InputError: if any of these, or the W&B account, is not to be had.
    """
    wandb_mode(config.log.wandb)
    folder = Path(config.run.dir) / config.run_name()
    return folder, choose_device(config.train.device), *find_checkpoint(config, folder)


def make_folder(folder: Path) -> None:
    """Makes the run's folder.

    Raises:
        InputError: if that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the run's folder {folder}: {error.strerror}") from None


def find_checkpoint(config: Config, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """(state or None, remark): what `run.resume` says to go on from.

    Raises:
        InputError: if that is not there, should not be there, or belongs to other options.
    """
    state, remark = checkpoint.load(folder)
    if state is None:
        if config.run.resume == "must":
            raise InputError(f"run.resume=must: {folder} has no checkpoint")
        return None, remark
    if config.run.resume == "never":
        raise InputError(f"run.resume=never: {folder} holds a run already; take another run.name")
    changed = differences(config, from_dict(state["config"]))
    if changed:
        raise InputError(f"{folder} was trained with other values of {', '.join(changed)}; take another run.name")
    return state, remark


def run_epochs(session: Session, log: RunLog, stop: StopRequest) -> int:
    """Runs the epochs that are left: train, evaluate, learn soft labels, log, checkpoint. Returns the exit code."""
    config = session.config
    while session.position.epochs < config.train.epochs:
        start = time.perf_counter()
        number, phase, first = session.phase_at(session.position.epochs)
        totals, speed = train_epoch(session, log, stop)
        if stop.signal is not None:
            checkpoint.save(log.folder, session.state_dict())
            log.say(f"stopped by {signal.Signals(stop.signal).name}; the same command goes on from {log.folder}")
            return 128 + stop.signal
        metrics = session.evaluate()
        is_last = session.position.epochs == first + phase.epochs - 1
        if phase.learns and is_last:
            learn_soft_labels(session, log, number)
        session.position.epochs, session.position.batches = session.position.epochs + 1, 0
        log.row({
            "epoch": session.position.epochs,
            "phase": number + 1,
            "lr": session.last_learning_rate(),
            "train/loss": totals.loss,
            "train/top1": totals.top1,
            **{f"test/{name}": value for name, value in metrics.items()},
            **speed,
            "target_entropy": session.targets.mean_entropy(session.class_counts()),
            "seconds": time.perf_counter() - start,
            "peak_memory_bytes": peak_memory_bytes(session.device),
        })  # fmt: skip
        checkpoint.save(log.folder, session.state_dict())
        log.summary(finished=session.position.epochs == config.train.epochs)
    return show_results(log, log.rows)


def show_results(log: RunLog, rows: list[Row]) -> int:
    """The exit code of a finished run, once its last and best rows are on the terminal and in `summary.json`."""
    log.rows = rows
    log.console.print(results_table(log.summary(finished=True)))
    log.say(f"results: {log.folder}")
    return 0


def train_epoch(session: Session, log: RunLog, stop: StopRequest) -> tuple[EpochTotals, dict[str, float]]:
    """(totals, speed) of the epoch at hand, from the batch that the run's position names; ends early at a stop.

    Nothing in the loop waits for the device.
    """
    session.enter_epoch()
    position, totals = session.position, session.step.totals
    epoch, batches, first = position.epochs + 1, len(session.train), position.batches
    log.start_epoch(epoch, batches, first)
    start = time.perf_counter()
    try:
        for images, labels, index in session.train.epoch(position.epochs, first_batch=first):
            stepped = session.accumulate(images, labels, index)
            if position.batches % session.config.log.every == 0:
                so_far = totals.read_late()
                refuse_non_finite(so_far, epoch, log)
                log.advance(epoch, batches, position.batches, f"loss {so_far.loss:.4f}")
            if stepped and stop.signal is not None:
                break
    finally:
        log.end_progress()
    whole = totals.read()
    refuse_non_finite(whole, epoch, log)
    seconds = time.perf_counter() - start
    seen = min(position.batches * session.config.data.batch_size, len(session.train.indices))
    done_before = first * session.config.data.batch_size
    wait = session.train.wait_seconds / seconds
    return whole, {"images_per_second": (seen - done_before) / seconds, "data_wait": wait}


def refuse_non_finite(totals: EpochTotals, epoch: int, log: RunLog) -> None:
    """Stops the run at a loss that is no number.

    Raises:
        TrainingFailed: names epoch and step, and the checkpoint that is left.
    """
    if totals.bad_step:
        raise TrainingFailed(
            f"the loss is not finite at epoch {epoch}, step {totals.bad_step:.0f}; "
            f"{log.folder} keeps the checkpoint of the last whole epoch"
        )


def learn_soft_labels(session: Session, log: RunLog, number: int) -> None:
    """Makes the soft labels of the phase that just ended and keeps a copy in the run's folder."""
    missing = session.learn_soft_labels()
    if missing:
        names = ", ".join(session.train.manifest.classes[label] for label in missing[:5])
        log.say(f"warning: no sample of {len(missing)} classes was seen ({names}); they keep their former soft label")
    folder = log.folder / "soft_labels"
    folder.mkdir(exist_ok=True)
    table = {"soft_labels": session.learned.cpu().contiguous(), "count": session.means.count.cpu()}
    path = folder / f"stage_{number + 1:02d}.safetensors"
    replace_file(path, lambda part: save_file(table, part))


if __name__ == "__main__":
    sys.exit(main())
