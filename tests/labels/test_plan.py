"""A plan knows where each epoch is, and takes no phases that make no run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.errors import InputError
from fastlsr.labels.plan import CORRECT, FORMER_NETWORK, IN_PASS, LEARNED, TEACHER_CLASS, Phase, Plan, Term


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_each_epoch_is_in_the_phase_that_counting_finds(lengths):
    plan = Plan(tuple(Phase(length) for length in lengths), sum(lengths))
    numbers = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert plan.epochs == len(numbers)
    assert [plan.at(epoch).number for epoch in range(plan.epochs)] == numbers
    assert [plan.at(epoch).first for epoch in range(plan.epochs)] == [numbers.index(number) for number in numbers]
    last = [epoch + 1 == plan.epochs or numbers[epoch + 1] != numbers[epoch] for epoch in range(plan.epochs)]
    assert [plan.ends(epoch) for epoch in range(plan.epochs)] == last
    for epoch in (-1, plan.epochs):
        with pytest.raises(IndexError):
            plan.at(epoch)


def test_the_phase_trained_last_is_that_of_the_newest_batch():
    smooth, hard = Phase(2, hard=0.5, uniform=0.5), Phase(1)
    plan = Plan((smooth, hard), 3)
    found = [plan.last_trained(*at) for at in ((0, 0), (0, 4), (1, 0), (2, 0), (2, 1), (3, 0))]
    assert found == [smooth, smooth, smooth, smooth, hard, hard]


def test_each_generation_counts_its_own_epochs():
    plan = Plan((Phase(1), Phase(2), Phase(3, fresh=True)), 3)
    assert [plan.within_generation(epoch) for epoch in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_plan_names_what_its_phases_read_and_learn():
    term = Term("pair_divergence", 1.0, "pairs", pairs=True)
    plan = Plan((Phase(1, learns=CORRECT), Phase(1, hard=0.5, soft=0.5, source=LEARNED, terms=(term,))), 2)
    assert (plan.sources, plan.learns, plan.pairs, plan.terms) == ({LEARNED}, {CORRECT}, True, {term.name: term})
    assert not Plan((Phase(1),), 1).pairs


@pytest.mark.parametrize(
    ("phases", "word"),
    [
        ([Phase(2, uniform=0.1)], "the weights of phase 1 sum to 1.1"),
        ([Phase(1)], "its phases have 1 epochs, train.epochs=2"),
        ([Phase(2), Phase(1, fresh=True)], "its phases have 1 epochs"),
        ([Phase(2), Phase(0)], "phase 2 has 0 epochs"),
        ([Phase(2, hard=0.9, soft=0.1)], "phase 1 have no source"),
        ([Phase(1), Phase(1, hard=0, soft=1, source=LEARNED)], "phase 2 are learned by no phase before it"),
        ([Phase(2, hard=0, soft=1, source=FORMER_NETWORK)], "no network before it"),
        (
            [Phase(1, hard=0, soft=1, source=TEACHER_CLASS), Phase(1, hard=0, soft=1, source=FORMER_NETWORK)],
            "soft labels from class and former network",
        ),
        ([Phase(1, learns=way) for way in (IN_PASS, CORRECT)], "correct and in_pass"),
        ([Phase(2, learns="bogus")], "phase 1 learns from bogus"),
        ([Phase(2, terms=(Term("a", 1.0, ""), Term("a", 2.0, "")))], "two terms of one name"),
        ([Phase(1, terms=(Term("a", 1.0, "", {key: 1.0}),)) for key in "bc"], "the term a different numbers"),
    ],
)
def test_phases_that_make_no_run_are_an_error(phases, word):
    with pytest.raises(InputError, match=word):
        Plan(tuple(phases), 2)


@pytest.mark.parametrize("weights", [{"hard": 1.1, "uniform": -0.1}, {"hard": -0.5, "soft": 1.5, "source": "class"}])
def test_a_weight_below_0_has_to_be_meant(weights):
    with pytest.raises(InputError, match="phase 1 has a weight below 0"):
        Plan((Phase(1, **weights),), 1)
    assert Plan((Phase(1, **weights, negative=True),), 1).epochs == 1
