"""How well a run's features serve another data set: a linear probe, by setting.

    python -m fastlsr.analyze transfer RUN ... --to=flowers102

A multinomial logistic regression on the penultimate features of the frozen network is fitted on the other data set's
training split, its penalty chosen on a tenth of it, and scored on its test split. Label smoothing is reported to cost
accuracy there (Kornblith et al. 2021; MaxSup).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastlsr.analysis import Finding, aligned
from fastlsr.drawing import INK, method_colour, panels, style
from fastlsr.engine.trained import TrainedRun
from fastlsr.inference.cost import forward_seconds, tell_cost
from fastlsr.inference.linear_probe import HELD_OUT, PROBED, on_other_data, probe
from fastlsr.trials import grouped, mean_and_std

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {"top1": "top-1, %", "top5": "top-5, %", "nll": "NLL, nats"}


def analyze(runs: Sequence[TrainedRun], *, to: str) -> Finding:
    """Top-1, top-5 and NLL of each run's probe on the test split of another data set.

    Args:
        to: the data set, as `data.dataset`; DIR/NAME_train.beton and _test.beton in the run's `data.dir`.

    Raises:
        InputError: for files that do not fit.
    """
    groups = grouped([run.config for run in runs], [run.position.epochs for run in runs])
    tell_cost(f"transfer of {len(runs)} runs", sum(forward_seconds(run, on_other_data(run.config, to)) for run in runs))
    found = [_of_run(run, to) for run in runs]
    settings = {
        label: {"method": found[members[0]]["method"], "runs": [found[at] for at in members]}
        for label, members in groups.items()
    }
    with style():
        picture = _picture(settings, to)
    return Finding({"to": to, "settings": settings}, _text(settings, to), picture)


def _of_run(run: TrainedRun, to: str) -> dict[str, Any]:
    about = {"run": str(run.folder.path), "method": run.config.method.name, "seed": run.config.train.seed}
    return about | {"epoch": run.position.epochs} | probe(run, to)


def _text(settings: Mapping[str, Any], to: str) -> str:
    """A line for each setting: mean ± std over its runs."""
    rows = [[f"to {to}", "n", *_TITLES.values(), "penalty"]]
    for label, setting in settings.items():
        figures = [mean_and_std([run[name] for run in setting["runs"]]) for name in PROBED]
        penalties = sorted({run["l2"] for run in setting["runs"]})
        rows.append([label, str(len(setting["runs"])), *figures, " ".join(f"{each:g}" for each in penalties)])
    return (
        f"{aligned(rows)}\npenalty: of the probe's squared weights, chosen on {1 / HELD_OUT:.0%} of the training split"
    )


def _picture(settings: Mapping[str, Any], to: str) -> Figure:
    """A panel for each figure: a dot for each run, and a line for a setting's mean."""
    figure, axes = panels(1, len(PROBED), width=2.8, height=0.35 * len(settings) + 1.0)
    for panel, name in zip(axes, PROBED, strict=True):
        for at, setting in enumerate(settings.values()):
            values = [run[name] for run in setting["runs"]]
            colour = method_colour(setting["method"])
            panel.vlines(statistics.fmean(values), at - 0.3, at + 0.3, color=colour, linewidth=2.5)
            panel.scatter(values, [at] * len(values), s=14, color=colour, edgecolors=INK, linewidths=0.4, zorder=3)
        panel.set_yticks(range(len(settings)), list(settings) if panel is axes[0] else [""] * len(settings))
        panel.set(title=_TITLES[name], ylim=(len(settings) - 0.5, -0.5))
    figure.suptitle(f"linear probe on {to}", fontsize=10)
    return figure
