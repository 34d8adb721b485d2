"""Targets are rows that sum to one, in tensors whose identity a phase change keeps."""

import math

import pytest
import torch

from fastlsr.labels.methods import LEARNED, Phase
from fastlsr.labels.targets import Targets

CPU = torch.device("cpu")
PHASES = [
    Phase(1),
    Phase(1, hard=0.9, uniform=0.1),
    Phase(1, hard=0, soft=1, source=LEARNED),
    Phase(1, hard=0.5, soft=0.5, source=LEARNED),
]
READS_TABLE = PHASES[2:]


def targets(classes=4):
    made = Targets(classes, READS_TABLE, device=CPU)
    made.table.copy_(torch.rand(classes, classes).softmax(1))
    return made


@pytest.mark.parametrize("phase", PHASES, ids=str)
@pytest.mark.parametrize("classes", [2, 7])
def test_rows_sum_to_one(phase, classes):
    made = targets(classes)
    made.enter(phase)
    torch.testing.assert_close(made.dense(torch.arange(classes)).sum(1), torch.ones(classes))


def test_a_phase_change_keeps_the_tensors_that_a_compiled_step_holds():
    made = targets()
    before = made.mix.data_ptr(), made.table.data_ptr()
    for phase in PHASES:
        made.enter(phase)
    assert (made.mix.data_ptr(), made.table.data_ptr()) == before
    assert made.mix.tolist() == [0.5, 0, 0.5, 1]


def test_entropy_of_hard_labels_is_zero_and_of_uniform_ones_log_k():
    made = Targets(8, [], device=CPU)
    counts = torch.tensor([5.0, 0, 1, 1, 1, 1, 1, 1])
    made.enter(Phase(1))
    assert made.mean_entropy(counts) == 0
    made.enter(Phase(1, hard=0, uniform=1))
    assert made.mean_entropy(counts) == pytest.approx(math.log(8))


def test_entropy_weighs_each_class_by_its_images():
    made = Targets(2, READS_TABLE, device=CPU)
    made.table.copy_(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    made.enter(Phase(1, hard=0, soft=1))
    assert made.mean_entropy(torch.tensor([3.0, 1.0])) == pytest.approx(math.log(2) / 4)


def test_the_state_restores_what_was_saved():
    made, other = targets(), targets()
    made.enter(PHASES[3])
    other.load_state_dict({name: tensor.clone() for name, tensor in made.state_dict().items()})
    labels = torch.arange(4)
    assert torch.equal(made.dense(labels), other.dense(labels))
