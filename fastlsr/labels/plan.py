"""A method as a value: its phases, and where in a run each of them is. Loads no torch.

A phase names its targets, q = hard * onehot(y) + uniform * 1/K + soft * S, and they may depend only on what earlier
phases saw: a phase that `learns` fills the table S for the phases after it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from fastlsr.errors import InputError

# What a phase's soft labels S are: rows by class that former phases learned, rows by class or by sample of a teacher's
# file, or the predictions of the network of the generation before for the same crops.
LEARNED, TEACHER_CLASS, TEACHER_SAMPLE, FORMER_NETWORK = "learned", "class", "sample", "former network"
_SOURCES = (LEARNED, TEACHER_CLASS, TEACHER_SAMPLE, FORMER_NETWORK)
# Where a phase that learns takes its class means from; see `Phase.learns`.
IN_PASS, EXTRA_PASS, CORRECT = "in_pass", "extra", "correct"
_LEARNS = {IN_PASS: "its last epoch", EXTRA_PASS: "an extra pass", CORRECT: "what its last epoch got right"}


@dataclass(frozen=True)
class Term:
    """A term of the objective besides the cross-entropy.

    Attributes:
        name: of its function in `labels.losses`.
        weight: its factor. Phases without the term train with weight 0, so that no phase change recompiles a step.
        text: the term as a dry run prints it.
        numbers: the function's other numbers, by name.
        pairs: whether it compares each sample with another of its class, its peer.
    """

    name: str
    weight: float
    text: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    pairs: bool = False


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
            the samples that its last epoch classified correctly (then all phases that learn must).
        peers: samples of each class in those means; 0 is all.
        redraw: probability with which a label is redrawn from the uniform distribution (DisturbLabel's alpha).
        penalty: weight beta of the entropy of the predictions that is subtracted from the loss.
        terms: further terms of the objective.
        fresh: whether the phase begins with fresh weights, optimizer and learning rate (a new generation).
        negative: whether weights below 0 are meant, as of negative label smoothing (Wei et al. 2022).
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
    terms: tuple[Term, ...] = ()
    fresh: bool = False
    negative: bool = False
    lr_scale: float = 1.0

    def __str__(self) -> str:
        soft = {TEACHER_CLASS: "teacher[y]", TEACHER_SAMPLE: "teacher[i]", FORMER_NETWORK: "former network(x)"}
        named = soft.get(self.source or "", "S[y]")
        parts = [(self.hard, "onehot(y)"), (self.uniform, "1/K"), (self.soft, named)]
        text = " + ".join(name if weight == 1 else f"{weight:g} {name}" for weight, name in parts if weight)
        notes = [
            (self.temperature != 1, f" at temperature {self.temperature:g}"),
            (self.redraw, f", labels redrawn with probability {self.redraw:g}"),
            (self.penalty, f", minus {self.penalty:g} entropy"),
            *((term.weight, f", plus {term.text}") for term in self.terms),
            (self.fresh, ", from fresh weights"),
            (self.lr_scale != 1, f", learning rate times {self.lr_scale:g}"),
            (self.learns, f", then S from {_LEARNS.get(self.learns or '')}"),
            (self.peers, f" ({self.peers} peers a class)"),
        ]
        length = f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        return f"{length} towards {text}" + "".join(note for there, note in notes if there)


class Place(NamedTuple):
    """Where an epoch is: in the phase of 0-based `number`, which begins with 0-based epoch `first`."""

    number: int
    phase: Phase
    first: int


@dataclass(frozen=True)
class Plan:
    """The phases of a run, in order. All epochs are 0-based.

    Attributes:
        generation_epochs: `train.epochs`; the phases of each generation, which begins with fresh weights, have so many.

    Raises:
        InputError: for phases that do not make a run.
    """

    phases: tuple[Phase, ...]
    generation_epochs: int

    def __post_init__(self) -> None:
        problem = next(_problems(self.phases, self.generation_epochs), None)
        if problem:
            raise InputError(problem)

    @cached_property
    def _firsts(self) -> list[int]:
        return [0, *itertools.accumulate(phase.epochs for phase in self.phases)]

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self._firsts[-1]

    def at(self, epoch: int) -> Place:
        """The place of an epoch.

        Raises:
            IndexError: outside the run.
        """
        if not 0 <= epoch < self.epochs:
            raise IndexError(epoch)
        number = bisect.bisect_right(self._firsts, epoch) - 1
        return Place(number, self.phases[number], self._firsts[number])

    def ends(self, epoch: int) -> bool:
        """Whether the epoch is the last of its phase."""
        return epoch + 1 in self._firsts

    def last_trained(self, epochs: int, batches: int) -> Phase:
        """The phase trained last, after `epochs` whole epochs and `batches` of the next; initially the first."""
        return self.at(epochs if batches or not epochs else epochs - 1).phase

    def within_generation(self, epoch: int) -> int:
        """The epoch, counted from the beginning of its generation."""
        return epoch % self.generation_epochs

    @property
    def pairs(self) -> bool:
        """Whether batches hold a peer for each sample."""
        return any(term.pairs for phase in self.phases for term in phase.terms)

    @property
    def begins_anew(self) -> bool:
        """Whether a phase begins with fresh weights."""
        return any(phase.fresh for phase in self.phases)

    @property
    def sources(self) -> frozenset[str]:
        """Where the phases may take soft labels from."""
        return frozenset(phase.source for phase in self.phases if phase.source)

    @property
    def learns(self) -> frozenset[str]:
        """The ways in which phases learn soft labels."""
        return frozenset(phase.learns for phase in self.phases if phase.learns)

    @cached_property
    def terms(self) -> dict[str, Term]:
        """All further terms of the objective, by name; of several phases with a term, the first one's."""
        return {term.name: term for phase in reversed(self.phases) for term in reversed(phase.terms)}


def _problems(phases: Sequence[Phase], epochs: int) -> Iterator[str]:
    """The reasons why phases do not form a valid run with `epochs` epochs a generation."""
    generations = [0]
    for number, phase in enumerate(phases, start=1):
        generations += [0] if phase.fresh and number > 1 else []
        generations[-1] += phase.epochs
        weights = phase.hard + phase.uniform + phase.soft
        if phase.epochs < 1:
            yield f"phase {number} has {phase.epochs} epochs"
        if min(phase.hard, phase.uniform, phase.soft) < 0 and not phase.negative:
            yield f"phase {number} has a weight below 0, and its method does not set negative=True"
        if not math.isclose(weights, 1, abs_tol=1e-6):
            yield f"the weights of phase {number} sum to {weights:g}, not to 1"
        if phase.soft and phase.source not in _SOURCES:
            yield f"the soft labels of phase {number} have no source; there are {', '.join(_SOURCES)}"
        if phase.soft and phase.source == LEARNED and not any(former.learns for former in phases[: number - 1]):
            yield f"the soft labels of phase {number} are learned by no phase before it"
        if phase.soft and phase.source == FORMER_NETWORK and number == 1:
            yield "phase 1 has no network before it to take soft labels from"
        if phase.learns and phase.learns not in _LEARNS:
            yield f"phase {number} learns from {phase.learns}; there are {', '.join(_LEARNS)}"
        if len({term.name for term in phase.terms}) < len(phase.terms):
            yield f"phase {number} has two terms of one name"
    for name in {term.name for phase in phases for term in phase.terms}:
        if len({tuple(term.numbers) for phase in phases for term in phase.terms if term.name == name}) > 1:
            yield f"its phases give the term {name} different numbers"
    for total in generations:
        if total != epochs:
            yield f"its phases have {total} epochs, train.epochs={epochs}"
    sources = sorted({phase.source for phase in phases if phase.soft and phase.source})
    if len(sources) > 1:
        yield f"its phases take soft labels from {' and '.join(sources)}, a run can from one"
    ways = sorted({phase.learns for phase in phases if phase.learns})
    if CORRECT in ways and len(ways) > 1:
        yield f"its phases learn in more ways than one: {' and '.join(ways)}"
