"""What a training step will take of memory, and which memory is free: estimates for before a run."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fastlsr.config import Config
from fastlsr.engine.classifier import Classifier
from fastlsr.ranks import Ranks

_GIB = 1 << 30
_GROUPS = Path("/sys/fs/cgroup")


def step_bytes(network: Classifier, resolution: int, batch: int) -> tuple[int, int]:
    """(weights, gradients and momentum; what the backward pass needs): bytes of a step on `batch` images, at least.

    The second grows with the images, by what a trial on two needs more than one on a single image, from what does not
    depend on them, such as autocast's copies of the weights. What the kernels take for themselves is left out.
    """
    trial = copy.deepcopy(network).eval()  # in training mode, batch norm might ask other ranks
    weights = {each.untyped_storage().data_ptr(): each.numel() * each.element_size() for each in trial.parameters()}
    device = next(trial.parameters()).device

    def saved(count: int) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        images = torch.zeros(count, 3, resolution, resolution, dtype=torch.uint8, device=device)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = trial(images)
        total = sum(sizes.values())
        del logits  # which holds what was saved, so that no two tensors had one address
        return total

    one, two = saved(1), saved(2)
    return sum(weights.values()) * 3, one + (two - one) * (batch - 1)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device; on the CPU, those that the system, or a container, can give to programs."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    groups = _limits_of_groups(Path("/proc/self/cgroup"), _GROUPS)
    return min([_of_system("MemAvailable"), *(limit - used for limit, used in groups)])


def whole_bytes() -> int:
    """Bytes of the system's memory, or of what a container may have of it."""
    groups = _limits_of_groups(Path("/proc/self/cgroup"), _GROUPS)
    return min([_of_system("MemTotal"), *(limit for limit, _ in groups)])


def _of_system(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def _limits_of_groups(listed: Path, mounted: Path) -> list[tuple[int, int]]:
    """(limit, used) bytes, besides page cache, of the control groups of this process and those around them."""
    found = []
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        _, kind, path = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        files = ("memory.limit_in_bytes", "total_rss") if kind else ("memory.max", "anon")
        for folder in (mounted / kind / path.strip("/"), *(mounted / kind / path.strip("/")).parents):
            with contextlib.suppress(OSError, ValueError, KeyError):  # not there, or "max", which is no limit
                values = dict(value.split() for value in (folder / "memory.stat").read_text().splitlines())
                found.append((int((folder / files[0]).read_text()), int(values[files[1]])))
    return found


def memory_warnings(config: Config, device: torch.device, ranks: Ranks, step: int, data: int) -> Iterator[str]:
    """Lines on what this machine's memory is too small for, with what to change.

    Args:
        step: bytes that a step of one rank takes.
        data: bytes of the files that are trained and evaluated on.
    """
    free, on_cpu = free_bytes(device), device.type == "cpu"
    taken = step * ranks.local_world_size if on_cpu else step
    if taken > free:
        yield (
            f"a step takes at least {taken / _GIB:.1f} GiB, and {free / _GIB:.1f} are free on {device.type}; take "
            f"{_smaller(config, ranks.world_size, taken / max(free, 1))}"
        )
    pages = max(0, free_bytes(torch.device("cpu")) - (taken if on_cpu else 0))
    if config.data.os_cache and data > pages:
        yield (
            f"the images have {data / _GIB:.1f} GiB, and {pages / _GIB:.1f} are free to cache them: each epoch "
            "reads the disk; take data.os_cache=false data.order=quasi_random, or write smaller images"
        )


def _smaller(config: Config, ranks: int, times: float) -> str:
    """The options of a step that takes so many times less memory, or nearly, and trains on the same samples."""
    size, parts = config.data.batch_size, 1
    while parts < times and size % (2 * parts * ranks) == 0 and size // (2 * parts) >= 2 * ranks:
        parts *= 2
    if parts == 1:
        return "more ranks, a smaller data.resolution or a smaller network"
    return f"data.batch_size={size // parts} optim.accumulate={config.optim.accumulate * parts}"


def out_of_memory(config: Config, device: torch.device) -> str:
    """A line on what fills a CUDA device, and what to change."""
    free, whole = torch.cuda.mem_get_info(device)
    own = torch.cuda.max_memory_reserved(device)
    graphs = "" if config.train.cuda_graphs == "off" else "train.cuda_graphs=off takes less, and the run goes on; "
    return (
        f"out of memory on {device}: this process took {own / _GIB:.1f} of {whole / _GIB:.1f} GiB, {free / _GIB:.1f} "
        f"are free; {graphs}a data.batch_size below {config.data.batch_size} with optim.accumulate takes the same "
        "steps, and --dry-run estimates what one takes"
    )
