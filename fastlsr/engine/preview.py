"""What a run would do, printed instead of done."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from fastlsr.config import Config
from fastlsr.data.crops import input_resolution, training_crop
from fastlsr.data.loader import check_pairs_storage
from fastlsr.data.manifest import Manifest, read_manifest
from fastlsr.data.splits import split_paths, training_count
from fastlsr.engine.compiling import timed_step
from fastlsr.engine.convolutions import choose_weight_gradients, set_weight_gradients
from fastlsr.engine.footprint import free_bytes, memory_warnings, step_bytes
from fastlsr.engine.loop import find_start
from fastlsr.engine.optimizers import build_optimizer
from fastlsr.engine.plugin_checks import check_registered
from fastlsr.engine.runtime import choose_device, choose_precision, set_up_torch
from fastlsr.engine.schedule import Schedule
from fastlsr.engine.session import build_network, classifier_of, read_teacher
from fastlsr.labels.plan import Plan
from fastlsr.logs.run_log import check_loggers
from fastlsr.models import expected_normalization, head_parameters
from fastlsr.ranks import largest_share, read_ranks
from fastlsr.runs import run_folder

_TRIED = {"cpu": 2 * 224**2, "cuda": 256 * 224**2}  # pixels of the images of the trial, about, at most


def preview(config: Config, plan: Plan) -> Iterator[str]:
    """Lines on the resolved options, the phases, the learning rate where it turns, and the network's size.

    The last of them need the data; nothing is downloaded.

    Raises:
        InputError: for options that do not fit together, or data that is not there or does not fit them; the images are
            not read.
    """
    yield config.as_yaml()
    yield "phases:"
    first = number = 1
    for phase, alike in itertools.groupby(plan.phases):
        count = len(list(alike))
        numbers, each = (f"{number} to {number + count - 1}", "each ") if count > 1 else (f"{number}", "")
        yield f"  {numbers}. epochs {first} to {first + count * phase.epochs - 1}: {each}{phase}"
        first, number = first + count * phase.epochs, number + count
    yield "learning rate:"
    for epoch, factor in turns(config, plan):
        backbone = f", backbone {factor * config.optim.backbone_lr:.6g}" if config.optim.backbone_lr else ""
        yield f"  from epoch {epoch + 1}: {factor * config.optim.lr:.6g}{backbone}"
    yield f"run: {run_folder(config).path}"
    choose_device(config.train.device)
    check_loggers(config)
    if plan.pairs:
        check_pairs_storage(config.data)
    build_optimizer(nn.Linear(1, 1), [], replace(config.optim, layer_decay=1.0))  # its options, before the data
    find_start(config, plan)
    train = read_manifest(split_paths(config)[0])
    read_teacher(config, plan, train, torch.device("cpu"))
    training_crop(train, config.data)
    resolution, classes = input_resolution(train, config.data), len(train.classes)
    warned = list[str]()
    check_registered(plan, classes, warned.append)
    yield from warned
    pretrained = "" if config.model.pretrained == "timm" else config.model.pretrained
    model = build_network(config, classes, resolution, pretrained=pretrained)
    build_optimizer(model, head_parameters(model), config.optim)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield f"model: {config.model.name}, {parameters:,} parameters, {classes} classes, {resolution} pixels"
    images = training_count(train.count, config.data)
    batches = images / config.data.batch_size
    batches = math.floor(batches) if config.data.drop_last else math.ceil(batches)
    yield f"data: {images:,} training images, batches an epoch: {batches:,}"
    yield from _estimates(config, plan, model, train)


def _estimates(config: Config, plan: Plan, model: nn.Module, train: Manifest) -> Iterator[str]:
    """Lines on the memory and the time that training takes here, from a trial on a few images, not compiled."""
    device, ranks = choose_device(config.train.device), read_ranks()
    set_up_torch(device, config.train)
    precision = choose_precision(config.train.precision, device, report=lambda line: None)
    decided = {
        "normalization": expected_normalization(model, config.model.pretrained) or (train.mean, train.std),
        "precision": precision,
    }
    network, size = classifier_of(model, decided, config).to(device), input_resolution(train, config.data)
    set_weight_gradients(network, choose_weight_gradients(precision, device))
    images = training_count(train.count, config.data)
    batch = largest_share(min(config.data.batch_size, images), ranks.world_size) * (2 if plan.pairs else 1)
    weights, saved = step_bytes(network, size, batch)
    yield (
        f"memory of a step on {batch} images: at least {_size(weights + saved)}, of which weights, gradients and "
        f"momentum {_size(weights)}; free on {device}: {_size(free_bytes(device))}"
    )
    data = sum(read_manifest(path).bytes for path in split_paths(config))
    for line in memory_warnings(config, device, ranks, weights + saved, data):
        yield f"warning: {line}"
    count = min(batch, max(1, _TRIED[device.type] // size**2))
    tried = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device)
    step = timed_step(network, tried, compile=False)
    step()  # the first one allocates
    speed = count / step() * ranks.world_size
    epoch = images * (2 if plan.pairs else 1) / speed
    yield (
        f"time: about {speed:.0f} images a second by {ranks.world_size} x {device.type}, from a step on {count}; "
        f"{_duration(epoch)} an epoch, {_duration(epoch * plan.epochs)} in all, without evaluation"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def turns(config: Config, plan: Plan) -> Iterator[tuple[int, float]]:
    """(0-based epoch, factor of optim.lr at its first step) wherever the rate changes its course."""
    schedule = Schedule(config.optim, config.train.epochs, steps_per_epoch=1000)
    milestones = dict(schedule.milestones())
    former = None
    for epoch in range(plan.epochs):
        _, phase, first = plan.at(epoch)
        inside = plan.within_generation(epoch)
        if inside in milestones or (epoch == first and phase.lr_scale != former):
            yield epoch, phase.lr_scale * schedule.factor(inside * schedule.steps_per_epoch)
        former = phase.lr_scale
