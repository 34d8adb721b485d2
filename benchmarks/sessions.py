"""A run under way, as `fastlsr.train` makes it, for benchmarks of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fastlsr.config import load
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Session
from fastlsr.labels.methods import make_plan

CPU = torch.device("cpu")


def begin(
    overrides: Mapping[str, object], device: torch.device = CPU, report: Callable[[str], None] = lambda line: None
) -> Session:
    """A run with these options before its first step, and torch set up for it."""
    config = load(overrides=overrides)
    set_up_torch(device)
    return Session(config, make_plan(config.method, config.train.epochs), device, report=report)
