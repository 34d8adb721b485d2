"""Targets are rows that sum to one, in tensors whose identity a phase change keeps."""

import math

import pytest
import torch

from fastlsr.labels.losses import TERMS
from fastlsr.labels.plan import LEARNED, Phase, Plan, Term
from fastlsr.labels.targets import Targets

CPU = torch.device("cpu")
PHASES = [
    Phase(1),
    Phase(1, hard=0.9, uniform=0.1),
    Phase(1, hard=0, soft=1, source=LEARNED),
    Phase(1, hard=0.5, soft=0.5, source=LEARNED),
]
READS_TABLE = Plan((Phase(1, learns="in_pass"), *PHASES[2:]), 3)
HARD = Plan((Phase(1),), 1)


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
    made = Targets(8, HARD, device=CPU)
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
    for each in (made, other):
        each.enter(PHASES[3])
    other.load_state_dict({name: tensor.clone() for name, tensor in made.state_dict().items()})
    labels = torch.arange(4)
    assert torch.equal(made.dense(labels), other.dense(labels))


def test_scalars_are_written_in_place_and_a_term_that_a_phase_lacks_has_weight_zero():
    term = Term("pair_divergence", 1.5, "pairs", {"inverse_temperature": 0.25}, pairs=True)
    with_all = Phase(1, redraw=0.2, penalty=0.3, terms=(term,))
    made = Targets(4, Plan((with_all, Phase(1)), 2), device=CPU)
    before = {name: tensor.data_ptr() for name, tensor in made.scalars.items()}
    for phase, numbers in ((with_all, (0.2, 0.3, 1.5, 0.25)), (Phase(1), (0, 0, 0, 0.25))):
        made.enter(phase)
        names = ("redraw", "penalty", "pair_divergence.weight", "pair_divergence.inverse_temperature")
        assert [made.scalars[name].item() for name in names] == pytest.approx(numbers)
    assert {name: tensor.data_ptr() for name, tensor in made.scalars.items()} == before


def test_a_term_of_ones_own_is_added_to_the_objective(monkeypatch):
    """An L2 penalty on the logits, weight * |z|^2 / 2, whose gradient is weight * z."""

    def logit_penalty(logits, labels, peer_logits, scale, *, weight):
        return weight * logits.square().sum(1) / 2, scale * weight * logits

    monkeypatch.setitem(TERMS, "logit_penalty", logit_penalty)
    phase = Phase(1, terms=(Term("logit_penalty", 0.5, "0.5 |z|^2 / 2"),))
    plain, made = (Targets(3, Plan((each,), 1), device=CPU) for each in (Phase(1), phase))
    made.enter(phase)
    logits, labels, scale = torch.randn(6, 3), torch.randint(3, (6,)), torch.tensor(1 / 6)
    losses, gradients = plain.objective(logits, labels, scale)
    more, steeper = made.objective(logits, labels, scale)
    torch.testing.assert_close(more, losses + logits.square().sum(1) / 4)
    torch.testing.assert_close(steeper, gradients + logits / 12)
