"""W&B's distributions of a parameter: what a grid search tries, and the quantile function behind a random search.

Their definitions, names and defaults are those of W&B's public search code, which was read for it.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastlsr.errors import InputError

_MOST_STEPS = 1_000_000  # of a quantized range
_MOST_INTEGERS = 2**53  # of an integer range: the doubles below 1 that a draw is made from


class Distribution(NamedTuple):
    """The values of one parameter.

    Attributes:
        grid: what a grid search tries, in order; None where the distribution is continuous.
        quantile: from a number in [0, 1) to the value that a random search takes there.
    """

    grid: Sequence[Any] | None
    quantile: Callable[[float], Any]


class _Family(NamedTuple):
    """The keys that a distribution needs, those that it may have with their defaults, and what makes it of them."""

    needed: tuple[str, ...]
    defaults: Mapping[str, float]
    make: Callable[..., Distribution]


def make_distribution(tree: Mapping[str, Any]) -> Distribution:
    """The distribution of an entry of `parameters:`, which may name it or leave it to its keys.

    Raises:
        InputError: for an unknown distribution, or keys and values that it does not take.
    """
    name = distribution_name(tree)
    if not isinstance(name, str) or name not in _FAMILIES:
        close = difflib.get_close_matches(str(name), _FAMILIES, 1)
        raise InputError(f"distribution {name} is none of W&B's" + (f"; did you mean {close[0]}?" if close else ""))
    family = _FAMILIES[name]
    given = {key: value for key, value in tree.items() if key != "distribution"}
    if not set(family.needed) <= set(given) <= {*family.needed, *family.defaults}:
        optional = f", and may take {', '.join(family.defaults)}" if family.defaults else ""
        raise InputError(f"{name} takes {', '.join(family.needed) or 'nothing'}{optional}")
    for key in given.keys() - {"value", "values", "probabilities"}:
        _check_number(key, given[key])
    return family.make(**{**family.defaults, **given})


def distribution_name(tree: Mapping[str, Any]) -> Any:
    """The `distribution:` of an entry, or what W&B takes without one: by its keys, and by whether bounds are whole."""
    if "distribution" in tree:
        return tree["distribution"]
    if "value" in tree:
        return "constant"
    if "values" in tree:
        return "categorical_w_probabilities" if "probabilities" in tree else "categorical"
    integers = type(tree.get("min")) is int and type(tree.get("max")) is int
    return "int_uniform" if integers else "uniform"


def _check_number(key: str, value: Any) -> None:
    if not _is_number(value):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if isinstance(value, str) else ""
        raise InputError(f"{key}: {value!r} is no number{hint}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_bounds(low: float, high: float) -> None:
    if low > high:
        raise InputError(f"min {low:g} is above max {high:g}")


def _check_positive(key: str, value: float) -> None:
    if value <= 0:
        raise InputError(f"{key} {value:g} is not above 0")


def _constant(value: Any) -> Distribution:
    return Distribution([value], lambda u: value)


def _categorical(values: Any) -> Distribution:
    _check_list(values)
    return Distribution(values, lambda u: values[int(u * len(values))])


def _weighted(values: Any, probabilities: Any) -> Distribution:
    _check_list(values)
    if (
        not isinstance(probabilities, list)
        or len(probabilities) != len(values)
        or not all(_is_number(each) and each >= 0 for each in probabilities)
    ):
        raise InputError("probabilities: expected one for each of the values")
    if not math.isclose(sum(probabilities), 1):
        raise InputError(f"probabilities: their sum is {sum(probabilities):g}, not 1")
    edges = np.cumsum(probabilities)
    return Distribution(None, lambda u: values[min(int(np.searchsorted(edges, u, side="right")), len(values) - 1)])


def _check_list(values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise InputError("values: expected a list of one or more")


def _int_uniform(min: float, max: float) -> Distribution:
    _check_bounds(min, max)
    if not isinstance(min, int) or not isinstance(max, int):
        raise InputError("int_uniform: min and max are whole numbers")
    if max - min >= _MOST_INTEGERS:
        raise InputError(f"int_uniform: there are more than {_MOST_INTEGERS} whole numbers from min to max")
    integers = range(min, max + 1)
    return Distribution(integers, lambda u: integers[int(u * len(integers))])


def _real_uniform(min: float, max: float) -> Distribution:
    _check_bounds(min, max)
    return Distribution(None, lambda u: min + u * (max - min))


def _q_uniform(min: float, max: float, q: float) -> Distribution:
    _, quantile = _quantized(_real_uniform)(min=min, max=max, q=q)
    if (max - min) / q > _MOST_STEPS:
        raise InputError(f"q {q:g}: there are more than {_MOST_STEPS:,} steps from min to max")
    return Distribution(np.arange(min, max, q).tolist(), quantile)  # as in W&B's grid, `max` is not among them


def _log_uniform(min: float, max: float) -> Distribution:
    """The bounds are natural logarithms."""
    _check_bounds(min, max)
    return Distribution(None, lambda u: math.exp(min + u * (max - min)))


def _inverse_log_uniform(min: float, max: float) -> Distribution:
    """The bounds are negated natural logarithms."""
    _check_bounds(min, max)
    return Distribution(None, lambda u: math.exp(-(min + (1 - u) * (max - min))))


def _of_values(make: Callable[[float, float], Distribution], *, sign: int = 1) -> Callable[..., Distribution]:
    """The family whose bounds are values, from the one whose bounds are `sign` times their logarithms."""

    def made(min: float, max: float) -> Distribution:
        _check_bounds(min, max)
        _check_positive("min", min)
        low, high = sorted((sign * math.log(min), sign * math.log(max)))
        return make(low, high)

    return made


def _shaped(quantile: Callable[..., float]) -> Callable[..., Distribution]:
    """The continuous family of a quantile function of u and shape parameters."""

    def made(**shape: float) -> Distribution:
        if any(shape.get(key, 0) < 0 for key in ("sigma", "a", "b")):
            raise InputError("sigma, a and b are not negative")
        return Distribution(None, lambda u: float(quantile(u, **shape)))

    return made


def _quantized(make: Callable[..., Distribution]) -> Callable[..., Distribution]:
    """The family rounded to multiples of q. They are of q's type, so that a whole q gives whole numbers."""

    def made(*, q: float, **parameters: float) -> Distribution:
        _check_positive("q", q)
        _, quantile = make(**parameters)
        return Distribution(None, lambda u: type(q)(round(quantile(u) / q) * q))

    return made


def _special(name: str, *values: float) -> float:
    """A function of scipy.special, which takes too long to load for --help, and scipy.stats a second."""
    from scipy import special

    return getattr(special, name)(*values)


_normal = _shaped(lambda u, mu, sigma: mu + sigma * _special("ndtri", u))
_log_normal = _shaped(lambda u, mu, sigma: math.exp(mu) * math.exp(sigma * _special("ndtri", u)))
_beta = _shaped(lambda u, a, b: _special("betaincinv", a, b, u))
_log_uniform_values = _of_values(_log_uniform)

_BOUNDS, _Q = ("min", "max"), {"q": 1.0}
_GAUSS, _SHAPE = {"mu": 0.0, "sigma": 1.0}, {"a": 1.0, "b": 1.0}
# By W&B's names.
_FAMILIES = {
    "constant": _Family(("value",), {}, _constant),
    "categorical": _Family(("values",), {}, _categorical),
    "categorical_w_probabilities": _Family(("values", "probabilities"), {}, _weighted),
    "int_uniform": _Family(_BOUNDS, {}, _int_uniform),
    "uniform": _Family(_BOUNDS, {}, _real_uniform),
    "q_uniform": _Family(_BOUNDS, _Q, _q_uniform),
    "log_uniform": _Family(_BOUNDS, {}, _log_uniform),
    "log_uniform_values": _Family(_BOUNDS, {}, _log_uniform_values),
    "q_log_uniform": _Family(_BOUNDS, _Q, _quantized(_log_uniform)),
    "q_log_uniform_values": _Family(_BOUNDS, _Q, _quantized(_log_uniform_values)),
    "inv_log_uniform": _Family(_BOUNDS, {}, _inverse_log_uniform),
    "inv_log_uniform_values": _Family(_BOUNDS, {}, _of_values(_inverse_log_uniform, sign=-1)),
    "normal": _Family((), _GAUSS, _normal),
    "q_normal": _Family((), _GAUSS | _Q, _quantized(_normal)),
    "log_normal": _Family((), _GAUSS, _log_normal),
    "q_log_normal": _Family((), _GAUSS | _Q, _quantized(_log_normal)),
    "beta": _Family((), _SHAPE, _beta),
    "q_beta": _Family((), _SHAPE | _Q, _quantized(_beta)),
}
