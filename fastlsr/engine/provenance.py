"""What a run is made of and what it was made on: digests of its files, versions, device, command, git state."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastlsr import __version__
from fastlsr.config import Config
from fastlsr.data.manifest import digest_of
from fastlsr.data.splits import data_digests
from fastlsr.engine.runtime import cores
from fastlsr.errors import InputError
from fastlsr.labels.plan import TEACHER_CLASS, TEACHER_SAMPLE, Plan
from fastlsr.models.pretrained import timm_config
from fastlsr.models.weight_files import file_and_key


def source_digests(config: Config, plan: Plan) -> dict[str, Any]:
    """The digests of the training and evaluation file, "data", and of `method.teacher`, "teacher" (None without one).

    Raises:
        InputError: if a file is missing or cannot be read, or the two splits do not fit.
    """
    return {"data": data_digests(config), "teacher": _teacher_digest(config, plan)}


def pretrained_source(model: nn.Module, pretrained: str) -> str | None:
    """Where a network's first weights are from: the digest of `model.pretrained`, or timm's tag; None: random ones."""
    if not pretrained:
        return None
    if pretrained == "timm":
        return f"timm {timm_config(model)['tag']}"
    return digest_of(file_and_key(pretrained)[0])


def _teacher_digest(config: Config, plan: Plan) -> str | None:
    if not plan.sources & {TEACHER_CLASS, TEACHER_SAMPLE}:
        return None
    try:
        return digest_of(Path(config.method.teacher))
    except OSError as error:
        raise InputError(f"method.teacher={config.method.teacher}: {error.strerror}") from None


def environment(device: torch.device) -> dict[str, Any]:
    """What produced a run: versions, device, command, and the state of the code's git checkout."""
    return {
        **software(),
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],
        "platform": platform.platform(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "git": _git_state(),
    }


def software() -> dict[str, Any]:
    """The versions of this program, of Python, and of the packages that a run's numbers depend on."""
    names = ("torch", "torchvision", "ffcv", "numba", "numpy", "timm", "fastargs", "wandb")
    versions = {name: _version(name) for name in names}
    return {"fastlsr": __version__, "python": platform.python_version(), "versions": versions}


def _version(package: str) -> str:
    try:
        return version(package)  # a module's own __version__ can be wrong, as ffcv's is
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> dict[str, Any] | None:
    """The commit and whether files differ from it, or None outside a checkout."""
    folder = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
