"""The machine a run is on: device, threads, determinism, compilation, and a record of what produced the numbers."""

from __future__ import annotations

import copy
import ctypes
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastlsr import __version__
from fastlsr.errors import InputError

# Compiling a network takes a CPU a minute or more: below this many seconds of training it is not worth trying.
COMPILE_TRIAL_SECONDS = 1200.0
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """The device of `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        InputError: for anything else, or a CUDA device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise InputError(f"train.device={name}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(f"train.device={name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", int(number or 0))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def threads() -> int:
    """Threads for torch: as many as cores, or OMP_NUM_THREADS if that is fewer, as for one of several trials.

    None is set aside for the loader's (`data.loader.worker_count`), which on a CPU work for a small part of the time.
    """
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(wish)) if wish.isdigit() and int(wish) else cores()


def set_up_torch(device: torch.device, *, deterministic: bool) -> None:
    """Sets torch's threads, memory, the CUDA device, and determinism (without it cuDNN may pick any kernel)."""
    torch.set_num_threads(threads())
    if device.type == "cpu":
        _keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _keep_freed_memory() -> None:
    """Makes glibc's malloc keep what is freed for the next step; other systems stay as they are.

    It would give a step's activations back to the kernel, which then clears every page anew in the next one: a ninth of
    the processor's time of ResNet-8 and of ResNet-18 (measured, batches of 128). A threshold instead (M_MMAP_THRESHOLD)
    ends at 32 MiB, less than a batch of 64 photographs in float32.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def choose_precision(wish: str, device: torch.device, say: Callable[[str], None]) -> str:
    """The autocast type: as wished, or for `auto` bf16 where the device's arithmetic has it, else fp32; it is `say`d.

    A processor without bf16 instructions emulates them, at a fraction of the speed of float32.
    """
    if wish != "auto":
        return wish
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_properties(device).major >= 8
    else:
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    say("precision: bf16 (auto)" if has_bf16 else f"precision: fp32 (auto: this {device.type} has no bf16 arithmetic)")
    return "bf16" if has_bf16 else "fp32"


def choose_compile(
    wish: str, network: torch.nn.Module, images: torch.Tensor, steps: int, say: Callable[[str], None]
) -> bool:
    """Whether to compile the step; `auto` takes what is faster on this device, and `say`s why.

    On CUDA that is always compiling. On a CPU it depends on network and precision, so a run long enough to repay
    the trial times forward and backward of a copy of the network both ways.

    Args:
        wish: "auto", "on" or "off".
        images: uint8 [B, 3, H, W] on the device; a batch of the run's size.
        steps: steps that are still to do.
    """
    if wish != "auto":
        return wish == "on"
    if images.device.type == "cuda":
        say("compile: on (auto: compiled steps are faster on CUDA)")
        return True
    say("compile: timing a step")
    eager = _seconds_per_step(network, images, compile=False, short=COMPILE_TRIAL_SECONDS / steps)
    if eager * steps < COMPILE_TRIAL_SECONDS:
        say(f"compile: off (auto: {eager * steps:.0f} s of training would not repay compiling)")
        return False
    say("compile: timing the step compiled and not; this takes a minute or more")
    try:
        compiled = _seconds_per_step(network, images, compile=True)
    except Exception as error:  # no C++ compiler, or a network that does not compile
        say(f"compile: off (auto: compiling failed: {str(error).strip().splitlines()[0][:100]})")
        return False
    faster = "on" if compiled < eager else "off"
    say(f"compile: {faster} (auto: {1000 * compiled:.0f} ms a step compiled, {1000 * eager:.0f} ms not)")
    return compiled < eager


def _seconds_per_step(network: torch.nn.Module, images: torch.Tensor, *, compile: bool, short: float = 0) -> float:
    """Of the best of three steps after the first, or of the first if that was `short`: later ones are no longer."""
    trial = copy.deepcopy(network).train()  # a copy: batch norm's statistics and gradients stay as they are
    run = torch.compile(trial, dynamic=False) if compile else trial
    state = torch.get_rng_state()  # dropout draws
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        run(images).float().square().mean().backward()
        seconds.append(time.perf_counter() - start)
        if seconds[0] < short:
            break
    torch.set_rng_state(state)
    return min(seconds[1:] or seconds)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this run has held: on the CUDA device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def environment(device: torch.device) -> dict[str, Any]:
    """What produced a run: versions, device, command, and the state of the code's git checkout."""
    names = ("torch", "torchvision", "ffcv", "numba", "numpy", "timm", "fastargs", "wandb")
    return {
        "fastlsr": __version__,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "versions": {name: _version(name) for name in names},
        "git": _git_state(),
    }


def _version(package: str) -> str:
    try:
        return version(package)  # the module's own __version__ lies, ffcv's for one
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
