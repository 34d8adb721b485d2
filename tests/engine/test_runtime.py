"""The machine a run is on."""

import platform
import subprocess
import sys

import pytest
import torch

from fastlsr.engine.compiling import choose_compile

PAGE_FAULTS_OF_STEPS = """
import resource
import torch
from torch import nn
from fastlsr.engine.runtime import set_up_torch

set_up_torch(torch.device("cpu"), deterministic=False)
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


def test_no_more_than_one_step_is_timed_where_the_run_is_short():
    passes = []

    class Network(torch.nn.Linear):
        def forward(self, images):
            passes.append(len(images))
            return super().forward(images)

    said = []
    assert not choose_compile("auto", Network(4, 2), torch.ones(3, 4), steps=10, report=said.append)
    assert passes == [3] and said[-1].startswith("compile: off (auto: 0 s of training")
