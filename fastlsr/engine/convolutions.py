"""Convolutions in bf16 on a CPU whose step does not stall where other processes compute on the same cores."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten


@functools.cache
def _workers(number: int) -> ThreadPoolExecutor:
    """Threads in each of which an operation of torch uses no other ones."""
    pool, all_there = ThreadPoolExecutor(number, "weight-gradient"), threading.Barrier(number)

    def begin(_: int) -> None:
        torch.get_num_threads()  # else torch's first operation here would set the number again
        torch.set_num_threads(1)  # OpenMP keeps the number for each thread of its own
        all_there.wait()

    list(pool.map(begin, range(number)))
    torch.set_num_threads(number)  # torch keeps one number, too, for threads that begin later
    return pool


@torch.library.custom_op("fastlsr::weight_gradient", mutates_args=())
def _weight_gradient(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], groups: int
) -> Tensor:  # fmt: skip
    """The gradient of a convolution's weight: the sum of those of parts of the batch, one for each thread.
    """
    number = min(torch.get_num_threads(), len(images))
    parts = _workers(torch.get_num_threads()).map(
        lambda gradient, images: _aten.convolution_backward(
            gradient, images, weight, None, stride, padding, dilation, False, [0, 0], groups, [False, True, False]
        )[1],
        gradient.chunk(number), images.chunk(number),
    )  # fmt: skip
    return functools.reduce(torch.add, parts)


@_weight_gradient.register_fake
def _(gradient: Tensor, images: Tensor, weight: Tensor, *_: object) -> Tensor:
    return torch.empty_like(weight)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, *where) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.where = where
        return torch.conv2d(images, weight, None, *where)

    @staticmethod
    def backward(ctx, gradient):
        images, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.where
        to_images = None
        if ctx.needs_input_grad[0]:
            to_images = _aten.convolution_backward(
                gradient, images, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
            )[0]
        to_weight = _weight_gradient(gradient, images, weight, stride, padding, dilation, groups)
        return to_images, to_weight, None, None, None, None


def convolution(images, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    pair = lambda v: [v, v] if isinstance(v, int) else list(v)
    out = _Convolution.apply(images.bfloat16(), weight.bfloat16(), pair(stride), pair(padding), pair(dilation), groups)
    return out if bias is None else out + bias.bfloat16()[:, None, None]


class InParts(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            return convolution(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))
