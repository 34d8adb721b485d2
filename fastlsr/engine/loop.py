"""One run, from its configuration to its results. Reads downward: train -> run_epoch -> train_epoch -> one step."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastlsr.config import Config, differences, from_dict
from fastlsr.data.loader import Batch, input_resolution, check_pairs_storage
from fastlsr.data.manifest import read_manifest
from fastlsr.data.soft_labels import save_labels
from fastlsr.data.splits import data_digests, fold_name, split_paths, training_count
from fastlsr.engine import checkpoint
from fastlsr.engine.log import Row, RunLog, agent_run, results_table, wandb_mode, write_json
from fastlsr.engine.runtime import choose_device, environment, peak_memory_bytes, set_up_torch
from fastlsr.engine.schedule import Schedule
from fastlsr.engine.session import Session, build_network, read_teacher, teacher_digest
from fastlsr.engine.step import EpochTotals
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.files import replace_text, sole_use
from fastlsr.labels.methods import phases

WAITING_SHARE = 0.1  # of an epoch spent waiting for data, from which the user is told what may help


class Stopped(Exception):
    """A stop was asked for outside the training loop."""


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

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, unless a stop is asked for meanwhile.

        Raises:
            Stopped: then.
        """
        with contextlib.closing(batches):
            for batch in batches:
                if self.signal is not None:
                    raise Stopped
                yield batch


def describe(config: Config) -> Iterator[str]:
    """Lines on the resolved options, the phases, the learning rate where it turns, and the network's size.

    The last of them need the data; nothing is downloaded.

    Raises:
        InputError: for options that do not fit together, or data that is not there or does not fit them; what only the
            images can tell is not looked at.
    """
    yield config.as_yaml()
    yield "phases:"
    first = number = 1
    for phase, alike in itertools.groupby(phases(config.method, config.train.epochs)):
        count = len(list(alike))
        numbers, each = (f"{number} to {number + count - 1}", "each ") if count > 1 else (number, "")
        yield f"  {numbers}. epochs {first} to {first + count * phase.epochs - 1}: {each}{phase}"
        first, number = first + count * phase.epochs, number + count
    yield "learning rate:"
    for epoch, factor in turns(config):
        backbone = f", backbone {factor * config.optim.backbone_lr:.6g}" if config.optim.backbone_lr else ""
        yield f"  from epoch {epoch + 1}: {factor * config.optim.lr:.6g}{backbone}"
    yield f"run: {Path(config.run.dir) / config.run_name()}"
    if any(phase.pair_weight for phase in phases(config.method, config.train.epochs)):
        check_pairs_storage(config.data)
    inspect(config)
    train = read_manifest(split_paths(config)[0])
    read_teacher(config, train, torch.device("cpu"))
    resolution, classes = input_resolution(train, config.data), len(train.classes)
    pretrained = "" if config.model.pretrained == "timm" else config.model.pretrained
    model = build_network(config, classes, resolution, pretrained=pretrained)
    count = sum(parameter.numel() for parameter in model.parameters())
    yield f"model: {config.model.name}, {count:,} parameters, {classes} classes, {resolution} pixels"
    images = training_count(train.count, config.data)
    batches = images / config.data.batch_size
    batches = math.floor(batches) if config.data.drop_last else math.ceil(batches)
    yield f"data: {images:,} training images, batches an epoch: {batches:,}"


def turns(config: Config) -> Iterator[tuple[int, float]]:
    """(epoch, factor of optim.lr at its first step) wherever the rate takes a new course; a phase may scale it."""
    schedule = Schedule(config.optim, config.train.epochs, steps_per_epoch=1000)
    milestones = dict(schedule.milestones())
    first = begin = 0  # of the phase, and of the schedule, which fresh weights begin anew
    former = None
    for phase in phases(config.method, config.train.epochs):
        begin = first if phase.fresh else begin
        for epoch in range(first, first + phase.epochs):
            if epoch - begin in milestones or (epoch == first and phase.lr_scale != former):
                yield epoch, phase.lr_scale * schedule.factor((epoch - begin) * schedule.steps_per_epoch)
        first, former = first + phase.epochs, phase.lr_scale


def train(config: Config, *, started: float) -> int:
    """Trains the configured run, from its checkpoint where there is one; returns the exit code.

    Args:
        started: when the command began, as `time.perf_counter` has it.

    Raises:
        InputError: before anything is written.
        TrainingFailed: with the last good checkpoint kept.
    """
    folder, device, state, remark = inspect(config)
    log = RunLog(folder, config)
    log.say(f"run: {folder}")
    if remark:
        log.say(f"warning: {remark}")
    if state and state["position"][0] == log.epochs:
        log.say("finished before; nothing is left to train (another run.name would train it anew)")
        return show_finished(log, state)
    set_up_torch(device, deterministic=config.train.deterministic)
    session = Session(config, device, decided=state["decided"] if state else {}, say=log.say)
    if state:
        session.load_before_steps(state)
    session.prepare_steps()
    if state:
        session.load_after_steps(state)
        log.say(f"resuming after {session.position.epochs} epochs and {session.position.batches} batches")
    with sole_use(folder, f"another process is training {folder}"):
        if remark:
            checkpoint.set_aside(folder)
        replace_text(folder / "config.yaml", config.as_yaml())
        digests = {name: session.decided.get(name) for name in ("data", "teacher")}
        write_json(folder / "environment.json", environment(device) | digests)
        log.open(state["rows"] if state else [], wandb_id=session.wandb_id)
        session.wandb_id = log.wandb_id or session.wandb_id
        threads = f"{torch.get_num_threads()} threads of torch, {session.train.workers} of the loader"
        log.say(f"ready after {time.perf_counter() - started:.1f} s; training on {device}, {threads}")
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
        InputError: if any of these, the data or the W&B account, is not to be had, or they do not fit together.
    """
    wandb_mode(config.log.wandb)
    device = choose_device(config.train.device)
    digests = {"data": data_digests(config), "teacher": teacher_digest(config)}
    folder = Path(config.run.dir) / config.run_name()
    return folder, device, *find_checkpoint(config, folder, digests)


def find_checkpoint(config: Config, folder: Path, digests: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """(state or None, remark): what `run.resume` says to go on from.

    Raises:
        InputError: if that is not there, should not be there, or belongs to other options, data or another teacher.
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
    if state["decided"]["data"] != digests["data"]:
        raise InputError(f"{folder} was trained on other data of the same name; take another run.name")
    if state["decided"].get("teacher") != digests["teacher"]:
        raise InputError(
            f"{folder} was trained with another teacher: {config.method.teacher} has changed; take another run.name"
        )
    return state, remark


def run_epochs(session: Session, log: RunLog, stop: StopRequest) -> int:
    """Runs the epochs that are left: train, evaluate, learn soft labels, log, checkpoint. Returns the exit code."""
    while session.position.epochs < session.epochs:
        try:
            row = run_epoch(session, log, stop)
        except Stopped:
            session.refuse_broken_weights()
            checkpoint.save(log.folder, {**session.state_dict(), "rows": log.rows})
            log.say(f"stopped by {signal.Signals(stop.signal).name}; the same command goes on from {log.folder}")
            return 128 + stop.signal
        log.row(row)
        checkpoint.save(log.folder, {**session.state_dict(), "rows": log.rows})
        log.summary(finished=session.position.epochs == session.epochs)
    return show_results(log)


def run_epoch(session: Session, log: RunLog, stop: StopRequest) -> Row:
    """The row of the epoch at hand, after which the run's position is the next one's beginning.

    Raises:
        Stopped: at a stop, wherever it came; the position says where.
        TrainingFailed: at a loss that is no number.
    """
    start = time.perf_counter()
    number, phase, _ = session.phase_at(session.position.epochs)
    totals, speed = train_epoch(session, log, stop)
    metrics = session.evaluate(stop.watch)
    if not math.isfinite(metrics["nll"]):
        raise TrainingFailed(f"the test loss is not finite after epoch {session.position.epochs + 1}")
    if session.phase_ends():
        learn_soft_labels(session, log, stop, number)
    target_entropy = session.target_entropy()
    session.position.epochs, session.position.batches = session.position.epochs + 1, 0
    return {
        "epoch": session.position.epochs,
        "phase": number + 1,
        "lr": session.last_learning_rate(),
        "train/loss": totals.loss,
        "train/top1": totals.top1,
        **{f"test/{name}": value for name, value in metrics.items()},
        **speed,
        "target_entropy": target_entropy,
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak_memory_bytes(session.device),
    }


def show_finished(log: RunLog, state: dict[str, Any]) -> int:
    """The exit code of a run that was finished before; a W&B agent that waits for another run of it gets its rows."""
    if agent_run() in (None, state["wandb_id"]):
        log.restore(state["rows"])
    else:
        log.open(state["rows"], wandb_id=state["wandb_id"])
    try:
        return show_results(log)
    finally:
        log.close(0)


def show_results(log: RunLog) -> int:
    """The exit code of a finished run, once its last and best row are in the summary and on the terminal."""
    log.console.print(results_table(log.summary(finished=True)))
    log.say(f"results: {log.folder}")
    return 0


def train_epoch(session: Session, log: RunLog, stop: StopRequest) -> tuple[EpochTotals, dict[str, float]]:
    """(totals, speed) of the epoch at hand, from the batch that the run's position names.

    Nothing in the loop waits for the device.

    Raises:
        Stopped: after the step under way, at a stop.
        TrainingFailed: at a loss that is no number.
    """
    session.enter_epoch()
    position, totals, every = session.position, session.step.totals, session.config.log.every
    epoch, first, note = position.epochs + 1, position.batches, ""
    start = time.perf_counter()
    with log.progress(epoch, steps=len(session.train)) as advance:
        for images, labels, index in session.train.epoch(position.epochs, first_batch=first):
            stepped = session.accumulate(images, labels, index)
            if position.batches % every == 0:
                so_far = totals.read_late()
                refuse_non_finite(so_far, epoch)
                note = f"loss {so_far.loss:.4f}" if so_far.seen else ""
            advance(position.batches, note)
            if stepped and stop.signal is not None:
                refuse_non_finite(totals.read(), epoch)
                raise Stopped
    whole = totals.read()
    refuse_non_finite(whole, epoch)
    seconds = time.perf_counter() - start
    advise(session, log, seconds)
    seen = session.samples_before(position.batches) - session.samples_before(first)
    return whole, {"images_per_second": seen / seconds, "data_wait": session.train.wait_seconds / seconds}


def advise(session: Session, log: RunLog, seconds: float) -> None:
    """Says what may help, once, where training waited for its data in much of an epoch that took so many seconds.

    The wait for the first batch does not count: kernels are loaded meanwhile, and nothing could be trained on.
    """
    waited = (session.train.wait_seconds - session.train.first_wait_seconds) / seconds
    if waited > WAITING_SHARE and not session.advised:
        session.advised = True
        log.say(f"waited for data in {waited:.0%} of this epoch; may help: {'; '.join(session.train.remedies())}")


def refuse_non_finite(totals: EpochTotals, epoch: int) -> None:
    """Stops the run at a loss that is no number.

    Raises:
        TrainingFailed: names epoch and step.
    """
    if totals.bad_step:
        raise TrainingFailed(f"the loss is not finite at epoch {epoch}, step {totals.bad_step:.0f}")


def learn_soft_labels(session: Session, log: RunLog, stop: StopRequest, number: int) -> None:
    """Makes the soft labels of the phase that just ended, if it learns any, and keeps a copy in the run's folder."""
    missing = session.learn_soft_labels(stop.watch)
    if missing is None:
        return
    if missing:
        names = ", ".join(session.train.manifest.classes[label] for label in missing[:5])
        seen = "classified correctly" if session.means.correct_only else "seen"
        log.say(f"warning: no sample of {len(missing)} classes was {seen} ({names}); they keep their former soft label")
    last = number + 1 == len(session.phases)
    log.say(describe_soft_labels(session.learned.cpu(), advise=not last))
    folder = log.folder / "soft_labels"
    folder.mkdir(exist_ok=True)
    table = {"soft_labels": session.learned.cpu().contiguous(), "count": session.means.count.cpu()}
    config = session.config
    said = {"fold": fold_name(config.data), "model": config.model.name, "run": config.run_name(), "stage": number + 1}
    save_labels(folder / f"stage_{number + 1:02d}.safetensors", table, session.train.manifest, **said)


def describe_soft_labels(table: torch.Tensor, *, advise: bool) -> str:
    """A line on float32[K, K] soft labels by class: how soft they are, and how many still name their own class.

    Args:
        advise: warn where they say too little to be trained on.
    """
    classes = len(table)
    entropy, most = torch.special.entr(table.double()).sum(1).mean().item(), math.log(classes)
    own = int((table.argmax(1) == torch.arange(classes)).sum())
    line = f"soft labels: {own} of {classes} peak at their own class, entropy {entropy:.3f} of at most {most:.3f} nats"
    if advise and (own < classes / 2 or entropy > 0.95 * most):
        line += "; warning: they say little, the network does not tell the classes apart yet (try longer stages)"
    return line
