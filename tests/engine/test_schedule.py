"""The learning rate is a pure function of the step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Optim
from fastlsr.engine.schedule import Schedule, build_optimizer, parse_milestones, set_learning_rate
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


def test_nesterov_without_momentum_is_an_error():
    with pytest.raises(InputError, match="optim.momentum above 0"):
        Schedule(Optim(nesterov=True, momentum=0.0), 4, 4)


def test_a_skipped_first_step_leaves_no_garbage_in_the_momentum():
    # fp16's scaler skips a step with infinite gradients, and the fused kernel then returns before it fills its buffers
    for _ in range(10):
        model = torch.nn.Linear(200, 50)
        before = [parameter.clone() for parameter in model.parameters()]
        optimizer = build_optimizer(model, model.parameters(), Optim(lr=1.0, weight_decay=0.0))
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for gradient in (torch.inf, 0.0):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            scaler.scale(torch.zeros(1))
            scaler.step(optimizer)
            scaler.update()
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("text", ["", "8,4", "4,4", "a,b", "0,3", "1.5"])
def test_milestones_that_are_none_are_an_error(text):
    with pytest.raises(InputError, match="optim.milestones"):
        parse_milestones(text)


def test_backbone_and_head_have_rates_of_their_own_and_every_parameter_one():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = build_optimizer(model, model[1].parameters(), Optim(lr=0.1, backbone_lr=0.01))
    set_learning_rate(optimizer, 0.5)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rate[id(p)] for p in model.parameters()] == pytest.approx([0.005, 0.005, 0.05, 0.05])


def test_without_a_backbone_rate_all_parameters_move_at_lr():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = build_optimizer(model, model[1].parameters(), Optim(lr=0.1))
    assert {group["peak_lr"] for group in optimizer.param_groups} == {0.1}


def network_with_norm():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )


def decay_by_name(**options):
    model = network_with_norm()
    optimizer = build_optimizer(model, model[3].parameters(), Optim(weight_decay=0.5, backbone_lr=0.01, **options))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: (groups[id(p)]["weight_decay"], groups[id(p)]["peak_lr"]) for name, p in model.named_parameters()}


def test_every_parameter_decays_unless_asked_otherwise():
    assert {decay for decay, _ in decay_by_name().values()} == {0.5}


def test_without_decay_norm_bias_only_weights_of_layers_decay_and_rates_stay():
    found = decay_by_name(decay_norm_bias=False)
    assert {name for name, (decay, _) in found.items() if decay} == {"0.weight", "3.weight"}
    assert {decay for decay, _ in found.values()} == {0.0, 0.5}
    assert {name: rate for name, (_, rate) in found.items()} == {n: rate for n, (_, rate) in decay_by_name().items()}


def test_a_step_at_zero_gradient_shrinks_exactly_what_decays():
    model = network_with_norm()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, model[3].parameters(), Optim(lr=0.1, weight_decay=0.5, decay_norm_bias=False)).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if parameter.ndim > 1 else 1))
