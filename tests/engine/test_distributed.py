"""What processes exchange: the identity alone, sums and agreement in a group."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from fastlsr.engine import distributed


def test_alone_every_exchange_is_the_identity():
    tensor = torch.arange(3.0)
    assert distributed.sum_(tensor) is tensor and tensor.tolist() == [0, 1, 2]
    assert distributed.agree(True) is True and distributed.agree(False) is False
    value = object()
    assert distributed.broadcast(value) is value
    assert distributed.is_main()


def exchanged(rank, file):
    """What a process of two finds."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        return {
            "sum": distributed.sum_(torch.tensor([rank + 1.0, 10.0])).tolist(),
            "agree": [distributed.agree(rank == 1), distributed.agree(False)],
            "broadcast": distributed.broadcast({"chosen by": rank}),
            "main": distributed.is_main(),
        }
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_find_the_same(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first, second = pool.map(exchanged, (0, 1), [tmp_path / "meeting"] * 2, timeout=120)
    assert (first.pop("main"), second.pop("main")) == (True, False)
    assert first == second == {"sum": [3, 20], "agree": [True, False], "broadcast": {"chosen by": 0}}
