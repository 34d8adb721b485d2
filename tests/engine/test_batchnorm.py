"""The counters of batch norms that are added to together are those that each would have added to itself."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from fastlsr.engine.batchnorm import BatchCounters


def network():
    norms = [nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=None), BatchNormAct2d(3), nn.BatchNorm2d(3),
             nn.BatchNorm2d(3, track_running_stats=False)]  # fmt: skip
    norms[3].eval()  # a frozen one
    return nn.Sequential(*norms)


@pytest.mark.parametrize("passes", [1, 2])
def test_all_statistics_and_outputs_are_as_without(passes):
    plain = network()
    together = copy.deepcopy(plain)
    counters = BatchCounters(together)
    for step in range(3):
        images = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(step))
        expected = [plain(images) for _ in range(passes)]
        with counters.added_together(passes):
            found = [together(images) for _ in range(passes)]
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        state = together.state_dict()
        assert state.keys() == plain.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    assert [int(plain[at].num_batches_tracked) for at in range(4)] == [3 * passes, 3 * passes, 3 * passes, 0]


def test_a_step_that_fails_leaves_the_counters_where_they_were():
    one = network()
    with pytest.raises(ZeroDivisionError), BatchCounters(one).added_together(1):
        raise ZeroDivisionError
    assert all(int(one[at].num_batches_tracked) == 0 for at in range(4))
