"""The learning rate is a pure function of the step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Optim
from fastlsr.engine.schedule import Schedule, parse_milestones
from fastlsr.errors import InputError


def rates(epochs=12, per_epoch=4, **options):
    schedule = Schedule(Optim(**options), epochs, per_epoch)
    return [schedule.factor(epoch * per_epoch) for epoch in range(epochs)]


def test_steps_divide_by_ten_as_the_papers_do():
    assert rates(schedule="step", step_epochs=4) == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 4)


def test_milestones_are_those_given():
    assert rates(schedule="multistep", milestones="6,9", gamma=0.5) == [1] * 6 + [0.5] * 3 + [0.25] * 3


def test_cosine_starts_at_the_peak_and_ends_near_zero():
    schedule = Schedule(Optim(schedule="cosine"), 10, 7)
    assert schedule.factor(0) == 1 and schedule.factor(35) == pytest.approx(0.5)
    assert schedule.factor(69) == pytest.approx(0.5 * (1 + math.cos(math.pi * 69 / 70)))


def test_warmup_rises_by_equal_steps_to_the_peak():
    schedule = Schedule(Optim(schedule="constant", warmup_epochs=1.5), 4, 4)
    assert [schedule.factor(step) for step in range(8)] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1])


@given(
    st.sampled_from(["constant", "step", "multistep", "cosine"]), st.integers(1, 50), st.integers(1, 9), st.floats(0, 5)
)
def test_every_factor_lies_between_zero_and_one(kind, epochs, per_epoch, warmup):
    schedule = Schedule(Optim(schedule=kind, milestones="3,7", warmup_epochs=warmup), epochs, per_epoch)
    assert all(0 <= schedule.factor(step) <= 1 for step in range(epochs * per_epoch))
    assert schedule.milestones()[0][0] == 0 and all(epoch < epochs for epoch, _ in schedule.milestones())


@pytest.mark.parametrize("text", ["", "8,4", "4,4", "a,b", "0,3", "1.5", "0.0", "-0.5", "0.75,0.5", "0.001"])
def test_milestones_that_are_none_are_an_error(text):
    with pytest.raises(InputError, match="optim.milestones"):
        parse_milestones(text, 12)


@given(st.lists(st.integers(1, 99), min_size=1, unique=True).map(sorted))
def test_milestones_may_be_fractions_of_the_run(percents):
    text = ",".join(f"{percent / 100:.2f}" for percent in percents)
    assert parse_milestones(text, 100) == percents
    assert parse_milestones(text, 1000) == [10 * percent for percent in percents]
