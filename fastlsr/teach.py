"""Makes a teacher: soft predictions for a training split, by sample and by class, for lsr_pre, tsla_pre and table.

    python -m fastlsr.teach --cfg FILE --model NAME [--model.pretrained=FILE] --out TEACHER.safetensors
    python -m fastlsr.teach --checkpoint RUN [--cfg FILE] --out TEACHER.safetensors

--model NAME      a network with pre-trained weights, timm's or those of model.pretrained; it is frozen, and a linear
                  head is fitted on its features of the training images, which are not augmented
--checkpoint RUN  a run of this data, its folder or one of its checkpoints: its own network, taken whole
--cfg FILE        which data; with --checkpoint the run's own, unless the file names another place for them

Of the options only those that a teacher depends on are taken: where the data is, data.folds, data.fold, train.device;
with --model also data.resolution, model.pretrained, and how train computes.
"""

from __future__ import annotations

import difflib
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from fastlsr import __version__
from fastlsr.config import Config, from_dict, load, read_arguments
from fastlsr.data.folds import fold_name, fold_of_sample
from fastlsr.data.loader import Batch, Loader
from fastlsr.data.manifest import digest_of
from fastlsr.data.splits import data_digests, split_paths
from fastlsr.data.teacher import TeacherRows
from fastlsr.engine import checkpoint
from fastlsr.engine.log import progress, terminal
from fastlsr.engine.runtime import choose_device, choose_precision, set_up_torch
from fastlsr.engine.session import (
    build_network,
    evaluation_loader,
    trained_network,
    training_loader,
    wrap,
)
from fastlsr.engine.step import Classifier
from fastlsr.errors import InputError, exit_on_input_error
from fastlsr.models import expected_normalization
from fastlsr.models.linear_head import fit_linear_head

OWN = ("model", "checkpoint", "out")
PLACES = ("dataset", "dir", "train", "val", "batch_size", "workers", "os_cache")  # data: the same images for all that
OF_ANY = (*(f"data.{name}" for name in PLACES), "data.folds", "data.fold", "train.device")
OF_MODEL = ("data.resolution", "model.pretrained", "train.precision", "train.channels_last", "train.deterministic")
HELD_OUT = 10  # one in so many training images chooses the head's penalty
_HALF = torch.finfo(torch.float16).max


class Predictions(NamedTuple):
    """What a teacher says of some training images."""

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


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command: 0 done, 2 wrong input, 130 interrupted; then nothing was written."""
    with exit_on_input_error():
        path, options, flags = read_arguments(sys.argv[1:] if arguments is None else arguments, flags=("help",))
        if "help" in flags:
            print(__doc__)
            return 0
        model, run, out = (options.pop(name, "") for name in OWN)
        refuse_unknown(options, from_run=bool(run))
        if not out or not (model or run):
            raise InputError("usage: python -m fastlsr.teach --cfg FILE --model NAME (or --checkpoint RUN) --out FILE")
        refuse_place(Path(out))
        state = read_run(Path(run)) if run else None
        config = config_of_run(state, path, options, model) if state else config_of_model(path, options, model)
        try:
            teach(config, state, Path(out))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


def refuse_unknown(options: Iterable[str], *, from_run: bool) -> None:
    """None.

    Raises:
        InputError: for an option that no teacher depends on (names the nearest one that it may).
    """
    known = [*OWN, "cfg", *OF_ANY, *(() if from_run else OF_MODEL)]
    for name in options:
        if name in OF_MODEL and name not in known:
            raise InputError(f"--{name} is the run's own with --checkpoint")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean --{close[0]}?" if close else f"there are {', '.join(f'--{name}' for name in known)}"
            raise InputError(f"--{name} is no option of a teacher; {hint}")


def refuse_place(out: Path) -> None:
    """None.

    Raises:
        InputError: if a teacher cannot be written to `out`.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--out={out}: expected a file that ends in .safetensors")
    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out={out} cannot be written: {out.parent} must be a folder that can be")


def read_run(path: Path) -> dict[str, Any]:
    """The newest checkpoint of a run's folder, or that of a file.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    state, remark = checkpoint.load(path)
    if not isinstance(state, dict) or not {"config", "decided", "model", "ema", "position"} <= state.keys():
        raise InputError(f"--checkpoint={path} holds no checkpoint of a run")
    if remark:
        print(f"warning: {remark}", file=sys.stderr)
    return state


def config_of_model(path: str, options: dict[str, str], model: str) -> Config:
    """The configuration, with the network `model` and timm's weights for it where no others are named.

    Raises:
        InputError: as `config.load`.
    """
    config = load(path, options)
    given = config.model.pretrained if "model.pretrained" in options or config.model.name == model else ""
    return replace(config, model=replace(config.model, name=model, pretrained=given or "timm"))


def config_of_run(state: dict[str, Any], path: str, options: dict[str, str], model: str) -> Config:
    """The run's configuration, with the data where `path` and `options` say it is.

    Raises:
        InputError: as `config.load`, and for a run of another network or with other folds.
    """
    run = from_dict(state["config"])
    given = load(path, options) if path else from_dict(state["config"], options)
    if model and model != run.model.name:
        raise InputError(f"--model={model}: the run's network is {run.model.name}; leave --model out")
    if fold_name(given.data) != fold_name(run.data):
        raise InputError(
            f"--checkpoint: the run was trained with data.folds={run.data.folds} and data.fold={run.data.fold}, not "
            f"{given.data.folds} and {given.data.fold}"
        )
    places = {name: getattr(given.data, name) for name in PLACES if f"data.{name}" in given.given}
    return replace(run, data=replace(run.data, **places), train=replace(run.train, device=given.train.device))


@torch.inference_mode()
def teach(config: Config, state: dict[str, Any] | None, out: Path) -> None:
    """Writes the teacher's file and prints what it is worth.

    Args:
        state: the checkpoint of the run that teaches, or None for the configured network and a linear head.

    Raises:
        InputError: for data, weights or a run that do not fit together; nothing is written then.
    """
    console, device = terminal(), choose_device(config.train.device)
    set_up_torch(device, deterministic=config.train.deterministic)
    train = training_loader(config, device, plain=True)
    test = test_loader(config, device)
    teacher = of_run(state, config, train, console) if state else of_model(config, train, console)
    rows = TeacherRows(train.manifest.count, len(train.manifest.classes))
    for index, labels, logits in teacher.predictions:
        rows.add(index, labels, logits.float().softmax(1))
    accuracies = {"train_top1": rows.top1}
    if test:
        accuracies["test_top1"] = top1(teacher.forward, watched(test, "test images", console))
    made = teacher.made | {"resolution": train.resolution, "fastlsr": __version__} | accuracies
    rows.save(out, train.manifest, fold=fold_name(config.data), model=config.model.name, **made)
    on = "  ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in accuracies.items())
    most = math.log(len(train.manifest.classes))
    say(console, f"teacher: {out}  {on}  mean entropy {rows.entropy:.3f} of at most {most:.3f} nats")


def say(console: Console, text: str) -> None:
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


def of_run(state: dict[str, Any], config: Config, train: Loader, console: Console) -> Teacher:
    """A run's own network, with the normalisation and precision that the run decided on.

    Raises:
        InputError: if it was trained on other data or classes.
    """
    network = trained_network(state, config, train, choose_device(config.train.device))
    if state["decided"]["data"][0] != train.manifest.digest:
        raise InputError(f"--checkpoint: the run was trained on other data than {split_paths(config)[0]}")
    images = watched(train, "training images", console)
    predictions = (Predictions(batch.index, batch.labels, network(batch.images)) for batch in images)
    epochs, batches = state["position"]
    made = {"run": from_dict(state["config"]).run_name(), "epochs": epochs, "batches": batches}
    return Teacher(network, predictions, {"how": "the network of a run"} | made | of_decided(state["decided"]))


def of_model(config: Config, train: Loader, console: Console) -> Teacher:
    """The configured network, frozen, with a linear head fitted on its features of the training split.

    Raises:
        InputError: for weights that cannot be had or do not fit, or features that are not finite.
    """
    device, classes = choose_device(config.train.device), len(train.manifest.classes)
    network, made = pretrained_network(config, train, console)
    note_resolution(network, train, console)
    features = features_of(network, watched(train, "training images", console), len(train.indices))
    if not features.isfinite().all():
        raise InputError(f"--model={config.model.name}: its features are not finite")
    labels = train.labels[train.indices]
    columns = (train.indices, labels, fold_of_sample(labels, HELD_OUT) == 0)
    index, labels, held_out = (torch.from_numpy(column).to(device) for column in columns)
    with progress(console, "linear head") as advance:
        head = fit_linear_head(features, labels, held_out, classes=classes, advance=advance)
    say(console, f"linear head: l2 {head.l2:g} on {features.shape[1]} features of {len(features):,} images")
    blocks = zip(*(column.split(config.data.batch_size) for column in (index, labels, features)), strict=True)
    predictions = (Predictions(index, labels, head(part)) for index, labels, part in blocks)
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
    precision = choose_precision(config.train.precision, device, lambda text: say(console, text))
    decided = {"normalization": normalization, "precision": precision}
    source = "timm " + model.pretrained_cfg["tag"] if weights == "timm" else digest_of(Path(weights))
    return wrap(model, decided, config).to(device).eval(), {"weights": source, **of_decided(decided)}


def of_decided(decided: dict[str, Any]) -> dict[str, Any]:
    """What a teacher's file says of how its network computes."""
    return {name: decided[name] for name in ("precision", "normalization")}


def note_resolution(network: Classifier, train: Loader, console: Console) -> None:
    """Says so when the images are much smaller than those that a timm network's weights were trained on."""
    wanted = getattr(network.model, "pretrained_cfg", {}).get("input_size", (3, 0, 0))[-1]
    if train.resolution < wanted / 2:
        say(console, f"note: images of {train.resolution} pixels for weights of {wanted}; --data.resolution={wanted}?")


def features_of(network: Classifier, batches: Iterable[Batch], count: int) -> Tensor:
    """float16[count, D], on the device: the penultimate features of the images, in the order of the batches."""
    features, first = None, 0
    for batch in batches:
        block = network.penultimate(batch.images).features.clamp(-_HALF, _HALF)
        if features is None:
            features = torch.empty(count, block.shape[1], dtype=torch.float16, device=block.device)
        features[first : first + len(block)] = block
        first += len(block)
    return features


def top1(forward: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> float:
    """Accuracy on the batches, in percent."""
    correct = seen = 0
    for batch in batches:
        correct += int((forward(batch.images).argmax(1) == batch.labels).sum())
        seen += len(batch.labels)
    return 100 * correct / seen


if __name__ == "__main__":
    sys.exit(main())
