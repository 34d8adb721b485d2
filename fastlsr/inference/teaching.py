"""Makes a teacher's file from a run's own network, or from a linear head on a pre-trained one. Starts at `teach`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from fastlsr import __version__
from fastlsr.config import Config
from fastlsr.data.loader import Batch, Loader
from fastlsr.data.soft_labels import TeacherRows
from fastlsr.data.splits import data_digests, fold_name, split_paths
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.provenance import pretrained_source
from fastlsr.engine.runtime import choose_device, choose_precision, set_up_torch
from fastlsr.engine.session import build_network, classifier_of, evaluation_loader, training_loader
from fastlsr.engine.trained import TrainedRun
from fastlsr.inference.linear_probe import fit_head
from fastlsr.models import expected_normalization
from fastlsr.models.pretrained import timm_config
from fastlsr.terminal import progress, terminal

_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Predictions:
    """A teacher's logits for some training images."""

    index: Tensor  # int64[B]
    labels: Tensor  # int64[B]
    logits: Tensor  # [B, K]


class Teacher(NamedTuple):
    """A network that is ready to teach.

    Attributes:
        forward: uint8 images [B, 3, H, W] to logits [B, K].
        predictions: all of the training split's, once.
        made: how it was made, in plain values.
    """

    forward: Callable[[Tensor], Tensor]
    predictions: Iterator[Predictions]
    made: dict[str, Any]


@torch.inference_mode()
def teach(source: TrainedRun | Config, out: Path) -> None:
    """Writes the teacher's file and prints its accuracy.

    Args:
        source: the run that teaches, or the options of a pre-trained network that gets a linear head.

    Raises:
        InputError: for data, weights or a run that do not fit together; nothing is written then.
    """
    console = terminal()
    if isinstance(source, TrainedRun):
        config, device, train = source.config, source.device, source.plain_training_loader()
    else:
        config, device = source, choose_device(source.train.device)
        set_up_torch(device, config.train)
        train = training_loader(config, device, plain=True)
    test = test_loader(config, device)
    if isinstance(source, TrainedRun):
        teacher = teacher_of_run(source, train, console)
    else:
        teacher = teacher_of_model(config, train, console)
    rows = TeacherRows(train.manifest.count, len(train.manifest.classes))
    for some in teacher.predictions:
        rows.add(some.index, some.labels, some.logits.float().softmax(1))
    accuracies = {"train_top1": rows.top1}
    if test:
        split = config.data.evaluated_split
        accuracies[f"{split}_top1"] = accuracy(teacher.forward, watched(test, f"{split} images", console))
    made = teacher.made | {"resolution": train.resolution, "fastlsr": __version__} | accuracies
    rows.save(out, train.manifest, fold=fold_name(config.data), model=config.model.name, **made)
    on = "  ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in accuracies.items())
    most = math.log(len(train.manifest.classes))
    report(console, f"teacher: {out}  {on}  mean entropy {rows.entropy:.3f} of at most {most:.3f} nats")


def report(console: Console, text: str) -> None:
    """Prints a line."""
    console.print(text, markup=False)


def test_loader(config: Config, device: torch.device) -> Loader | None:
    """The evaluation split, or the fold that is held out; None where there is no file, unless one is named."""
    if not config.data.val and not split_paths(config)[1].exists():
        return None
    data_digests(config)
    return evaluation_loader(config, device)


def watched(loader: Loader, name: str, console: Console) -> Iterator[Batch]:
    """The batches of the split, in the file's order, while progress is shown."""
    with progress(console, name, steps=len(loader)) as advance:
        for done, batch in enumerate(loader.epoch(0), start=1):
            yield batch
            advance(done, "")


def teacher_of_run(run: TrainedRun, train: Loader, console: Console) -> Teacher:
    """A run's own network, with the normalisation and precision that the run decided on."""
    network = run.network(train.resolution)
    images = watched(train, "training images", console)
    predictions = (Predictions(batch.index, batch.labels, network(batch.images)) for batch in images)
    made = {"run": run.config.run_name(), "epochs": run.position.epochs, "batches": run.position.batches}
    return Teacher(network, predictions, {"how": "the network of a run"} | made | of_decided(run.decided))


def teacher_of_model(config: Config, train: Loader, console: Console) -> Teacher:
    """The configured network, frozen, with a linear head fitted on its features of the training split.

    Raises:
        InputError: for weights that cannot be had or do not fit, or features that are not finite.
    """
    device, classes = choose_device(config.train.device), len(train.manifest.classes)
    network, made = pretrained_network(config, train, console)
    note_resolution(network, train, console)
    features = features_of(network, watched(train, "training images", console), len(train.indices))
    columns = train.indices, train.labels[train.indices]
    index, targets = (torch.from_numpy(column).to(device) for column in columns)
    with progress(console, "linear head") as advance:
        head = fit_head(features, targets, classes=classes, advance=advance)
    report(console, f"linear head: l2 {head.l2:g} on {features.shape[1]} features of {len(features):,} images")
    blocks = zip(*(column.split(config.data.batch_size) for column in (index, targets, features)), strict=True)
    predictions = (Predictions(some, of_them, head(part)) for some, of_them, part in blocks)
    made = {"how": "a linear head on a frozen network", "l2": head.l2} | made
    return Teacher(lambda images: head(network.penultimate(images).features), predictions, made)


def pretrained_network(config: Config, train: Loader, console: Console) -> tuple[Classifier, dict[str, Any]]:
    """(network, what it is): the configured network with its pre-trained weights, in eval mode.

    Raises:
        InputError: for weights that cannot be had or do not fit.
    """
    device, weights = choose_device(config.train.device), config.model.pretrained
    model = build_network(config, len(train.manifest.classes), train.resolution, pretrained=weights)
    normalization = expected_normalization(model, weights) or (train.manifest.mean, train.manifest.std)
    precision = choose_precision(config.train.precision, device, lambda text: report(console, text))
    decided = {"normalization": normalization, "precision": precision}
    source = pretrained_source(model, weights)
    return classifier_of(model, decided, config).to(device).eval(), {"weights": source, **of_decided(decided)}


def of_decided(decided: dict[str, Any]) -> dict[str, Any]:
    """The part of a run's decisions that a teacher's file notes."""
    return {name: decided[name] for name in ("precision", "normalization")}


def note_resolution(network: Classifier, train: Loader, console: Console) -> None:
    """Prints a note if the images are much smaller than those that timm's weights were trained on."""
    wanted = timm_config(network.model).get("input_size", (3, 0, 0))[-1]
    if train.resolution < wanted / 2:
        report(
            console, f"note: images of {train.resolution} pixels for weights of {wanted}; --data.resolution={wanted}?"
        )


def features_of(network: Classifier, batches: Iterable[Batch], count: int) -> Tensor:
    """float16[count, D], on the device: the penultimate features of one or more images, in the order of the batches."""
    features, first = torch.empty(0), 0
    for batch in batches:
        block = network.penultimate(batch.images).features.clamp(-_HALF, _HALF)
        if not first:
            features = torch.empty(count, block.shape[1], dtype=torch.float16, device=block.device)
        features[first : first + len(block)] = block
        first += len(block)
    return features


def accuracy(forward: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> float:
    """Accuracy on the batches, in percent."""
    correct = seen = 0
    for batch in batches:
        correct += int((forward(batch.images).argmax(1) == batch.labels).sum())
        seen += len(batch.labels)
    return 100 * correct / seen
