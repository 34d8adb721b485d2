"""Whole training steps as CUDA graphs: recorded once for each shape of batch, and from then on one launch each.

A step of a small network is hundreds of kernels of a few microseconds, and the host needs longer to launch them than
the device to run them. A recorded step launches all of them at once, on the memory that they had when it was recorded:
whatever changes between steps has to be in tensors that stay where they are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastlsr.config import Config
from fastlsr.engine.step import TrainStep
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.ranks import Ranks

WARM_STEPS = 3  # of a shape before it is recorded: they compile, and choose cuDNN's kernels by timing
MOST_DIFFERENCE = 0.05  # of what a step changes in a tensor, besides what rounding may in tensors of its kind
ROUNDING = 1e-3
_NOT_FINITE = "a step is not finite"

_State = Sequence[Sequence[Tensor]]  # copies on the CPU, by kind


class Recorder(Protocol):
    """Runs work as it will be recorded, and records it."""

    def run(self, work: Callable[[], None]) -> None:
        """Does the work."""

    def rehearse(self, work: Callable[[], None]) -> None:
        """As `run`.

        Raises:
            RuntimeError: for work that waits for the device or draws random numbers on the host, which no recording
                can; part of it was done.
        """

    def forget(self) -> None:
        """All recordings so far are gone."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A function that does what the work would do now, in the same memory; recording does nothing of it.

        Raises:
            RuntimeError: for work that cannot be recorded.
        """


class CudaRecorder:
    """Records on a stream of its own, which the device's other work waits for.

    Recordings share their memory, since no two of them run at once.
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], None]) -> None:
        """Does the work on the stream of the recordings, on which the backward pass then stays in them, too."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                work()
        finally:  # what was queued before an error still writes
            current.wait_stream(self._stream)

    def rehearse(self, work: Callable[[], None]) -> None:
        """As `Recorder` has it. A wait inside a recording would leave torch's allocator and generator unusable."""
        mode, drawn = torch.cuda.get_sync_debug_mode(), torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            self.run(work)
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        if not torch.equal(drawn, torch.get_rng_state()):
            raise RuntimeError("the step draws random numbers on the host, which would be the same ever after")

    def forget(self) -> None:
        """As `Recorder` has it. What all recordings have left is not to be used again."""
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """As `Recorder` has it. Other threads, such as the loader's, may use the device meanwhile.

        Raises:
            TrainingFailed: where torch cannot go on after a recording that failed.
        """
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if torch.__version__ < "2.13":  # it compares versions; before, a recording that fails stays open
                raise TrainingFailed(f"a CUDA graph failed ({_cause(error)}); take train.cuda_graphs=off") from error
            raise
        finally:
            torch.cuda.set_stream(current)
        return graph.replay


@dataclass
class _Shape:
    """What is known of the batches of one shape.

    Attributes:
        seen: how many.
        fails: whether no recording of them is to be had.
        batch: where the recording reads a batch.
        replay: the recording.
    """

    seen: int = 0
    fails: bool = False
    batch: tuple[Tensor, ...] = ()
    replay: Callable[[], None] | None = None


class GraphedStep:
    """`TrainStep.accumulate` and `update` as one launch, for batches that each move the weights.

    The first steps of each shape run as they are. Then one is recorded, run both ways from the same state, and kept if
    it repeats what the step itself gives. The learning rate is read from a float32 tensor in all of them.

    Args:
        report: prints a line.
        required: whether to fail where a recording cannot be had or differs, instead of going on without.
    """

    def __init__(
        self,
        step: TrainStep,
        recorder: Recorder,
        report: Callable[[str], None],
        *,
        required: bool = False,
    ):
        self._step, self._recorder, self._report, self._required = step, recorder, report, required
        self._device = step.totals.values.device
        groups = step.optimizer.param_groups
        self._rates = [torch.zeros((), device=self._device) for _ in groups]
        self._rates_now: list[float] = [0.0] * len(groups)
        self._shapes: dict[torch.Size, _Shape] = {}
        # Of Adam in torch, for steps with `capturable` that are not recorded.
        vars(step.optimizer)["_warned_capturable_if_run_uncaptured"] = True

    def forget(self) -> None:
        """Drops all recordings: tensors of the step are about to be replaced."""
        self._shapes.clear()
        self._recorder.forget()

    def __call__(self, images: Tensor, labels: Tensor, index: Tensor, *, samples: int) -> None:
        """Trains on a batch, with the arguments of `TrainStep.accumulate`.

        Raises:
            TrainingFailed: if recordings are `required`, and this one fails.
        """
        batch = (images, labels, index)
        self._step.weigh(samples)
        shape = self._shapes.setdefault(images.shape, _Shape())
        shape.seen += 1
        with self._rates_on_device():
            if shape.replay:
                copy_all(batch, shape.batch)
                shape.replay()
                return
            if shape.seen > WARM_STEPS and not shape.fails:
                self._record(shape, batch, samples)
            if shape.replay:
                shape.replay()
            else:
                self._recorder.run(lambda: self._train(batch, samples))

    def _train(self, batch: Sequence[Tensor], samples: int) -> None:
        images, labels, index = batch
        self._step.accumulate(images, labels, index, samples=samples)
        self._step.update()

    def _record(self, shape: _Shape, batch: Sequence[Tensor], samples: int) -> None:
        """Records a step on the batch, and keeps it if it repeats the step's own; the state stays as it is."""
        shape.batch = tuple(each.clone() for each in batch)
        before = self._state()
        problem = self._trial(shape, samples, before)
        self._step.optimizer.zero_grad(set_to_none=True)
        self._set_state(before)
        if not problem:
            self._report(f"CUDA graphs: steps on batches of {len(batch[0])} are one launch from here on")
            return
        shape.fails, shape.replay, shape.batch = True, None, ()
        if self._required and problem != _NOT_FINITE:  # of which training has a line of its own
            raise TrainingFailed(f"train.cuda_graphs=on: {problem}")
        self._report(f"CUDA graphs: off for batches of {len(batch[0])} ({problem})")

    def _trial(self, shape: _Shape, samples: int, before: _State) -> str:
        """What is wrong with a recording, or "", by two steps without and one with it, from one state."""

        def work() -> None:
            self._train(shape.batch, samples)

        with self._all_collected():
            try:
                with self._same_draws():
                    self._recorder.rehearse(work)
                expected = self._state()
                self._set_state(before)
                with self._same_draws():
                    self._recorder.run(work)
                again = self._state()  # which differs where sums are in another order
                shape.replay = self._recorder.record(work)
            except RuntimeError as error:  # out of memory, or what cannot be recorded
                return _cause(error)
            self._set_state(before)
            with self._same_draws():
                shape.replay()
            off = difference(before, expected, again, self._state())
        if math.isnan(off):
            return _NOT_FINITE
        return "" if off <= 1 else "a recorded step changes other than the step itself"

    def _same_draws(self) -> AbstractContextManager[None]:
        return torch.random.fork_rng([self._device] if self._device.type == "cuda" else [])

    @contextmanager
    def _all_collected(self) -> Iterator[None]:
        """Inside, every sample counts for the class means, so that a recording that forgets them is seen."""
        means = self._step.means
        if not means:
            yield
            return
        member = means.member.clone()
        means.member.fill_(1)
        try:
            yield
        finally:
            means.member.copy_(member)

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Inside, the optimizer reads its learning rates from tensors, into which they are written."""
        groups = self._step.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for tensor, now, rate in zip(self._rates, self._rates_now, rates, strict=True):
            if rate != now:
                tensor.fill_(rate)
        self._rates_now = rates
        for group, tensor in zip(groups, self._rates, strict=True):
            group["lr"] = tensor
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = False

    def _written(self) -> list[list[Tensor]]:
        """The tensors that a step changes, by kind; each of the sums is a kind of its own."""
        step = self._step
        buffers = list(step.network.buffers())
        states = [state for state in step.optimizer.state.values() if state]
        return [
            list(step.network.parameters()),
            [each for each in buffers if each.is_floating_point()],
            [each for each in buffers if not each.is_floating_point()],
            *([state[key] for state in states if isinstance(state.get(key), Tensor)] for key in (states or [{}])[0]),
            *([each] for each in step.totals.values.unbind()),
            *([each] for each in (step.means.sums if step.means else ())),
        ]

    def _state(self) -> _State:
        return [[tensor.detach().to("cpu", copy=True) for tensor in kind] for kind in self._written()]

    @torch.no_grad()
    def _set_state(self, state: _State) -> None:
        for kind, tensors in zip(state, self._written(), strict=True):
            copy_all(kind, tensors)


def difference(before: _State, expected: _State, again: _State, found: _State) -> float:
    """The largest |found - expected| of any tensor, in Euclidean norms, over what it may be; NaN if any is.

    It may be `MOST_DIFFERENCE` of |expected - before|, `ROUNDING` of that of all tensors of its kind, and three times
    |again - expected|, where the step itself differs from one time to the next: Adam makes whole updates of a
    gradient that is rounding alone.
    """
    worst = [0.0]
    for kinds in zip(before, expected, again, found, strict=True):
        moved = [_distance(wanted, old) for old, wanted, _, _ in zip(*kinds, strict=True)]
        floor = ROUNDING * math.hypot(*moved)
        for own, (_, wanted, repeated, given) in zip(moved, zip(*kinds, strict=True), strict=True):
            allowed = MOST_DIFFERENCE * own + floor + 3 * _distance(repeated, wanted)
            off = _distance(given, wanted)
            worst.append(off / allowed if allowed else math.inf if off else 0.0)
    return float(torch.tensor(worst).max())


def _cause(error: BaseException) -> str:
    """The first line of the error that led to this one: torch raises another while it ends a recording."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm())


def graphed_step(
    step: TrainStep, config: Config, device: torch.device, ranks: Ranks, report: Callable[[str], None]
) -> GraphedStep | None:
    """The step as CUDA graphs, where `train.cuda_graphs` asks for them and they can be had.

    Raises:
        InputError: for `on` where they cannot.
    """
    requested, reason = config.train.cuda_graphs, _obstacle(step, config, device, ranks)
    if requested == "on" and reason:
        raise InputError(f"train.cuda_graphs=on {reason}")
    if requested == "off" or reason:
        if requested == "auto" and device.type == "cuda":
            report(f"CUDA graphs: off (auto: it {reason})")
        return None
    return GraphedStep(step, CudaRecorder(device), report, required=requested == "on")


def _obstacle(step: TrainStep, config: Config, device: torch.device, ranks: Ranks) -> str:
    if device.type != "cuda":
        return f"needs a CUDA device; this run is on {device}"
    if ranks.world_size > 1:
        return "is for one rank; several exchange gradients"
    if step.scaler.is_enabled():
        return "cannot skip steps as train.precision=fp16 does; take bf16"
    if config.optim.accumulate > 1:
        return f"records whole steps, not optim.accumulate={config.optim.accumulate} parts"
    if not all(group.get("fused") for group in step.optimizer.param_groups):
        return f"takes sgd, adam and adamw, which read the learning rate on the device; not {config.optim.name}"
    return ""


def copy_all(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copies each source into its target, without waiting for the device where the source is on it."""
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=source.is_cuda)
