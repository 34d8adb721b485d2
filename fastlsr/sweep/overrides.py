"""Options that a sweep's command line gives to every trial: --section.key=value."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from fastlsr.cli import read_arguments
from fastlsr.config import PLUGIN, load
from fastlsr.errors import InputError
from fastlsr.sweep.distributions import make_distribution
from fastlsr.sweep.file import Parameter, Sweep
from fastlsr.sweep.plan import by_module, trainer_arguments


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

    Plugins are loaded beside those of the file.

    Raises:
        InputError: for an option that no run has, for a value that it does not take, or where the trials of the file
            have several values.
    """
    load_plugins_of_trials(sweep)
    load(overrides=overrides)
    given = dict(overrides)
    for parameter in sweep.parameters:
        grid = parameter.distribution.grid
        if parameter.name in overrides and (grid is None or len(grid) > 1):
            raise InputError(f"--{parameter.name}: the sweep varies {parameter.name}; change the file instead")
        if parameter.name == PLUGIN and PLUGIN in overrides and grid:
            given[PLUGIN] = f"{grid[0]},{given[PLUGIN]}"
    kept = [each for each in sweep.parameters if each.name not in overrides]
    added = [Parameter(name, make_distribution({"value": text})) for name, text in given.items()]
    parameters = tuple(sorted([*kept, *added], key=lambda each: each.name))
    return replace(sweep, parameters=parameters, command=_without(sweep.command, overrides.keys() - {PLUGIN}))


def load_plugins_of_trials(sweep: Sweep) -> None:
    """Loads the plugins that a trial's command names, itself or in its config: options may be theirs.

    Raises:
        InputError: as `plugins.load_plugins`, or if the command does not start the trainer.
    """
    for values in sweep.combinations(1):
        path, given = trainer_arguments(by_module(sweep.command_of(values)))
        load(path, {PLUGIN: given[PLUGIN]} if PLUGIN in given else {})


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
