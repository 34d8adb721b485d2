"""Whole training steps as CUDA graphs: recorded once for each shape of batch, and from then on one launch each.

A step of a small network is hundreds of kernels of a few microseconds, and the host needs longer to launch them than
the device to run them. A recorded step launches all of them at once, on the memory that they had when it was recorded:
whatever changes between steps has to be in tensors that stay where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastlsr.config import Config
from fastlsr.engine.step import TrainStep
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.ranks import Ranks

WARM_STEPS = 3  # of a shape before it is recorded: they compile, and choose cuDNN's kernels by timing
MOST_DIFFERENCE = 0.05  # of what a step changes; sums in another order differ by less, a forgotten tensor by more


class Recorder(Protocol):
    """Runs work as it will be recorded, and records it."""

    def run(self, work: Callable[[], None]) -> None:
        """Does the work."""

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
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """As `Recorder` has it. Other threads, such as the loader's, may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


@dataclass
class _Shape:
    """What is known of the batches of one shape: how many were seen, where a recording reads them, and that."""

    seen: int = 0
    batch: tuple[Tensor, ...] = ()
    replay: Callable[[], None] | None = None


class GraphedStep:
    """`TrainStep.accumulate` and `update` as one launch, for batches that each move the weights.

    The first steps of each shape run as they are. Then one is recorded, run both ways from the same state, and kept if
    it repeats what the step itself gives. The learning rate is a float32 tensor in all of them.

    Args:
        report: prints a line.
        required: whether to fail where a recording cannot be had or differs, instead of going on without.
    """

    def __init__(self, step: TrainStep, recorder: Recorder, report: Callable[[str], None], *, required: bool = False):
        self._step, self._recorder, self._report, self._required = step, recorder, report, required
        self._device = step.totals.values.device
        groups = step.optimizer.param_groups
        self._rates = [torch.zeros((), device=self._device) for _ in groups]
        self._rates_now: list[float] = [0.0] * len(groups)
        self._shapes: dict[torch.Size, _Shape] = {}
        self._records = True

    def forget(self) -> None:
        """Drops all recordings: tensors of the step are about to be replaced."""
        self._shapes.clear()

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
                _copy_all(batch, shape.batch)
                shape.replay()
            elif shape.seen > WARM_STEPS and self._records:
                self._record(shape, batch, samples)
            else:
                self._recorder.run(lambda: self._train(batch, samples))

    def _train(self, batch: Sequence[Tensor], samples: int) -> None:
        images, labels, index = batch
        self._step.accumulate(images, labels, index, samples=samples)
        self._step.update()

    def _record(self, shape: _Shape, batch: Sequence[Tensor], samples: int) -> None:
        """Trains on the batch by a recording that is kept, or else by the step itself."""
        shape.batch = tuple(each.clone() for each in batch)
        before = self._state()

        def work() -> None:
            self._train(shape.batch, samples)

        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):  # the same dropout twice
            self._recorder.run(work)
        expected = self._state()
        try:
            replay = self._recorder.record(work)
        except RuntimeError as error:  # out of memory, or what cannot be recorded
            self._step.optimizer.zero_grad(set_to_none=True)
            self._give_up(str(error).strip().splitlines()[0][:200])
            return
        self._set_state(before)
        replay()
        off = difference(before, expected, self._state())
        if not off <= MOST_DIFFERENCE:  # NaN, too
            self._set_state(expected)
            self._give_up(f"what was recorded is off by {off:.2g} of what a step changes")
            return
        shape.replay = replay
        self._report(f"CUDA graphs: steps on batches of {len(batch[0])} are one launch from here on")

    def _give_up(self, reason: str) -> None:
        if self._required:
            raise TrainingFailed(f"train.cuda_graphs=on: {reason}")
        self._records = False
        self.forget()
        self._report(f"CUDA graphs: off ({reason})")

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
        """The tensors that a step changes, by kind."""
        step = self._step
        of_optimizer = [value for each in step.optimizer.state.values() for value in each.values()]
        return [
            list(step.network.parameters()),
            list(step.network.buffers()),
            [value for value in of_optimizer if isinstance(value, Tensor)],
            [step.totals.values],
            list(step.means.sums if step.means else ()),
        ]

    def _state(self) -> list[list[Tensor]]:
        return [[tensor.detach().to("cpu", copy=True) for tensor in kind] for kind in self._written()]

    @torch.no_grad()
    def _set_state(self, state: Sequence[Sequence[Tensor]]) -> None:
        for kind, tensors in zip(state, self._written(), strict=True):
            _copy_all(kind, tensors)


def difference(
    before: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]]
) -> float:
    """The largest |found - expected| / |expected - before| of a kind of tensors, in Euclidean norms; NaN if any is."""
    ratios = [0.0]
    for kinds in zip(before, expected, found, strict=True):
        off, moved = (_distance(one, other) for one, other in ((kinds[2], kinds[1]), (kinds[1], kinds[0])))
        if off != 0:
            ratios.append(off / moved if moved else math.inf)
    return float(torch.tensor(ratios).max())


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    squares = [(a.double() - b.double()).square().sum() for a, b in zip(one, other, strict=True)]
    return math.sqrt(sum(map(float, squares)))


def graphed_step(
    step: TrainStep, config: Config, device: torch.device, ranks: Ranks, report: Callable[[str], None]
) -> GraphedStep | None:
    """The step as CUDA graphs, where `train.cuda_graphs` asks for them and they can be had.

    Raises:
        InputError: for `on` where they cannot.
    """
    requested = config.train.cuda_graphs
    reason = _obstacle(step, config, device, ranks)
    if requested == "on" and reason:
        raise InputError(f"train.cuda_graphs=on {reason}")
    if requested == "off" or reason:
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


def _copy_all(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)
