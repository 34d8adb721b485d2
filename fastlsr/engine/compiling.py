"""Whether steps are compiled, and the messages while they are."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Compiling a network takes a CPU a minute or more: below this many seconds of training it is not worth trying.
COMPILE_TRIAL_SECONDS = 1200.0
_LEAST_ROUNDS, _MOST_ROUNDS, _ROUNDS_SECONDS = 3, 20, 20.0  # of timing steps
LONGEST_ROW = 1 << 15  # entries that a block of threads keeps: 128 KiB, half of an H100's registers


class CompileNotices:
    """Prints when torch.compile starts on a graph, and how long it took.

    Args:
        compiles: whether the run compiles; if not, nothing is printed.
        report: prints a line.
    """

    def __init__(self, compiles: bool, report: Callable[[str], None]):
        self._compiles, self._report = compiles, report
        self._graphs: set[Hashable] = set()

    @contextmanager
    def announced(self, what: str, size: int, variant: Hashable = None) -> Iterator[None]:
        """Inside, `what` runs on a batch of `size`. torch.compile makes a graph for each (what, size, variant)."""
        graph = (what, size, variant)
        if not self._compiles or graph in self._graphs:
            yield
            return
        self._graphs.add(graph)
        self._report(f"compiling {what} for batches of {size}")
        start = time.perf_counter()
        yield
        self._report(f"compiled in {time.perf_counter() - start:.1f} s")


def read_rows_once() -> None:
    """Makes inductor's kernels for CUDA keep a row of up to `LONGEST_ROW` entries from its first sum to its last use.

    By itself it does so up to 1024, and reads longer rows again for each sum: three or four times for the loss. To be
    called before anything is compiled.
    """
    from torch._inductor import config

    config.inductor_choices_class = _choices


def _choices() -> Any:
    from torch._inductor import config
    from torch._inductor.choices import InductorChoices
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    class Choices(InductorChoices):
        @staticmethod
        def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
            if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
                return True
            strict = getattr(features, "strict_reduction_rblock", lambda: None)()  # not in torch 2.11
            if cooperative_reduction or strict or not config.triton.persistent_reductions:
                return False
            inside = features.get_reduction_hint() == ReductionHint.INNER  # sums along what lies together in memory
            return inside and V.graph.sizevars.statically_known_leq(features.reduction_numel, LONGEST_ROW)

        def uuid(self) -> str:
            """What compiled code is kept under."""
            return f"fastlsr: rows of {LONGEST_ROW} once"

    return Choices()


def choose_compile(
    requested: str, network: torch.nn.Module, images: torch.Tensor, steps: int, report: Callable[[str], None]
) -> bool:
    """Whether to compile the step: as requested, or for `auto` what is faster on this device.

    On CUDA that is always compiling. On a CPU it depends on network and precision, so a run long enough to repay
    the trial times forward and backward of copies of the network both ways, in turns.

    Args:
        requested: `train.compile`: "auto", "on" or "off".
        images: uint8 [B, 3, H, W] on the device; a batch of the run's size.
        steps: steps that are still to do.
        report: prints a line; the choice of `auto` is printed with its reason.
    """
    if requested != "auto":
        return requested == "on"
    if images.device.type == "cuda":
        report("compile: on (auto: compiled steps are faster on CUDA)")
        return True
    report("compile: timing a step")
    eager = timed_step(network, images, compile=False)
    seconds = eager()
    if seconds * steps >= COMPILE_TRIAL_SECONDS:  # the first step allocates, too
        seconds = min(eager() for _ in range(_LEAST_ROUNDS))
    if seconds * steps < COMPILE_TRIAL_SECONDS:
        report(f"compile: off (auto: {seconds * steps:.0f} s of training would not repay compiling)")
        return False
    report("compile: timing the step compiled and not; this takes a minute or more")
    compiled = timed_step(network, images, compile=True)
    try:
        compiled()
    except Exception as error:  # no C++ compiler, or a network that does not compile
        report(f"compile: off (auto: compiling failed: {str(error).strip().splitlines()[0][:100]})")
        return False
    fastest, of_eager = fastest_in_turns(compiled, eager)
    faster = "on" if fastest < of_eager else "off"
    report(f"compile: {faster} (auto: {1000 * fastest:.0f} ms a step compiled, {1000 * of_eager:.0f} ms not)")
    return fastest < of_eager


def fastest_in_turns(*contenders: Callable[[], float]) -> tuple[float, ...]:
    """The least seconds that each of the contenders returned, over rounds in which each has one turn.

    Other programs that use the machine only ever add to a time, and to those of all contenders alike.
    """
    rounds = [[step() for step in contenders] for _ in range(_LEAST_ROUNDS)]
    while len(rounds) < _MOST_ROUNDS and sum(map(sum, rounds)) < _ROUNDS_SECONDS:
        rounds.append([step() for step in contenders])
    return tuple(map(min, zip(*rounds, strict=True)))


def timed_step(network: torch.nn.Module, images: torch.Tensor, *, compile: bool) -> Callable[[], float]:
    """A function that runs forward and backward of a copy of the network and returns the seconds that it took."""
    trial = copy.deepcopy(network).train()  # a copy: batch norm's statistics and gradients stay as they are
    run = torch.compile(trial, dynamic=False) if compile else trial

    def step() -> float:
        state = torch.get_rng_state()  # dropout draws
        start = time.perf_counter()
        run(images).float().square().mean().backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        seconds = time.perf_counter() - start
        torch.set_rng_state(state)
        return seconds

    return step
