"""Whether steps are compiled, and the messages while they are."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch

# Compiling a network takes a CPU a minute or more: below this many seconds of training it is not worth trying.
COMPILE_TRIAL_SECONDS = 1200.0


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


def choose_compile(
    requested: str, network: torch.nn.Module, images: torch.Tensor, steps: int, report: Callable[[str], None]
) -> bool:
    """Whether to compile the step: as requested, or for `auto` what is faster on this device.

    On CUDA that is always compiling. On a CPU it depends on network and precision, so a run long enough to repay
    the trial times forward and backward of a copy of the network both ways.

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
    eager = seconds_per_step(network, images, compile=False, short=COMPILE_TRIAL_SECONDS / steps)
    if eager * steps < COMPILE_TRIAL_SECONDS:
        report(f"compile: off (auto: {eager * steps:.0f} s of training would not repay compiling)")
        return False
    report("compile: timing the step compiled and not; this takes a minute or more")
    try:
        compiled = seconds_per_step(network, images, compile=True)
    except Exception as error:  # no C++ compiler, or a network that does not compile
        report(f"compile: off (auto: compiling failed: {str(error).strip().splitlines()[0][:100]})")
        return False
    faster = "on" if compiled < eager else "off"
    report(f"compile: {faster} (auto: {1000 * compiled:.0f} ms a step compiled, {1000 * eager:.0f} ms not)")
    return compiled < eager


def seconds_per_step(
    network: torch.nn.Module, images: torch.Tensor, *, compile: bool, short: float = 0, steps: int = 3
) -> float:
    """Seconds of the fastest of some steps after a first one, or of that one if it took less than `short`."""
    trial = copy.deepcopy(network).train()  # a copy: batch norm's statistics and gradients stay as they are
    run = torch.compile(trial, dynamic=False) if compile else trial
    state = torch.get_rng_state()  # dropout draws
    seconds = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        run(images).float().square().mean().backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        seconds.append(time.perf_counter() - start)
        if seconds[0] < short:
            break
    torch.set_rng_state(state)
    return min(seconds[1:] or seconds)
