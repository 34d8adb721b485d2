"""A trained run's logits on its evaluation split, kept or computed now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import split_paths
from fastlsr.engine.evaluation import CollectedLogits
from fastlsr.engine.trained import TrainedRun
from fastlsr.inference.cost import FORWARD, tell_cost, training_seconds
from fastlsr.logits import EvaluationLogits, read_logits
from fastlsr.terminal import tracked


def evaluation_logits_of(runs: Sequence[TrainedRun], name: str) -> Iterator[EvaluationLogits]:
    """`evaluation_logits` of each run; progress is shown, and before it what computing those that are not kept takes.

    Args:
        name: of what they are for.

    Raises:
        InputError: as `evaluation_logits`.
    """
    computed = [run for run in runs if _kept(run) is None]
    images = [read_manifest(split_paths(run.config)[1]).count for run in computed]
    seconds = sum(training_seconds(run, FORWARD * count) for run, count in zip(computed, images, strict=True))
    tell_cost(f"{name}: logits of {len(computed)} runs", seconds)
    if len(runs) == 1:
        yield evaluation_logits(runs[0])
    else:
        yield from (evaluation_logits(run, quiet=True) for run in tracked(runs, name, steps=len(runs)))


def evaluation_logits(run: TrainedRun, *, quiet: bool = False) -> EvaluationLogits:
    """The logits on the evaluation split of the checkpoint that was opened.

    Those that the run kept of its last epoch, if that is the checkpoint's and the evaluation file is the same or is not
    here; else those that its network computes now, not compiled, rounded to float16 as kept ones are.

    Args:
        quiet: whether no progress is shown.

    Raises:
        InputError: if kept logits are damaged; or where the network computes them, for files that do not fit.
    """
    return _kept(run) or _computed(run, quiet)


def _kept(run: TrainedRun) -> EvaluationLogits | None:
    """Those that the run kept, if they are of the checkpoint that was opened."""
    path = run.folder.logits("last")
    if not path.exists() or run.position.batches:
        return None
    kept = read_logits(path)
    is_its_own = kept.epoch == run.position.epochs and kept.data == (_evaluation_digest(run) or kept.data)
    return kept if is_its_own else None


def _evaluation_digest(run: TrainedRun) -> str:
    """Of the file to evaluate on, as its manifest has it; "" where it is not here."""
    _, path = split_paths(run.config)
    return read_manifest(path).digest if path.exists() else ""


@torch.inference_mode()
def _computed(run: TrainedRun, quiet: bool) -> EvaluationLogits:
    loader, collected = run.evaluation_loader(), CollectedLogits()
    network, batches = run.network(loader.resolution), loader.epoch(0)
    name = f"{run.config.run_name()}: evaluation"
    for batch in batches if quiet else tracked(batches, name, steps=len(loader)):
        collected.add(batch, network(batch.images).float())
    return collected.on_host(epoch=run.position.epochs, data=loader.manifest.digest)
