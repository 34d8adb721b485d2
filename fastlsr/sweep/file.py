"""A W&B sweep file as a value: the values of its trials, in W&B's order, and the command of each. Runs nothing.

The rules are those of W&B's public search code and of the agent of wandb 0.31, which were read for it. Two
differences: draws of a random search are a function of parameter and trial number, and what W&B would drop or misread
in silence is an error.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlsr.config import read_yaml
from fastlsr.errors import InputError
from fastlsr.rng import named_generator
from fastlsr.shipped import SWEEPS
from fastlsr.sweep.distributions import Distribution, distribution_name, make_distribution

_TOP_LEVEL = {"program", "entity", "project", "description", "name", "method", "metric", "parameters", "command",
              "run_cap", "apiVersion", "kind"}  # fmt: skip
_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_MOST_IN_A_GRID = 100_000

Values = dict[str, Any]  # option, such as "method.smoothing", to value


@dataclass(frozen=True)
class Parameter:
    """One entry of `parameters:`; `name` is the option that it sets."""

    name: str
    distribution: Distribution

    def draw(self, number: int) -> Any:
        """The value in a random search's trial `number`, from 0; a function of name and number alone.

        Raises:
            InputError: for a draw too large for a number.
        """
        try:
            return self.distribution.quantile(float(named_generator(self.name, number).random()))
        except (OverflowError, ValueError):  # the exponential of a large number, rounding what is not finite
            raise InputError(f"parameters: {self.name}: draw {number + 1} is too large for a number") from None


@dataclass(frozen=True)
class Sweep:
    """A sweep file that can be run without W&B's server.

    Attributes:
        parameters: by name, which is how W&B orders them whatever the file's order.
        metric, maximize: what decides which trial is better. W&B's default goal is to minimize.
        limit: the most trials there are, None if the file gives no `run_cap`.
    """

    method: str
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    program: str
    metric: str
    maximize: bool
    limit: int | None

    def combinations(self, count: int | None = None) -> list[Values]:
        """The values of the first `count` trials, or of all without a count; no two are the same.

        A grid is the product in which the last parameter by name varies fastest.

        Raises:
            InputError: for a random search without an end, or a grid too large to be meant.
        """
        limit = min((n for n in (count, self.limit) if n is not None), default=None)
        if self.method == "grid":
            found: Iterator[Values] = itertools.islice(self._grid(), limit)
        elif limit is None:
            raise InputError("method: random has no last trial; give --count N, or run_cap in the file")
        else:
            found = ({each.name: each.draw(number) for each in self.parameters} for number in range(limit))
        distinct = {json.dumps(values, default=str): values for values in found}
        return list(distinct.values())

    def _grid(self) -> Iterator[Values]:
        names = [parameter.name for parameter in self.parameters]
        grids = [parameter.distribution.grid or () for parameter in self.parameters]
        size = math.prod(len(grid) for grid in grids)
        if size > _MOST_IN_A_GRID:  # itertools.product would make a list of each parameter's values
            raise InputError(f"method: grid has {size:,} trials, more than {_MOST_IN_A_GRID:,}; take method: random")
        for combination in itertools.product(*grids):
            yield dict(zip(names, combination, strict=True))

    def command_of(self, values: Values) -> list[str]:
        """The words of the command that W&B's agent would start for these values.

        Raises:
            InputError: for a macro that W&B does not know, or `${program}` without a program.
        """
        macros = {**_macros_of(values), "env": ["/usr/bin/env"], "interpreter": ["python"], "program": [self.program]}
        words: list[str] = []
        for word in self.command:
            word = _ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[1]), word)
            if not (word.startswith("${") and word.endswith("}")):
                words.append(word)
            elif word == "${program}" and not self.program:
                raise InputError("command: ${program} stands for `program:`, which the file lacks")
            elif word[2:-1] not in macros:
                raise InputError(f"command: {word} is none of {', '.join(f'${{{name}}}' for name in macros)}")
            else:
                words += macros[word[2:-1]]
        return words


def read_sweep(path: str | Path) -> Sweep:
    """The sweep in a W&B sweep file, or in the one of that name that comes with the package.

    Raises:
        InputError: if it cannot be read, is not one, or needs W&B's server; the message begins with the path.
    """
    tree = read_yaml(path, SWEEPS)
    try:
        return _sweep(tree)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _sweep(tree: Any) -> Sweep:
    if not isinstance(tree, Mapping) or "method" not in tree or not isinstance(tree.get("parameters"), Mapping):
        raise InputError("a sweep has `method:` and `parameters:`")
    _check_method(tree)
    _check_known("the sweep", tree, _TOP_LEVEL)
    if not tree["parameters"]:
        raise InputError("parameters: expected at least one")
    command, cap = tree.get("command", list(_COMMAND)), tree.get("run_cap")
    if not isinstance(command, list) or not command:
        raise InputError("command: expected a list of words")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise InputError(f"run_cap: {cap}: expected a whole number of at least 1")
    metric, maximize = _metric_and_goal(tree.get("metric"))
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


def _check_method(tree: Mapping[str, Any]) -> None:
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


def _check_known(where: str, tree: Mapping[str, Any], known: set[str]) -> None:
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"
            raise InputError(f"{where}: {key}: not supported without W&B's server{hint}")


def _metric_and_goal(tree: Any) -> tuple[str, bool]:
    """(name, whether more is better)."""
    if tree is None:
        return "test/top1", True
    if not isinstance(tree, Mapping) or not isinstance(tree.get("name"), str):
        raise InputError("metric: expected `name:` and `goal:`")
    _check_known("metric", tree, {"name", "goal"})
    goal = tree.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise InputError(f"metric: goal: {goal} is neither minimize nor maximize")
    return tree["name"], goal == "maximize"


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
    try:
        distribution = make_distribution(tree)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if method == "grid" and distribution.grid is None:
        raise InputError(
            f"{where}: a grid takes value, values, int_uniform or q_uniform, not {distribution_name(tree)}"
        )
    return Parameter(name, distribution)


def _macros_of(values: Values) -> dict[str, list[str]]:
    """The words that each macro of W&B's agent stands for, of those that hold the trial's values."""
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
        "args_json": [json.dumps(values, default=str)],
    }
