"""What a run is made of and what it was made on: digests of its files, versions, device, command, git state."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from torch import nn

from fastlsr import __version__
from fastlsr.cli import typed_command
from fastlsr.config import Config
from fastlsr.cores import cores
from fastlsr.data.manifest import digest_of
from fastlsr.data.splits import data_digests
from fastlsr.errors import InputError
from fastlsr.labels.plan import TEACHER_CLASS, TEACHER_SAMPLE, Plan
from fastlsr.models.pretrained import timm_config
from fastlsr.models.weight_files import file_and_key

_PACKAGE = Path(__file__).resolve().parents[1]


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
    """What produced a run: versions, device, command, how the code was installed, and the state of its git clone."""
    return {
        **software(),
        "command": typed_command(),
        "platform": platform.platform(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "installed": installation(_PACKAGE),
        "git": git_state(_PACKAGE.parent),
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


def installation(package: Path) -> dict[str, Any] | None:
    """Version and origin of fastlsr as pip recorded them, or None where it is not `package` that pip installed."""
    try:
        installed = distribution("fastlsr")
    except PackageNotFoundError:
        return None
    origin = json.loads(installed.read_text("direct_url.json") or "null")
    editable = bool(origin) and origin.get("dir_info", {}).get("editable", False)
    place = Path(unquote(urlsplit(origin["url"]).path), "fastlsr") if editable else installed.locate_file("fastlsr")
    if installed.read_text("RECORD") is None or Path(str(place)).resolve() != package.resolve():
        return None  # left by a build beside a clone, or another copy than the one that runs
    return {"version": installed.version, "direct_url": origin}


def git_state(clone: Path) -> dict[str, Any] | None:
    """The commit of a clone of this program, and whether files differ from it; None where `clone` is none.

    A repository that merely surrounds the package, such as one that holds the virtual environment, is none.
    """
    # Inside a git hook these name the repository whose hook it is.
    variables = {
        name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
    }

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(clone), *words], capture_output=True, text=True, check=True, timeout=20, env=variables
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "fastlsr/__init__.py")
        if Path(git("rev-parse", "--show-toplevel")).resolve() != clone.resolve():
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
