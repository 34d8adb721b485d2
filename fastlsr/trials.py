"""Runs as trials of settings: which repeat each other, what tells settings apart, mean ± std. Loads no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastlsr.config import TEST, Config
from fastlsr.errors import InputError
from fastlsr.labels.methods import METHODS, options_of
from fastlsr.runs import Kind, RunFolder, Summary

REPEATS = ("train.seed", "data.fold")  # trials that differ in nothing else are repeats of one setting


@dataclass(frozen=True)
class Trial:
    """One run.

    Attributes:
        config: its options.
        summary: None as long as the run is not finished.
        folder: where it is.
        data: the digests of its training and evaluation file; () where they are not known, or are those of all trials.
    """

    config: Config
    summary: Summary | None
    folder: RunFolder
    data: tuple[str, ...] = ()

    def was_judged(self, kind: Kind, metric: str = "test/top1") -> bool:
        """Whether runs of this kind have the metric, a key of a row, in that row.

        A run that `selects_on_val` has figures of the test split in its best row only if it keeps the best weights to
        its end. That its best epoch was its last one, too, is no reason to count it: a mean over seeds would be one
        over those runs that were best at their end.
        """
        on_val, keeps = self.config.data.selects_on_val, self.config.run.keep_best
        return kind == "last" or not on_val or not metric.startswith(TEST) or keeps


@dataclass(frozen=True)
class Setting:
    """One or more trials that are repeats of each other, each with a seed or fold of its own.

    Attributes:
        trials: the repeats.
        copies: trials of a seed and fold that is among the repeats already; they are the same run once more.
    """

    trials: tuple[Trial, ...]
    copies: tuple[Trial, ...] = ()

    def numbers(self, kind: Kind, metric: str) -> list[float]:
        """The metric, a key of a row, in that row of each finished trial which has a finite number for it."""
        trials = [trial for trial in self.trials if trial.was_judged(kind, metric)]
        values = [trial.summary[kind].get(metric) for trial in trials if trial.summary]
        return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]

    def has_all_folds(self) -> bool:
        """Whether the trials of each seed hold out every fold once; also where nothing is held out."""
        folds: dict[int, list[int]] = {}
        for trial in self.trials:
            folds.setdefault(trial.config.train.seed, []).append(trial.config.data.fold)
        count = self.trials[0].config.data.folds
        return not count or all(sorted(each) == list(range(count)) for each in folds.values())


def read_trial(folder: RunFolder) -> Trial:
    """The trial in a run's folder.

    Raises:
        InputError: if its options or its origin cannot be read, or its summary is damaged.
    """
    config, origin = folder.read_config(), folder.read_environment()
    digests, teacher = origin.get("data") or (), origin.get("teacher") or ""
    if not isinstance(digests, list | tuple) or not all(isinstance(each, str) for each in (*digests, teacher)):
        raise InputError(f"{folder.path / 'environment.json'} is damaged: its digests are no texts")
    return Trial(config, folder.finished_summary(), folder, tuple(digests))


def settings_of(trials: Iterable[Trial]) -> list[Setting]:
    """The settings of trials, both in the order in which they come; runs on different data are different settings."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.data, *_options_of_setting(trial.config).items()), []).append(trial)
    return [_setting(group) for group in groups.values()]


def _setting(group: Sequence[Trial]) -> Setting:
    """The setting of trials that differ in nothing but `REPEATS`; of equal ones the first that is finished counts."""
    repeats: dict[tuple[int, int], Trial] = {}
    copies = []
    for trial in sorted(group, key=lambda trial: trial.summary is None):
        key = trial.config.train.seed, trial.config.data.fold
        if repeats.setdefault(key, trial) is not trial:
            copies.append(trial)
    return Setting(tuple(trial for trial in group if trial in repeats.values()), tuple(copies))


def varying(settings: Sequence[Setting]) -> list[str]:
    """The `section.key` names, in the order of the options, of which the settings have more than one value."""
    return _varying([setting.trials[0].config for setting in settings])


def setting_labels(configs: Sequence[Config]) -> list[str]:
    """What a picture calls each run's setting, such as "lsr smoothing=0.2": equal for repeats, and for them alone.

    The method's name; the data set, if there are several; then the options besides `REPEATS` in which the configs of
    one data set differ, where they are not the default.
    """
    of_data = {config.data.dataset: [each for each in configs if each.data.dataset == config.data.dataset]
               for config in configs}  # fmt: skip
    keys = {name: [key for key in _varying(alike) if key != "method.name"] for name, alike in of_data.items()}
    names = [config.method.name + data_set_suffix(config, of_data) for config in configs]
    return [
        " ".join([name, *_set_options(config, keys[config.data.dataset])])
        for name, config in zip(names, configs, strict=True)
    ]


def data_set_suffix(config: Config, data_sets: Collection[str]) -> str:
    """What follows the method in the label of a setting: its data set, if there are several."""
    return f" dataset={config.data.dataset}" if len(data_sets) > 1 else ""


def run_labels(configs: Sequence[Config]) -> list[str]:
    """What a picture calls each run beside the others, such as "lsr smoothing=0.2" or "hard, seed 3".

    The label of its setting; repeats are told apart by seed, and by fold where theirs differ. Only equal runs have
    equal labels.
    """
    names = setting_labels(configs)
    folds = {name: {c.data.fold for c, other in zip(configs, names, strict=True) if other == name} for name in names}
    return [
        name
        + (f", seed {config.train.seed}" if names.count(name) > 1 else "")
        + (f", fold {config.data.fold}" if len(folds[name]) > 1 else "")
        for name, config in zip(names, configs, strict=True)
    ]


def ordered(configs: Sequence[Config]) -> list[int]:
    """The positions of runs: methods in the order in which they come, those of one by the values of their options."""
    methods = list(dict.fromkeys(config.method.name for config in configs))
    keys = [key for key in _varying(configs) if key != "method.name"]

    def place(at: int) -> tuple[Any, ...]:
        options = _options_of_setting(configs[at])
        return methods.index(configs[at].method.name), *((key in options, options.get(key)) for key in keys)

    return sorted(range(len(configs)), key=place)


def grouped(configs: Sequence[Config], epochs: Sequence[int]) -> dict[str, list[int]]:
    """The label of each setting, as `ordered`, to the positions of its runs, in the order in which they come.

    Args:
        epochs: that each run's network was trained for; those of one setting with different ones are groups of their
            own, as "lsr, epoch 30".

    Raises:
        InputError: if two runs of a group have the same seed and fold.
    """
    labels = setting_labels(configs)
    groups: dict[str, list[int]] = {}
    trained = {label: {each for each, other in zip(epochs, labels, strict=True) if other == label} for label in labels}
    for at in ordered(configs):
        label = labels[at] + (f", epoch {epochs[at]}" if len(trained[labels[at]]) > 1 else "")
        groups.setdefault(label, []).append(at)
    for label, members in groups.items():
        repeats = {(configs[at].train.seed, configs[at].data.fold) for at in members}
        if len(repeats) < len(members):
            raise InputError(f"{len(members)} runs of {label} have {len(repeats)} seeds and folds: one is given twice")
    return groups


def _set_options(config: Config, keys: Sequence[str]) -> list[str]:
    """KEY=VALUE, as the command line spells the value, of each option of `keys` that is not at its default."""
    options, defaults = _options_of_setting(config), Config().decisive()
    values = {key: options[key] for key in keys if key in options and options[key] != defaults[key]}
    return [f"{_short(key)}={str(each).lower() if isinstance(each, bool) else each}" for key, each in values.items()]


def _short(key: str) -> str:
    """An option's name without its section: "smoothing" of method.smoothing, and "model" of model.name."""
    section, _, name = key.rpartition(".")
    return section if name == "name" else name


def _varying(configs: Sequence[Config]) -> list[str]:
    options = [_options_of_setting(config) for config in configs]
    return [key for key in Config().decisive() if len({each[key] for each in options if key in each}) > 1]


def _options_of_setting(config: Config) -> dict[str, Any]:
    """The options that tell settings apart: those that decide numbers, without `REPEATS` and what the method ignores.

    Of a method that is not here any more, no option is ignored.
    """
    options = {key: value for key, value in config.decisive().items() if key not in REPEATS}
    if config.method.name not in METHODS:
        return options
    read = {f"method.{name}" for name in ("name", *options_of(config.method.name))}
    return {key: value for key, value in options.items() if key in read or not key.startswith("method.")}


def mean_and_std(numbers: Sequence[float], decimals: int | None = None) -> str:
    """As 98.05 ± 0.31, with the sample standard deviation (n - 1); without it for one number, and "-" for none.

    Args:
        decimals: of both; None for as many as show two digits of the deviation, of the mean at most seven, and four
            where nothing deviates.
    """
    if not numbers:
        return "-"
    mean = statistics.fmean(numbers)
    if len(numbers) == 1:
        return f"{mean:#.4g}".rstrip(".") if decimals is None else f"{mean:.{decimals}f}"
    std = statistics.stdev(numbers)
    if decimals is None:
        of_mean = [carried_decimals(mean, 7 if std else 4)] if mean else []
        decimals = min([*of_mean, *([carried_decimals(std, 2)] if std else [])], default=0)
    return f"{mean:.{decimals}f} ± {std:.{decimals}f}"


def carried_decimals(number: float, digits: int = 2) -> int:
    """The decimals with which a number has so many digits, or more if it has them before the point; 0 for 0."""
    return max(0, digits - 1 - math.floor(math.log10(abs(number)))) if number else 0
