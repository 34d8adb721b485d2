"""What only a CUDA device shows: batches that stay whole, a loop that never waits, and the CPU's numbers."""

import gc
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from fastlsr import train
from fastlsr.config import Train, load
from fastlsr.data.loader import Loader
from fastlsr.engine.cuda_graphs import CudaRecorder, GraphedStep
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Session
from fastlsr.errors import TrainingFailed
from fastlsr.labels.methods import make_plan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def as_in_a_process_of_its_own():
    """What runs leave set in torch, or compiled, would decide what later tests see."""
    torch._dynamo.config.recompile_limit = 64  # variants of the step: each test has some
    yield
    torch.use_deterministic_algorithms(False)
    torch._inductor.config.deterministic = False
    set_up_torch(CUDA)


def session_on(device, digits_dir, **options):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.batch_size": 64, "model.name": "resnet8",
            "method.name": "colam", "method.stages": 1, "train.epochs": 1, "train.precision": "fp32"}  # fmt: skip
    chosen = base | {key.replace("__", "."): value for key, value in options.items()}
    config = load(overrides=chosen)
    set_up_torch(device, config.train)
    plan = make_plan(config.method, config.train.epochs)
    return Session(config, plan, device, report=lambda text: None)


def test_batches_are_the_cpus_even_when_the_device_lags_behind(digits_dir):
    data = load(overrides={"data.batch_size": 32}).data
    loaders = [
        Loader(digits_dir / "digits_train.beton", data, train=True, seed=0, device=torch.device(d))
        for d in ("cpu", CUDA)
    ]
    burden = torch.randn(2048, 2048, device=CUDA)
    kept = []
    for batch in loaders[1].epoch(0):
        for _ in range(20):
            burden = burden @ burden / 2048  # the host runs ahead of this
        kept.append(batch.images.clone())
    for mine, plain in zip(kept, loaders[0].epoch(0), strict=True):
        assert torch.equal(mine.cpu(), plain.images)


def test_what_is_copied_to_the_device_is_pinned(digits_dir):
    """FFCV pins under a bare `except: pass`; each copy from unpinned memory would make the loader wait."""
    loader = Loader(digits_dir / "digits_train.beton", load().data, train=True, seed=0, device=CUDA)
    arrays = [buffer for buffer in loader._pipeline._memory["operation"].values() if isinstance(buffer, np.ndarray)]
    assert arrays and all(torch.from_numpy(array).is_pinned() for array in arrays)


@pytest.mark.parametrize("options", [{"train__compile": "off"}, {"train__compile": "on"}, {"train__ema": 0.9},
                                     {"train__precision": "fp16"}, {"train__cuda_graphs": "off"}])  # fmt: skip
def test_the_batch_loop_never_waits_for_the_device(digits_dir, options):
    session = session_on(CUDA, digits_dir, **options)
    try:
        for number, batch in enumerate(session.batches()):
            if number == 4:  # compiled, warm and recorded
                torch.cuda.set_sync_debug_mode("error")
            session.train_batch(*batch)
            session.totals.read_late()
            if number == 15:
                break
        assert not session.graphed or [shape for shape in session.graphed._shapes.values() if shape.replay]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_evaluation_waits_for_the_device_at_its_end_alone(digits_dir):
    session = session_on(CUDA, digits_dir)
    session.evaluate()  # compiled and warm

    def watch(batches):
        torch.cuda.set_sync_debug_mode("error")
        yield from batches
        torch.cuda.set_sync_debug_mode("default")

    try:
        session.evaluate(watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_network_that_waits_for_the_device_trains_without_graphs_and_fails_where_they_are_required(digits_dir):
    """`.item()` in a forward pass, and dropout after it, whose generator a broken recording would spoil."""
    said = []
    for required in (False, True):
        session = session_on(CUDA, digits_dir, train__compile="off", train__cuda_graphs="off")
        session.network.model.register_forward_hook(
            lambda module, given, logits: nn.functional.dropout(logits, 0.1) * torch.ones((), device=CUDA).item()
        )
        session.graphed = GraphedStep(session.step, CudaRecorder(CUDA), said.append, required=required)
        with pytest.raises(TrainingFailed, match="cuda_graphs=on: ") if required else nullcontext():
            for batch in session.batches():
                session.train_batch(*batch)
            assert session.totals.read().steps == len(session.train)
    (line,) = said
    assert "off for batches of 64 (" in line and "\n" not in line


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_graphs_train_as_steps_do_over_generations_with_each_optimizer(digits_dir, optimizer):
    """Recorded anew for each generation, in memory that the recordings before have left."""
    found = []
    for graphs in ("on", "off"):
        options = {"method__name": "label_refinery", "method__generations": 2, "train__epochs": 1, "optim__lr": 2.0**-9,
                   "train__deterministic": "true", "optim__clip_norm": 1.0, "optim__name": optimizer}  # fmt: skip
        session = session_on(CUDA, digits_dir, train__cuda_graphs=graphs, train__compile="off", **options)
        while not session.finished:
            for batch in session.batches():
                session.train_batch(*batch)
            replayed = graphs == "off" or any(shape.replay for shape in session.graphed._shapes.values())
            assert replayed and session.totals.read().steps == len(session.train)
            session.end_epoch()
        found.append([weight.detach().cpu() for weight in session.network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_epoch_has_the_cpus_loss_and_class_means(digits_dir):
    found = []
    for device in (torch.device("cpu"), CUDA):
        session = session_on(device, digits_dir, train__compile="off", optim__lr=0.01)
        for batch in session.batches():
            session.train_batch(*batch)
        found.append((session.totals.read().loss, session.learner.means.count.cpu()))
    assert found[0][0] == pytest.approx(found[1][0], rel=0.02)
    assert torch.equal(found[0][1], found[1][1])


METHODS = {"lsr": {}, "colam": {"method__stages": 1}, "online": {}, "disturb_label": {"method__alpha": 0.5},
           "confidence_penalty": {"method__beta": 0.5}, "cs_kd": {}}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_two_compiled_steps_are_the_cpus_eager_ones(digits_dir, method):
    """Losses, class means and the classifier's weights, in float32 without TF32."""
    found = []
    for device, compile in ((torch.device("cpu"), "off"), (CUDA, "on")):
        options = {"method__name": method, "train__compile": compile, "optim__lr": 0.01, **METHODS[method]}
        session = session_on(device, digits_dir, **options)
        for number, batch in enumerate(session.batches()):
            session.train_batch(*batch)
            if number == 1:
                break
        means = session.learner.means.logit_sum if session.learner else torch.zeros(1)
        weight = session.network.model.fc.weight.detach()
        found.append((session.totals.read(), means.cpu(), weight.cpu()))
    (own, means, weight), (its, its_means, its_weight) = found
    assert (own.seen, own.steps, own.bad_step) == (its.seen, its.steps, its.bad_step)
    assert its.loss == pytest.approx(own.loss, rel=1e-4)
    torch.testing.assert_close(its_means, means, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(its_weight, weight, rtol=1e-3, atol=1e-5)


def run_on_cuda(folder, digits_dir, **options):
    chosen = {"data.dataset": "digits", "data.dir": digits_dir, "data.batch_size": 200, "model.name": "resnet8",
              "method.name": "colam", "method.stages": 2, "train.epochs": 4, "train.deterministic": "true",
              "train.compile": "on", "train.device": "cuda", "optim.lr": 0.01, "optim.schedule": "constant",
              "log.wandb": "disabled", "run.dir": folder.parent, "run.name": folder.name}  # fmt: skip
    chosen |= {key.replace("__", "."): value for key, value in options.items()}
    return [f"--{key}={value}" for key, value in chosen.items()]


def learned_rows(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key.startswith(("train/", "test/", "target"))} for row in rows]


@pytest.mark.parametrize("stop_after", [3, 16, 20])  # batches of 8: in the first epoch, at the stage's end, after it
def test_a_deterministic_run_that_is_stopped_goes_on_to_the_same_rows(digits_dir, tmp_path, stopping, stop_after):
    assert train.main(run_on_cuda(tmp_path / "whole", digits_dir)) == 0
    with stopping(stop_after):
        assert train.main(run_on_cuda(tmp_path / "stopped", digits_dir)) == 128 + signal.SIGTERM
    assert train.main(run_on_cuda(tmp_path / "stopped", digits_dir)) == 0
    assert learned_rows(tmp_path / "stopped") == learned_rows(tmp_path / "whole")


@pytest.mark.parametrize(("method", "compile"), [("colam", "on"), ("colam", "off"), ("tsla", "off"),
                                                 ("label_refinery", "off")])  # fmt: skip
def test_a_run_of_cuda_graphs_is_the_one_without(digits_dir, tmp_path, stopping, capsys, method, compile):
    """Over a change of phase or generation and a resume, with ragged batches."""
    options = {"method__name": method, "train__compile": compile, "train__epochs": 10}
    if method == "label_refinery":
        options |= {"method__generations": 2, "train__epochs": 5}
    on, off = (run_on_cuda(tmp_path / name, digits_dir, train__cuda_graphs=name, **options) for name in ("on", "off"))
    assert train.main(off) == 0
    with stopping(42):
        assert train.main(on) == 128 + signal.SIGTERM
    assert train.main(on) == 0
    assert capsys.readouterr().out.count("are one launch from here on") == 4, "two shapes, before and after the stop"
    assert learned_rows(tmp_path / "on") == learned_rows(tmp_path / "off")


def test_deterministic_runs_that_are_compiled_apart_are_equal(digits_dir, tmp_path):
    """A cache each: inductor would choose the fastest of several reductions by timing them, and the cache keep it."""
    for name in "ab":
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache {name}")}
        command = [sys.executable, "-m", "fastlsr.train", *run_on_cuda(tmp_path / name, digits_dir, train__epochs=2)]
        subprocess.run(command, env=environment, check=True, timeout=300)
    assert learned_rows(tmp_path / "a") == learned_rows(tmp_path / "b")


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_tf32_in_convolutions_and_products_alike_or_in_neither(tf32):
    set_up_torch(CUDA, Train(tf32=tf32))
    torch.backends.cudnn.benchmark = False  # it may find a kernel without TF32 faster
    torch.manual_seed(0)
    images, weights = torch.randn(32, 64, 32, 32, device=CUDA), torch.randn(64, 64, 3, 3, device=CUDA)
    matrix = torch.randn(512, 512, device=CUDA)
    for operation, given in ((nn.functional.conv2d, (images, weights)), (torch.mm, (matrix, matrix))):
        exact = operation(*(each.double() for each in given))
        error = float((operation(*given) - exact).norm() / exact.norm())
        assert (error > 1e-5) == tf32, operation


def test_waiting_for_a_device_that_lags_behind_is_not_waiting_for_data(digits_dir):
    data = load(overrides={"data.batch_size": 32}).data
    loader = Loader(digits_dir / "digits_train.beton", data, train=True, seed=0, device=CUDA)
    burden = torch.randn(4096, 4096, device=CUDA)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    sum(1 for _ in loader.epoch(0))
    start.record()
    for _ in loader.epoch(1):
        for _ in range(20):
            burden = burden @ burden / 4096
    end.record()
    end.synchronize()
    assert loader.wait_seconds < 0.1 * start.elapsed_time(end) / 1000


def test_a_run_on_the_cpu_opens_no_context_on_the_device(digits_dir, tmp_path):
    words = run_on_cuda(tmp_path / "run", digits_dir, train__device="cpu", train__epochs=2, train__compile="off")
    code = (
        f"import torch\nfrom fastlsr import train\nassert train.main({words!r}) == 0\n"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_a_run_on_the_second_device_leaves_the_first_alone(digits_dir, tmp_path):
    words = run_on_cuda(tmp_path / "run", digits_dir, train__device="cuda:1", train__epochs=2, train__compile="off")
    code = (
        "import torch\nfree = torch.cuda.mem_get_info(0)[0]\nfrom fastlsr import train\n"
        f"assert train.main({words!r}) == 0\nassert torch.cuda.memory_reserved(0) == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_out_of_memory_is_one_line(digits_dir, tmp_path, capsys):
    gc.collect()
    torch.cuda.empty_cache()  # what is held already would not be counted
    torch.cuda.set_per_process_memory_fraction(1e-3, CUDA)
    try:
        assert train.main(run_on_cuda(tmp_path / "run", digits_dir, model__name="preact_resnet34", train__compile="off",
                                      data__batch_size=1400)) == 1  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "out of memory" in each]
    assert line.startswith("failed: out of memory on cuda") and "data.batch_size below 1400" in line
