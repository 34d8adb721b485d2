"""What would inductor launch on an H200 for a training step, or for the loss? Counted without a GPU.

    python benchmarks/codegen.py [--models resnet18,...] [--methods hard,...] [--set combo_kernels=True ...]
                                 [--keep FOLDER] [--tiny]

A step is traced on the CPU by the paths for CUDA, its graphs are given CUDA tensors that hold nothing, and inductor
generates their code, which is counted and not run. For each graph, forward and backward:

triton      launches of Triton kernels
cudnn       convolutions, their backwards and matrix products; cuDNN takes one to three launches for each of them
MB          what the Triton kernels read and write, by inductor's own count
passes      the most often that one of them goes over its input

`loss` is the loss alone, on ROWSxCLASSES float32 logits. The optimizer is not compiled: fused SGD adds two to six
launches a step. --set takes options of torch._inductor.config. Times cannot be had so, nor what is chosen by timing. It
reaches into torch's insides: tried with 2.11 and 2.15. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import faulthandler
import functools
import inspect
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config as inductor
import torch._inductor.runtime.hints as hints
import torch.utils._triton
from gpu import passes
from timing import print_tables
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import compile_fx
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering

from fastlsr.config import load
from fastlsr.engine import classifier
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.compiling import read_rows_once
from fastlsr.engine.step import TrainStep
from fastlsr.labels import losses
from fastlsr.labels.class_means import LEARNERS
from fastlsr.labels.methods import make_plan
from fastlsr.labels.targets import Targets
from fastlsr.models import build_model

_SILENCE_SECONDS = 200  # of one step, after which something hangs
CPU, BATCH, SAMPLES = torch.device("cpu"), 256, 50_000
MODELS = "resnet8,resnet18,preact_resnet34,timm/resnet50"
METHODS = "hard,lsr,colam"
LOSSES = ((32_768, 1000), (8192, 4096), (2048, 21_841))
H200 = types.SimpleNamespace(
    name="H200", major=9, minor=0, multi_processor_count=132, warp_size=32, max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536, max_threads_per_block=1024, L2_cache_size=60 << 20, total_memory=140 << 30,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
)  # fmt: skip


class Captured(BaseException):
    """The code is there; nothing more is to be done."""


def pretend_to_have_a_gpu() -> None:
    """Replies to what inductor asks of the device, the driver and cuDNN, for the rest of the process."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    torch.cuda.get_device_properties = lambda *_: H200
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: H200)
    CudaInterface.get_device_properties = staticmethod(lambda *_: H200)
    for name in ("is_triton_capable", "is_available", "is_bf16_supported"):
        setattr(CudaInterface, name, staticmethod(lambda *_, **__: True))
    CudaInterface.raise_if_triton_unavailable = staticmethod(lambda *_: None)
    known = inspect.signature(hints.DeviceProperties).parameters
    given = {"multi_processor_count": 132, "cc": 90, "major": 9, "regs_per_multiprocessor": 65536, "warp_size": 32,
             "max_threads_per_multi_processor": 2048}  # fmt: skip
    cuda = hints.DeviceProperties(type="cuda", index=0, **{name: given[name] for name in given if name in known})
    cpu = hints.DeviceProperties(type="cpu", index=0, multi_processor_count=1, cc=0)
    hints.DeviceProperties.create = classmethod(lambda _, device: cuda if device.type == "cuda" else cpu)
    torch.utils._triton.triton_hash_with_backend = lambda *_: "none"
    driver.set_active(types.SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    torch._C._conv_determine_backend_memory_format = lambda *_: torch.channels_last
    for module in (losses, classifier):  # tensors of the trace are on the CPU
        module.on_cpu = lambda tensor: False


class Capture:
    """The code of a function's graphs, "forward" and "backward" or "inference", and the bytes that it moves."""

    def __init__(self, function: Callable[..., Any], *arguments: Tensor):
        self.code, self.bytes = dict[str, str](), dict[str, int]()
        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=self._compiler("forward"),
            bw_compiler=self._compiler("backward"),
            inference_compiler=self._compiler("inference"),
            decompositions=select_decomp_table(),
            partition_fn=functools.partial(min_cut_rematerialization_partition, compiler="inductor"),
        )
        try:
            out, gradients = torch.compile(function, dynamic=False, backend=backend)(*arguments)
            out.backward(gradients)
        except Captured:
            pass

    def _compiler(self, name: str) -> Callable[..., Any]:
        def keep(lowering: GraphLowering) -> None:
            code = lowering.codegen()[0]
            self.code[name] = getattr(code, "value", code)
            self.bytes[name] = lowering.count_bytes()[0]
            raise Captured

        def compile_graph(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
            outputs = list(graph.graph.nodes)[-1].args[0]
            on_cuda, its_inputs = moved(graph, inputs)
            GraphLowering.compile_to_module = GraphLowering._compile_to_module = keep
            with contextlib.suppress(Captured):
                compile_fx.compile_fx_inner(on_cuda, its_inputs, is_backward=name == "backward")
            if name != "forward":
                raise Captured
            return make_boxed_func(lambda *_: [empty_like_node(node) for node in outputs])

        return compile_graph


def moved(graph: fx.GraphModule, inputs: list[Any]) -> tuple[fx.GraphModule, list[Any]]:
    """A graph and its inputs, on CUDA."""
    on_cuda = copy.deepcopy(graph)
    for node in on_cuda.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    on_cuda.recompile()
    with torch._guards.detect_fake_mode(inputs):
        return on_cuda, [
            torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="cuda:0")
            if isinstance(each, Tensor) else each
            for each in inputs
        ]  # fmt: skip


def empty_like_node(node: Any) -> Any:
    """What a node of a graph gives: an uninitialised tensor of its shape and strides, or its value."""
    value = node.meta["val"] if isinstance(node, fx.Node) else node
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(tuple(map(int, value.shape)), tuple(map(int, value.stride())), dtype=value.dtype)


def step_of(model: str, method: str, batch: int) -> Capture:
    """The training step on CIFAR-100, or of one of timm's networks at 224 pixels with 1000 classes."""
    classes, side = (1000, 224) if model.startswith("timm/") else (100, 32)
    config = load(overrides={"method.name": method, **({"method.stages": "2"} if method == "colam" else {})})
    plan = make_plan(config.method, 20)
    built = build_model(model, classes=classes, resolution=side)
    network = Classifier(built, [0.5] * 3, [0.25] * 3, precision="bf16", channels_last=True)
    means = LEARNERS[next(iter(plan.learns))](classes, SAMPLES, device=CPU) if plan.learns else None
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    step = TrainStep(network, optimizer, Targets(classes, plan, device=CPU), means, compile=False)
    images = torch.zeros(batch, 3, side, side, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    with step.counters.added_together(1):
        return Capture(step._compute, images, torch.zeros(batch, dtype=torch.int64), torch.arange(batch))


def loss_of(rows: int, classes: int, *, with_table: bool) -> Capture:
    """The loss and its gradients on float32 logits, with the sum of the losses, which the step wants."""
    logits, labels = torch.randn(rows, classes), torch.randint(classes, (rows,))
    table = torch.randn(classes, classes).softmax(1) if with_table else None
    mix, scale = torch.tensor([0.5, 0.1, 0.4, 1.0]), torch.full((), 1 / rows)

    @torch.no_grad()
    def loss(logits: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor]:
        values, gradients = losses.soft_target_cross_entropy(logits, labels, mix, table, scale)
        return gradients, values.sum()

    return Capture(loss, logits, table)


def launches(code: str) -> tuple[list[str], list[str]]:
    """(Triton kernels, other functions) that generated code launches, in order."""
    call = code.split("def call(")[-1]
    others = re.findall(r"extern_kernels\.(\w+)\(|torch\.ops\.aten\.([\w.]+)\(", call)
    return re.findall(r"(triton_\w+?)\.run\(", call), [one or two for one, two in others]


def rows(name: str, capture: Capture) -> Iterator[dict[str, str]]:
    """A line of the table for each graph, and one for all of them."""
    total = [0, 0, 0, 0]
    for graph, code in capture.code.items():
        triton, others = launches(code)
        counts = [len(triton), len(others), capture.bytes[graph], max(passes(code).values())]
        total = [*(a + b for a, b in zip(total[:3], counts[:3], strict=True)), max(total[3], counts[3])]
        if len(capture.code) > 1:
            yield line(f"{name}, {graph}", counts)
    yield line(name, total)


def line(name: str, counts: list[int]) -> dict[str, str]:
    triton, others, moved_bytes, most = counts
    megabytes = f"{moved_bytes / 1e6:,.0f}"
    return {"step": name, "triton": str(triton), "cudnn": str(others), "MB": megabytes, "passes": str(most)}


def captures(options: argparse.Namespace) -> Iterator[tuple[str, Capture]]:
    batch, losses = (8, ((64, 1000), (8, 4096))) if options.tiny else (BATCH, LOSSES)
    for (rows, classes), with_table in itertools.product(losses, (True, False)):
        name = f"loss {rows}x{classes}, {'a' if with_table else 'no'} table"
        yield name, loss_of(rows, classes, with_table=with_table)
    for model in filter(None, options.models.split(",")):
        for method in options.methods.split(","):
            yield f"{model}, {method}", step_of(model, method, batch)


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--keep", type=Path, help="folder for the code")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    inductor.force_disable_caches = True
    inductor.compile_threads = 1  # nothing is compiled: its pool of processes would only have to be ended
    pretend_to_have_a_gpu()
    read_rows_once()
    for word in options.set:
        name, _, value = word.partition("=")
        owner = inductor.triton if name.startswith("triton.") else inductor
        setattr(owner, name.removeprefix("triton."), ast.literal_eval(value))

    def table() -> Iterator[dict[str, str]]:
        for name, capture in captures(options):
            faulthandler.dump_traceback_later(_SILENCE_SECONDS, exit=True)
            if options.keep:
                folder = options.keep / re.sub(r"\W+", "-", name)
                folder.mkdir(parents=True, exist_ok=True)
                for graph, code in capture.code.items():
                    (folder / f"{graph}.py").write_text(code, encoding="utf-8")
            yield from rows(name, capture)

    print_tables(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
