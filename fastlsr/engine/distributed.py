"""What the ranks that train one run together exchange. Alone, every function is the identity.

All ranks must call the same functions in the same order: no call may stand in a branch that only some of them take.
What the host exchanges goes over gloo, also where the network's gradients go over NCCL: no call waits for a GPU, unless
for the tensor that it is given.
"""

from __future__ import annotations

import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fastlsr.errors import InputError, TrainingFailed
from fastlsr.ranks import Ranks, read_ranks

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)

_PATIENCE = timedelta(minutes=10)  # how long a rank waits for the others, such as for the main one's trial of compiling
_STORE_SECONDS = 5.0
_EXIT_SECONDS = 15  # how long a rank may take to end after an error
# In the messages of gloo, NCCL and torch's store, which have no exception of their own for it.
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|timeout|NCCL error", re.IGNORECASE)


class LostRank(TrainingFailed):
    """Another rank has ended or does not respond."""

    elsewhere = True


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Inside, the ranks that torchrun started can exchange; which of them this one is.

    Args:
        device: this rank's; it must be CUDA's current one.

    Raises:
        LostRank: for the error of an exchange with a rank that is gone.
    """
    ranks = read_ranks()
    if ranks.world_size == 1:
        yield ranks
        return
    on_cuda = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=_store_of_this_life(ranks),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=_PATIENCE,
        device_id=device if on_cuda else None,
    )
    try:
        yield ranks
    except BaseException as error:
        signal.alarm(_EXIT_SECONDS)  # ends a process that waits, on its way out, for what a lost rank never sends
        lost = _LOST.search(str(error)) if isinstance(error, RuntimeError) else None
        if lost:
            raise LostRank(f"another rank has ended or does not respond ({lost[0]})") from None
        raise
    dist.destroy_process_group()


def is_main() -> bool:
    """Whether this is rank 0, the one that prints and writes files."""
    return not _grouped() or dist.get_rank() == 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _grouped() else 1


def sum_(tensor: Tensor) -> Tensor:
    """The tensor, after its values were replaced by their sums over all ranks."""
    if _grouped():
        dist.all_reduce(tensor)
    return tensor


def mean_(tensors: list[Tensor]) -> None:
    """Replaces float32 tensors by their means over all ranks; where those agree, nothing changes by a bit."""
    if not _grouped() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors]).double()
    means = (sum_(flat) / world_size()).float().split([tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view_as(tensor))


def agree(number: Number) -> Number:
    """The highest of all ranks' numbers: what any of them found, where 0 is nothing."""
    if not _grouped():
        return number
    highest = torch.tensor(number, dtype=torch.int64 if isinstance(number, int) else torch.float64)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return cast(Number, highest.item())


class LateAgreement:
    """`agree`, one call late, so that no rank waits for another: each call returns what the one before was given."""

    def __init__(self) -> None:
        self._under_way: tuple[Tensor, dist.Work] | None = None

    def agree(self, number: int) -> int:
        """The highest number that any rank gave in its call before; 0 in the first. Alone, this call's own."""
        if not _grouped():
            return number
        former = 0
        if self._under_way:
            highest, work = self._under_way
            work.wait()
            former = int(highest.item())
        highest = torch.tensor(number)
        self._under_way = highest, dist.all_reduce(highest, dist.ReduceOp.MAX, async_op=True)
        return former


def from_main(function: Callable[[], Value]) -> Value:
    """What the function returns on the main rank, which alone calls it. It may be anything that pickles."""
    if not _grouped():
        return function()
    holder: list[Any] = [function() if is_main() else None]
    dist.broadcast_object_list(holder, device=torch.device("cpu"))
    return holder[0]


def gather(value: Value) -> list[Value]:
    """Every rank's value, in their order, on the main rank; an empty list on the others."""
    if not _grouped():
        return [value]
    values: list[Any] = [None] * world_size() if is_main() else []
    dist.gather_object(value, values or None)
    return values


def check_alike(facts: Mapping[str, object]) -> None:
    """Checks that all ranks have the same facts.

    Raises:
        InputError: on all of them, if one has not; names the first that differs.
    """
    if not _grouped():
        return
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, dict(facts))
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs.get(name) != value:
                raise InputError(f"rank {rank} has another {name} than rank 0: {theirs.get(name)}, not {value}")


def replicated(network: nn.Module) -> nn.Module:
    """The network with its gradients summed up over all ranks, and divided by their number, in its backward pass."""
    if not _grouped():
        return network
    # Its broadcast of buffers would replace batch norm's statistics by rank 0's in every step.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 has another name for `broadcast_buffers`
        return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)


def is_first_to_say(line: str, *, of_any: bool = False) -> bool:
    """Whether no other rank of this run has said the line before; True also where they cannot be asked.

    Works without a process group: it asks the store of torchrun itself.

    Args:
        of_any: whether no other rank must have said anything.
    """
    if read_ranks().world_size == 1:
        return True
    said = f"fastlsr/{read_ranks().restarts}/said"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_STORE_SECONDS))
        first_of_any = store.add(said, 1) == 1
        return first_of_any if of_any else store.add(f"{said}/{sha256(line.encode()).hexdigest()}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def _store_of_this_life(ranks: Ranks) -> dist.Store:
    """Where ranks find each other: torchrun's own store, which still holds the addresses of those before a restart."""
    store, _, _ = next(dist.rendezvous("env://", timeout=_PATIENCE))
    return dist.PrefixStore(f"fastlsr/life {ranks.restarts}", store)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
