"""What ranks exchange: the identity alone; sums, means and agreement among several."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from fastlsr import train
from fastlsr.engine import distributed
from fastlsr.engine.loop import Stopped, StopRequest, check_finite
from fastlsr.engine.totals import EpochTotals
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.ranks import STARTED

END_SECONDS = 30  # after which no rank may still wait for one that has failed


def test_alone_every_exchange_is_the_identity():
    tensor = torch.arange(3.0)
    assert distributed.sum_(tensor) is tensor and tensor.tolist() == [0, 1, 2]
    distributed.mean_([tensor])
    assert tensor.tolist() == [0, 1, 2]
    assert distributed.agree(15) == 15 and distributed.agree(0) == 0 and distributed.agree(0.5) == 0.5
    assert distributed.LateAgreement().agree(15) == 15
    value = object()
    assert distributed.from_main(lambda: value) is value and distributed.gather(value) == [value]
    assert distributed.is_main() and distributed.world_size() == 1
    distributed.check_alike({"version": 1})


def stopped_by(number):
    """The signal that a run takes itself to be stopped by, of which this process got `number`; by step, and at once."""
    stop = StopRequest()
    stop.signal = number

    def found_by(check):
        with contextlib.suppress(Stopped):
            check()
            return None
        return stop.signal

    return [found_by(check) for check in (stop.check_step, stop.check_step, stop.check)]


def failed_at(bad_step):
    """What a run fails with, where this process found the first loss that is not finite at `bad_step`."""
    with pytest.raises(TrainingFailed) as failure:
        check_finite(EpochTotals(bad_step=bad_step), 7)
    return str(failure.value)


def unlike(rank):
    """What the check says where ranks differ."""
    with pytest.raises(InputError) as failure:
        distributed.check_alike({"torch": "2", "data.seed": 0, "data": ("a", f"digest {rank}")})
    return str(failure.value)


def means(rank):
    """The means of tensors of which the first is alike: it must stay as it is, to the bit; and that of two ranks."""
    tensors = [torch.tensor([0.1, 1e-30, 3.3]), torch.tensor([float(rank), 0.1 * rank])]
    distributed.mean_(tensors)
    of_two = torch.tensor([float(rank)])
    distributed.mean_([of_two], counts=rank != 1)
    return [tensor.tolist() for tensor in (*tensors, of_two)]


def exchanged(here):
    """What a process of two finds."""
    return {
        "sum": distributed.sum_(torch.tensor([here.rank + 1.0, 10.0])).tolist(),
        "means": means(here.rank),
        "agree": [distributed.agree(here.rank * 15), distributed.agree(0), distributed.agree(0.5 * here.rank)],
        "stopped": stopped_by(signal.SIGTERM if here.rank == 1 else 0),
        "failed": failed_at(bad_step=3 if here.rank == 0 else 0),
        "from main": distributed.from_main(lambda: {"chosen by": here.rank}),
        "unlike": unlike(here.rank),
        "size": distributed.world_size(),
        "main": distributed.is_main(),
        "gathered": distributed.gather(here.rank),
    }


def test_a_rank_that_fails_before_the_ranks_have_met_ends_those_that_wait_for_it(digits_dir, tmp_path, monkeypatch):
    """This process is the rank that waits; the other finds no data, before it has loaded torch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port)}  # fmt: skip
    words = ["--data.dataset=digits", "--model.name=resnet8", "--log.wandb=disabled", f"--run.dir={tmp_path}"]
    other = subprocess.Popen([sys.executable, "-m", "fastlsr.train", *words, "--data.dir=nowhere"], text=True,
                             env={**os.environ, **ranks, "RANK": "1"}, stderr=subprocess.PIPE)  # fmt: skip
    for name, value in {**ranks, "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    assert train.main([*words, f"--data.dir={digits_dir}"]) == 1
    assert time.monotonic() - began < END_SECONDS
    assert "nowhere" in other.communicate(timeout=END_SECONDS)[1] and other.returncode == 2


def test_a_failure_of_ranks_that_torchrun_has_replaced_ends_nobody():
    board = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    looks = distributed._looks(board, lambda: "nobody there")
    for seconds in (-5, -1):
        board.set(distributed._FAILED, str(STARTED + seconds))
        assert next(looks) == "nobody there"
    board.set(distributed._FAILED, str(STARTED + 1))
    with pytest.raises(distributed.LostRank):
        next(looks)


def test_ranks_find_the_same(on_ranks):
    first, second, third = on_ranks(3, exchanged)
    assert [each.pop("main") for each in (first, second, third)] == [True, False, False]
    assert [each.pop("gathered") for each in (first, second, third)] == [[0, 1, 2], [], []]
    alike, averaged, of_two = first.pop("means")
    assert alike == torch.tensor([0.1, 1e-30, 3.3]).tolist() and averaged == pytest.approx([1, 0.1]) and of_two == [1]
    assert second.pop("means") == third.pop("means") == [alike, averaged, of_two]
    assert first == second == third
    assert first == {
        "sum": [6, 30],
        "agree": [30, 0, 1.0],
        "stopped": [None, signal.SIGTERM, signal.SIGTERM],
        "failed": "the loss is not finite at epoch 7, step 3",
        "from main": {"chosen by": 0},
        "unlike": "rank 1 has another data than rank 0: ('a', 'digest 1'), not ('a', 'digest 0')",
        "size": 3,
    }
