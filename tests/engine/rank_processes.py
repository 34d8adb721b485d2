"""Processes that stand for the ranks of one run."""

import multiprocessing
import os
import pickle
import socket
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch

from fastlsr.engine.distributed import process_group
from fastlsr.engine.runtime import set_up_torch

CPU = torch.device("cpu")
MOST_RANKS = 4
_SECONDS = 240


def _as_rank(rank, ranks, port, call):
    """What a pickled call returns on a rank, in the environment that torchrun would give it; pickled, too.

    Left to itself multiprocessing would share the memory of tensors.
    """
    function, arguments = pickle.loads(call)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    set_up_torch(CPU)
    torch.set_num_threads(1)
    with process_group(CPU) as here:
        return pickle.dumps(function(here, *arguments))


@contextmanager
def rank_processes():
    """(ranks, function, ...) -> what function(Ranks, ...) returns on each of so many ranks, at most `MOST_RANKS`."""
    with ProcessPoolExecutor(MOST_RANKS, mp_context=multiprocessing.get_context("spawn")) as pool:

        def call(ranks, function, *arguments):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            what = pickle.dumps((function, arguments))
            calls = [pool.submit(_as_rank, rank, ranks, port, what) for rank in range(ranks)]
            return [pickle.loads(each.result(timeout=_SECONDS)) for each in calls]

        yield call
