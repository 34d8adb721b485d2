"""A W&B sweep file as values: its trials, in W&B's order, and the command of each. Nothing here runs anything.

What W&B's server and agent do with such a file is done here without either (its public search code and the agent
of wandb 0.31 were read for it). Two differences: draws of a random search are a function of parameter and trial
number, and what W&B would drop or misread in silence is refused.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special  # not scipy.stats, which takes a second to load

from fastlsr.config import read_yaml
from fastlsr.errors import InputError

_TOP_LEVEL = {"program", "entity", "project", "description", "name", "method", "metric", "parameters", "command",
              "run_cap", "apiVersion", "kind"}  # fmt: skip
_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")

Values = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """One entry of `parameters:`.

    Attributes:
        name: the option, such as "method.smoothing".
        grid: what a grid search tries, in order; None where the distribution is continuous.
        quantile: from a number in [0, 1) to the value that a random search takes there.
    """

    name: str
    grid: list[Any] | None
    quantile: Callable[[float], Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep file that can be run without W&B's server.

    Attributes:
        parameters: by name, which is how W&B orders them whatever the file's order.
        metric, maximize: what decides which trial is better. W&B's default goal is to minimize.
        limit: the most trials there are, None if a random search names none.
    """

    method: str
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    program: str
    metric: str
    maximize: bool
    limit: int | None

    def trials(self, count: int | None = None) -> list[Values]:
        """The first `count` trials as option to value, none twice; all of them without a count.

        A grid is the product in which the last parameter by name varies fastest.

        Raises:
            InputError: for a random search without an end.
        """
        limit = min((n for n in (count, self.limit) if n is not None), default=None)
        if limit is None and self.method == "random":
            raise InputError("method: random has no last trial; give --count N, or run_cap in the file")
        draws = self._grid() if self.method == "grid" else map(self._draw, range(limit))
        distinct = {json.dumps(values, default=str): values for values in itertools.islice(draws, limit)}
        return list(distinct.values())

    def _grid(self) -> Iterator[Values]:
        names = [parameter.name for parameter in self.parameters]
        for combination in itertools.product(*(parameter.grid for parameter in self.parameters)):
            yield dict(zip(names, combination, strict=True))

    def _draw(self, trial: int) -> Values:
        return {parameter.name: parameter.quantile(_uniform(parameter.name, trial)) for parameter in self.parameters}

    def command_of(self, values: Values) -> list[str]:
        """The words that W&B's agent would start for these values.

        Raises:
            InputError: for a macro that it does not know, or `${program}` without a program.
        """
        made = {**_arguments(values), "env": ["/usr/bin/env"], "interpreter": ["python"], "program": [self.program]}
        words: list[str] = []
        for word in self.command:
            word = _ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[1]), word)
            if not (word.startswith("${") and word.endswith("}")):
                words.append(word)
            elif word == "${program}" and not self.program:
                raise InputError("command: ${program} stands for `program:`, which the file lacks")
            elif word[2:-1] not in made:
                raise InputError(f"command: {word} is none of {', '.join(f'${{{name}}}' for name in made)}")
            else:
                words += made[word[2:-1]]
        return words


def read_sweep(path: str | Path) -> Sweep:
    """The sweep in a W&B sweep file.

    Raises:
        InputError: if it cannot be read, is not one, or needs W&B's server; the message begins with the path.
    """
    tree = read_yaml(path)
    try:
        return _sweep(tree)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _sweep(tree: Any) -> Sweep:
    if not isinstance(tree, Mapping) or "method" not in tree or not isinstance(tree.get("parameters"), Mapping):
        raise InputError("a sweep has `method:` and `parameters:`")
    if tree["method"] == "bayes":
        raise InputError(
            "method: bayes chooses each trial from the results so far on W&B's server: start it with `wandb sweep` and "
            "`wandb agent`, or take method: grid or random here"
        )
    if tree["method"] not in ("grid", "random"):
        raise InputError(f"method: {tree['method']} is neither grid nor random")
    if "early_terminate" in tree:
        raise InputError(
            "early_terminate is done by W&B's server; use `wandb sweep` and `wandb agent`, or leave it out"
        )
    _refuse_others("the sweep", tree, _TOP_LEVEL)
    command, cap = tree.get("command", list(_COMMAND)), tree.get("run_cap")
    if not isinstance(command, list) or not command:
        raise InputError("command: expected a list of words")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise InputError(f"run_cap: {cap}: expected a whole number of at least 1")
    metric, maximize = _metric(tree.get("metric"))
    return Sweep(
        method=tree["method"],
        parameters=tuple(_parameter(str(name), tree["parameters"][name], tree["method"])
                         for name in sorted(tree["parameters"], key=str)),
        command=tuple(str(word) for word in command),
        program=str(tree.get("program") or ""),
        metric=metric,
        maximize=maximize,
        limit=cap,
    )  # fmt: skip


def _metric(tree: Any) -> tuple[str, bool]:
    """(name, whether more is better)."""
    if tree is None:
        return "test/top1", True
    if not isinstance(tree, Mapping) or not isinstance(tree.get("name"), str):
        raise InputError("metric: expected `name:` and `goal:`")
    _refuse_others("metric", tree, {"name", "goal"})
    goal = tree.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise InputError(f"metric: goal: {goal} is neither minimize nor maximize")
    return tree["name"], goal == "maximize"


def _refuse_others(where: str, tree: Mapping[str, Any], known: set[str]) -> None:
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
            raise InputError(f"{where}: {key}: not supported without W&B's server{hint}")


def _parameter(name: str, tree: Any, method: str) -> Parameter:
    """The parameter of one entry.

    Raises:
        InputError: if it is malformed, or of a kind that the method cannot use.
    """
    where = f"parameters: {name}"
    if not isinstance(tree, Mapping):
        raise InputError(f"{where}: expected `value:`, `values:` or a distribution")
    if "parameters" in tree:
        raise InputError(f"{where}: nested parameters reach a command as one dictionary; name them flat, {name}.key")
    kind = tree.get("distribution", _default_distribution(tree))
    if kind not in _DISTRIBUTIONS:
        close = difflib.get_close_matches(str(kind), _DISTRIBUTIONS, 1)
        raise InputError(
            f"{where}: distribution {kind} is none of W&B's" + (f"; did you mean {close[0]}?" * bool(close))
        )
    needs, defaults, make = _DISTRIBUTIONS[kind]
    given = {key: value for key, value in tree.items() if key != "distribution"}
    if not set(needs) <= set(given) <= {*needs, *defaults}:
        wanted = ", ".join(needs) or "nothing"
        raise InputError(f"{where}: {kind} takes {wanted}" + (f", and may take {', '.join(defaults)}" * bool(defaults)))
    given = {**defaults, **given}
    for key in given.keys() - {"value", "values", "probabilities"}:
        if isinstance(given[key], bool) or not isinstance(given[key], int | float):
            raise InputError(f"{where}: {key}: {given[key]!r} is no number (YAML reads 1e-4 as text: write 1.0e-4)")
    try:
        grid, quantile = make(**given)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if method == "grid" and grid is None:
        raise InputError(f"{where}: a grid takes value, values, int_uniform or q_uniform, not {kind}")
    return Parameter(name, grid, quantile)


def _default_distribution(tree: Mapping[str, Any]) -> str | None:
    """W&B's: what the keys that are there say, and for `min` and `max` whether both are whole."""
    if "value" in tree:
        return "constant"
    if "values" in tree:
        return "categorical_w_probabilities" if "probabilities" in tree else "categorical"
    whole = type(tree.get("min")) is int and type(tree.get("max")) is int
    return "int_uniform" if whole else "uniform"


def _constant(value: Any):
    return [value], lambda u: value


def _categorical(values: Any):
    if not isinstance(values, list) or not values:
        raise ValueError("values: expected a list of one or more")
    return values, lambda u: values[int(u * len(values))]


def _weighted(values: Any, probabilities: Any):
    _categorical(values)
    if not isinstance(probabilities, list) or len(probabilities) != len(values) or min(probabilities) < 0:
        raise ValueError("probabilities: expected one for each of the values")
    if not math.isclose(sum(probabilities), 1):
        raise ValueError(f"probabilities: their sum is {sum(probabilities):g}, not 1")
    edges = np.cumsum(probabilities)
    return None, lambda u: values[min(int(np.searchsorted(edges, u, side="right")), len(values) - 1)]


def _ordered(min: float, max: float) -> None:
    if not min <= max:
        raise ValueError(f"min {min:g} is above max {max:g}")


def _int_uniform(min: int, max: int):
    _ordered(min, max)
    if type(min) is not int or type(max) is not int:
        raise ValueError("int_uniform: min and max are whole numbers")
    return list(range(min, max + 1)), lambda u: min + int(u * (max - min + 1))


def _uniform_on(min: float, max: float):
    _ordered(min, max)
    return None, lambda u: min + u * (max - min)


def _q_uniform(min: float, max: float, q: float):
    _, quantile = _quantized(_uniform_on)(min=min, max=max, q=q)
    return np.arange(min, max, q).tolist(), quantile  # as W&B's grid has it: `max` is not among them


def _log_uniform(min: float, max: float):
    _ordered(min, max)
    return None, lambda u: math.exp(min + u * (max - min))


def _inverse_log_uniform(min: float, max: float):
    _ordered(min, max)
    return None, lambda u: math.exp(-(min + (1 - u) * (max - min)))


def _of_logarithms(make: Callable[..., Any], *, sign: int = 1):
    """The distribution whose bounds are values, from the one whose bounds are their (negative) logarithms."""

    def made(min: float, max: float):
        _ordered(min, max)
        if min <= 0:
            raise ValueError(f"min {min:g} is not above 0")
        low, high = sorted((sign * math.log(min), sign * math.log(max)))
        return make(low, high)

    return made


def _shaped(quantile: Callable[..., Any]):
    def made(**parameters: float):
        if min((parameters.get(name, 0) for name in ("sigma", "a", "b")), default=0) < 0:
            raise ValueError("sigma, a and b are not negative")
        return None, lambda u: float(quantile(u, **parameters))

    return made


def _quantized(make: Callable[..., Any]):
    """The distribution rounded to multiples of q, which are whole numbers where q is one."""

    def made(*, q: float, **parameters: float):
        if q <= 0:
            raise ValueError(f"q {q:g} is not above 0")
        _, quantile = make(**parameters)
        return None, lambda u: type(q)(round(quantile(u) / q) * q)

    return made


_normal = _shaped(lambda u, mu, sigma: mu + sigma * special.ndtri(u))
_log_normal = _shaped(lambda u, mu, sigma: math.exp(mu) * math.exp(sigma * special.ndtri(u)))
_beta = _shaped(lambda u, a, b: special.betaincinv(a, b, u))
_log_uniform_values = _of_logarithms(_log_uniform)

_BOUNDS, _Q = ("min", "max"), {"q": 1.0}
_GAUSS, _SHAPE = {"mu": 0.0, "sigma": 1.0}, {"a": 1.0, "b": 1.0}
# W&B's name: the keys it needs, those it may have with their defaults, and what makes (grid or None, quantile) of them.
_DISTRIBUTIONS: dict[str, tuple[tuple[str, ...], dict[str, float], Callable[..., Any]]] = {
    "constant": (("value",), {}, _constant),
    "categorical": (("values",), {}, _categorical),
    "categorical_w_probabilities": (("values", "probabilities"), {}, _weighted),
    "int_uniform": (_BOUNDS, {}, _int_uniform),
    "uniform": (_BOUNDS, {}, _uniform_on),
    "q_uniform": (_BOUNDS, _Q, _q_uniform),
    "log_uniform": (_BOUNDS, {}, _log_uniform),
    "log_uniform_values": (_BOUNDS, {}, _log_uniform_values),
    "q_log_uniform": (_BOUNDS, _Q, _quantized(_log_uniform)),
    "q_log_uniform_values": (_BOUNDS, _Q, _quantized(_log_uniform_values)),
    "inv_log_uniform": (_BOUNDS, {}, _inverse_log_uniform),
    "inv_log_uniform_values": (_BOUNDS, {}, _of_logarithms(_inverse_log_uniform, sign=-1)),
    "normal": ((), _GAUSS, _normal),
    "q_normal": ((), _GAUSS | _Q, _quantized(_normal)),
    "log_normal": ((), _GAUSS, _log_normal),
    "q_log_normal": ((), _GAUSS | _Q, _quantized(_log_normal)),
    "beta": ((), _SHAPE, _beta),
    "q_beta": ((), _SHAPE | _Q, _quantized(_beta)),
}


def _uniform(name: str, trial: int) -> float:
    """A number in [0, 1), a function of the parameter's name and the trial's number alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return float(np.random.Generator(np.random.Philox(key=[key, trial])).random())


def _arguments(values: Values) -> dict[str, list[str]]:
    """What each of the agent's macros stands for."""
    pairs = [(name, f"{name}={value}") for name, value in values.items()]
    return {
        "args": [f"--{pair}" for _, pair in pairs],
        "args_no_equals": [word for name, value in values.items() for word in (f"--{name}", str(value))],
        "args_no_hyphens": [pair for _, pair in pairs],
        "args_no_boolean_flags": [
            f"--{name}" if values[name] is True else f"--{pair}" for name, pair in pairs if values[name] is not False
        ],
        "args_append_hydra": [f"+{pair}" for _, pair in pairs],
        "args_override_hydra": [f"++{pair}" for _, pair in pairs],
        "args_json": [json.dumps(values)],
    }
