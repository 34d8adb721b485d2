"""How many of a sweep's trials run at a time, and the share of the cores that each gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from fastlsr.config import Config
from fastlsr.cores import cores
from fastlsr.errors import InputError
from fastlsr.sweep.plan import PlannedTrial, finished_run

# Of a process that trains, without its step. Measured: 0.6 to 0.9 GiB, of which 0.4 are libraries that all share.
_PROCESS_BYTES = 1 << 30
_STEP_FACTOR = 2.0  # of what a step takes at least: the kernels' own memory and what malloc keeps


class Jobs(NamedTuple):
    """Trials at a time, and how many equal shares the cores are divided into, one for a trial."""

    at_once: int
    shares: int


def choose_jobs(trials: Sequence[PlannedTrial], ranks: int, devices: Sequence[str]) -> Jobs:
    """As many as finish the most trials an hour: one for each CUDA device, or on a CPU for each core.

    On a CPU trials of one thread each lose nothing to waiting for one another. Memory may carry fewer. The shares, and
    with them the rounding of a trial's numbers, depend on the sweep and the machine alone; how much of its memory is
    free at the moment only limits how many trials run at a time.

    Args:
        ranks: processes of each trial.
        devices: the CUDA devices that trials may use.
    """
    if all(finished_run(trial)[0] for trial in trials):
        return Jobs(1, 1)
    if devices and any(trial.config.train.device != "cpu" for trial in trials):
        names_one = any(":" in trial.config.train.device for trial in trials)
        number = 1 if names_one else max(1, min(len(trials), len(devices) // ranks))
        return Jobs(number, number)
    wanted = min(len(trials), cores() // (ranks * threads_of_rank()))
    return within_memory(wanted, trials, ranks) if wanted > 1 else Jobs(1, 1)


def threads_of_rank() -> int:
    """Threads that the user's OMP_NUM_THREADS gives each process; one where it is not set."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else 1


def within_memory(wanted: int, trials: Sequence[PlannedTrial], ranks: int) -> Jobs:
    """As many of `wanted` trials at a time as memory carries, at least one."""
    import torch  # takes seconds, and is needed for several jobs only

    from fastlsr.engine.footprint import free_bytes, whole_bytes

    needed = max(needed_bytes(config, ranks) for config in distinct_steps(trials))
    shares = max(1, min(wanted, whole_bytes() // needed))
    return Jobs(max(1, min(shares, free_bytes(torch.device("cpu")) // needed)), shares)


def distinct_steps(trials: Sequence[PlannedTrial]) -> list[Config]:
    """A configuration for each kind of step that the trials take, as far as its memory goes."""
    kinds = {}
    for trial in trials:
        config = trial.config
        kinds[config.model, config.data, config.train.precision, config.method.name] = config
    return list(kinds.values())


def needed_bytes(config: Config, ranks: int) -> int:
    """Bytes of memory that a trial takes, about; of one whose data are not there, those of its processes."""
    import torch

    from fastlsr.data.crops import input_resolution
    from fastlsr.data.manifest import read_manifest
    from fastlsr.data.splits import split_paths, training_count
    from fastlsr.engine.classifier import Classifier
    from fastlsr.engine.footprint import step_bytes
    from fastlsr.engine.runtime import choose_precision
    from fastlsr.labels.methods import make_plan
    from fastlsr.models import build_model

    try:
        train = read_manifest(split_paths(config)[0])
        resolution, classes = input_resolution(train, config.data), len(train.classes)
        model = build_model(config.model.name, classes=classes, resolution=resolution)
    except InputError:  # which the trial itself will report
        return ranks * _PROCESS_BYTES
    precision = choose_precision(config.train.precision, torch.device("cpu"), report=lambda line: None)
    channels_last = config.train.channels_last
    network = Classifier(model, train.mean, train.std, precision=precision, channels_last=channels_last)
    images = min(config.data.batch_size, training_count(train.count, config.data))
    pairs = make_plan(config.method, config.train.epochs).pairs
    weights, saved = step_bytes(network, resolution, images * (2 if pairs else 1))
    return ranks * _PROCESS_BYTES + int(_STEP_FACTOR * (ranks * weights + saved))
