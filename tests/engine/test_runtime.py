"""The machine a run is on."""

import platform
import subprocess
import sys

import pytest
import torch

from fastlsr.config import Train
from fastlsr.engine import runtime
from fastlsr.engine.compiling import choose_compile, fastest_in_turns
from fastlsr.errors import InputError
from fastlsr.ranks import ALONE, Ranks, check_batch_divides, read_ranks

PAGE_FAULTS_OF_STEPS = """
import resource
import torch
from torch import nn
from fastlsr.engine.runtime import set_up_torch

set_up_torch(torch.device("cpu"))
widths = [3, 16, 16, 16, 16]
layers = [[nn.Conv2d(*pair, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()] for pair in zip(widths, widths[1:])]
network, images = nn.Sequential(*sum(layers, [])), torch.randn(128, 3, 32, 32)
for step in range(14):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(images).mean().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is set is glibc's malloc")
def test_steps_after_the_first_ask_the_kernel_for_hardly_any_memory():
    ran = subprocess.run([sys.executable, "-c", PAGE_FAULTS_OF_STEPS], capture_output=True, text=True, check=True)
    faults = [int(line) for line in ran.stdout.split()]
    assert sum(faults[4:]) < faults[0]


def test_compiled_runs_on_cuda_keep_rows_in_registers(monkeypatch):
    from torch._inductor import config as inductor

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    with inductor.patch(inductor_choices_class=None):
        runtime.set_up_torch(torch.device("cuda"), Train(compile="off"))
        assert inductor.inductor_choices_class is None
        runtime.set_up_torch(torch.device("cuda"))
        assert "rows" in inductor.inductor_choices_class().uuid()


@pytest.mark.parametrize("tf32", [False, True])
def test_a_float32_run_on_cuda_says_what_its_products_are_in(tf32):
    said, products = [], torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, tf32
    try:
        assert runtime.choose_precision("fp32", torch.device("cuda"), said.append) == "fp32"
    finally:
        products.allow_tf32 = before
    assert len(said) == 1 and ("in TF32" in said[0]) == tf32 and ("in float32" in said[0]) != tf32
    assert runtime.choose_precision("fp32", torch.device("cpu"), pytest.fail) == "fp32"


@pytest.fixture
def second_of_two(monkeypatch):
    """The environment of rank 5 of 8, the second of two on its machine."""
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))


def test_a_rank_is_what_torchrun_says_and_alone_without_all_of_it(second_of_two, monkeypatch):
    assert read_ranks() == Ranks(5, 8, 1, 2)
    for name in ("RANK", "LOCAL_WORLD_SIZE"):
        with monkeypatch.context() as changed:
            changed.delenv(name)
            assert read_ranks() == ALONE


def test_each_rank_of_a_machine_has_its_own_device(second_of_two, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert runtime.choose_device(name) == torch.device("cuda", 1)
    assert runtime.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="each of 2 ranks needs a device"):
        runtime.choose_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="this machine has 1 CUDA devices"):
        runtime.choose_device("auto")


@pytest.mark.parametrize(("limit", "threads"), [("", 4), ("1", 4), ("3", 3), ("16", 4)])
def test_ranks_of_one_machine_share_its_cores(limit, threads, second_of_two, monkeypatch):
    """torchrun sets OMP_NUM_THREADS=1 whatever the cores."""
    monkeypatch.setattr(runtime, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert runtime.threads() == threads


def test_a_batch_that_ranks_cannot_share_evenly_is_an_error_that_names_those_they_can():
    check_batch_divides(64, 8)
    with pytest.raises(InputError, match="take 56 or 64"):
        check_batch_divides(60, 8)
    check_batch_divides(1, 1)
    for size in (3, 8):  # a rank would have one image, or none
        with pytest.raises(InputError, match="take 16 or more$"):
            check_batch_divides(size, 8)


def test_no_more_than_one_step_is_timed_where_the_run_is_short():
    passes = []

    class Network(torch.nn.Linear):
        def forward(self, images):
            passes.append(len(images))
            return super().forward(images)

    said = []
    assert not choose_compile("auto", Network(4, 2), torch.ones(3, 4), steps=10, report=said.append)
    assert passes == [3] and said[-1].startswith("compile: off (auto: 0 s of training")


def test_steps_are_timed_in_turns_and_the_fastest_of_each_counts():
    """Another program that takes the cores for some of the rounds changes nothing."""
    turns = []

    def contender(name, seconds):
        times = iter(seconds)

        def step():
            turns.append(name)
            return next(times)

        return step

    busy = [9.0, 9.0, 1.0, 9.0, *[2.0] * 20]
    assert fastest_in_turns(contender("compiled", busy), contender("eager", [8.0, 0.5, *busy])) == (1.0, 0.5)
    assert turns == ["compiled", "eager"] * 3, "they took long enough"
    turns.clear()
    assert fastest_in_turns(contender("compiled", [0.02] * 99), contender("eager", [0.01] * 99)) == (0.02, 0.01)
    assert turns == ["compiled", "eager"] * (len(turns) // 2) and 3 < len(turns) // 2 < 99
