"""The machine a run is on: device, threads, memory, determinism, and the precision that its arithmetic has."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable

import torch

from fastlsr.config import Train
from fastlsr.cores import cores
from fastlsr.engine.compiling import read_rows_once
from fastlsr.errors import InputError
from fastlsr.ranks import read_ranks

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """The device of `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Of several ranks on this machine, `auto` and `cuda` give each the CUDA device of its own number.

    Raises:
        InputError: for anything else, or a CUDA device that is not there, or one for several ranks.
    """
    ranks = read_ranks()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()) or (kind == "cpu" and number):
        raise InputError(f"train.device={name}: expected auto, cpu, cuda or cuda:N")
    if number and ranks.local_world_size > 1:
        raise InputError(
            f"train.device={name}: each of {ranks.local_world_size} ranks needs a device; take cuda or auto"
        )
    place = int(number or ranks.local_rank)
    if kind == "cuda" and place >= torch.cuda.device_count():
        raise InputError(f"train.device={name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cpu") if kind == "cpu" else torch.device("cuda", place)


def threads() -> int:
    """Threads for torch: this rank's share of the cores, or fewer with OMP_NUM_THREADS, as for one of several trials.

    No core is reserved for the loader: on a CPU its thread works for a small part of the time.
    """
    here = read_ranks().local_world_size
    share, limit = max(1, cores() // here), os.environ.get("OMP_NUM_THREADS", "")
    if limit == "1" and here > 1 and "NUMBA_NUM_THREADS" not in os.environ:  # torchrun's own, whatever the cores
        return share
    return min(share, int(limit)) if limit.isdigit() and int(limit) else share


_DEFAULTS = Train()


def set_up_torch(device: torch.device, train: Train = _DEFAULTS) -> None:
    """Sets torch's threads and memory, the CUDA device, its float32 arithmetic and determinism, by the options.

    With `deterministic`, cuDNN and cuBLAS take no kernel whose sums depend on timing, and inductor times none: it would
    choose between reductions that add up in other orders.
    """
    torch.set_num_threads(threads())
    if device.type == "cpu":
        _keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not train.deterministic
        # By default torch has TF32 in convolutions and float32 in products.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = train.tf32
        if train.compile != "off":
            read_rows_once()
    if train.deterministic:
        from torch._inductor import config as inductor

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        inductor.deterministic = True


def _keep_freed_memory() -> None:
    """Makes glibc's malloc keep freed memory for the next step; does nothing on other systems.

    By default it returns a step's activations to the kernel, which then clears every page again in the next step: a
    ninth of the processor's time with ResNet-8 and ResNet-18 (measured, batches of 128). A larger M_MMAP_THRESHOLD
    would not do: its limit is 32 MiB, less than a batch of 64 photographs in float32.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def choose_precision(requested: str, device: torch.device, report: Callable[[str], None]) -> str:
    """The autocast type: the requested one, or for `auto` bf16 where the device computes in it, else fp32.

    A processor without bf16 instructions emulates them, at a fraction of the speed of float32.

    Args:
        requested: `train.precision`.
        report: prints a line; the choice of `auto` is printed, and what CUDA makes of float32.
    """
    precision = requested if requested != "auto" else _best_precision(device, report)
    if device.type == "cuda" and precision == "fp32":
        took = "TF32" if torch.backends.cuda.matmul.allow_tf32 else "float32"
        report(f"fp32: convolutions and products are in {took} (train.tf32)")
    return precision


def _best_precision(device: torch.device, report: Callable[[str], None]) -> str:
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_properties(device).major >= 8
    else:
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    report(
        "precision: bf16 (auto)" if has_bf16 else f"precision: fp32 (auto: this {device.type} has no bf16 arithmetic)"
    )
    return "bf16" if has_bf16 else "fp32"


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this run has held: on the CUDA device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
