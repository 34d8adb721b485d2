"""Does dropping the smoothing give back what smoothing took? Figures along the epochs of runs that kept checkpoints.

    python -m fastlsr.analyze dropping RUN ... [--to=flowers102] [--every=2]

RUN are runs of `tsla`, and of `lsr` and `hard` to compare them with, made with `run.keep=K`. TSLA trains as `lsr` until
it drops the smoothing and as `hard` from then on, so that its figures at the end lie somewhere between theirs, or
beyond. The share given back of a figure is

    (tsla - lsr) / (hard - lsr)    at the end, of the means over the seeds that all three have;

0 is what smoothing to the end gives, 1 what no smoothing gives. Its standard error is the jackknife's over the seeds.
There is no share where hard and lsr are "not apart": where 0 is in the 95% interval of their difference by seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from fastlsr.analysis import Finding, aligned
from fastlsr.analysis.clusters import variation_and_separation
from fastlsr.config import PLACES, Config, differences
from fastlsr.drawing import draw_band, legend_below, line_styles, panels, style
from fastlsr.engine.trained import TrainedRun, open_run
from fastlsr.errors import InputError
from fastlsr.inference.cost import forward_seconds, tell_cost
from fastlsr.inference.features import split_features
from fastlsr.inference.linear_probe import on_other_data, probe
from fastlsr.inference.predictions import evaluation_logits
from fastlsr.labels.plan import Plan
from fastlsr.scores import Predictions, area_under_risk, aurc, ece, nll, normalised_confidence
from fastlsr.terminal import tracked
from fastlsr.trials import REPEATS, grouped, mean_and_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Key in the numbers: (title, the same in short). Those of the probe are there only with --to.
FIGURES = {
    "top1": ("top-1, %", "top-1"),
    "nll": ("NLL, nats", "NLL"),
    "ece": ("ECE", "ECE"),
    "aurc": ("AURC, 10⁻³", "AURC"),
    "aurc_normalised": ("AURC, normalised logits, 10⁻³", "AURC normalised"),
    "intra_class_variation": ("intra-class variation, training split", "variation"),
    "transfer_top1": ("linear probe, top-1, %", "probe top-1"),
    "transfer_nll": ("linear probe, NLL, nats", "probe NLL"),
}
_SMOOTHING = ("method.smoothing", "method.teacher", "method.teacher_key")  # what lsr and tsla must share
ROLES = ("tsla", "lsr", "hard")  # what a setting that drops its smoothing is compared as
_NOTE = (
    "mean ± std over seeds; given back: (tsla - lsr) / (hard - lsr) of the means ± the jackknife's standard error;\n"
    "not apart: 0 is in the 95% interval of hard - lsr, so that there is no share of it"
)
_LEVEL = 0.95  # of the interval of (hard - lsr) that must leave out 0, for a share of it to be told

Curve = dict[int, dict[str, float]]  # from an epoch to its figures
Repeat = tuple[int, int]  # seed and fold of a run


@dataclass(frozen=True)
class Followed:
    """A setting along its epochs.

    Attributes:
        config: of its first run.
        plan: of its method.
        curves: of each run.
    """

    config: Config
    plan: Plan
    curves: dict[Repeat, Curve]

    @property
    def epochs(self) -> list[int]:
        """Those of which all runs have figures."""
        return sorted(set.intersection(*(set(curve) for curve in self.curves.values())))


def analyze(runs: Sequence[TrainedRun], *, to: str = "", every: int = 1) -> Finding:
    """Figures of each kept checkpoint, and of each the share that dropping the smoothing gave back.

    The figures are of the evaluation split, but for the variation of the training split's features (d_within, as in
    `clusters`) and the linear probe (as in `transfer`).

    Args:
        to: data set of the linear probe, beside the runs' own; empty: none, since it takes longer than all the rest.
        every: take each so many-th kept checkpoint, counted from the last.

    Raises:
        InputError: if a run kept no checkpoints, `every` is below 1, or for files that do not fit.
    """
    if every < 1:
        raise InputError(f"--every={every}: expected at least 1")
    groups = grouped([run.config for run in runs], [0] * len(runs))
    curves = _follow(runs, every, to)
    settings = {}
    for label, members in groups.items():
        repeats = {(runs[at].config.train.seed, runs[at].config.data.fold): curves[at] for at in members}
        settings[label] = Followed(runs[members[0]].config, runs[members[0]].plan, repeats)
        if not settings[label].epochs:
            raise InputError(f"the runs of {label} have no kept epoch in common; take those with the same --run.keep")
    compared = {label: _given_back(label, settings) for label, each in settings.items() if drop_epoch(each.plan)}
    with style():
        picture = _picture(settings)
    return Finding(_numbers(settings, compared), _text(settings, compared), picture)


def checkpoint_figures(run: TrainedRun, to: str) -> dict[str, float]:
    """The figures `FIGURES` of a checkpoint, by name; those of the probe if `to` names a data set."""
    kept = evaluation_logits(run, quiet=True)
    predictions = Predictions(kept.logits, kept.labels)
    normalised, _ = normalised_confidence(kept.logits, kept.labels, kept.index)
    features = split_features(run, run.plain_training_loader(), "train", quiet=True)
    clusters = [features.values[features.labels == label] for label in range(len(run.classes))]
    within, _ = variation_and_separation([each for each in clusters if len(each)])
    figures = {
        "top1": 100 * float(predictions.correct.mean()), "nll": nll(predictions), "ece": ece(predictions),
        "aurc": aurc(predictions), "aurc_normalised": area_under_risk(normalised, predictions.correct),
        "intra_class_variation": within,
    }  # fmt: skip
    if to:
        probed = probe(run, to, quiet=True)
        figures |= {"transfer_top1": probed["top1"], "transfer_nll": probed["nll"]}
    return figures


def drop_epoch(plan: Plan) -> int | None:
    """The epochs with targets other than the one-hot label before those of it alone begin; None where none do."""
    for number in range(1, len(plan.phases)):
        if plan.phases[number].hard == 1 > plan.phases[number - 1].hard:
            return sum(phase.epochs for phase in plan.phases[:number])
    return None


def _follow(runs: Sequence[TrainedRun], every: int, to: str) -> list[Curve]:
    """The figures of the chosen checkpoints of each run, by epoch; what they cost is printed before."""
    jobs = [(run, epoch) for run in runs for epoch in _chosen(run, every)]
    seconds = {run.folder.path: _seconds_of_checkpoint(run, to) for run in runs}
    tell_cost(f"dropping: {len(jobs)} checkpoints", sum(seconds[run.folder.path] for run, _ in jobs))
    curves: dict[Path, Curve] = {run.folder.path: {} for run in runs}
    for run, epoch in tracked(jobs, "dropping: checkpoints", steps=len(jobs)):
        curves[run.folder.path][epoch] = checkpoint_figures(_opened(run, epoch), to)
    return [curves[run.folder.path] for run in runs]


def _seconds_of_checkpoint(run: TrainedRun, to: str) -> float:
    own = forward_seconds(run, run.config)
    return own + (forward_seconds(run, on_other_data(run.config, to)) if to else 0.0)


def _chosen(run: TrainedRun, every: int) -> list[int]:
    """The epochs of each `every`-th kept checkpoint, counted from the last one."""
    epochs = list(run.folder.kept_checkpoints())
    if not epochs:
        raise InputError(f"{run.folder.path} has no checkpoints along its epochs; train it with --run.keep=10")
    return epochs[::-1][::every][::-1]


def _opened(run: TrainedRun, epoch: int) -> TrainedRun:
    """The kept checkpoint of an epoch, with the places at which the run was opened."""
    options = run.config.flat()
    return open_run(run.folder.kept_checkpoint(epoch), {key: options[key] for key in PLACES})


def _given_back(label: str, settings: Mapping[str, Followed]) -> dict[str, Any]:
    """What became of each figure of a setting that drops its smoothing, beside `lsr` and `hard`.

    "before" is the last kept epoch before the drop and "end" the last one after it, of those of which all compared runs
    have figures; None where there is none. Only seeds that all have count.
    """
    dropping = settings[label]
    members = {"tsla": label, "lsr": _partner(dropping, settings, "lsr"), "hard": _partner(dropping, settings, "hard")}
    present = {role: settings[name] for role, name in members.items() if name}
    repeats = sorted(set.intersection(*(set(each.curves) for each in present.values())))
    epochs = sorted(set.intersection(*(set(each.epochs) for each in present.values())))
    drop = drop_epoch(dropping.plan) or 0
    at = {
        "before": max((epoch for epoch in epochs if epoch <= drop), default=None),
        "end": max((epoch for epoch in epochs if epoch > drop), default=None),
    }
    rates = [phase.lr_scale for phase in dropping.plan.phases]
    found: dict[str, Any] = {"settings": members, "drop": drop, "lr_scales": rates,
                             "seeds": [seed for seed, _ in repeats], "epochs": at}  # fmt: skip
    if not repeats:
        return found | {"figures": {}}
    of_figures = {}
    for name in next(iter(dropping.curves.values()))[dropping.epochs[-1]]:
        values = {
            when: {role: [each.curves[key][epoch][name] for key in repeats] for role, each in present.items()}
            for when, epoch in at.items()
            if epoch is not None
        }
        of_figures[name] = {when: _summed_up(each) for when, each in values.items()}
        if len(present) == len(ROLES) and "end" in values:
            of_figures[name]["given_back"] = share_given_back(**values["end"])
    return found | {"figures": of_figures}


def _partner(dropping: Followed, settings: Mapping[str, Followed], method: str) -> str | None:
    """The setting of the method `lsr` or `hard`, or of `lsr_pre` for `tsla_pre`, that differs in nothing else."""
    own = dropping.config
    name = own.method.name.replace("tsla", "lsr") if method == "lsr" else method
    for label, each in settings.items():
        other = differences(own, each.config)
        apart = [key for key in other if not key.startswith("method.") or (name != "hard" and key in _SMOOTHING)]
        if each.config.method.name == name and not set(apart) - set(REPEATS):
            return label
    return None


def _summed_up(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean, standard deviation and values of each role, and of their differences by seed."""
    pairs = [("tsla", "lsr"), ("tsla", "hard"), ("hard", "lsr")]
    columns = {role: list(each) for role, each in values.items()}
    for one, other in pairs:
        if one in values and other in values:
            columns[f"{one} - {other}"] = [a - b for a, b in zip(values[one], values[other], strict=True)]
    return {
        name: {"mean": statistics.fmean(each), "std": statistics.stdev(each) if len(each) > 1 else None, "values": each}
        for name, each in columns.items()
    }


def share_given_back(*, tsla: Sequence[float], lsr: Sequence[float], hard: Sequence[float]) -> dict[str, Any]:
    """(tsla - lsr) / (hard - lsr) of the means over seeds, with the jackknife's standard error.

    Both are None, with a "reason", where 0 is in Student's 95% interval of hard - lsr: a share of it means nothing.

    Args:
        tsla, lsr, hard: a figure of each seed.
    """
    given, took = np.subtract(tsla, lsr), np.subtract(hard, lsr)
    if len(took) < 2:
        return {"share": None, "standard_error": None, "reason": "one seed"}
    reach = stats.t.ppf((1 + _LEVEL) / 2, len(took) - 1) * took.std(ddof=1) / math.sqrt(len(took))
    if abs(took.mean()) <= reach:
        return {"share": None, "standard_error": None, "reason": "not apart"}
    without = np.array([np.delete(given, at).mean() / np.delete(took, at).mean() for at in range(len(took))])
    error = math.sqrt((len(took) - 1) * without.var())
    return {"share": float(given.mean() / took.mean()), "standard_error": error, "reason": ""}


def _numbers(settings: Mapping[str, Followed], compared: Mapping[str, Any]) -> dict[str, Any]:
    curves = {
        label: {
            "method": each.config.method.name, "drop": drop_epoch(each.plan),
            "runs": [{"seed": seed, "fold": fold, "epochs": curve} for (seed, fold), curve in each.curves.items()],
        }
        for label, each in settings.items()
    }  # fmt: skip
    return {"settings": curves, "compared": compared}


def _figures(settings: Mapping[str, Followed]) -> list[str]:
    """The keys of `FIGURES` that were computed."""
    first = next(iter(settings.values()))
    computed = next(iter(first.curves.values()))[first.epochs[-1]]
    return [name for name in FIGURES if name in computed]


def _text(settings: Mapping[str, Followed], compared: Mapping[str, Any]) -> str:
    """A line for each setting at its last epoch, and what came of each drop: mean ± std over seeds."""
    names = _figures(settings)
    rows = [["", "n", "epoch", *(FIGURES[name][1] for name in names)]]
    for label, each in settings.items():
        last = [[curve[each.epochs[-1]][name] for curve in each.curves.values()] for name in names]
        rows.append([label, str(len(each.curves)), str(each.epochs[-1]), *map(mean_and_std, last)])
    parts = [aligned(rows), *(_comparison(label, found) for label, found in compared.items())]
    return "\n\n".join([*parts, _NOTE if compared else "no run drops its smoothing: tsla and tsla_pre do"])


def _comparison(label: str, found: Mapping[str, Any]) -> str:
    """A line for each figure before the drop and at the end; the differences are within a seed."""
    heads = [*ROLES, "tsla - lsr", "tsla - hard"]
    missing = [role for role, name in found["settings"].items() if not name]
    lines = [f"{label} drops the smoothing after epoch {found['drop']}; seeds in common: {len(found['seeds'])}"]
    if missing:
        lines.append(f"no {' and no '.join(missing)} among the runs that differs in the method alone")
    if set(found["lr_scales"]) != {1.0}:
        scales = " and then ".join(f"{each:g}" for each in found["lr_scales"])
        lines.append(f"its learning rate is {scales} times the others', which changes the figures, too")
    for when, epoch in found["epochs"].items():
        rows = [[f"at epoch {epoch}", *heads, "given back"]]
        for name, each in found["figures"].items():
            if when in each:
                values = [mean_and_std(each[when][head]["values"]) if head in each[when] else "-" for head in heads]
                rows.append([FIGURES[name][1], *values, _shown(each.get("given_back")) if when == "end" else ""])
        lines += ["", aligned(rows)] if len(rows) > 1 else []
    return "\n".join(lines)


def _shown(share: Mapping[str, Any] | None) -> str:
    if not share:
        return "-"
    return share["reason"] or f"{share['share']:.2f} ± {share['standard_error']:.2f}"


def _legend(label: str, setting: Followed) -> str:
    runs = f", {len(setting.curves)} runs" if len(setting.curves) > 1 else ""
    return label + runs + (" (dotted: drop)" if drop_epoch(setting.plan) else "")


def _picture(settings: Mapping[str, Followed]) -> Figure:
    """A panel for each figure: the mean of each setting by epoch with a band, and where the smoothing is dropped."""
    names = _figures(settings)
    columns = math.ceil(len(names) / 2)
    figure, axes = panels(2, columns, width=3.1, height=2.6)
    styles = line_styles([each.config.method.name for each in settings.values()])
    for panel, name in zip(axes, names, strict=True):
        for (label, each), line in zip(settings.items(), styles, strict=True):
            curves = [[curve[epoch][name] for epoch in each.epochs] for curve in each.curves.values()]
            look = line | {"marker": ".", "markersize": 4}
            draw_band(panel, each.epochs, curves, _legend(label, each), look)
            if drop := drop_epoch(each.plan):
                panel.axvline(drop, color=line["color"], linewidth=0.9, linestyle=":")
        panel.set(title=FIGURES[name][0], xlabel="epoch" if panel in axes[-columns:] else "")
    legend_below(figure, axes[0])
    return figure
