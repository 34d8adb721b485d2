"""Methods: a name and its options become a list of phases. A new method is one more function here.

A phase names its targets, q = hard * onehot(y) + uniform * 1/K + soft * S[y], and they may depend only on what
earlier phases saw: a phase that `learns` fills the table S for the phases after it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from fastlsr.config import Method
from fastlsr.errors import InputError


@dataclass(frozen=True)
class Phase:
    """Epochs trained towards one kind of target.

    Attributes:
        epochs: how many, at least 1.
        hard, uniform, soft: weights of the one-hot label, of 1/K, and of the table's row; they sum to 1.
        temperature: T of the loss, cross-entropy against softmax(logits / T), and of the soft labels it learns.
        learns: None, or where this phase's soft labels come from once it ends: "in_pass" takes the class means of
            the logits of its last epoch as they were trained on, "extra" those of an evaluation pass after it.
        peers: samples of each class in those means; 0 is all.
    """

    epochs: int
    hard: float = 1.0
    uniform: float = 0.0
    soft: float = 0.0
    temperature: float = 1.0
    learns: str | None = None
    peers: int = 0

    def __str__(self) -> str:
        parts = [(self.hard, "onehot(y)"), (self.uniform, "1/K"), (self.soft, "S[y]")]
        text = " + ".join(name if weight == 1 else f"{weight:g} {name}" for weight, name in parts if weight)
        text = f"{self.epochs} epochs towards {text}"
        if self.temperature != 1:
            text += f" at temperature {self.temperature:g}"
        if self.learns:
            source = "its last epoch" if self.learns == "in_pass" else "an extra pass"
            text += f", then S from {source}" + (f" ({self.peers} peers a class)" if self.peers else "")
        return text


def hard(epochs: int) -> list[Phase]:
    """One-hot labels throughout (the papers' baseline)."""
    return [Phase(epochs)]


def lsr(epochs: int, *, smoothing: float) -> list[Phase]:
    """Label smoothing throughout (TSLA Eq. 3 with y-hat = 1/K; COLAM Eq. 1)."""
    return [Phase(epochs, hard=1 - smoothing, uniform=smoothing)]


def tsla(epochs: int, *, smoothing: float, drop_epoch: int) -> list[Phase]:
    """Label smoothing for the first `drop_epoch` epochs, one-hot labels after (TSLA Algorithm 2).

    Raises:
        InputError: if smoothing would be dropped after the run's end.
    """
    first = epochs // 2 if drop_epoch < 0 else drop_epoch
    if first > epochs:
        raise InputError(f"method.drop_epoch={first} lies beyond train.epochs={epochs}; -1 takes half of them")
    return lsr(first, smoothing=smoothing) * (first > 0) + hard(epochs - first) * (first < epochs)


def colam(epochs: int, *, stages: int, temperature: float, peers: int, label_pass: str) -> list[Phase]:
    """Equal stages; the first on one-hot labels, each later one on softmax(class mean of logits / T) (COLAM Alg. 1).

    Raises:
        InputError: if the epochs do not divide into the stages.
    """
    if epochs % stages:
        fitting = ", ".join(str(n) for n in range(1, epochs + 1) if epochs % n == 0)
        raise InputError(f"method.stages={stages} does not divide train.epochs={epochs}; these do: {fitting}")
    common = {"epochs": epochs // stages, "temperature": temperature, "learns": label_pass, "peers": peers}
    return [Phase(**common)] + [Phase(**common, hard=0.0, soft=1.0)] * (stages - 1)


METHODS: dict[str, Callable[..., list[Phase]]] = {method.__name__: method for method in (hard, lsr, tsla, colam)}


def options_of(name: str) -> list[str]:
    """The names of the `method` options that a method reads.

    Raises:
        InputError: for an unknown method (names the nearest).
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
        raise InputError(f"method.name={name}: no such method; {hint}")
    return list(inspect.signature(METHODS[name]).parameters)[1:]


def phases(method: Method, epochs: int) -> list[Phase]:
    """The phases of a configured method, in order; their epochs sum to `epochs`.

    Raises:
        InputError: for an unknown method, or options that do not fit the number of epochs.
    """
    options = {name: getattr(method, name) for name in options_of(method.name)}
    return METHODS[method.name](epochs, **options)
