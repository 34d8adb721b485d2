"""One run, from its configuration to its results. Reads downward: train -> run_epochs -> run_epoch -> train_epoch."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import shutil
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from fastlsr.config import PLACES, TEST, Config, Run, differences, from_dict
from fastlsr.data.loader import Batch
from fastlsr.data.manifest import read_manifest
from fastlsr.data.soft_labels import save_labels
from fastlsr.data.splits import fold_name, test_path
from fastlsr.engine import checkpoint, distributed
from fastlsr.engine.evaluation import CollectedLogits
from fastlsr.engine.footprint import memory_warnings, out_of_memory, step_bytes
from fastlsr.engine.label_learning import LearnedLabels
from fastlsr.engine.provenance import environment, software, source_digests
from fastlsr.engine.runtime import choose_device, peak_memory_bytes, set_up_torch
from fastlsr.engine.session import Session, State
from fastlsr.engine.totals import EpochTotals
from fastlsr.engine.trained import opened, read_checkpoint
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.files import remove_leftovers, replace_file, sole_use
from fastlsr.labels.plan import Plan
from fastlsr.logs.run_log import RunLog, SilentLog, check_loggers
from fastlsr.logs.wandb_log import agent_run, with_project
from fastlsr.plugins import Plugin
from fastlsr.ranks import Ranks
from fastlsr.runs import KINDS, Row, RunFolder, best_of, check_best_by, finite_row, is_whole, run_folder

WAITING_SHARE = 0.1  # of an epoch spent waiting for data, above which advice is printed


class Stopped(Exception):
    """A stop was requested."""


class StopRequest:
    """Remembers SIGINT or SIGTERM until the step under way is done. Alone, a second signal acts at once.

    Ranks ignore further ones: Slurm sends each to every process, and torchrun passes its own on. After 30 seconds
    torchrun kills.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._steps = distributed.LateAgreement()

    def __enter__(self) -> StopRequest:
        self._former = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        for each in self._former:
            signal.signal(each, signal.SIG_DFL if distributed.world_size() == 1 else signal.SIG_IGN)

    def check_step(self) -> None:
        """Raises Stopped, after the same step on all ranks, if any was asked to stop before the step before."""
        self._stop(self._steps.agree(self.signal))

    def check(self) -> None:
        """Raises Stopped, on all ranks, if any was asked to stop."""
        self._stop(distributed.agree(self.signal))

    def _stop(self, number: int) -> None:
        if number:
            self.signal = number
            raise Stopped

    def watch(self, batches: Generator[Batch, None, None]) -> Iterator[Batch]:
        """The same batches, until this rank is asked to stop. Ranks exchange nothing until the batches end.

        Raises:
            Stopped: then, if any rank was; the loader's thread has ended.
        """
        with contextlib.closing(batches):
            for batch in batches:
                if self.signal:
                    break
                yield batch
        self.check()


@dataclass(frozen=True)
class Start:
    """What a run goes on from.

    Attributes:
        state: the checkpoint, or None for a new run.
        remark: "", or a line that the newest checkpoint is damaged.
    """

    state: State | None
    remark: str


def train(config: Config, plan: Plan, *, started: float) -> int:
    """Trains the configured run, from its checkpoint where there is one; returns the exit code.

    Under torchrun, all ranks call it.

    Args:
        plan: of the configured method.
        started: when the command began, as `time.perf_counter` has it.

    Raises:
        InputError: before anything is written.
        TrainingFailed: with the last good checkpoint kept.
    """
    device = choose_device(config.train.device)
    set_up_torch(device, config.train)
    with distributed.process_group(device) as ranks:
        if distributed.remembered(distributed.STOPPED):
            raise TrainingFailed("torchrun has started again what was stopped")
        distributed.check_alike(facts(config, plan))
        try:
            return _train(config, plan, device, ranks, started=started)
        except torch.OutOfMemoryError as error:  # of a CUDA device; of memory the system ends the process
            raise TrainingFailed(out_of_memory(config, device)) from error


def _train(config: Config, plan: Plan, device: torch.device, ranks: Ranks, *, started: float) -> int:
    start = distributed.from_main(lambda: find_start(config, plan))
    config = with_project(config)
    folder = run_folder(config)
    log = RunLog(folder, config, plan.epochs) if distributed.is_main() else SilentLog(folder, config, plan.epochs)
    log.report(f"run: {folder.path}")
    if start.remark:
        log.report(f"warning: {start.remark}")
    if start.state and are_all(start.state["rows"], config, plan):
        log.report("finished before; nothing is left to train (another run.name would train it anew)")
        return show_finished(log, start.state)
    session = Session(config, plan, device, state=start.state, report=log.report, ranks=ranks)
    step = sum(step_bytes(session.network, session.train.resolution, session.largest_batch()))
    data = session.train.manifest.bytes + session.test.manifest.bytes
    everyones = distributed.gather(list(memory_warnings(config, device, ranks, step, data)))
    for line in dict.fromkeys(itertools.chain(*everyones)):
        log.report(f"warning: {line}")
    if start.state:
        log.report(f"resuming after {session.position.epochs} epochs and {session.position.batches} batches")
    with sole_use_of(folder):
        if distributed.is_main():
            begin_files(folder, session, start)
        log.open(start.state)
        threads = f"{torch.get_num_threads()} threads of torch, {session.train.workers} of the loader"
        each = f"{ranks.world_size} ranks, each with " if ranks.world_size > 1 else ""
        where = f"{each}{device}, {threads}"
        log.report(f"ready after {time.perf_counter() - started:.1f} s; training on {where}")
        code = 1
        try:
            with StopRequest() as stop:
                code = run_epochs(session, log, stop)
        finally:
            log.close(code)
        return code


def facts(config: Config, plan: Plan) -> dict[str, object]:
    """What all ranks must have alike, by name."""
    digests = {"plugin": [plugin.digest for plugin in config.plugins]}
    return {**config.flat(), **digests, **source_digests(config, plan), **software()}


def sole_use_of(folder: RunFolder) -> AbstractContextManager[int | None]:
    """Inside, no other run writes to the folder; the main rank holds it for all."""
    return (
        sole_use(folder.path, f"another process is training {folder.path}") if distributed.is_main() else nullcontext()
    )


def find_start(config: Config, plan: Plan) -> Start:
    """What `run.resume` makes the run go on from.

    Raises:
        InputError: if that is not there, should not be there, or belongs to other options, data or another teacher; or
            if a logger is not there that is requested.
    """
    check_loggers(config)
    check_best_by(config.train)
    folder, digests = run_folder(config).path, source_digests(config, plan)
    state, remark = checkpoint.load_newest(folder)
    if state is None:
        if config.run.resume == "must":
            raise InputError(f"run.resume=must: {folder} has no checkpoint")
        return Start(None, remark)
    if config.run.resume == "never" and not distributed.remembered(distributed.BEGUN):
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
    return Start(state, remark)


def begin_files(folder: RunFolder, session: Session, start: Start) -> None:
    """Writes what is known before the first step, and clears away what a killed process left."""
    distributed.remember(distributed.BEGUN)
    remove_leftovers(folder.path)
    if start.remark:
        checkpoint.set_aside(folder)
    folder.write_config(session.config)
    for plugin in session.config.plugins:
        keep_copy(plugin, folder)
    sources = {name: session.decided.get(name) for name in ("data", "teacher", "pretrained")}
    ranks = [*former_ranks(folder), session.ranks.world_size] if start.state else [session.ranks.world_size]
    folder.write_environment(environment(session.device) | {"ranks": ranks} | sources)


def keep_copy(plugin: Plugin, folder: RunFolder) -> None:
    """Copies the file of a plugin into the run's folder, where nothing loads it unless the user names it."""
    copy = folder.plugin(plugin)
    if Path(plugin.name).is_file() and not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        replace_file(copy, lambda path: shutil.copyfile(plugin.name, path))


def former_ranks(folder: RunFolder) -> list[int]:
    """On how many ranks the run was trained before, from its beginning; empty where its file does not tell."""
    try:
        found = folder.read_environment().get("ranks")
    except InputError:
        return []
    return found if isinstance(found, list) else []


def show_finished(log: RunLog, state: State) -> int:
    """Shows the results of a run that was finished before; a W&B agent that waits for another run of it gets its rows.

    Returns the exit code.
    """
    if agent_run() in (None, state["wandb_id"]):
        log.restore(state["rows"])
    else:
        log.open(state)
    try:
        log.show_results()
        return 0
    finally:
        log.close(0)


def run_epochs(session: Session, log: RunLog, stop: StopRequest) -> int:
    """Runs the epochs that are left, with a row after each and checkpoints as they are due; returns the exit code."""
    with checkpoint.Writer() as writer:
        due = CheckpointsDue(session.config.run, session.position.epochs)
        while not are_all(log.rows, session.config, session.plan):
            row = run_epoch(session, log, stop)
            ended = row is not None and are_all(log.rows, session.config, session.plan)
            if row is None:
                check_finite(session.totals.read(), session.position.epochs + 1)
                session.check_weights()
            elif ended:
                writer.wait()  # for best.pt
                judge_best(session, log)
            kept = kept_checkpoints(session.config, log, row)
            if due.after(session.position.epochs, now=ended or row is None or len(kept) > 0):
                state = session.state_dict() | log.state_dict()
                if distributed.is_main():
                    writer.write(state, functools.partial(write_checkpoints, log.folder, kept))
            if ended or row is None:
                writer.wait()
            if row is None:
                if distributed.is_main():
                    distributed.remember(distributed.STOPPED)
                log.report(
                    f"stopped by {signal.Signals(stop.signal).name}; the same command goes on from {log.folder.path}"
                )
                return 128 + stop.signal
            log.summary(finished=ended)
    if not session.finished:
        log.report(f"ended early: no better {session.config.train.best_by} in {session.config.train.patience} epochs")
    log.show_results()
    return 0


def are_all(rows: Sequence[Row], config: Config, plan: Plan) -> bool:
    """Whether no epoch is left after those of the rows."""
    return is_whole(rows, config.train, epochs=plan.epochs, last_phase=plan.at(plan.epochs - 1).first)


class CheckpointsDue:
    """After which epochs the newest checkpoint is written, by `run.checkpoint_epochs` and `run.checkpoint_seconds`."""

    def __init__(self, run: Run, epochs: int):
        self._run, self._epoch, self._time = run, epochs, time.monotonic()

    def after(self, epochs: int, *, now: bool) -> bool:
        """Whether it is after so many epochs, on all ranks alike; always if `now`."""
        due = epochs - self._epoch >= self._run.checkpoint_epochs
        if due and self._run.checkpoint_seconds and not now:
            due = distributed.from_main(lambda: time.monotonic() - self._time >= self._run.checkpoint_seconds)
        if due or now:
            self._epoch, self._time = epochs, time.monotonic()
        return due or now


def kept_checkpoints(config: Config, log: RunLog, row: Row | None) -> list[Path]:
    """The files of checkpoints that are kept of the epoch of `row`."""
    kept = []
    if row and config.run.keep_best and best_of(log.rows, config.train.best_by) is row:
        kept.append(log.folder.best_checkpoint)
    if row and config.run.keep and row["epoch"] % config.run.keep == 0:
        kept.append(log.folder.kept_checkpoint(row["epoch"]))
    return kept


def write_checkpoints(folder: RunFolder, kept: Sequence[Path], state: State) -> None:
    """Writes the checkpoints that are kept, and then the newest one."""
    for path in kept:
        checkpoint.keep(path, state)
    checkpoint.save(folder, state)


def run_epoch(session: Session, log: RunLog, stop: StopRequest) -> Row | None:
    """Finishes the epoch under way and logs its row; returns it, or None if a stop was requested during the epoch.

    Raises:
        TrainingFailed: at a loss that is not finite.
    """
    start, phase = time.perf_counter(), session.plan.at(session.position.epochs)
    split = session.config.data.evaluated_split
    try:
        totals, speed = train_epoch(session, log, stop)
        logits = None if session.config.run.logits == "none" else CollectedLogits()
        metrics = session.evaluate(stop.watch, logits)
        for name in ("nll", session.config.train.best_by):
            if not math.isfinite(metrics[name]):
                raise TrainingFailed(f"{split}/{name} is not finite after epoch {session.position.epochs + 1}")
        figures = {f"{split}/{name}": value for name, value in metrics.items()}
        at_end, kept_at_end = evaluate_at_end(session, log, figures, stop)
        end = session.end_epoch(stop.watch)
    except Stopped:
        return None
    row: Row = {
        "epoch": session.position.epochs,
        "phase": phase.number + 1,
        "lr": end.learning_rate,
        "train/loss": totals.loss,
        "train/top1": totals.top1,
        **figures,
        **{f"{TEST}/{name}": value for name, value in at_end.items()},
        **speed,
        "target_entropy": end.target_entropy,
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": distributed.agree(peak_memory_bytes(session.device)),
    }
    row = finite_row(row)
    if logits:
        keep_logits(logits, row, session, log)
    if kept_at_end:
        keep_logits_at_end(kept_at_end, row, session, log)
    log.row(row)
    if end.learned and distributed.is_main():
        keep_soft_labels(end.learned, session, log)
    return row


def evaluate_at_end(
    session: Session, log: RunLog, figures: Row, stop: StopRequest
) -> tuple[dict[str, float], CollectedLogits | None]:
    """(figures on the test split, its logits if they are kept), in the last epoch of a run that `selects_on_val`.

    Empty in all others: before its end such a run does not open the test split.

    Args:
        figures: of this epoch, for its row; train.patience may make it the last one.

    Raises:
        Stopped: in the middle.
    """
    rows = [*log.rows, {"epoch": session.position.epochs + 1, **figures}]
    if not session.config.data.selects_on_val or not are_all(rows, session.config, session.plan):
        return {}, None
    logits = CollectedLogits() if session.config.run.logits in ("last", "both") else None
    return session.evaluate_at_end(stop.watch, logits), logits


def judge_best(session: Session, log: RunLog) -> None:
    """Adds the test split's figures of the best epoch to its row, at the end of a run that `selects_on_val`.

    Its weights are those that `run.keep_best` has kept; without them the best row has none.
    """
    config = session.config
    best = best_of(log.rows, config.train.best_by)
    if not config.data.selects_on_val or not config.run.keep_best or best is log.rows[-1]:
        return
    path, values = log.folder.best_checkpoint, config.flat()
    state = distributed.from_main(lambda: kept_state(path, best["epoch"]))
    if state is None:  # run.keep_best was not on all the time
        log.report(f"warning: {path} is not of epoch {best['epoch']}, which is not evaluated on the test split")
        return
    run = opened(state, path, {key: values[key] for key in PLACES})
    logits = CollectedLogits() if config.run.logits in ("best", "both") else None
    figures = run.evaluate_at_end(logits, session.ranks)
    best |= {f"{TEST}/{name}": value for name, value in figures.items()}
    log.restore(log.rows)
    if logits:
        kept = logits.on_host(epoch=best["epoch"], data=read_manifest(test_path(config)).digest)
        if distributed.is_main():
            kept.write(log.folder.logits("best", at_end=True))


def kept_state(path: Path, epoch: int) -> State | None:
    """The checkpoint at `path`, if there is a whole one of this epoch."""
    try:
        state = read_checkpoint(path)
    except InputError:
        return None
    return state if state["position"] == [epoch, 0] else None


def keep_logits_at_end(logits: CollectedLogits, row: Row, session: Session, log: RunLog) -> None:
    """Writes the test split's logits behind the last row."""
    kept = logits.on_host(epoch=row["epoch"], data=read_manifest(test_path(session.config)).digest)
    if distributed.is_main():
        kept.write(log.folder.logits("last", at_end=True))


def keep_logits(logits: CollectedLogits, row: Row, session: Session, log: RunLog) -> None:
    """Writes the logits that the evaluation behind `row` has collected, where `run.logits` requests them."""
    requested, rows = session.config.run.logits, [*log.rows, row]
    best = best_of(rows, session.config.train.best_by)
    reached = {"last": are_all(rows, session.config, session.plan), "best": best is row}
    if kinds := [kind for kind in KINDS if reached[kind] and requested in (kind, "both")]:
        kept = logits.on_host(epoch=row["epoch"], data=session.test.manifest.digest)
        for kind in kinds if distributed.is_main() else ():
            kept.write(log.folder.logits(kind))


def train_epoch(session: Session, log: RunLog, stop: StopRequest) -> tuple[EpochTotals, dict[str, float]]:
    """(totals, speed) of the rest of the epoch under way. The loop never waits for the device.

    Raises:
        Stopped: after the step under way.
        TrainingFailed: at a loss that is not finite.
    """
    epoch, first, every, note = session.position.epochs + 1, session.position.batches, session.config.log.every, ""
    before, start = session.position.epochs * len(session.train), time.perf_counter()
    with log.progress(epoch, steps=len(session.train)) as advance:
        for batch in session.batches():
            stepped = session.train_batch(*batch)
            done = session.position.batches
            logs = (before + done) % every == 0
            if logs or done & (done - 1) == 0:  # at powers of two, too, so that the first loss is early
                so_far = session.totals.read_late()
                check_finite(so_far, epoch)
                note = f"loss {so_far.loss:.4f}" if so_far.seen else ""
                if logs and (new := so_far.since(session.totals.logged)).seen:
                    figures = {"train/loss": new.loss, "lr": session.learning_rate_at(so_far.steps)}
                    log.step(before + int(so_far.steps), figures)
                    session.totals.logged = so_far
            advance(done, note)
            if stepped:
                stop.check_step()
    whole = session.totals.read()
    check_finite(whole, epoch)
    seconds = time.perf_counter() - start
    advise(session, log, seconds)
    seen = session.samples_before(session.position.batches) - session.samples_before(first)
    waited = distributed.agree(session.train.wait_seconds / seconds)
    return whole, {"images_per_second": seen / seconds, "data_wait": waited}


def check_finite(totals: EpochTotals, epoch: int) -> None:
    """Checks the losses so far of a 1-based epoch.

    Raises:
        TrainingFailed: in all processes of the run, if one is not finite; names epoch and step.
    """
    bad_step = distributed.agree(int(totals.bad_step))
    if bad_step:
        raise TrainingFailed(f"the loss is not finite at epoch {epoch}, step {bad_step}")


def advise(session: Session, log: RunLog, seconds: float) -> None:
    """Prints loading advice once a run, after the first epoch that waited for data over 10% of its training time.

    The wait for the first batch does not count: kernels are loaded meanwhile, and nothing could be trained on.
    """
    waited = (session.train.wait_seconds - session.train.first_wait_seconds) / seconds
    if waited > WAITING_SHARE and not log.advised:
        log.advised = True
        log.report(f"waited for data in {waited:.0%} of this epoch; may help: {'; '.join(session.train.remedies())}")


def keep_soft_labels(learned: LearnedLabels, session: Session, log: RunLog) -> None:
    """Saves the soft labels that a phase learned in the run's folder, and prints how soft they are."""
    manifest, config = session.train.manifest, session.config
    if learned.missing:
        names = ", ".join(manifest.classes[label] for label in learned.missing[:5])
        log.report(f"warning: {len(learned.missing)} classes ({names}) {learned.what_is_missing}")
    last = learned.stage == len(session.plan.phases)
    log.report(soft_labels_line(learned.soft_labels, advice="" if last else learned.advice))
    path = log.folder.soft_labels(learned.stage)
    path.parent.mkdir(exist_ok=True)
    tensors = {"soft_labels": learned.soft_labels, "count": learned.count}
    run = {"run": config.run_name(), "stage": learned.stage}
    save_labels(path, tensors, manifest, fold=fold_name(config.data), model=config.model.name, **run)
    log.soft_labels(path, learned.soft_labels, manifest.classes)


def soft_labels_line(table: torch.Tensor, *, advice: str) -> str:
    """A line on float32[K, K] soft labels by class: how soft they are, and how many peak at their own class.

    Args:
        advice: part of a warning where they are too uniform to train on; "" where nothing is trained on them.
    """
    classes = len(table)
    entropy, most = torch.special.entr(table.double()).sum(1).mean().item(), math.log(classes)
    own = int((table.argmax(1) == torch.arange(classes)).sum())
    line = f"soft labels: {own} of {classes} peak at their own class, entropy {entropy:.3f} of {most:.3f} nats"
    if advice and (own < classes / 2 or entropy > 0.95 * most):
        line += f"; warning: they are close to uniform, the network does not tell the classes apart yet ({advice})"
    return line
