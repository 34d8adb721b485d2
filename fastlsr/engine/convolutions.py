"""Weight gradients of convolutions in bf16 on a CPU, for which no thread waits for another in a loop.

oneDNN shares the channels of some convolutions out to threads. Those threads wait for one another several times an
image, and spin meanwhile. Beside another process one of them often has no core; the other then spins until its turn is
over. A step of 44 ms took seconds. One thread has nobody to wait for: each takes a part of the batch, and the parts are
added up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from fastlsr.engine.classifier import Classifier

IN_PARTS, WHOLE = "in parts", "whole"
Where = tuple[Sequence[int], Sequence[int], Sequence[int], int]  # stride, padding, dilation and groups
_BLOCK = 16  # channels that oneDNN's AVX-512 code works on together
_LEAST_PART = 1 << 22  # multiplications of a part, of a tenth of a millisecond: a thread is not woken for less


def choose_weight_gradients(precision: str, device: torch.device) -> str:
    """How a new run computes them: in parts in bf16 on a CPU, else as torch does."""
    return IN_PARTS if precision == "bf16" and device.type == "cpu" else WHOLE


def set_weight_gradients(network: Classifier, how: str) -> None:
    """Makes the network's convolutions take their weights' gradients so, where they train in bf16 on a CPU."""
    if how == IN_PARTS:
        network.mode = ConvolutionsInParts(torch.get_num_threads())


class ConvolutionsInParts(TorchFunctionMode):
    """A block in which convolutions that train in bf16 on a CPU take their weights' gradients in parts.

    So do those of modules that compute their weight first, or pad by themselves. Outputs, and the gradients of images,
    are torch's own.

    Args:
        threads: torch's number of them, for which torch.compile could not ask in the midst of a step.
    """

    def __init__(self, threads: int):
        super().__init__()
        self.threads = threads

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (self.conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))

    def conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        """`torch.conv2d`."""
        trains = torch.is_grad_enabled() and weight.requires_grad and input.device.type == "cpu"
        in_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        plain = weight.dtype == torch.float32 and input.dim() == 4 and not isinstance(padding, str)
        if not (trains and in_bf16 and plain and may_share_channels(input.shape, weight, _pair(stride), self.threads)):
            return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
        where = (_pair(stride), _pair(padding), _pair(dilation), groups)
        return cast(Tensor, _Convolution.apply(input.bfloat16(), weight, bias, *where))


def may_share_channels(shape: torch.Size, weight: Tensor, stride: Sequence[int], threads: int) -> bool:
    """Whether oneDNN may give so many threads different channels of the same images, of `shape` [B, I, H, W].

    It estimates what each way of sharing reads and writes. Up to three threads share nothing but images if input and
    output are alike, and the weight is less than half of the output; a block of channels is never divided.
    """
    inputs, outputs = shape[1], weight.shape[0]
    if threads == 1 or max(inputs, outputs) <= _BLOCK:
        return False
    alike = inputs == outputs and max(stride) == 1
    elements = shape[0] * outputs * shape[2] * shape[3]  # of the output, where alike
    return not (alike and threads <= 3 and 2 * weight.numel() <= elements)


class _Convolution(torch.autograd.Function):
    """A convolution of bf16 images with a float32 weight and bias."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, *where: Any) -> Tensor:
        weight = weight.bfloat16()
        ctx.save_for_backward(images, weight)
        ctx.where = where
        return torch.conv2d(images, weight, None if bias is None else bias.bfloat16(), *where)

    @staticmethod
    @once_differentiable  # a second derivative would miss what `forward` rounds
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (images, weight), where, (of_images, _, of_bias, *_) = ctx.saved_tensors, ctx.where, ctx.needs_input_grad
        to_images = _of_images(gradient, weight, images, where) if of_images else None
        # torch.compile must not look inside; called directly it takes less time.
        compute = _gradient_in_parts if torch.compiler.is_compiling() else gradient_in_parts
        to_bias = gradient.sum((0, 2, 3), dtype=torch.float32) if of_bias else None
        return to_images, compute(gradient, images, weight, *where), to_bias, None, None, None, None


def gradient_in_parts(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The float32 gradient of a convolution's weight, in parts that one thread each computes.

    They are the sums over parts of the batch, or, of a weight larger than the output, its parts by output channel.

    Args:
        gradient: bf16 [B, O, H', W'], of the output.
        images: bf16 [B, I, H, W].
        weight: bf16 [O, I / groups, h, w]; only its shape and layout count.
    """
    threads, where = torch.get_num_threads(), (stride, padding, dilation, groups)
    number = max(1, min(threads, weight[0].numel() * gradient.numel() // _LEAST_PART))
    out = torch.empty_like(weight, dtype=torch.float32)
    if groups == 1 and weight.numel() > gradient.numel():  # parts of the batch would each take a sum of that size
        columns = [part.clone() for part in gradient.chunk(number, 1)]
        tasks = [partial(_of_weight, *part, images, where) for part in zip(columns, weight.chunk(number), strict=True)]
        return torch.cat(_at_once(tasks, threads), out=out)
    parts = zip(gradient.chunk(number), images.chunk(number), strict=True)
    first, *rest = _at_once([partial(_of_weight, part, weight, some, where) for part, some in parts], threads)
    out.copy_(first)
    for part in rest:
        out += part
    return out


_gradient_in_parts = torch.library.custom_op("fastlsr::weight_gradient", gradient_in_parts, mutates_args=())


@_gradient_in_parts.register_fake
def _(gradient: Tensor, images: Tensor, weight: Tensor, *_: object) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32)


def _of_images(gradient: Tensor, weight: Tensor, images: Tensor, where: Where) -> Tensor:
    """A convolution's gradient of its images."""
    return _backward(gradient, weight, images, where, [True, False, False])[0]


def _of_weight(gradient: Tensor, weight: Tensor, images: Tensor, where: Where) -> Tensor:
    """A convolution's gradient of its weight."""
    return _backward(gradient, weight, images, where, [False, True, False])[1]


def _backward(gradient: Tensor, weight: Tensor, images: Tensor, where: Where, of: list[bool]) -> Sequence[Tensor]:
    stride, padding, dilation, groups = where
    return torch.ops.aten.convolution_backward.default(
        gradient, images, weight, None, stride, padding, dilation, False, [0, 0], groups, of
    )


def _at_once(tasks: Sequence[Callable[[], Tensor]], threads: int) -> list[Tensor]:
    """Results of at most `threads` functions, each called in a thread of its own, in which torch starts no others."""
    helpers = [_helpers(threads).submit(task) for task in tasks[1:]]
    torch.set_num_threads(1)  # for this thread, which would only wait
    try:
        first = tasks[0]()
    finally:
        torch.set_num_threads(threads)
    return [first, *(helper.result() for helper in helpers)]


@cache
def _helpers(threads: int) -> ThreadPoolExecutor:
    """A thread less than `threads`, in each of which torch starts no others."""
    pool, all_begun = ThreadPoolExecutor(threads - 1, "weight gradients"), threading.Barrier(threads - 1)

    def begin() -> None:
        torch.get_num_threads()  # torch's first operation in a thread would otherwise set the number to that of all
        torch.set_num_threads(1)
        all_begun.wait()

    for begun in [pool.submit(begin) for _ in range(threads - 1)]:
        begun.result()
    return pool
