"""A trained run's logits on its evaluation split, kept or computed now."""

from __future__ import annotations

import torch

from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import split_paths
from fastlsr.engine.evaluation import CollectedLogits
from fastlsr.engine.log import tracked
from fastlsr.engine.trained import TrainedRun
from fastlsr.logits import EvaluationLogits, read_logits


def evaluation_logits(run: TrainedRun, *, quiet: bool = False) -> EvaluationLogits:
    """The logits on the evaluation split of the checkpoint that was opened.

    Those that the run kept of its last epoch, if that is the checkpoint's and the evaluation file is the same or is not
    here; else those that its network computes now, not compiled, rounded to float16 as kept ones are.

    Args:
        quiet: whether no progress is shown.

    Raises:
        InputError: if kept logits are damaged; or where the network computes them, for files that do not fit.
    """
    path = run.folder.logits("last")
    if path.exists() and not run.position.batches:
        kept = read_logits(path)
        if kept.epoch == run.position.epochs and kept.data == (_evaluation_digest(run) or kept.data):
            return kept
    return _computed(run, quiet)


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
