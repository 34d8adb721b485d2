"""The GPU benchmark runs to its end at tiny sizes, on whatever device there is, and says what was not measured."""

import json

import gpu
import pytest
import torch

ALL_FIGURES = {key for _, keys in gpu.PARTS.values() for key in keys}
ANYWHERE = {"loss_vs_dense", "loss_vs_dense_compiled", "trainer_vs_step", "images_per_second", "loader_vs_resident",
            "means_cost", "preact_compiled_vs_eager", "best_option", "rows_again_vs_once",
            "longest_rows_again_vs_once", "beside_training_share"}  # fmt: skip


@pytest.fixture
def report(capsys):
    """What the benchmark's last line says, and the exit code, for some arguments."""

    def run(*arguments):
        code = gpu.main(list(arguments))
        lines = capsys.readouterr().out.splitlines()
        return json.loads(lines[-1]), code, "\n".join(lines[:-1])

    return run


def test_every_part_runs_at_tiny_sizes_and_the_cpu_leaves_the_gpus_figures_out(report):
    figures, code, text = report("--tiny")
    assert code == 0, text
    assert all(figures[key] > 0 for key in ANYWHERE)
    missing = {key for key in ALL_FIGURES if figures[key] is None}
    assert missing == (missing & {"loss_vs_liger"} if torch.cuda.is_available() else ALL_FIGURES - ANYWHERE)
    assert figures["bars"] == {}, "tiny sizes are held against nothing"
    assert set(figures["work"]["seconds"]) == set(gpu.PARTS)


def test_a_part_that_fails_leaves_its_figures_out_and_the_others_run(report, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "loss", (lambda bench: 1 / 0, gpu.PARTS["loss"][1]))
    figures, code, text = report("--tiny", "--parts", "loss,loader")
    assert code == 1 and "part loss failed" in text
    assert all(figures[key] is None for key in gpu.PARTS["loss"][1])
    assert figures["loader_vs_resident"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_measured(report):
    figures, code, text = report()
    assert code == 0 and "not measured: no CUDA device" in text
    assert all(figures[key] is None for key in ALL_FIGURES)


def test_passes_are_counted_for_each_kernel_of_the_source():
    loop = "    for r0_offset in tl.range(0, r0_numel, R0_BLOCK):\n        pass\n"
    source = f"@triton.jit\ndef pointwise(x):\n    pass\n@triton.jit\ndef twice(x):\n{loop}{loop}"
    assert gpu.passes(source) == {"pointwise": 1, "twice": 2}
