"""Methods: a name and its options become phases. A new method is one more `@method` function here. Loads no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, replace

from fastlsr.config import Method
from fastlsr.errors import InputError, unknown
from fastlsr.labels.plan import CORRECT, FORMER_NETWORK, LEARNED, Phase, Plan, Term
from fastlsr.plugins import register

METHODS: dict[str, Callable[..., list[Phase]]] = {}


def method(function: Callable[..., list[Phase]]) -> Callable[..., list[Phase]]:
    """Makes a function a method of its name; it takes the number of epochs and, by name, the options it reads."""
    register(METHODS, "method", function.__name__, function)
    return function


@method
def hard(epochs: int) -> list[Phase]:
    """One-hot labels throughout (the papers' baseline)."""
    return [Phase(epochs)]


@method
def lsr(epochs: int, *, smoothing: float) -> list[Phase]:
    """Label smoothing throughout (TSLA Eq. 3 with y-hat = 1/K; COLAM Eq. 1)."""
    return [Phase(epochs, hard=1 - smoothing, uniform=smoothing)]


@method
def tsla(epochs: int, *, smoothing: float, drop_epoch: int, first_lr: float, second_lr: float) -> list[Phase]:
    """Label smoothing for the first `drop_epoch` epochs, one-hot labels after (TSLA Algorithm 2).

    The learning rates eta1 and eta2 of its stages are `first_lr` and `second_lr` times the schedule's.

    Raises:
        InputError: if smoothing would be dropped after the run's end.
    """
    first = _first_epochs(epochs, drop_epoch)
    smooth = Phase(first, hard=1 - smoothing, uniform=smoothing, lr_scale=first_lr)
    return _nonempty(smooth, Phase(epochs - first, lr_scale=second_lr))


@method
def lsr_pre(epochs: int, *, smoothing: float, teacher_key: str) -> list[Phase]:
    """Smoothing towards a pre-trained model's predictions throughout (TSLA Eq. 3; its LSR-pre)."""
    return [Phase(epochs, hard=1 - smoothing, soft=smoothing, source=teacher_key)]


@method
def tsla_pre(
    epochs: int, *, smoothing: float, drop_epoch: int, first_lr: float, second_lr: float, teacher_key: str
) -> list[Phase]:
    """As `tsla`, smoothing towards a pre-trained model's predictions (TSLA Table 2, TSLA-pre).

    Raises:
        InputError: if smoothing would be dropped after the run's end.
    """
    first = _first_epochs(epochs, drop_epoch)
    smooth = Phase(first, hard=1 - smoothing, soft=smoothing, source=teacher_key, lr_scale=first_lr)
    return _nonempty(smooth, Phase(epochs - first, lr_scale=second_lr))


@method
def table(epochs: int, *, teacher_key: str, temperature: float) -> list[Phase]:
    """Soft labels of a file throughout; on a stage of COLAM's, its *expected accuracy* (COLAM Fig. 1b)."""
    return [Phase(epochs, hard=0.0, soft=1.0, source=teacher_key, temperature=temperature)]


@method
def colam(epochs: int, *, stages: int, temperature: float, peers: int, label_pass: str) -> list[Phase]:
    """Equal stages at temperature T, first on one-hot labels, then on softmax(class mean of logits / T) (COLAM Alg. 1).

    Raises:
        InputError: if the epochs do not divide into the stages.
    """
    first = Phase(stage_epochs(epochs, stages), temperature=temperature, learns=label_pass, peers=peers)
    return [first] + [replace(first, hard=0.0, soft=1.0, source=LEARNED)] * (stages - 1)


@method
def online(epochs: int) -> list[Phase]:
    """Half hard, half the mean of the former epoch's correct predictions by class, at first 1/K (Zhang et al. 2021).

    A class without a correct prediction gets 1/K, too, as in the authors' code.
    """
    first = Phase(1, hard=0.5, uniform=0.5, learns=CORRECT)
    return [first] + [Phase(1, hard=0.5, soft=0.5, source=LEARNED, learns=CORRECT)] * (epochs - 1)


@method
def disturb_label(epochs: int, *, alpha: float) -> list[Phase]:
    """One-hot labels, each redrawn with probability alpha from the uniform distribution (Xie et al. 2016)."""
    return [Phase(epochs, redraw=alpha)]


@method
def confidence_penalty(epochs: int, *, beta: float) -> list[Phase]:
    """One-hot labels, and beta times the entropy of the prediction subtracted (Pereyra et al. 2017)."""
    return [Phase(epochs, penalty=beta)]


@method
def cs_kd(epochs: int, *, kd_weight: float, kd_temperature: float) -> list[Phase]:
    """One-hot labels, and predictions pulled towards those of another sample of the class (Yun et al. 2020)."""
    text = f"{kd_weight:g} T^2 KL(peer || x) at T={kd_temperature:g}"
    numbers = {"inverse_temperature": 1 / kd_temperature}
    return [Phase(epochs, terms=(Term("pair_divergence", kd_weight, text, numbers, pairs=True),))]


@method
def label_refinery(epochs: int, *, generations: int) -> list[Phase]:
    """Generations of `train.epochs`, each on the former network's predictions of its crops (Bagherinezhad et al. 2018).

    `epochs` are those of one generation; the run has `generations` times as many.
    """
    later = Phase(epochs, hard=0.0, soft=1.0, source=FORMER_NETWORK, fresh=True)
    return [Phase(epochs)] + [later] * (generations - 1)


def _first_epochs(epochs: int, drop_epoch: int) -> int:
    first = epochs // 2 if drop_epoch < 0 else drop_epoch
    if first > epochs:
        raise InputError(
            f"method.drop_epoch={first} lies beyond train.epochs={epochs}; -1 takes half of them, "
            f"and --train.scale_to={epochs} shortens a whole recipe"
        )
    return first


def stage_epochs(epochs: int, stages: int) -> int:
    """Epochs of each of equal stages.

    Raises:
        InputError: if the epochs do not divide into them.
    """
    if epochs % stages:
        fitting = ", ".join(str(n) for n in range(1, epochs + 1) if epochs % n == 0)
        raise InputError(f"method.stages={stages} does not divide train.epochs={epochs}; these do: {fitting}")
    return epochs // stages


def _nonempty(*phases: Phase) -> list[Phase]:
    return [phase for phase in phases if phase.epochs]


def options_of(name: str) -> list[str]:
    """The names of the `method` options that a method reads.

    Raises:
        InputError: for an unknown method (names the nearest).
    """
    if name not in METHODS:
        raise InputError("method.name=" + unknown("method", name, list(METHODS)))
    options = list(inspect.signature(METHODS[name]).parameters)[1:]
    return [*options, "teacher"] if "teacher_key" in options else options


def overview() -> str:
    """A line for each method on what it is, and one for the options that it reads."""
    entries = []
    for name, function in METHODS.items():
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        entries += [f"  {name}: {summary}", f"      {' '.join(options_of(name)) or 'no options'}"]
    return "\n".join(entries)


def make_plan(chosen: Method, epochs: int) -> Plan:
    """The phases of a configured method; those of each generation have `epochs` epochs.

    Raises:
        InputError: for an unknown method, options that do not fit the number of epochs, a teacher that is not named, or
            phases that make no run.
    """
    known = {option.name for option in fields(chosen)}
    if missing := [name for name in options_of(chosen.name) if name not in known]:
        raise InputError(f"method.name={chosen.name} reads {missing[0]}, which Method in fastlsr/config.py lacks")
    options = {name: getattr(chosen, name) for name in options_of(chosen.name)}
    if "teacher" in options and not options.pop("teacher"):
        raise InputError(f"method.name={chosen.name} needs method.teacher, a file that python -m fastlsr.teach makes")
    phases = METHODS[chosen.name](epochs, **options)
    try:
        return Plan(tuple(phases), epochs)
    except InputError as error:
        raise InputError(f"method.name={chosen.name}: {error}") from None
