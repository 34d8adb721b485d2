"""Linear classifiers on a network's features: how they are fitted, and how a run's features serve another data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastlsr.config import Config
from fastlsr.data.crops import input_resolution
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import data_digests, fold_of_sample, split_paths
from fastlsr.engine.session import evaluation_loader, training_loader
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError
from fastlsr.inference.features import split_features
from fastlsr.metrics import METRICS
from fastlsr.models.linear_head import LinearHead, fit_linear_head
from fastlsr.terminal import progress, terminal

HELD_OUT = 10  # one in so many samples of each class chooses the head's penalty
PROBED = ("top1", "top5", "nll")  # the figures of a probe, as `fastlsr.metrics` defines them


def fit_head(
    features: Tensor, labels: Tensor, *, classes: int, advance: Callable[[int, str], None] = lambda done, note: None
) -> LinearHead:
    """The linear head of all samples, its penalty chosen on one in `HELD_OUT`.

    Args:
        features: float16 or float32[n, D].
        labels: int64[n] on the same device.
        advance: as for `fit_linear_head`.

    Raises:
        InputError: if a feature is not finite.
    """
    if not features.isfinite().all():
        raise InputError("the network's features are not finite")
    held_out = torch.from_numpy(fold_of_sample(labels.cpu().numpy(), HELD_OUT) == 0).to(labels.device)
    return fit_linear_head(features, labels, held_out, classes=classes, advance=advance)


@torch.inference_mode()
def probe(run: TrainedRun, dataset: str, *, quiet: bool = False) -> dict[str, float]:
    """The figures `PROBED` of a linear classifier on the run's features, on the test split of another data set.

    It is fitted on the features of that data set's training split. The network is frozen and takes images without
    augmentation, at its own resolution and with its own normalisation; the classes are the other data set's. "l2" is
    the penalty that was chosen.

    Args:
        dataset: as `data.dataset`; its files are in the run's `data.dir`, beside the run's own.
        quiet: whether no progress is shown.

    Raises:
        InputError: for files that do not fit, or a network whose features cannot be had or are not finite.
    """
    config = on_other_data(run.config, dataset)
    data_digests(config)
    loaders = training_loader(config, run.device, plain=True), evaluation_loader(config, run.device)
    train, test = (split_features(run, each, dataset, quiet=quiet) for each in loaders)
    values, labels = train.values.to(run.device), train.labels.to(run.device)
    classes = len(loaders[0].manifest.classes)
    if quiet:
        head = fit_head(values, labels, classes=classes)
    else:
        with progress(terminal(stderr=True), f"{run.config.run_name()}: linear head") as advance:
            head = fit_head(values, labels, classes=classes, advance=advance)
    logits = head(test.values.to(run.device)).cpu()
    figures = {name: METRICS[name] for name in PROBED}
    return {name: each.value(each.sums(logits, test.labels), len(logits)) for name, each in figures.items()} | {
        "l2": head.l2
    }


def on_other_data(config: Config, dataset: str) -> Config:
    """The options with another data set, whole, its images at the resolution that the network was trained with.

    Args:
        dataset: as `data.dataset`, in the same `data.dir`.

    Raises:
        InputError: if the manifest of the run's own data cannot be read.
    """
    own, _ = split_paths(config)
    resolution = input_resolution(read_manifest(own), config.data)
    data = replace(config.data, dataset=dataset, train="", val="", folds=0, fold=0, resolution=resolution)
    return replace(config, data=data)
