"""Which differences between settings the seeds carry: paired tests, Holm's correction, and what may be claimed.

Runs of one seed share the order of their batches and their augmentation, so that settings are compared by the
differences of runs with equal seed. The folds of a seed share their training data: their mean difference counts once.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastlsr.errors import InputError, unknown
from fastlsr.report.collect import ReportedSetting
from fastlsr.report.columns import COLUMNS
from fastlsr.trials import data_set_suffix

ALPHA = 0.05
_EXACT = 16  # differences up to which all 2^n signs are tried
_RESAMPLES = 9999  # of the bootstrap, and of signs where not all are tried
_SAME = 1e-5  # of the largest difference: means of signed differences that are nearer are the same
_SEED = 0  # the same runs give the same report


@dataclass(frozen=True)
class Comparison:
    """Setting `one` less setting `other`.

    Attributes:
        one, other: labels.
        column: the figure that is compared, a key of `COLUMNS`, at the last epoch.
        seeds: that both have, ascending.
        differences: float64[n], one of each seed: the mean over the folds that both have.
        interval: of the mean difference, BCa bootstrap at 95%; None for less than two differences.
        p: two-sided, of the sign-flip test; 1 for less than two differences.
        p_holm: p after Holm's correction over all comparisons made.
        needed: differences with which the test could decide, if the other comparisons keep theirs.
    """

    one: str
    other: str
    column: str
    seeds: tuple[int, ...]
    differences: np.ndarray
    interval: tuple[float, float] | None = None
    p: float = 1.0
    p_holm: float = 1.0
    needed: int = 0

    @property
    def mean(self) -> float | None:
        """The mean difference; None without any."""
        return float(self.differences.mean()) if len(self.differences) else None

    @property
    def decided(self) -> bool:
        """Whether the difference is significant after Holm's correction."""
        return self.p_holm <= ALPHA

    @property
    def better(self) -> str | None:
        """The label of the setting that the test shows to be better; None if it shows neither."""
        gain = COLUMNS[self.column].sign * (self.mean or 0.0)
        return (self.one if gain > 0 else self.other) if self.decided and gain else None

    @property
    def claim(self) -> str:
        """What may be claimed, in words."""
        if self.is_out_of_reach:
            return f"n cannot decide; {self.needed} seeds could"
        return self._finding if self.decided else f"not decided: {self._finding}"

    @property
    def is_out_of_reach(self) -> bool:
        """Whether its seeds are too few to decide it, whatever they show."""
        return not self.decided and len(self.differences) < self.needed

    @property
    def _finding(self) -> str:
        """As "tsla above lsr by 0.42 (95% interval 0.10 to 0.71), p 0.031 after Holm"."""
        assert self.mean is not None and self.interval is not None
        decimals, sign = COLUMNS[self.column].decimals, -1 if self.mean < 0 else 1
        low, high = sorted(sign * end for end in self.interval)
        return (
            f"{self.one} {'below' if sign < 0 else 'above'} {self.other} by {abs(self.mean):.{decimals}f} "
            f"(95% interval {low:.{decimals}f} to {high:.{decimals}f}), p {self.p_holm:.2g} after Holm"
        )


Pair = tuple[ReportedSetting, ReportedSetting]


def all_pairs(settings: Sequence[ReportedSetting]) -> list[Pair]:
    """Every pair of settings that were trained and evaluated on the same data."""
    return [pair for pair in itertools.combinations(settings, 2) if evaluated_alike(*pair)]


def evaluated_alike(one: ReportedSetting, other: ReportedSetting) -> bool:
    """Whether two settings were trained and evaluated on the same samples."""
    first, second = ((s.config.data.dataset, s.config.data.folds, s.runs[0].trial.data[:2]) for s in (one, other))
    return first == second


def planned_pairs(text: str, settings: Sequence[ReportedSetting]) -> list[Pair]:
    """The pairs that "tsla:lsr,colam:hard" names by labels, which may themselves have commas and colons.

    Where settings of several data sets have labels that only these tell apart, a pair without them is one on each.

    Raises:
        InputError: for a name that is no setting, or a pair that is none or cannot be compared.
    """
    data_sets = {setting.config.data.dataset for setting in settings}
    by_label: dict[str, list[ReportedSetting]] = {setting.label: [setting] for setting in settings}
    for setting in settings:
        short = setting.label.replace(data_set_suffix(setting.config, data_sets), "")
        if short != setting.label:
            by_label.setdefault(short, []).append(setting)
    label = "|".join(re.escape(each) for each in sorted(by_label, key=len, reverse=True))
    pair = rf"({label}):({label})"
    if not re.fullmatch(rf"{pair}(,{pair})*", text):
        raise InputError(f"--compare={text}: {_problem(text, list(by_label))}")
    named = [(by_label[match[1]], by_label[match[2]]) for match in re.finditer(pair, text)]
    pairs = [each for ones, others in named for each in _of_one_data_set(ones, others)]
    seen: set[frozenset[str]] = set()
    for one, other in pairs:
        names, shown = {one.label, other.label}, f"--compare: {one.label}:{other.label}"
        if len(names) == 1:
            raise InputError(f"{shown} are one setting")
        if frozenset(names) in seen:
            raise InputError(f"{shown} is there twice")
        if not evaluated_alike(one, other):
            raise InputError(f"{shown} were trained or evaluated on different data")
        seen.add(frozenset(names))
    return pairs


def _of_one_data_set(ones: Sequence[ReportedSetting], others: Sequence[ReportedSetting]) -> list[Pair]:
    """The pairs that share a data set; all pairs where none does."""
    pairs = list(itertools.product(ones, others))
    return [(one, other) for one, other in pairs if one.config.data.dataset == other.config.data.dataset] or pairs


def _problem(text: str, labels: Sequence[str]) -> str:
    for pair in text.split(","):
        names = pair.split(":")
        for name in names:
            if name not in labels:
                return unknown("setting", name, labels)
        if len(names) != 2:
            return f"{pair} is no pair, as {labels[0]}:{labels[-1]} is"
    return "expected pairs of settings, as one:other,one:third"


def compare(pairs: Sequence[Pair], column: str) -> list[Comparison]:
    """The comparisons, in the order of the pairs, corrected for one another.

    Args:
        pairs: settings, each pair once.
        column: a key of `COLUMNS`, read at the last epoch.
    """
    found = [_differences(one, other, column) for one, other in pairs]
    by_count: dict[int, list[int]] = defaultdict(list)
    for at, comparison in enumerate(found):
        by_count[len(comparison.differences)].append(at)
    for count, members in by_count.items():
        if count < 2:
            continue
        differences = np.stack([found[at].differences for at in members])
        tested = zip(members, intervals(differences), sign_flip_p(differences), strict=True)
        for at, (low, high), p in tested:
            found[at] = replace(found[at], interval=(low, high), p=p)
    counts = [len(comparison.differences) for comparison in found]
    needed = {count: needed_differences(counts, counts.index(count)) for count in set(counts)}
    corrected = holm([comparison.p for comparison in found])
    return [
        replace(each, p_holm=p, needed=needed[count]) for each, p, count in zip(found, corrected, counts, strict=True)
    ]


def _differences(one: ReportedSetting, other: ReportedSetting, column: str) -> Comparison:
    values = [
        {run.repeat: run.figures["last"][column] for run in setting.runs if column in run.figures["last"]}
        for setting in (one, other)
    ]
    by_seed: dict[int, list[float]] = defaultdict(list)
    for repeat in sorted(values[0].keys() & values[1].keys()):
        by_seed[repeat[0]].append(values[0][repeat] - values[1][repeat])
    differences = np.array([np.mean(of_folds) for of_folds in by_seed.values()])
    return Comparison(one.label, other.label, column, tuple(by_seed), differences)


def needed_differences(counts: Sequence[int], at: int) -> int:
    """The fewest differences, no less than it has, with which the comparison `at` could be decided.

    So it is where its p is significant after Holm's correction when that of every comparison is 2 / 2^n, its smallest.

    Args:
        counts: the differences of each comparison.
    """
    smallest = [2 / 2**count for count in counts]

    def could(count: int) -> bool:
        return holm([*smallest[:at], 2 / 2**count, *smallest[at + 1 :]])[at] <= ALPHA

    return next(count for count in itertools.count(counts[at]) if could(count))


def is_exact(count: int) -> bool:
    """Whether all signs of so many differences are tried, not a sample of them."""
    return count <= _EXACT


def sign_flip_p(differences: np.ndarray) -> list[float]:
    """The two-sided p of the sign-flip test of each row.

    It is the share of the 2^n ways to flip the signs of n differences of which the mean is at least as far from 0. If
    settings do not differ, the difference of a seed is as likely to be negative as positive; no more is assumed. With
    more than 16 differences, 9999 random ways and the given one stand for all.

    Args:
        differences: float64[M, n], n at least 2.
    """
    from scipy import stats

    # Means that are equal but for the order of addition, or the float32 of a row's accuracy, count as equal. They are
    # rounded around the observed one, so that none lies on the edge of rounding that equals it.
    scaled = differences / np.maximum(np.abs(differences).max(1, keepdims=True), np.finfo(float).tiny)
    observed = scaled.mean(1)
    result = stats.permutation_test(
        (scaled,), lambda sample, axis: ((sample.mean(axis=axis) - observed) / _SAME).round(),
        permutation_type="samples", vectorized=True,
        n_resamples=math.inf if is_exact(differences.shape[1]) else _RESAMPLES, batch=256, axis=1,
        random_state=np.random.default_rng(_SEED),
    )  # fmt: skip
    return [float(p) for p in result.pvalue]


def intervals(differences: np.ndarray) -> list[tuple[float, float]]:
    """The BCa bootstrap interval, at 95%, of each row's mean; of equal differences, their value.

    Args:
        differences: float64[M, n], n at least 2.
    """
    from scipy import stats

    found = [(float(mean), float(mean)) for mean in differences.mean(1)]
    spread = np.ptp(differences, axis=1) > 1e-9 * np.abs(differences).max(1)
    if spread.any():
        varied = differences[spread]
        interval = stats.bootstrap(
            (varied, np.zeros_like(varied)), lambda one, other, axis: (one - other).mean(axis=axis), paired=True,
            method="BCa", vectorized=True, n_resamples=_RESAMPLES, axis=1, batch=100,
            random_state=np.random.default_rng(_SEED),
        ).confidence_interval  # fmt: skip
        for at, low, high in zip(np.flatnonzero(spread), interval.low, interval.high, strict=True):
            found[at] = float(low), float(high)
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Each p after Holm's step-down correction (Holm 1979), in the given order."""
    corrected, highest = [0.0] * len(p), 0.0
    for step, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        highest = max(highest, min(1.0, (len(p) - step) * p[at]))
        corrected[at] = highest
    return corrected


def carried_winners(settings: Sequence[ReportedSetting], comparisons: Sequence[Comparison]) -> set[str]:
    """The labels that a table may set in bold in the column that is compared, at the last epoch.

    Such a setting is compared with every other one of the table that was evaluated on the same data, and each of these
    comparisons is decided in its favour. A setting that is compared with some of them only is never among them.
    """
    beaten: dict[str, set[str]] = defaultdict(set)
    for each in comparisons:
        if each.better:
            beaten[each.better].add(each.other if each.better == each.one else each.one)
    others = {s.label: {o.label for o in settings if o is not s and evaluated_alike(s, o)} for s in settings}
    return {label for label, rivals in others.items() if rivals and rivals <= beaten[label]}


def notes(settings: Sequence[ReportedSetting], comparisons: Sequence[Comparison]) -> list[str]:
    """What holds for all comparisons: how they were made, and where an assumption is weaker."""
    column, count = COLUMNS[comparisons[0].column], len(comparisons)
    said = [
        "Differences are paired by seed. p is that of the sign-flip test, Holm-corrected over "
        f"{count} comparison{'s' * (count != 1)}; the interval is a BCa bootstrap's, of one difference by itself.",
    ]
    if any(not is_exact(len(each.differences)) for each in comparisons):
        said.append(f"With more than {_EXACT} seeds p is estimated from {_RESAMPLES} random signs.")
    if any(setting.config.data.folds for setting in settings):
        said.append("Folds share training data: of each seed their mean difference counts, as one.")
    if count > 1 and any(not each.decided and len(each.differences) < each.needed for each in comparisons):
        said.append(
            "Fewer comparisons need fewer seeds: name those that were planned before the runs (--compare=a:b,a:c). "
            "Chosen after a look at the figures, they would prove nothing."
        )
    if column.sign:
        said.append(f"{'Higher' if column.sign > 0 else 'Lower'} is better.")
    return said
