"""Which of the processes that train one run this is: torchrun's environment variables. Loaded without torch.

Names as torch has them: a rank is one process's number, from 0; the main one is rank 0.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from fastlsr.errors import InputError

STARTED = time.time()  # of this process, about, in seconds since 1970; the clocks of nodes agree
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class Ranks:
    """One process among those that train a run; the default is a process that trains it alone.

    Attributes:
        rank: its number.
        world_size: how many there are.
        local_rank: its number among those on this machine.
        local_world_size: how many of them are on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


ALONE = Ranks()


def read_ranks() -> Ranks:
    """What torchrun states of this process; `ALONE` where one of its variables is missing."""
    try:
        numbers = [int(os.environ[name]) for name in _NAMES]
    except (KeyError, ValueError):
        return ALONE
    return Ranks(*numbers)


def check_batch_divides(batch_size: int, ranks: int) -> None:
    """Checks that so many ranks get equal parts of a batch, of more than one sample each.

    Raises:
        InputError: if they do not.
    """
    if ranks > 1 and batch_size < 2 * ranks:
        raise InputError(f"data.batch_size={batch_size} is too small for {ranks} ranks; take {2 * ranks} or more")
    below = batch_size // ranks * ranks
    if batch_size != below:
        better = " or ".join(str(size) for size in (below, below + ranks) if size)
        raise InputError(f"data.batch_size={batch_size} does not divide by {ranks} ranks; take {better}")


def share(count: int, rank: int, ranks: int) -> slice:
    """The part of a batch of `count` samples that is a rank's: one of contiguous parts, equal to one sample.

    No part of two or more samples is a single one, which batch normalisation cannot take; so a small batch leaves the
    last ranks without any.
    """
    used = min(ranks, max(1, count // 2))
    return slice(*(count * min(place, used) // used for place in (rank, rank + 1)))


def share_size(count: int, rank: int, ranks: int) -> int:
    """How many of `count` samples are in a rank's part."""
    return len(range(count)[share(count, rank, ranks)])


def largest_share(count: int, ranks: int) -> int:
    """How many of `count` samples are in the largest of the parts."""
    return max(share_size(count, rank, ranks) for rank in range(ranks))
