"""What the ranks that train one run together exchange. Alone, every function is the identity.

All ranks must call the same functions in the same order: no call may stand in a branch that only some of them take.
What the host exchanges goes over gloo, also where the network's gradients go over NCCL: no call waits for a GPU, unless
for the tensor that it is given.
"""

from __future__ import annotations

import os
import re
import signal
import time
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
from fastlsr.ranks import STARTED, Ranks, read_ranks

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)

_PATIENCE = timedelta(minutes=10)  # how long a rank waits for the others, such as for the main one's trial of compiling
_STORE_PATIENCE = timedelta(seconds=5)
_EXIT_SECONDS = 15  # how long a rank may take to end after an error
_LOOK_SECONDS = 0.1  # between looks at a store
_LATE_SECONDS = 20  # by which a rank may start later than the main one
_GLOO = re.compile(r"\bgloo\b")  # which has no exception of its own
_HOW = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|timeout", re.IGNORECASE)
_PORT, _FAILED, _HERE, STOPPED, BEGUN = (f"fastlsr/{name}" for name in ("port", "failed", "here", "stopped", "begun"))


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
    board = _board(ranks, _PATIENCE, host=True)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=_meet(ranks, board),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=_PATIENCE,
        device_id=device if on_cuda else None,
    )
    try:
        yield ranks
    except BaseException as error:
        signal.alarm(_EXIT_SECONDS)  # ends a process that waits, on its way out, for what a lost rank never sends
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _GLOO.search(str(error))):
            how = _HOW.search(str(error))
            raise LostRank("another rank has ended or does not respond" + (f" ({how[0]})" if how else "")) from error
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


def mean_(tensors: list[Tensor], *, counts: bool = True) -> None:
    """Replaces float32 tensors by their means over the ranks; where those agree, nothing changes by a bit.

    Args:
        counts: whether this rank's are among those that the mean is taken of; some must be.
    """
    if not _grouped() or not tensors:
        return
    flat = torch.cat([*(tensor.flatten() for tensor in tensors), tensors[0].new_ones(1)]).double() * counts
    *means, _ = (sum_(flat) / flat[-1]).float().split([*(tensor.numel() for tensor in tensors), 1])
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
    """Whether no other rank of this run has said why it ends by the line before; True also where none can be asked.

    Works without a process group.

    Args:
        of_any: whether no other rank must have said anything.
    """
    ranks = read_ranks()
    if ranks.world_size == 1:
        return True
    try:
        board = _board(ranks, _STORE_PATIENCE)
        life = board.get(_PORT).decode() if board.check([_PORT]) else ""
        said = f"fastlsr/said/{life}"
        board.set(_FAILED, str(time.time()))
        first_of_any = board.add(said, 1) == 1
        return first_of_any if of_any else board.add(f"{said}/{sha256(line.encode()).hexdigest()}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True


def remember(name: str) -> None:
    """Notes something (`STOPPED`, `BEGUN`) for the ranks that torchrun starts again in the place of these."""
    if _under_torchrun():
        _board(read_ranks(), _STORE_PATIENCE).set(name, "yes")


def remembered(name: str) -> bool:
    """Whether ranks that torchrun has started before these have noted it."""
    return _under_torchrun() and _board(read_ranks(), _STORE_PATIENCE).check([name])


def _under_torchrun() -> bool:
    """Whether there is a store of torchrun's, which outlives the ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _board(ranks: Ranks, patience: timedelta, *, host: bool = False) -> dist.TCPStore:
    """The store at the address that ranks are given: torchrun's, which outlives them; without one, the main rank's.

    Args:
        host: whether the main rank may have to open it.
    """
    hosts = host and ranks.rank == 0 and not _under_torchrun()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=hosts, wait_for_workers=False, timeout=patience)


def _meet(ranks: Ranks, board: dist.TCPStore) -> dist.Store:
    """A new store of the main rank's, once all ranks are there.

    The board still holds what ranks wrote that torchrun has replaced by these. How often it did so does not tell them
    apart, since each node counts for itself.

    Raises:
        LostRank: if a rank has failed before it came here, or does not come.
    """
    if ranks.rank == 0:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
        board.set(_PORT, f"{store.port} {time.time()}")
    else:
        store = next(found for found in _looks(board, lambda: _main_store(board)) if found)
    store.add(_HERE, 1)
    next(there for there in _looks(board, lambda: store.add(_HERE, 0)) if there == ranks.world_size)
    return store


def _looks(board: dist.TCPStore, look: Callable[[], Value]) -> Iterator[Value]:
    """What is found, again and again.

    Raises:
        LostRank: as for `_meet`.
    """
    deadline = time.monotonic() + _PATIENCE.total_seconds()
    while True:
        yield look()
        if board.check([_FAILED]) and float(board.get(_FAILED)) > STARTED:  # and not a rank before a restart
            raise LostRank("another rank has ended before the first step")
        if time.monotonic() > deadline:
            raise LostRank(f"not all ranks have begun within {_PATIENCE}")
        time.sleep(_LOOK_SECONDS)


def _main_store(board: dist.TCPStore) -> dist.TCPStore | None:
    """The store whose port is on the board; None where there is none, or one that has ended."""
    if not board.check([_PORT]):
        return None
    port, since = board.get(_PORT).decode().split()
    if float(since) < STARTED and time.time() < STARTED + _LATE_SECONDS:  # a dead one's: torch would print pages
        return None
    address, patience = os.environ["MASTER_ADDR"], timedelta(seconds=1)
    try:
        store = dist.TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=patience)
    except dist.DistError:
        return None
    store.set_timeout(_PATIENCE)
    return store


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
