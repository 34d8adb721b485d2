"""How close does training on a GPU come to what the device itself can do?

    python benchmarks/gpu.py [--cifar-dir FOLDER] [--parts loss,trainer,...] [--benchmark-limit N] [--tiny]

Each part answers one question, in seconds of this very run; on an H200 all of them take less than 8 minutes.

loss     forward and backward of the compiled loss, on float32 logits that the cache has forgotten. `loss_vs_dense`:
         time of F.cross_entropy on dense soft targets, eager, over ours; `loss_vs_dense_compiled`: that compiled, too;
         `loss_vs_liger`: Liger's label smoothing over ours, where Liger is installed. `loss_bandwidth_share`: the
         least traffic, logits read once and gradients written once (8 bytes an entry), a second, over the bandwidth of
         a large copy. `loss_kernels`: launches, as the profiler saw them. `loss_passes`: the most loops over a row's
         entries in the Triton source of any launch; 1 says that none goes over its input twice. `rows_again_vs_once`:
         time of the loss on rows of 4096 as inductor would compile it, reading them again for each sum, over ours;
         `longest_rows_again_vs_once`: on rows of 21,841.
trainer  `trainer_vs_step`: images a second of whole training epochs (loader, progress, checks of the loss) over those
         of the step alone on one batch on the device, as the trainer has it, with optimizer and schedule. `peak_share`:
         floating-point operations an epoch spends on convolutions and matrix products, a second, over those of a
         large bf16 product. `step_busy`: kernel time of a step over its time; what is missing is the host's.
         `peak_memory_bytes`: the most that is allocated during steps that are not replayed, which allocate nothing.
loader   `loader_vs_resident`: images a second of the same loop from the loader over those from batches on the device.
epochs   `beside_training_share`: the share of an epoch of a whole run that evaluation, logging and checkpoints take.
means    `means_cost`: time of the step with class means over that of the step without.
graphs   `graphs_vs_launches`: time of the step that the host launches kernel by kernel over that of the same one as a
         CUDA graph; `graphs_vs_launches_small`: of ResNet-8.
preact   `preact_compiled_vs_eager`: images a second of the step, and `preact_busy` as above.
options  what might make the compiled step, as a CUDA graph, faster, one at a time: inductor's `combo_kernels` and
         `coordinate_descent_tuning`. `best_option`: time of the step as the trainer takes it over that with the best
         of them. None is adopted without such a figure. cuDNN keeps what it found, so that `--benchmark-limit 0`, its
         search without a limit, is for another call, whose `images_per_second` is held against this one's.
compile  seconds from a built network to the end of its first step, in a new process, with an empty cache of compiled
         code and then with the one it left.

Data are CIFAR-100's where --cifar-dir says where it is, else random images of its shape. A part that fails says why,
its figures are null, and the exit code is 1. Without a CUDA device nothing is measured; --tiny runs everything at
sizes that say nothing about speed, on any device. The last line is a JSON object.
"""

from __future__ import annotations

# isort: split
import argparse
import functools
import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sessions import begin
from timing import Report, at_least, at_most, in_turns
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from fastlsr import train
from fastlsr.data.loader import Batch
from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.sources import read_dataset
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.engine.cuda_graphs import WARM_STEPS, CudaRecorder, GraphedStep
from fastlsr.engine.loop import StopRequest, train_epoch
from fastlsr.engine.optimizers import set_learning_rate
from fastlsr.engine.runtime import choose_device, peak_memory_bytes
from fastlsr.engine.session import Session
from fastlsr.engine.step import TrainStep
from fastlsr.labels.losses import soft_target_cross_entropy
from fastlsr.logs.run_log import RunLog
from fastlsr.runs import RunFolder

BARS = {
    "loss_bandwidth_share": at_least(0.6),
    "loss_kernels": at_most(3),
    "loss_passes": at_most(1),
    "trainer_vs_step": at_least(0.98),
    "loader_vs_resident": at_least(0.98),
    "means_cost": at_most(1.005),
    "preact_compiled_vs_eager": at_least(3),
}
ROOT = Path(__file__).parents[1]
PROFILED = 10  # calls under the profiler, whose counts and times are divided by as many


@dataclass(frozen=True)
class Sizes:
    """How large everything is that is measured."""

    logits: tuple[int, int] = (32_768, 1000)
    long_rows: tuple[tuple[int, int], ...] = ((8192, 4096), (2048, 21_841))
    large_bytes: int = 1 << 31  # to copy for the bandwidth, and to fill between two measurements of the loss
    matrix: int = 8192
    images: int = 50_000  # of which the trainer takes whole batches
    side: int = 32
    classes: int = 100
    network: str = "resnet18"
    batch: int = 256
    deep_network: str = "preact_resnet34"
    deep_batch: int = 64
    rounds: int = 7
    calls: int = 20  # in a round, of what takes less than a millisecond
    steps: int = 50  # in a round


TINY = Sizes(logits=(64, 10), long_rows=((8, 40), (4, 50)), large_bytes=1 << 12, matrix=32, images=48, side=8,
             classes=10, network="resnet8", batch=16, deep_network="resnet8", deep_batch=8, rounds=2, calls=2,
             steps=2)  # fmt: skip


@dataclass
class Bench:
    """What the parts share.

    Attributes:
        folder: holds bench_train.beton and bench_test.beton.
        report: takes the figures.
        tiny: whether `sizes` are the tiny ones.
    """

    device: torch.device
    sizes: Sizes
    folder: Path
    report: Report
    tiny: bool

    @functools.cached_property
    def session(self) -> Session:
        """The ResNet's, ready to train."""
        return build_session(self, self.sizes.network, self.sizes.batch)

    @property
    def compiles(self) -> bool:
        """Whether steps are compiled: a CPU takes longer over that than over all else."""
        return self.device.type == "cuda"

    def compiled(self, function: Callable) -> Callable:
        """The function, compiled as the trainer compiles its step."""
        return torch.compile(function, dynamic=False) if self.compiles else function

    def seconds(self, run: Callable[[], object]) -> float:
        """Seconds until the device has done what `run` asks for."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def write_data(folder: Path, sizes: Sizes, cifar_dir: Path | None) -> None:
    """Writes bench_{train,test}.beton: CIFAR-100, or random images of its shape."""
    if cifar_dir:
        dataset = read_dataset("cifar100", cifar_dir, folder)
        splits, classes = dataset.splits, dataset.classes
    else:
        random = np.random.default_rng(0)
        classes = [str(number) for number in range(sizes.classes)]
        splits = {}
        for split, count in (("train", sizes.images), ("test", max(sizes.batch, sizes.images // 5))):
            images = random.integers(0, 256, (count, sizes.side, sizes.side, 3), dtype=np.uint8)
            splits[split] = Samples(images, np.arange(count) % sizes.classes)
    for split, samples in splits.items():
        write_beton(samples, folder / f"bench_{split}.beton", dataset="bench", split=split, classes=classes,
                    encoding=Encoding(mode="raw"))  # fmt: skip


def build_session(bench: Bench, network: str, batch: int) -> Session:
    """A run of COLAM, the method whose step does most, before its first step. Only whole batches."""
    options = {"data.dataset": "bench", "data.dir": str(bench.folder), "data.batch_size": batch, "data.drop_last": True,
               "model.name": network, "method.name": "colam", "method.stages": 2, "train.epochs": 200,
               "train.compile": "on" if bench.compiles else "off", "optim.lr": 0.01}  # fmt: skip
    return begin(options, bench.device, print)


def first_batch(session: Session) -> Batch:
    """A batch that stays on the device."""
    batches = session.batches()
    batch = Batch(*(tensor.clone() for tensor in next(batches)))
    batches.close()
    return batch


def take_steps(session: Session, step: TrainStep | GraphedStep, batch: Batch, count: int) -> None:
    """Trains `count` times on one batch: what a training loop cannot do without."""
    for number in range(count):
        set_learning_rate(session.optimizer, session.learning_rate_factor(number))
        if isinstance(step, GraphedStep):
            step(*batch, samples=len(batch.labels))
        else:
            step.accumulate(*batch, samples=len(batch.labels))
            step.update()


def epoch_seconds(bench: Bench, session: Session, batches: Callable[[], Iterable[Batch]]) -> float:
    """Seconds that the trainer's own steps take for an epoch of these batches."""

    def steps() -> None:
        for batch in batches():
            session.train_batch(*batch)

    seconds = bench.seconds(steps)
    session.end_epoch()
    return seconds


def launches(bench: Bench, run: Callable[[], object]) -> list[tuple[str, float]]:
    """(name, seconds) of each kernel, copy and fill that the device did under `run`."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        bench.wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    return [(event["name"], event["dur"] / 1e6) for event in events if event.get("cat") in kinds]


def busy(bench: Bench, session: Session, step: TrainStep | GraphedStep, batch: Batch, seconds_a_step: float) -> float:
    """Share of a step's time in which a kernel runs."""
    done = launches(bench, lambda: take_steps(session, step, batch, PROFILED))
    print(f"  {len(done) / PROFILED:.0f} launches a step")
    return sum(seconds for _, seconds in done) / PROFILED / seconds_a_step


def passes(source: str) -> dict[str, int]:
    """Kernel -> the most often it goes over its input, from the Triton source of compiled code.

    A looped reduction has one loop over a row for each pass; a persistent one, or a pointwise kernel, has none.
    """
    kernels = {}
    for text in source.split("@triton.jit")[1:]:
        loops = re.findall(r"^\s+for \w*offset\w* in ", text, re.MULTILINE)
        kernels[re.search(r"def (\w+)\(", text)[1]] = max(1, len(loops))
    return kernels


def loss(bench: Bench) -> None:
    rows, classes = bench.sizes.logits
    logits = torch.randn(rows, classes, device=bench.device, requires_grad=True)
    labels = torch.randint(classes, (rows,), device=bench.device)
    table = torch.randn(classes, classes, device=bench.device).softmax(1)
    mix = torch.tensor([0.5, 0.1, 0.4, 1.0], device=bench.device)
    scale = torch.full((), 1 / rows, device=bench.device)
    one = torch.ones((), device=bench.device)

    @torch.no_grad()
    def fused(logits: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor]:
        losses, gradients = soft_target_cross_entropy(logits, labels, mix, table, scale)
        return gradients, losses.sum()  # the training step wants the sum

    def dense(logits: Tensor, table: Tensor) -> Tensor:
        hard, uniform, soft, inverse_temperature = mix.unbind()
        targets = hard * functional.one_hot(labels, classes) + uniform / classes + soft * table[labels]
        return functional.cross_entropy(logits * inverse_temperature, targets)

    def both_ways(objective: Callable[..., Tensor], *given: object) -> Tensor:
        return torch.autograd.grad(objective(*given), given[0], one)[0]

    fused_code = bench.compiled(fused)
    runs = {
        "ours": lambda: fused_code(logits, table)[0],
        "dense": functools.partial(both_ways, dense, logits, table),
        "dense compiled": functools.partial(both_ways, bench.compiled(dense), logits, table),
    }
    if liger := liger_loss():
        its_logits = logits.detach().clone().requires_grad_()  # it writes the gradient over them
        runs["ours, without table"] = lambda: fused_code(logits, None)[0]
        runs["liger"] = functools.partial(both_ways, liger, its_logits, labels)
    if bench.compiles:  # first: it makes torch forget what it compiled
        count_passes(bench, runs["ours"])
    difference = (runs["ours"]() - runs["dense"]()).norm() / runs["dense"]().norm()
    if not difference < 1e-4:
        raise AssertionError(f"the gradients of the two losses differ by {difference:.1e} of their norm")
    source, target = torch.empty(2, bench.sizes.large_bytes, dtype=torch.uint8, device=bench.device)
    runs["large copy"] = functools.partial(target.copy_, source)
    contenders = {name: functools.partial(forgetful_seconds, bench, run, target) for name, run in runs.items()}
    seconds = in_turns(contenders, rounds=bench.sizes.rounds)
    copy = statistics.median(seconds.pop("large copy"))
    bench.report.table(f"loss, {rows} x {classes} float32, both ways", seconds, unit="rows", units=rows)
    bench.report.ratio("loss_vs_dense", seconds["dense"], seconds["ours"])
    bench.report.ratio("loss_vs_dense_compiled", seconds["dense compiled"], seconds["ours"])
    if liger:
        bench.report.ratio("loss_vs_liger", seconds["liger"], seconds["ours, without table"])
    if bench.device.type == "cuda":
        bandwidth = 2 * bench.sizes.large_bytes / copy
        print(f"  bandwidth of a copy: {bandwidth / 1e12:.2f} TB/s")
        bench.report.value("loss_bandwidth_share", 8 * rows * classes / statistics.median(seconds["ours"]) / bandwidth)
        done = launches(bench, lambda: [runs["ours"]() for _ in range(PROFILED)])
        for name in sorted({name for name, _ in done}):
            taken = [seconds for other, seconds in done if other == name]
            print(f"  {len(taken) / PROFILED:g} x {name[:90]}: {1e6 * statistics.median(taken):.1f} us")
        bench.report.value("loss_kernels", len(done) / PROFILED)
    for size, figure in zip(bench.sizes.long_rows, ("rows_again_vs_once", "longest_rows_again_vs_once"), strict=True):
        long_rows(bench, target, *size, figure)


def long_rows(bench: Bench, target: Tensor, rows: int, classes: int, figure: str) -> None:
    from torch._inductor import config as inductor
    from torch._inductor.choices import InductorChoices
    from torch._inductor.virtualized import V

    logits = torch.randn(rows, classes, device=bench.device)
    labels = torch.randint(classes, (rows,), device=bench.device)
    mix, scale = torch.tensor([0.9, 0.1, 0.0, 1.0], device=bench.device), torch.full((), 1 / rows, device=bench.device)
    # Two functions, since torch keeps what it compiled by a function's code.
    once = bench.compiled(lambda logits: soft_target_cross_entropy(logits, labels, mix, None, scale))
    again = bench.compiled(lambda logits: soft_target_cross_entropy(logits, labels, mix, None, scale))
    once(logits)
    with V.set_choices_handler(InductorChoices()), inductor.patch(force_disable_caches=True):
        again(logits)
    contenders = {
        name: functools.partial(forgetful_seconds, bench, functools.partial(run, logits), target)
        for name, run in {"once": once, "again": again}.items()
    }
    seconds = in_turns(contenders, rounds=bench.sizes.rounds)
    bench.report.table(f"loss, {rows} x {classes} float32, rows read", seconds, unit="rows", units=rows)
    bench.report.ratio(figure, seconds["again"], seconds["once"])


def count_passes(bench: Bench, run: Callable[[], object]) -> None:
    from torch._inductor import config as inductor
    from torch._inductor.utils import run_and_get_code

    with inductor.patch(force_disable_caches=True):  # a cached graph may come without its source
        _, sources = run_and_get_code(run)
    kernels = passes("\n".join(sources))
    print("passes of the loss's kernels:", kernels)
    bench.report.value("loss_passes", max(kernels.values()))


def liger_loss() -> torch.nn.Module | None:
    """Liger's label smoothing, or None where it is not installed."""
    try:
        return importlib.import_module("liger_kernel.transformers").LigerCrossEntropyLoss(label_smoothing=0.1)
    except ImportError:
        return None


def forgetful_seconds(bench: Bench, run: Callable[[], object], large: Tensor) -> float:
    """Median seconds of a call that finds none of its input in the cache.

    `large` is filled before each call. That pushes out of the cache what was there, and keeps the device busy while the
    host queues the call, so that the device's time is measured, and not the host's.
    """
    if bench.device.type != "cuda":
        return statistics.median(bench.seconds(run) for _ in range(bench.sizes.calls))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(bench.sizes.calls)]
    for before, after in events:
        large.zero_()
        before.record()
        run()
        after.record()
    bench.wait()
    return statistics.median(before.elapsed_time(after) / 1000 for before, after in events)


def trainer(bench: Bench) -> None:
    session = bench.session
    log, stop = RunLog(RunFolder(bench.folder), session.config, session.plan.epochs), StopRequest()
    batch, images = first_batch(session), len(session.train) * bench.sizes.batch

    def epoch() -> float:
        _, speed = train_epoch(session, log, stop)
        session.end_epoch()
        return images / speed["images_per_second"]

    def steps() -> float:
        return bench.seconds(lambda: take_steps(session, session.graphed or session.step, batch, len(session.train)))

    epoch()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        take_steps(session, session.step, batch, PROFILED)
        bench.report.value("peak_memory_bytes", peak_memory_bytes(bench.device))
    seconds = in_turns({"trainer": epoch, "step alone": steps}, rounds=bench.sizes.rounds)
    bench.report.table(f"{bench.sizes.network}, batch {bench.sizes.batch}", seconds, unit="images", units=images)
    bench.report.ratio("trainer_vs_step", seconds["step alone"], seconds["trainer"])
    rate = images / statistics.median(seconds["trainer"])
    bench.report.value("images_per_second", rate)
    flops, peak = step_flops(session, batch) / bench.sizes.batch, product_flops_per_second(bench)
    if bench.device.type == "cuda":
        print(f"  {flops / 1e9:.2f} GFLOP an image; a bf16 product: {peak / 1e12:.0f} TFLOP/s")
        bench.report.value("peak_share", flops * rate / peak)
        one_step = statistics.median(seconds["step alone"]) / len(session.train)
        bench.report.value("step_busy", busy(bench, session, session.graphed or session.step, batch, one_step))


def product_flops_per_second(bench: Bench) -> float:
    """What the device reaches in a large bf16 matrix product: the peak that shares are taken of."""
    size = bench.sizes.matrix
    one, other = torch.randn(2, size, size, dtype=torch.bfloat16, device=bench.device)

    def product() -> float:
        return bench.seconds(lambda: [one @ other for _ in range(PROFILED)]) / PROFILED

    return 2 * size**3 / statistics.median(in_turns({"product": product}, rounds=bench.sizes.rounds)["product"])


def step_flops(session: Session, batch: Batch) -> int:
    """Floating-point operations of the convolutions and matrix products of one step, a multiply-add being two."""
    eager = TrainStep(session.network, session.optimizer, session.targets, session.learner.means, compile=False)
    with FlopCounterMode(display=False) as counter:
        take_steps(session, eager, batch, 1)
    return counter.get_total_flops()


def loader(bench: Bench) -> None:
    session = bench.session
    resident = [Batch(*(tensor.clone() for tensor in batch)) for batch in session.train.epoch(0)]
    contenders = {
        "from the loader": lambda: epoch_seconds(bench, session, session.batches),
        "from the device": lambda: epoch_seconds(bench, session, lambda: resident),
    }
    seconds = in_turns(contenders, rounds=bench.sizes.rounds)
    images = len(resident) * bench.sizes.batch
    bench.report.table("an epoch's batches", seconds, unit="images", units=images)
    bench.report.ratio("loader_vs_resident", seconds["from the device"], seconds["from the loader"])


def epochs(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = {"data.dataset": "bench", "data.dir": bench.folder, "data.batch_size": bench.sizes.batch,
                   "model.name": bench.sizes.network, "train.epochs": 8, "optim.lr": 0.01, "log.wandb": "disabled",
                   "optim.schedule": "constant", "run.dir": folder, "run.name": "run",
                   "train.compile": "on" if bench.compiles else "off"}  # fmt: skip
        if train.main([f"--{key}={value}" for key, value in options.items()]):
            raise RuntimeError("the run failed")
        rows = RunFolder(Path(folder, "run")).read_rows()[4:]  # compiled and recorded, the last batch, too
    trained = [bench.sizes.images / row["images_per_second"] for row in rows]
    shares = [1 - seconds / row["seconds"] for seconds, row in zip(trained, rows, strict=True)]
    print("  of each epoch:", ", ".join(f"{share:.0%}" for share in shares))
    bench.report.value("beside_training_share", statistics.median(shares))


def means(bench: Bench) -> None:
    session, batch = bench.session, first_batch(bench.session)
    without = TrainStep(session.network, session.optimizer, session.targets, None, compile=bench.compiles)
    of_classes = session.learner.means
    of_classes.start(torch.ones_like(of_classes.member))
    seconds = compare_steps(bench, session, batch, {"with means": session.step, "without": without}, rounds=3)
    bench.report.ratio("means_cost", seconds["with means"], seconds["without"])


def graphs(bench: Bench) -> None:
    for network, figure in ((bench.sizes.network, "graphs_vs_launches"), ("resnet8", "graphs_vs_launches_small")):
        session = build_session(bench, network, bench.sizes.batch)
        steps: dict[str, TrainStep | GraphedStep] = {"launched by the host": session.step}
        if bench.device.type == "cuda":
            steps["a CUDA graph"] = graphed(bench, session, session.step, first_batch(session))
        seconds = compare_steps(bench, session, first_batch(session), steps)
        if bench.device.type == "cuda":
            bench.report.ratio(figure, seconds["launched by the host"], seconds["a CUDA graph"])


def graphed(bench: Bench, session: Session, step: TrainStep, batch: Batch) -> GraphedStep:
    """The step, recorded for a batch."""
    made = GraphedStep(step, CudaRecorder(bench.device), print, required=True)
    take_steps(session, made, batch, WARM_STEPS + 1)
    return made


def preact(bench: Bench) -> None:
    session = build_session(bench, bench.sizes.deep_network, bench.sizes.deep_batch)
    batch = first_batch(session)
    eager = TrainStep(session.network, session.optimizer, session.targets, session.learner.means, compile=False)
    seconds = compare_steps(bench, session, batch, {"compiled": session.step, "eager": eager})
    bench.report.ratio("preact_compiled_vs_eager", seconds["eager"], seconds["compiled"])
    if bench.device.type == "cuda":
        one_step = statistics.median(seconds["compiled"]) / bench.sizes.steps
        bench.report.value("preact_busy", busy(bench, session, session.step, batch, one_step))


OPTIONS: dict[str, dict[str, object]] = {
    "as trained": {},
    "combo_kernels": {"combo_kernels": True, "combo_kernel_max_num_nodes": 64},
    "combo_kernels, pointwise": {"combo_kernels": True, "combo_kernels_pointwise_only": True,
                                 "combo_kernel_max_num_nodes": 64},
    "coordinate_descent_tuning": {"coordinate_descent_tuning": True},
}  # fmt: skip


def step_options(bench: Bench) -> None:
    from torch._inductor import config as inductor

    session = bench.session
    batch, steps = first_batch(session), dict[str, TrainStep | GraphedStep]()
    for name, chosen in OPTIONS.items():
        known = {key: value for key, value in chosen.items() if hasattr(inductor, key)}  # torch 2.11 lacks some
        step = TrainStep(session.network, session.optimizer, session.targets, session.learner.means, compile=False)
        if bench.compiles:  # as options: dynamo takes what it compiled by an equal backend, whatever is patched
            step.compute = torch.compile(step._compute, dynamic=False, options=known or None)
        take_steps(session, step, batch, 1)
        steps[name] = graphed(bench, session, step, batch) if bench.device.type == "cuda" else step
    seconds = compare_steps(bench, session, batch, steps)
    best = min((name for name in OPTIONS if name != "as trained"), key=lambda name: statistics.median(seconds[name]))
    print(f"  the best: {best}")
    bench.report.ratio("best_option", seconds["as trained"], seconds[best])


def compare_steps(
    bench: Bench, session: Session, batch: Batch, steps: Mapping[str, TrainStep | GraphedStep], *, rounds: int = 1
) -> dict[str, list[float]]:
    """Contender -> seconds of each round of some steps on one batch; `rounds` times as many rounds as usual."""

    def contender(step: TrainStep | GraphedStep) -> Callable[[], float]:
        return lambda: bench.seconds(lambda: take_steps(session, step, batch, bench.sizes.steps))

    contenders = {name: contender(step) for name, step in steps.items()}
    seconds = in_turns(contenders, rounds=rounds * bench.sizes.rounds, warm=2)
    title = f"{session.config.model.name}, batch {len(batch.labels)}, the step alone"
    bench.report.table(title, seconds, unit="images", units=bench.sizes.steps * len(batch.labels))
    return seconds


def compile_times(bench: Bench) -> None:
    if not bench.compiles:  # a new process would have nothing to show
        first_step(bench)
        return
    with tempfile.TemporaryDirectory() as cache:
        for key in ("cold_compile_seconds", "warm_compile_seconds"):
            bench.report.value(key, first_step_elsewhere(bench, cache))


def first_step_elsewhere(bench: Bench, cache: str) -> float:
    """`first_step` of a new process that keeps its compiled code in the folder `cache`."""
    command = [sys.executable, __file__, "--first-step", str(bench.folder), *["--tiny"] * bench.tiny]
    hidden = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    environment = kept | {"TORCHINDUCTOR_CACHE_DIR": cache}  # inductor keeps Triton's in it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    if done.returncode:
        raise RuntimeError(f"the new process failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def first_step(bench: Bench) -> float:
    """Seconds from a built network to the end of its first step."""
    session = build_session(bench, bench.sizes.network, bench.sizes.batch)
    batch = first_batch(session)
    return bench.seconds(lambda: take_steps(session, session.step, batch, 1))


# Part -> what answers it, and its figures. `loss` comes first: it makes torch forget what is compiled.
PARTS: dict[str, tuple[Callable[[Bench], None], tuple[str, ...]]] = {
    "loss": (loss, ("loss_vs_dense", "loss_vs_dense_compiled", "loss_vs_liger", "loss_bandwidth_share", "loss_kernels",
                    "loss_passes", "rows_again_vs_once", "longest_rows_again_vs_once")),
    "trainer": (trainer, ("trainer_vs_step", "images_per_second", "peak_share", "step_busy", "peak_memory_bytes")),
    "loader": (loader, ("loader_vs_resident",)),
    "epochs": (epochs, ("beside_training_share",)),
    "means": (means, ("means_cost",)),
    "graphs": (graphs, ("graphs_vs_launches", "graphs_vs_launches_small")),
    "preact": (preact, ("preact_compiled_vs_eager", "preact_busy")),
    "options": (step_options, ("best_option",)),
    "compile": (compile_times, ("cold_compile_seconds", "warm_compile_seconds")),
}  # fmt: skip


def run_parts(bench: Bench, names: Iterable[str]) -> int:
    """The exit code once all named parts have run: 1 if one of them failed."""
    code, spent = 0, {}
    for name in names:
        start = time.perf_counter()
        try:
            PARTS[name][0](bench)
        except Exception:  # whatever it is, the other parts have answers of their own
            traceback.print_exc()
            print(f"part {name} failed", flush=True)
            for key in PARTS[name][1]:
                bench.report.value(key, None)
            code = 1
        spent[name] = round(time.perf_counter() - start, 1)
        print(f"  part {name}: {spent[name]} s", flush=True)
    bench.report.work["seconds"] = spent
    return code


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar-dir", type=Path, help="folder that holds cifar-100-python; else random images")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, in this order: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing, to see that everything runs")
    parser.add_argument(
        "--benchmark-limit", type=int, help="algorithms that cuDNN tries; 0: all; torch's default is 10"
    )
    parser.add_argument("--first-step", type=Path, help=argparse.SUPPRESS)  # the new process of `compile`
    options = parser.parse_args(arguments)
    names = options.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts {unknown[0]}: there are {', '.join(PARTS)}")
    device, sizes = choose_device("auto"), TINY if options.tiny else Sizes()
    if options.benchmark_limit is not None:
        torch.backends.cudnn.benchmark_limit = options.benchmark_limit
    report = Report({} if options.tiny else BARS)
    for _, keys in PARTS.values():
        for key in keys:
            report.value(key, None)
    if device.type != "cuda" and not options.tiny:
        print("not measured: no CUDA device")
        report.finish()
        return 0
    if options.first_step:
        print(first_step(Bench(device, sizes, options.first_step, report, options.tiny)))
        return 0
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    report.work.update({"gpu": gpu, "tiny": options.tiny, "data": "cifar100" if options.cifar_dir else "random"})
    torch._dynamo.config.recompile_limit = 64  # beyond it the parts' steps would run as they are, without a word
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), sizes, options.cifar_dir)
        code = run_parts(Bench(device, sizes, Path(folder), report, options.tiny), names)
    report.finish()
    return code


if __name__ == "__main__":
    sys.exit(main())
