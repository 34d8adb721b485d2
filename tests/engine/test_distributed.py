"""What ranks exchange: the identity alone; sums, means and agreement among several."""

import contextlib
import signal

import pytest
import torch

from fastlsr.engine import distributed
from fastlsr.engine.loop import Stopped, StopRequest, check_finite
from fastlsr.engine.totals import EpochTotals
from fastlsr.errors import InputError, TrainingFailed


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
    """The means of tensors of which the first is alike: it must stay as it is, to the bit."""
    tensors = [torch.tensor([0.1, 1e-30, 3.3]), torch.tensor([float(rank), 0.1 * rank])]
    distributed.mean_(tensors)
    return [tensor.tolist() for tensor in tensors]


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


def test_ranks_find_the_same(on_ranks):
    first, second, third = on_ranks(3, exchanged)
    assert [each.pop("main") for each in (first, second, third)] == [True, False, False]
    assert [each.pop("gathered") for each in (first, second, third)] == [[0, 1, 2], [], []]
    alike, averaged = first.pop("means")
    assert alike == torch.tensor([0.1, 1e-30, 3.3]).tolist() and averaged == pytest.approx([1, 0.1])
    second.pop("means"), third.pop("means")
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
