"""The fused loss against hand-worked values, float64, torch's own losses, and itself under torch.compile."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fastlsr.config import Method
from fastlsr.labels import losses
from fastlsr.labels.losses import soft_target_cross_entropy
from fastlsr.labels.methods import METHODS, make_plan

ONE = torch.ones(())


@pytest.fixture(params=[True, False], ids=["CPU's form", "other devices' form"], scope="module", autouse=True)
def _form(request):
    """The loss computes the same in another form where it is compiled for a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            patch.setattr(losses, "on_cpu", lambda tensor: False)
        yield


def mix(hard=1.0, uniform=0.0, soft=0.0, temperature=1.0):
    return torch.tensor([hard, uniform, soft, 1 / temperature])


def problem(batch, classes, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(batch, classes, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    table = torch.rand(classes, classes, generator=generator)
    return logits, labels, table / table.sum(1, keepdim=True)


def dense(labels, classes, weights, table):
    hard, uniform, soft, _ = weights.double()
    return hard * functional.one_hot(labels, classes) + uniform / classes + soft * table.double()[labels]


def test_two_classes_by_hand():
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([1])
    losses, gradients = soft_target_cross_entropy(logits, labels, mix(0.8, 0.2), None, ONE)
    # p = (1/4, 3/4), q = (0.1, 0.9)
    torch.testing.assert_close(losses, torch.tensor([-0.1 * math.log(1 / 4) - 0.9 * math.log(3 / 4)]))
    torch.testing.assert_close(gradients, torch.tensor([[0.25 - 0.1, 0.75 - 0.9]]))


@settings(max_examples=60)
@given(
    batch=st.integers(1, 9),
    classes=st.integers(2, 40),
    seed=st.integers(0, 1000),
    weights=st.tuples(*[st.floats(0.0, 1.0)] * 3).filter(lambda w: sum(w) > 0.1),
    temperature=st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0]),
)
def test_loss_and_gradient_are_those_of_the_dense_targets_in_float64(batch, classes, seed, weights, temperature):
    logits, labels, table = problem(batch, classes, seed)
    weights = mix(*(w / sum(weights) for w in weights), temperature)
    losses, gradients = soft_target_cross_entropy(logits, labels, weights, table, ONE)

    exact = logits.double().requires_grad_()
    reference = -(dense(labels, classes, weights, table) * (exact / temperature).log_softmax(1)).sum(1)
    reference.sum().backward()
    torch.testing.assert_close(losses.double(), reference.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients.double(), exact.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4, 1.0])
def test_label_smoothing_is_torchs_own(smoothing):
    logits, labels, _ = problem(32, 10)
    losses, _ = soft_target_cross_entropy(logits, labels, mix(1 - smoothing, smoothing), None, ONE)
    torch.testing.assert_close(losses.mean(), functional.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_the_gradient_handed_on_is_what_autograd_would_hand_on():
    logits, labels, table = problem(8, 5)
    fused, plain = (logits.clone().requires_grad_() for _ in range(2))
    outputs = 3 * fused
    _, gradients = soft_target_cross_entropy(outputs, labels, mix(0.2, 0.3, 0.5), table, torch.tensor(7 / 8))
    outputs.backward(gradients)
    rows = dense(labels, 5, mix(0.2, 0.3, 0.5), table).float()
    (7 * functional.cross_entropy(3 * plain, rows)).backward()
    torch.testing.assert_close(fused.grad, plain.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_logit_type_is_computed_in_float32_and_gets_its_own_type_of_gradient(dtype):
    logits, labels, table = problem(16, 100)
    rounded = logits.to(dtype)
    losses, gradients = soft_target_cross_entropy(rounded, labels, mix(0.5, 0.0, 0.5), table, ONE)
    expected = soft_target_cross_entropy(rounded.float(), labels, mix(0.5, 0.0, 0.5), table, ONE)
    assert losses.dtype == torch.float32 and gradients.dtype == dtype
    torch.testing.assert_close(losses, expected[0])
    torch.testing.assert_close(gradients, expected[1].to(dtype))


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_give_finite_soft_target_cross_entropy(size):
    logits = torch.tensor([[size, -size, 0.0], [-size, -size, -size]])
    table = torch.full((3, 3), 1 / 3)
    losses, gradients = soft_target_cross_entropy(logits, torch.tensor([1, 2]), mix(0.5, 0.2, 0.3), table, ONE)
    assert losses.isfinite().all() and gradients.isfinite().all()


def test_gradients_sum_to_zero_over_classes_and_vanish_at_the_target():
    logits, labels, table = problem(16, 7)
    _, gradients = soft_target_cross_entropy(logits, labels, mix(0.3, 0.3, 0.4), table, ONE)
    torch.testing.assert_close(gradients.sum(1), torch.zeros(16), atol=1e-6, rtol=0)
    _, at_target = soft_target_cross_entropy(table.log()[labels], labels, mix(0, 0, 1), table, ONE)
    torch.testing.assert_close(at_target, torch.zeros(16, 7), atol=1e-6, rtol=0)


def test_a_table_of_one_hot_rows_is_the_hard_loss():
    logits, labels, _ = problem(16, 7)
    soft = soft_target_cross_entropy(logits, labels, mix(0, 0, 1), torch.eye(7), ONE)
    torch.testing.assert_close(soft, soft_target_cross_entropy(logits, labels, mix(), None, ONE))


def test_the_compiled_kernel_is_the_eager_one():
    logits, labels, table = problem(64, 30)
    compiled = torch.compile(soft_target_cross_entropy, dynamic=False)
    arguments = logits, labels, mix(0.2, 0.2, 0.6, 2.0), table, torch.tensor(1 / 64)
    torch.testing.assert_close(compiled(*arguments), soft_target_cross_entropy(*arguments))


def test_the_documented_contract_runs():
    tried = doctest.testmod(losses)
    assert (tried.failed, tried.attempted > 5) == (0, True)


def numbers_of_terms():
    """Term -> the numbers that a method trains it with."""
    plans = [make_plan(Method(name=name, teacher="file"), 10) for name in METHODS]
    return {name: {"weight": term.weight, **term.numbers} for plan in plans for name, term in plan.terms.items()}


@pytest.mark.parametrize("name", losses.TERMS)
def test_a_terms_gradients_are_those_of_its_losses(name):
    logits, labels, _ = problem(6, 5, spread=1.0)
    peers, _, _ = problem(6, 5, seed=1)
    numbers = {key: torch.tensor(value) for key, value in numbers_of_terms()[name].items()}

    def term(z):
        return losses.TERMS[name](z, labels, peers, torch.tensor(0.5), **numbers)

    step = 1e-2
    slopes = [(term(logits + step * unit)[0] - term(logits - step * unit)[0]) / (2 * step) for unit in torch.eye(5)]
    torch.testing.assert_close(term(logits)[1], torch.stack(slopes, 1) / 2, atol=2e-3, rtol=1e-2)
