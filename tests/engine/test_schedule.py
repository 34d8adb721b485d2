"""The learning rate is a pure function of the step."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Optim
from fastlsr.engine.optimizers import build_optimizer, set_learning_rate
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


@given(st.integers(1, 60), st.integers(1, 9), st.floats(0, 9))
def test_a_least_rate_of_zero_is_the_plain_cosine_to_the_bit(epochs, per_epoch, warmup):
    schedule = Schedule(Optim(schedule="cosine", warmup_epochs=warmup, min_lr=0.0), epochs, per_epoch)
    for step in range(epochs * per_epoch):
        rising = min(1.0, (step + 1) / (warmup * per_epoch)) if warmup * per_epoch else 1.0
        assert schedule.factor(step) == rising * (0.5 * (1 + math.cos(math.pi * (step / per_epoch) / epochs)))


@given(st.integers(1, 99), st.integers(1, 9), st.floats(1e-5, 10), st.floats(0, 1))
def test_cosine_falls_from_the_peak_to_the_least_rate_and_never_below(epochs, per_epoch, lr, share):
    least = lr * share
    schedule = Schedule(Optim(schedule="cosine", lr=lr, min_lr=least), epochs, per_epoch)
    factors = [schedule.factor(step) for step in range(epochs * per_epoch + 1)]
    assert factors[0] == 1 and all(one >= other for one, other in itertools.pairwise(factors))
    assert lr * factors[-1] == pytest.approx(least, rel=1e-9, abs=1e-15)
    assert min(lr * factor for factor in factors) >= least * (1 - 1e-12)
    plain = Schedule(Optim(schedule="cosine", lr=lr), epochs, per_epoch)
    left = [(factor - share) for factor in factors]
    assert left == pytest.approx([(1 - share) * plain.factor(step) for step in range(len(factors))], abs=1e-12)


def test_a_least_rate_is_that_of_the_last_step_nearly_and_of_other_groups_in_proportion():
    schedule = Schedule(Optim(schedule="cosine", lr=1e-3, min_lr=1e-5, warmup_epochs=5), 300, 100)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = build_optimizer(model, model[1].parameters(), Optim(lr=1e-3, backbone_lr=1e-4))
    set_learning_rate(optimizer, schedule.factor(300 * 100 - 1))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-6, 1e-5], rel=1e-3)
    assert schedule.milestones()[-1] == (299, schedule.factor(29900))


@pytest.mark.parametrize("kind", ["constant", "step", "multistep"])
def test_a_least_rate_of_another_schedule_is_an_error(kind):
    with pytest.raises(InputError, match=f"schedule=cosine, not of {kind}"):
        Schedule(Optim(schedule=kind, milestones="3", min_lr=1e-5), 12, 4)


def test_a_least_rate_above_the_peak_is_an_error_and_a_peak_of_zero_is_none():
    with pytest.raises(InputError, match=r"optim.min_lr=0.2 lies above optim.lr=0.1"):
        Schedule(Optim(schedule="cosine", lr=0.1, min_lr=0.2), 12, 4)
    assert Schedule(Optim(schedule="cosine", lr=0.0), 12, 4).factor(0) == 1


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
