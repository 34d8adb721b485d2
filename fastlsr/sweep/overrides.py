"""Options that a sweep's command line gives to every trial: --section.key=value."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from fastlsr.cli import read_arguments
from fastlsr.config import PLUGIN, load
from fastlsr.errors import InputError
from fastlsr.plugins import load_named, load_plugins, named_plugins
from fastlsr.sweep.distributions import make_distribution
from fastlsr.sweep.file import Parameter, Sweep


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the other words, `section.key` to text) of a command line.

    Raises:
        InputError: for an option without its value.
    """
    others, of_trials, rest = list[str](), list[str](), iter(words)
    for word in rest:
        name = word.partition("=")[0]
        if name == f"--{PLUGIN}" or (name.startswith("--") and "." in name):
            of_trials += [word, *([] if "=" in word else itertools.islice(rest, 1))]
        else:
            others.append(word)
    return others, read_arguments(of_trials)[1]


def override(sweep: Sweep, overrides: Mapping[str, str]) -> Sweep:
    """The sweep whose trials all have these options, in the place of what the file has for them.

    Raises:
        InputError: for an option that no run has, for a value that it does not take, or where the trials of the file
            have several values.
    """
    load_plugins_of(sweep)
    load(overrides=overrides)
    for parameter in sweep.parameters:
        grid = parameter.distribution.grid
        if parameter.name in overrides and (grid is None or len(grid) > 1):
            raise InputError(f"--{parameter.name}: the sweep varies {parameter.name}; change the file instead")
    kept = [each for each in sweep.parameters if each.name not in overrides]
    given = [Parameter(name, make_distribution({"value": text})) for name, text in overrides.items()]
    parameters = tuple(sorted([*kept, *given], key=lambda each: each.name))
    return replace(sweep, parameters=parameters, command=_without(sweep.command, overrides))


def load_plugins_of(sweep: Sweep) -> None:
    """Loads the plugins that the trials' command names, itself or in its config, or a parameter: options may be theirs.

    Raises:
        InputError: as `plugins.load_plugins`.
    """
    words = load_named(sweep.command)
    path = next((after for word, after in itertools.pairwise(words) if word == "--cfg"), "")
    load(path or next((word.removeprefix("--cfg=") for word in words if word.startswith("--cfg=")), ""))
    for parameter in sweep.parameters:
        for value in parameter.distribution.grid or () if parameter.name == PLUGIN else ():
            load_plugins(named_plugins(value)[0])


def _without(command: Sequence[str], names: Container[str]) -> tuple[str, ...]:
    """The words of a command without the options of these names, which would win where they follow the trial's."""
    kept, rest = [], iter(command)
    for word in rest:
        name, equals, _ = word.partition("=")
        if not name.startswith("--") or name[2:] not in names:
            kept.append(word)
        elif not equals:
            next(rest, None)  # its value
    return tuple(kept)
