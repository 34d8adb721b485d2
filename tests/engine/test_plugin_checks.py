"""Wrong loss terms and metrics of a plugin are found before a run begins."""

import pytest
import torch

from fastlsr.config import Method
from fastlsr.engine.plugin_checks import check_registered, derivative_error
from fastlsr.errors import InputError
from fastlsr.labels.losses import TERMS, term
from fastlsr.labels.methods import make_plan
from fastlsr.labels.plan import Phase, Plan, Term
from fastlsr.metrics import metric

pytestmark = pytest.mark.usefixtures("registries")


def square(logits, labels, peer_logits, scale, *, weight):
    """weight * |z|^2 / 2."""
    return weight * logits.square().sum(1) / 2, weight * scale * logits


def plan_with(function):
    term(function)
    return Plan((Phase(1, terms=(Term(function.__name__, 0.1, "text"),)),), 1)


@pytest.mark.parametrize("classes", [2, 100])
def test_right_terms_and_all_metrics_pass(classes):
    warned = []
    check_registered(plan_with(square), classes, warned.append)
    assert warned == []
    numbers = {"inverse_temperature": 0.5}
    assert derivative_error("pair_divergence", Term("pair_divergence", 1.0, "", numbers, pairs=True), classes) < 0.02


def wrong_sign(*given, **numbers):
    losses, gradients = square(*given, **numbers)
    return losses, -gradients


def without_scale(logits, labels, peer_logits, scale, *, weight):
    return square(logits, labels, peer_logits, 1.0, weight=weight)


def without_weight(logits, labels, peer_logits, scale, *, weight):
    return square(logits, labels, peer_logits, scale, weight=weight)[0], 3 * scale * logits


@pytest.mark.parametrize("function", [wrong_sign, without_scale, without_weight])
def test_gradients_that_are_not_the_losses_derivatives_are_warned_of(function):
    warned = []
    check_registered(plan_with(function), 10, warned.append)
    assert [f"the gradients of term {function.__name__} are not" in line for line in warned] == [True]


def losses_alone(logits, labels, peer_logits, scale, *, weight):
    return weight * logits.square().sum(1)


def a_mean(logits, labels, peer_logits, scale, *, weight):
    return logits.mean(), logits


def failing(logits, labels, peer_logits, scale, *, weight):
    return logits @ labels


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (losses_alone, r"term losses_alone returns a tensor of shape \[6\], expected a pair"),
        (a_mean, r"term a_mean returns \(a tensor of shape \[\], a tensor of shape \[6, 6\]\), expected a pair"),
        (failing, r"term failing: .*test_plugin_checks.py, line \d+: RuntimeError: "),
    ],
)
def test_another_shape_or_an_exception_is_one_line(function, line):
    plan = plan_with(function)
    with pytest.raises(InputError, match=line):
        check_registered(plan, 6, print)
    assert function.__name__ in TERMS


def scalar(logits, labels):
    return (logits.argmax(1) == labels).double().sum()


def misspelt(logits, labels):
    return logits.arg_max(1)


def text(logits, labels):
    return torch.zeros(1)


@pytest.mark.parametrize(
    ("function", "options", "line"),
    [
        (scalar, {}, r"metric scalar returns a tensor of shape \[\], expected its sums as a tensor of one dimension"),
        (misspelt, {}, r"metric misspelt: .*test_plugin_checks.py, line \d+: AttributeError: "),
        (text, {"value": lambda sums, samples: "much"}, "metric text: its value is a str, expected a number"),
    ],
)
def test_a_wrong_metric_is_one_line(function, options, line):
    metric("", "meaning", best=max, **options)(function)

    with pytest.raises(InputError, match=line):
        check_registered(make_plan(Method(), 1), 10, print)
