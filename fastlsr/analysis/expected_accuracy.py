"""Expected accuracy of learned soft labels (COLAM Fig. 1b): python -m fastlsr.analyze expected_accuracy RUN.

For each stage a fresh network is trained on the stage's soft labels by class, which stay as they are (method `table`),
and its test accuracy is set beside the run's own at the end of that stage. All other options are the run's, its seed,
schedule, temperature and number of epochs among them; the paper states none of these for its Fig. 1b, only that the
networks are trained "from scratch with vanilla SGD". Stage 0 is trained on the one-hot labels, the figure's "SGD".

The trained networks are runs of their own, in RUN/analysis/expected_accuracy/. The same command goes on from there
after a stop, and does not train again what is finished; a folder that is removed is trained anew.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastlsr import drawing
from fastlsr.analysis import Finding
from fastlsr.config import Config
from fastlsr.engine.loop import find_start, train
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.labels.methods import make_plan
from fastlsr.labels.plan import TEACHER_CLASS, Plan
from fastlsr.runs import Row, evaluated_split, run_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Fresh:
    """A network that is trained on the soft labels of a stage.

    Attributes:
        stage: its number, from 1; 0 has the one-hot labels.
        config: of its run.
        plan: of its method.
        left: epochs that are left to train.
    """

    stage: int
    config: Config
    plan: Plan
    left: int


def analyze(run: TrainedRun, *, stages: str = "", epochs: int = 0) -> Finding:
    """Test top-1 of a fresh network on each stage's soft labels, last and best, and the run's own after that stage.

    Args:
        stages: numbers, such as 1,4,10; 0 is the one-hot labels; empty: every stage that has soft labels.
        epochs: of each network; 0: as many as the run's. A schedule's milestones stay where they are.

    Raises:
        InputError: if the run learned no such soft labels, or what was trained before does not fit; then nothing is
            trained.
    """
    if epochs < 0:
        raise InputError(f"--epochs={epochs}: expected 0 or more")
    own = _rows_after_stages(run)
    networks = [_fresh(run, stage, epochs) for stage in _chosen_stages(stages, own)]
    _print_cost(networks, run.folder.read_rows())
    for network in networks:
        if network.left or not run_folder(network.config).finished_summary():  # a kill may come before the summary
            _train(network)
    found = [_found(network, own.get(network.stage)) for network in networks]
    numbers = {"run": run.folder.path.name, "epochs": networks[0].plan.epochs, "stages": found}
    return Finding(numbers, _text(found, networks[0].plan.epochs, run.plan.epochs), _picture(run, found))


def _rows_after_stages(run: TrainedRun) -> dict[int, Row]:
    """Number of each stage whose soft labels are there to the run's row at its end."""
    rows = {row["epoch"]: row for row in run.folder.read_rows()}
    ends = enumerate(itertools.accumulate(phase.epochs for phase in run.plan.phases), start=1)
    found = {stage: rows[end] for stage, end in ends if end in rows and run.folder.soft_labels(stage).exists()}
    if not found:
        raise InputError(f"{run.folder.path}: method.name={run.config.method.name} has learned no soft labels by class")
    return found


def _chosen_stages(stages: str, learned: Collection[int]) -> list[int]:
    try:
        chosen = sorted({int(number) for number in stages.split(",")}) if stages else sorted(learned)
    except ValueError:
        raise InputError(f"--stages={stages}: expected numbers, such as 1,4,10") from None
    if missing := set(chosen) - {0, *learned}:
        raise InputError(f"--stages={stages}: stage {min(missing)} has no soft labels; the last is {max(learned)}")
    return chosen


def _fresh(run: TrainedRun, stage: int, epochs: int) -> Fresh:
    """The network of a stage, as far as it is trained already."""
    old = run.config
    method = replace(old.method, name="hard")
    if stage:
        method = replace(
            method,
            name="table",
            teacher=str(run.folder.soft_labels(stage).resolve()),
            teacher_key=TEACHER_CLASS,
            temperature=run.plan.phases[stage - 1].temperature,
        )
    name = f"stage_{stage:02d}" + (f"_epochs_{epochs}" if epochs else "")
    folder = run.folder.path.resolve() / "analysis" / "expected_accuracy"
    config = replace(
        old,
        method=method,
        train=replace(old.train, epochs=epochs or old.train.epochs),
        run=replace(old.run, dir=str(folder), name=name, resume="auto", logits="none", keep=0),
        log=replace(old.log, wandb="disabled"),
    )
    plan = make_plan(method, config.train.epochs)
    state = find_start(config, plan).state
    return Fresh(stage, config, plan, plan.epochs - (state["position"][0] if state else 0))


def _print_cost(networks: Sequence[Fresh], rows: Sequence[Row]) -> None:
    left = [network.left for network in networks if network.left]
    if left:
        seconds = statistics.median(row["seconds"] for row in rows)
        print(
            f"{len(left)} network{'s' * (len(left) > 1)} to train, {sum(left):,} epoch{'s' * (sum(left) > 1)} in all: "
            f"about {sum(left) * seconds / 60:.0f} minutes at the run's own {seconds:.1f} s an epoch",
            flush=True,
        )


def _train(network: Fresh) -> None:
    """Trains what is left of a network; a stop or a failure ends the command, as that of training does."""
    print(f"stage {network.stage}:", flush=True)
    try:
        code = train(network.config, network.plan, started=time.perf_counter())
    except TrainingFailed as error:
        print(f"failed: stage {network.stage}: {error}", file=sys.stderr)
        code = 1
    if code:
        sys.exit(code)


def _found(network: Fresh, own: Row | None) -> dict[str, Any]:
    """The figures of a stage; `own` is the run's row at its end, None for stage 0."""
    summary = run_folder(network.config).read_summary()
    last, best = summary["last"], summary["best"]
    split = evaluated_split(last)
    return {
        "stage": network.stage,
        "epoch": own["epoch"] if own else 0,
        "split": split,
        "own_top1": own[f"{split}/top1"] if own else None,
        "expected_top1": last[f"{split}/top1"],
        "expected_best_top1": best[f"{split}/top1"],
        "expected_nll": last[f"{split}/nll"],
        "target_entropy": last["target_entropy"],
    }


def _text(found: Sequence[Mapping[str, Any]], epochs: int, of_run: int) -> str:
    what = f"a fresh network after {epochs} epochs on each stage's soft labels; one seed, so no spread"
    lines = [
        f"{found[0]['split']} top-1, %, of {what}",
        "stage  epoch  the run's own  expected  (its best epoch)  target entropy, nats",
    ]
    for row in found:
        own = "one-hot" if row["own_top1"] is None else f"{row['own_top1']:.2f}"
        lines.append(
            f"{row['stage']:5}  {row['epoch']:5}  {own:>13}  {row['expected_top1']:8.2f}  "
            f"{row['expected_best_top1']:16.2f}  {row['target_entropy']:20.3f}"
        )
    if epochs < of_run:
        lines.append(f"trained for less than the run's {of_run} epochs: no comparison with the run's own top-1")
    return "\n".join(lines)


def _picture(run: TrainedRun, found: Sequence[Mapping[str, Any]]) -> Figure:
    """Fig. 1b: top-1 along the epochs at which the stages end."""
    with drawing.style():
        figure, (axis,) = drawing.panels()
        learned = [row for row in found if row["stage"]]
        epochs, method = [row["epoch"] for row in learned], run.config.method.name
        for key, form, colour, label in (
            ("expected_top1", "^--", drawing.method_colour("table"), "expected: fresh networks on these soft labels"),
            ("own_top1", "o-", drawing.method_colour(method), f"{method}, at the end of the stage"),
        ):
            axis.plot(epochs, [row[key] for row in learned], form, color=colour, label=label)
        for row in found:
            if not row["stage"]:
                axis.axhline(row["expected_top1"], color=drawing.method_colour("hard"), linestyle=":", label="hard")
        axis.locator_params(axis="x", integer=True)
        axis.set(xlabel="epoch at which the stage ends", ylabel=f"{found[0]['split']} top-1, %")
        figure.legend(loc="outside lower center")
    return figure
