"""What a run would do, printed instead of done."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from fastlsr.config import Config
from fastlsr.data.crops import input_resolution
from fastlsr.data.loader import check_pairs_storage
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import split_paths, training_count
from fastlsr.engine.log import wandb_mode
from fastlsr.engine.loop import find_start
from fastlsr.engine.runtime import choose_device
from fastlsr.engine.schedule import Schedule
from fastlsr.engine.session import build_network, read_teacher
from fastlsr.labels.plan import Plan
from fastlsr.runs import run_folder


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
    wandb_mode(config.log.wandb)
    if plan.pairs:
        check_pairs_storage(config.data)
    find_start(config, plan)
    train = read_manifest(split_paths(config)[0])
    read_teacher(config, plan, train, torch.device("cpu"))
    resolution, classes = input_resolution(train, config.data), len(train.classes)
    pretrained = "" if config.model.pretrained == "timm" else config.model.pretrained
    model = build_network(config, classes, resolution, pretrained=pretrained)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    yield f"model: {config.model.name}, {parameters:,} parameters, {classes} classes, {resolution} pixels"
    images = training_count(train.count, config.data)
    batches = images / config.data.batch_size
    batches = math.floor(batches) if config.data.drop_last else math.ceil(batches)
    yield f"data: {images:,} training images, batches an epoch: {batches:,}"


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
