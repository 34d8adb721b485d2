"""What processes exchange: the identity alone, sums and agreement in a group."""

import contextlib
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from fastlsr.engine import distributed
from fastlsr.engine.loop import Stopped, StopRequest, check_finite
from fastlsr.engine.totals import EpochTotals
from fastlsr.errors import TrainingFailed


def test_alone_every_exchange_is_the_identity():
    tensor = torch.arange(3.0)
    assert distributed.sum_(tensor) is tensor and tensor.tolist() == [0, 1, 2]
    assert distributed.agree(15) == 15 and distributed.agree(0) == 0
    value = object()
    assert distributed.broadcast(value) is value
    assert distributed.is_main()


def stopped_by(number):
    """The signal that a run takes itself to be stopped by, of which this process got `number`."""
    stop = StopRequest()
    stop.signal = number
    with contextlib.suppress(Stopped):
        stop.check()
        return None
    return stop.signal


def failed_at(bad_step):
    """What a run fails with, where this process found the first loss that is not finite at `bad_step`."""
    with pytest.raises(TrainingFailed) as failure:
        check_finite(EpochTotals(bad_step=bad_step), 7)
    return str(failure.value)


def exchanged(rank, file):
    """What a process of two finds."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    try:
        return {
            "sum": distributed.sum_(torch.tensor([rank + 1.0, 10.0])).tolist(),
            "agree": [distributed.agree(rank * 15), distributed.agree(0)],
            "stopped": stopped_by(signal.SIGTERM if rank == 1 else 0),
            "failed": failed_at(bad_step=3 if rank == 0 else 0),
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
    assert (
        first
        == second
        == {
            "sum": [3, 20],
            "agree": [15, 0],
            "stopped": signal.SIGTERM,
            "failed": "the loss is not finite at epoch 7, step 3",
            "broadcast": {"chosen by": 0},
        }
    )
