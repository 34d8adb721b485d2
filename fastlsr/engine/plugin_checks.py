"""Loss terms and metrics, which may be a plugin's, called on a few random samples before a run begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlsr.errors import InputError
from fastlsr.labels.losses import TERMS
from fastlsr.labels.plan import Plan, Term
from fastlsr.metrics import METRICS
from fastlsr.plugins import failure

_ROWS, _SCALE = 6, 0.5
_DIFFERENCE = 1e-2  # of the logits
_TOLERANCE = 0.05  # of the derivative: float32 losses carry two to three digits of it


def check_registered(plan: Plan, classes: int, report: Callable[[str], None]) -> None:
    """Checks what the plan's terms and all metrics return.

    Args:
        classes: of the data.
        report: prints a line; a warning where a term's gradients are not the derivatives of its losses.

    Raises:
        InputError: for another shape or type, or a function that fails.
    """
    for name, term in plan.terms.items():
        worst = derivative_error(name, term, classes)
        if worst > _TOLERANCE:
            report(
                f"warning: the gradients of term {name} are not the derivatives of its losses times `scale`: on random "
                f"logits they are off by {worst:.0%}"
            )
    for name in METRICS:
        _check_metric(name, classes)


def derivative_error(name: str, term: Term, classes: int) -> float:
    """How far a term's gradients are from its losses' central differences in random directions, relative to both.

    Raises:
        InputError: as `check_registered`.
    """
    random = torch.Generator().manual_seed(0)
    logits, peers, *directions = (torch.randn(_ROWS, classes, generator=random) for _ in range(6))
    labels = torch.randint(classes, (_ROWS,), generator=random)
    given = peers if term.pairs else None  # as in training
    numbers = {key: torch.tensor(float(value)) for key, value in {"weight": 1.0, **term.numbers}.items()}

    def call(at: Tensor) -> tuple[Tensor, Tensor]:
        function, scale = TERMS[name], torch.tensor(_SCALE)
        returned = _called(f"term {name}", function, lambda: function(at, labels, given, scale, **numbers))
        shapes = [tuple(each.shape) for each in returned] if _are_tensors(returned) else []
        if shapes != [(_ROWS,), (_ROWS, classes)]:
            raise InputError(
                f"term {name} returns {_described(returned)}, expected a pair (losses [B], gradients [B, K]), B = "
                f"{_ROWS} and K = {classes}"
            )
        return returned

    _, gradients = call(logits)
    errors = []
    for direction in directions:
        above, below = (call(logits + sign * _DIFFERENCE * direction)[0].double().sum() for sign in (1, -1))
        difference = float(_SCALE * (above - below) / (2 * _DIFFERENCE))
        product = float((gradients.double() * direction).sum())
        errors.append(abs(difference - product) / max(abs(difference), abs(product), 1e-3))
    return max(errors)


def _check_metric(name: str, classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(_ROWS, classes, generator=random), torch.randint(classes, (_ROWS,), generator=random)
    metric = METRICS[name]
    sums = _called(f"metric {name}", metric.sums, lambda: metric.sums(logits, labels))
    if not isinstance(sums, Tensor) or sums.ndim != 1:
        raise InputError(f"metric {name} returns {_described(sums)}, expected its sums as a tensor of one dimension")
    value = _called(f"metric {name}", metric.sums, lambda: metric.value(sums, float(_ROWS)))
    if not isinstance(value, float | int):
        raise InputError(f"metric {name}: its value is {_described(value)}, expected a number")


def _called(what: str, function: Callable[..., Any], call: Callable[[], Any]) -> Any:
    """What a call returns; an exception of it becomes an InputError that names the line in the function's file."""
    try:
        return call()
    except Exception as error:
        file = inspect.getsourcefile(function) or ""
        raise InputError(f"{what}: {file}{failure(error, file)}") from error


def _are_tensors(returned: object) -> bool:
    return isinstance(returned, tuple) and all(isinstance(each, Tensor) for each in returned)


def _described(value: object) -> str:
    """A value's type, and the shapes of tensors."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    return f"a {type(value).__name__}"
