"""Methods: a name and its options become a list of phases. A new method is one more `@method` function here.

A phase names its targets, q = hard * onehot(y) + uniform * 1/K + soft * S, and they may depend only on what
earlier phases saw: a phase that `learns` fills the table S for the phases after it.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from fastlsr.config import Method
from fastlsr.errors import InputError

# What a phase's soft labels S are: rows by class that former phases learned, rows by class or by sample of a teacher's
# file, or what the network of the generation before says of this very crop.
LEARNED, TEACHER_CLASS, TEACHER_SAMPLE, FORMER_NETWORK = "learned", "class", "sample", "former network"
_SOURCES = (LEARNED, TEACHER_CLASS, TEACHER_SAMPLE, FORMER_NETWORK)
# Where a phase that learns takes its class means from; see `Phase.learns`.
IN_PASS, EXTRA_PASS, CORRECT = "in_pass", "extra", "correct"


@dataclass(frozen=True)
class Phase:
    """Epochs trained towards one kind of target.

    Attributes:
        epochs: how many, at least 1.
        hard, uniform, soft: weights of the one-hot label, of 1/K, and of the soft label; they sum to 1.
        source: what the soft labels are, where `soft` is not 0; the same in all phases of a method.
        temperature: T of the loss, cross-entropy against softmax(logits / T), and of the soft labels it learns.
        learns: None, or where this phase's class means come from once it ends: "in_pass" takes the logits of its last
            epoch as they were trained on, "extra" those of an evaluation pass after it, and "correct" the softmax of
            the samples that its last epoch classified correctly (all phases that learn do so then).
        peers: samples of each class in those means; 0 is all.
        redraw: probability with which a label is redrawn from the uniform distribution (DisturbLabel's alpha).
        penalty: weight beta of the entropy of the predictions that is subtracted from the loss.
        pair_weight, pair_temperature: lambda and T of lambda * T^2 * KL(p(peer; T) || p(x; T)), the peer another sample
            of the class and no gradient through it.
        fresh: whether the phase begins with fresh weights, optimizer and learning rate (a new generation).
        lr_scale: factor of the learning rate.
    """

    epochs: int
    hard: float = 1.0
    uniform: float = 0.0
    soft: float = 0.0
    source: str | None = None
    temperature: float = 1.0
    learns: str | None = None
    peers: int = 0
    redraw: float = 0.0
    penalty: float = 0.0
    pair_weight: float = 0.0
    pair_temperature: float = 1.0
    fresh: bool = False
    lr_scale: float = 1.0

    def __str__(self) -> str:
        soft = {TEACHER_CLASS: "teacher[y]", TEACHER_SAMPLE: "teacher[i]", FORMER_NETWORK: "former network(x)"}
        parts = [(self.hard, "onehot(y)"), (self.uniform, "1/K"), (self.soft, soft.get(self.source, "S[y]"))]
        text = " + ".join(name if weight == 1 else f"{weight:g} {name}" for weight, name in parts if weight)
        notes = [
            (self.temperature != 1, f" at temperature {self.temperature:g}"),
            (self.redraw, f", labels redrawn with probability {self.redraw:g}"),
            (self.penalty, f", minus {self.penalty:g} entropy"),
            (self.pair_weight, f", plus {self.pair_weight:g} T^2 KL(peer || x) at T={self.pair_temperature:g}"),
            (self.fresh, ", from fresh weights"),
            (self.lr_scale != 1, f", learning rate times {self.lr_scale:g}"),
            (self.learns, f", then S from {_LEARNS.get(self.learns)}"),
            (self.peers, f" ({self.peers} peers a class)"),
        ]
        length = f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        return f"{length} towards {text}" + "".join(note for there, note in notes if there)


_LEARNS = {IN_PASS: "its last epoch", EXTRA_PASS: "an extra pass", CORRECT: "what its last epoch got right"}

METHODS: dict[str, Callable[..., list[Phase]]] = {}


def method(function: Callable[..., list[Phase]]) -> Callable[..., list[Phase]]:
    """Makes a function a method of its name; it takes the number of epochs and, by name, the options it reads."""
    METHODS[function.__name__] = function
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
    """Equal stages; the first on one-hot labels, each later one on softmax(class mean of logits / T) (COLAM Alg. 1).

    Raises:
        InputError: if the epochs do not divide into the stages.
    """
    common = {"epochs": _stage_epochs(epochs, stages), "temperature": temperature, "learns": label_pass, "peers": peers}
    return [Phase(**common)] + [Phase(**common, hard=0.0, soft=1.0, source=LEARNED)] * (stages - 1)


@method
def online(epochs: int) -> list[Phase]:
    """Half hard, half the class mean of the correct predictions of the epoch before (Zhang et al. 2021, OLS).

    The first epoch has 1/K in their place.
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
    """One-hot labels, and predictions drawn to those of another sample of the class (Yun et al. 2020)."""
    return [Phase(epochs, pair_weight=kd_weight, pair_temperature=kd_temperature)]


@method
def label_refinery(epochs: int, *, generations: int) -> list[Phase]:
    """Each generation from fresh weights, on what the one before says of the same crop (Bagherinezhad et al. 2018).

    `epochs` are those of one generation; the run has `generations` times as many.
    """
    later = Phase(epochs, hard=0.0, soft=1.0, source=FORMER_NETWORK, fresh=True)
    return [Phase(epochs)] + [later] * (generations - 1)


def _first_epochs(epochs: int, drop_epoch: int) -> int:
    first = epochs // 2 if drop_epoch < 0 else drop_epoch
    if first > epochs:
        raise InputError(f"method.drop_epoch={first} lies beyond train.epochs={epochs}; -1 takes half of them")
    return first


def _stage_epochs(epochs: int, stages: int) -> int:
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
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
        raise InputError(f"method.name={name}: no such method; {hint}")
    options = list(inspect.signature(METHODS[name]).parameters)[1:]
    return [*options, "teacher"] if "teacher_key" in options else options


def overview() -> str:
    """A line for each method on what it is, and one for the options that it reads."""
    entries = []
    for name, function in METHODS.items():
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        entries += [f"  {name}: {summary}", f"      {' '.join(options_of(name)) or 'no options'}"]
    return "\n".join(entries)


def phases(chosen: Method, epochs: int) -> list[Phase]:
    """The phases of a configured method, in order. Their epochs sum to `epochs`, for each generation.

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
    result = METHODS[chosen.name](epochs, **options)
    wrong = next(_complaints(result, epochs), None)
    if wrong:
        raise InputError(f"method.name={chosen.name}: {wrong}")
    return result


def _complaints(phases: Sequence[Phase], epochs: int) -> Iterator[str]:
    """What keeps phases from being those of a run of `epochs` epochs."""
    generations = [0]
    for number, phase in enumerate(phases, start=1):
        generations += [0] if phase.fresh and number > 1 else []
        generations[-1] += phase.epochs
        weights = phase.hard + phase.uniform + phase.soft
        if phase.epochs < 1:
            yield f"phase {number} has {phase.epochs} epochs"
        if not math.isclose(weights, 1, abs_tol=1e-6):
            yield f"the weights of phase {number} sum to {weights:g}, not to 1"
        if phase.soft and phase.source not in _SOURCES:
            yield f"the soft labels of phase {number} have no source; there are {', '.join(_SOURCES)}"
        if phase.soft and phase.source == LEARNED and not any(former.learns for former in phases[: number - 1]):
            yield f"the soft labels of phase {number} are learned by no phase before it"
        if phase.soft and phase.source == FORMER_NETWORK and number == 1:
            yield "phase 1 has no network before it to take soft labels from"
    for total in generations:
        if total != epochs:
            yield f"its phases have {total} epochs, train.epochs={epochs}"
    sources = sorted({phase.source for phase in phases if phase.soft})
    if len(sources) > 1:
        yield f"its phases take soft labels from {' and '.join(sources)}, a run can from one"
    ways = sorted({phase.learns for phase in phases if phase.learns})
    if CORRECT in ways and len(ways) > 1:
        yield f"its phases learn in more ways than one: {' and '.join(ways)}"
