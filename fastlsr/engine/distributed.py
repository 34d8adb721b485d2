"""What processes that train one run together exchange. Without a process group every function is the identity.

All processes must call the same functions in the same order: no call may stand in a branch that only some of them take.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Value = TypeVar("Value")


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return not _grouped() or dist.get_rank() == 0


def sum_(tensor: Tensor) -> Tensor:
    """The tensor, after its values were replaced by their sums over all processes."""
    if _grouped():
        dist.all_reduce(tensor)
    return tensor


def agree(number: int) -> int:
    """The highest of all processes' numbers: what any of them found, where 0 is nothing. Waits for the device."""
    if not _grouped():
        return number
    highest = torch.tensor(number, device=_device())
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest.item())


def broadcast(value: Value) -> Value:
    """The main process's value, which may be any that pickles."""
    if not _grouped():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, device=_device())
    return holder[0]


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
