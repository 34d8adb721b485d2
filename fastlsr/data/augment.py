"""From the bytes of a `.beton` to uint8 batches: decoding, cropping and flipping in one pass over each image.

Numba compiles the kernels once and caches them on disk, whatever the data, the epoch and the seed: FFCV compiles its
own operations anew in every process, which costs seconds before the first batch. A cached kernel must hold no
addresses, so C functions are reached as named symbols. Numba's cache is renewed when the file of a kernel changes, and
knows no other file: all that the kernels call is in this one.

Randomness is a counter-based hash of (seed, stream, sample index, draw), where the stream stands for the epoch
(`rng.sample_stream`): an image's augmentation does not depend on the batch, thread or run that asks for it.
"""

import ctypes
import importlib.util
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding
import llvmlite.ir
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from fastlsr.data.ffcv_parts import AllocationQuery, IntDecoder, SimpleRGBImageDecoder
from fastlsr.data.ffcv_parts import library as _ffcv_library
from fastlsr.errors import InputError
from fastlsr.rng import SampleStream, sample_stream

_extension = importlib.util.find_spec("fastlsr.data._jpeg_window")
if _extension is None:
    raise ImportError("fastlsr's JPEG decoder is not built: run 'make setup', or 'pip install -e .'")
_jpeg_library = ctypes.CDLL(_extension.origin)
for _library, _name in ((_jpeg_library, "decode_window"), (_ffcv_library, "my_memcpy")):
    _address = ctypes.cast(getattr(_library, _name), ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"fastlsr_{_name}", _address)
# (source, size, height, width, destination, top, left, rows, columns) -> 0 if good
_decode_window = types.ExternalFunction(
    "fastlsr_decode_window",
    types.int32(types.intp, types.uint64, types.int32, types.int32, types.intp, *[types.int32] * 4),
)
# (source, destination, bytes)
_memcpy = types.ExternalFunction("fastlsr_my_memcpy", types.void(types.intp, types.intp, types.uint64))

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_ONE, _TWO, _THREE = np.uint64(1), np.uint64(2), np.uint64(3)
_INVERSE_2_53 = 2.0**-53
# torchvision.transforms.RandomResizedCrop's defaults; the papers name neither range
_AREA_LOW, _AREA_HIGH = 0.08, 1.0
_RATIO_LOW, _RATIO_HIGH = 3 / 4, 4 / 3
_TRIES = 10
_FLIP_DRAW = 4 * _TRIES  # the tries use four draws each

_kernel = numba.njit(cache=True, parallel=True, nogil=True, error_model="numpy")
_function = numba.njit(cache=True, nogil=True, error_model="numpy")


class Images(NamedTuple):
    """Where images lie in the file, or in `memory`, and what they are. All arrays are int64[B], or int64[N]."""

    offset: np.ndarray  # first byte
    size: np.ndarray  # bytes
    height: np.ndarray  # pixels
    width: np.ndarray
    jpeg: np.ndarray  # 1: JPEG, 0: raw RGB


def _take_number(typing, counter):
    """int64: the number at the address `counter`, which it increments; no two threads get the same number."""

    def generate(context, builder, signature, arguments):
        number = llvmlite.ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(*arguments, number.as_pointer()), number(1), "monotonic")

    return types.int64(types.intp), generate


_take: Any = intrinsic(_take_number)


@_function
def _mix(value):
    """uint64: splitmix64's finaliser, a bijection whose output bits depend on all input bits."""
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIER_1
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIER_2
    return value ^ (value >> np.uint64(31))


@_function
def _child(key, number):
    """uint64: output `number` of the splitmix64 generator in state `key`; distinct numbers give distinct keys."""
    return _mix(key + (np.uint64(number) + _ONE) * _GOLDEN)


@_function
def sample_key(seed, stream, index):
    """uint64: the key of all that is random about sample `index` in `stream`; each argument is hashed in turn."""
    return _child(_child(_mix(np.uint64(seed)), stream), index)


@_function
def sample_keys(seed, streams, index):
    """uint64[B]: the `sample_key` of each of the samples int64[B] `index` in its stream, int64[B] `streams`."""
    keys = np.empty(len(index), dtype=np.uint64)
    for i in range(len(index)):
        keys[i] = sample_key(seed, streams[i], index[i])
    return keys


@_function
def uniform(key, draw, low, high):
    """float64: draw number `draw` of `key`, uniform in [low, high), of 53 random bits."""
    return low + (high - low) * (np.float64(_child(key, draw) >> np.uint64(11)) * _INVERSE_2_53)


@_function
def below(key, draw, count):
    """int64: draw number `draw` of `key`, uniform in 0..count-1 up to a bias of count / 2**32."""
    return np.int64(((_child(key, draw) >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))


@_function
def random_window(key, height, width):
    """(top, left, height, width), int64: torchvision's `RandomResizedCrop.get_params` on the draws of `key`.

    Ten tries of an area in 0.08..1 and a log-uniform aspect ratio in 3/4..4/3; if none fits into the image, the
    largest central window whose ratio is in that range.
    """
    area = np.float64(height * width)
    for attempt in range(_TRIES):
        target = area * uniform(key, 4 * attempt, _AREA_LOW, _AREA_HIGH)
        ratio = math.exp(uniform(key, 4 * attempt + 1, math.log(_RATIO_LOW), math.log(_RATIO_HIGH)))
        w = np.int64(round(math.sqrt(target * ratio)))
        h = np.int64(round(math.sqrt(target / ratio)))
        if 0 < w <= width and 0 < h <= height:
            top = below(key, 4 * attempt + 2, height - h + 1)
            left = below(key, 4 * attempt + 3, width - w + 1)
            return top, left, h, w
    w, h = np.int64(width), np.int64(height)
    if width < height * _RATIO_LOW:
        h = np.int64(round(width / _RATIO_LOW))
    elif width > height * _RATIO_HIGH:
        w = np.int64(round(height * _RATIO_HIGH))
    return (height - h) // 2, (width - w) // 2, h, w


@_function
def central_box(height, width, side):
    """(top, left, row step, column step), float64, source pixels: Resize(side * 256/224) and CenterCrop(side).

    The steps are from one pixel of the result to the next; rounding is torchvision's.
    One resize of this box does the work of torchvision's resize of the whole image and crop of the result.
    """
    short = np.int64(round(side * 256 / 224))
    tall, wide = short, short
    if height < width:
        wide = short * width // height
    else:
        tall = short * height // width
    row_step, column_step = height / tall, width / wide
    return round((tall - side) / 2) * row_step, round((wide - side) / 2) * column_step, row_step, column_step


@_function
def _filter(origin, step, low, high, count):
    """(int64[count], float32[count, T]): the filter of a resized line, as each pixel's first source pixel and weights.

    The triangle filter of PIL and torchvision ("bilinear" with anti-aliasing): it reaches `step` source pixels to each
    side, at least one, and is cut off outside low..high-1. `origin` is where the line begins in the source.
    """
    reach, widest = max(step, 1.0), 0
    most = 2 * np.int64(math.ceil(reach)) + 1
    starts, weights = np.empty(count, dtype=np.int64), np.zeros((count, most), dtype=np.float32)
    for x in range(count):
        centre = origin + (x + 0.5) * step
        start, stop = max(low, np.int64(centre - reach + 0.5)), min(high, np.int64(centre + reach + 0.5))
        total = 0.0
        for k in range(stop - start):
            total += max(0.0, 1.0 - abs(start + k + 0.5 - centre) / reach)
        for k in range(stop - start):
            weights[x, k] = max(0.0, 1.0 - abs(start + k + 0.5 - centre) / reach) / total
        starts[x] = start
        widest = max(widest, stop - start)
    return starts, weights[:, :widest].copy()


@_function
def resize(source, width, rows, columns, flipped, out):
    """Resizes `source` into `out` uint8[H, W, 3] with the given row and column filters (`_filter`).

    `source` is uint8 RGB, `width` pixels in a row. Rows are filtered first, since that loop runs over whole lines and
    becomes SIMD code; then columns. Sums stay float32 in between, so the result is within one grey level of PIL's.
    OpenCV's resize, which FFCV calls, starts threads of its own inside ours, and averages areas where torchvision
    filters by a triangle.
    """
    row_starts, row_weights = rows
    column_starts, column_weights = columns
    first = column_starts[0]
    count = column_starts[-1] + column_weights.shape[1] - first
    line = np.zeros((count + 1) * 3, dtype=np.float32)  # one pixel more: the columns are read four floats at a time
    inside = np.uint64((min(width, first + count) - first) * 3)
    for y in range(len(row_starts)):
        line[:] = 0
        for k in range(row_weights.shape[1]):
            weight = row_weights[y, k]
            if weight > 0:
                _add_row(source, ((row_starts[y] + k) * width + first) * 3, weight, inside, line)
        _sum_columns(line, first, column_starts, column_weights, flipped, out[y].reshape(out.shape[1] * 3))


@_function
def _add_row(source, begin, weight, count, line):
    row = source[begin : begin + np.int64(count)]
    for at in range(count):
        line[at] += weight * np.float32(row[at])


@_function
def _sum_columns(line, first, starts, weights, flipped, out):
    half = np.float32(0.5)
    for x in range(len(starts)):
        at = np.uint64((starts[x] - first) * 3)
        red, green, blue = half, half, half
        for k in range(weights.shape[1]):
            weight = weights[x, k]
            red += weight * line[at]
            green += weight * line[at + _ONE]
            blue += weight * line[at + _TWO]
            at += _THREE
        target = np.uint64((len(starts) - 1 - x if flipped else x) * 3)
        out[target], out[target + _ONE], out[target + _TWO] = np.uint8(red), np.uint8(green), np.uint8(blue)


@_function
def copy_window(source, height, width, top, left, flipped, out):
    """Copies the window of `source` uint8[height * width * 3] at (top, left) into `out` uint8[H, W, 3].

    What of the window lies outside the image is black. `flipped` mirrors the window left to right.
    """
    rows, columns = out.shape[0], out.shape[1]
    first, last = max(0, -left), min(columns, width - left)
    if top != 0 or left != 0:
        out[:] = 0
    for y in range(max(0, -top), min(rows, height - top)):
        begin = ((y + top) * width + first + left) * 3
        if flipped:
            _copy_reversed(source, begin, out[y].reshape(columns * 3), columns - last, last - first)
        else:
            _memcpy(source.ctypes.data + begin, out[y, first].ctypes.data, (last - first) * 3)


@_function
def _copy_reversed(source, begin, line, first, count):
    """Copies `count` pixels of `source` from byte `begin` on into `line` from pixel `first` on, in reverse."""
    # Unsigned: numba gives each signed index a branch for negative ones, which costs half of the speed here.
    origin, target = np.uint64(begin), np.uint64((first + count - 1) * 3)
    for _ in range(count):
        line[target] = source[origin]
        line[target + _ONE] = source[origin + _ONE]
        line[target + _TWO] = source[origin + _TWO]
        origin += _THREE
        target -= _THREE


@_function
def _pixels(memory, images, i, buffer, top, left, height, width):
    """(uint8[H * W * 3], 0): the pixels of image `i`, a view of `memory` or `buffer`; (garbage, 1) if it is damaged.

    Of a JPEG only the window of `height` x `width` pixels at (top, left) is decoded; what is outside may be garbage.
    """
    data = memory[images.offset[i] : images.offset[i] + images.size[i]]
    if not images.jpeg[i]:
        return data, 0
    whole_height, whole_width = images.height[i], images.width[i]
    bad = _decode_window(
        data.ctypes.data, data.size, whole_height, whole_width, buffer.ctypes.data, top, left, height, width
    )
    return buffer[: whole_height * whole_width * 3], bad


@_kernel
def pad_crops(memory, images, keys, buffers, out, failed, pad, flip):
    """Shifts each image by up to `pad` pixels in both axes, and flips half of them if `flip`.

    The papers' "pad-4, random crop": borders are black before normalisation, as those of torchvision's
    `RandomCrop(padding=)`. `pad` 0 without `flip` is a plain copy.

    Args:
        memory: uint8, read-only: what `images` (B rows) lie in.
        keys: uint64[B], the key of each image's draws (`sample_key`).
        buffers: uint8[workers, ...], for the pixels of one JPEG a thread. Typed read-only, as the file is, so that a
            view of either has one type; only C writes to it.
        out: uint8[B, H, W, 3], written.
        failed: uint8[B], set to 1 where an image cannot be decoded.
    """
    taken = np.zeros(1, dtype=np.int64)
    for worker in numba.prange(len(buffers)):
        i = _take(taken.ctypes.data)
        while i < len(keys):
            height, width = images.height[i], images.width[i]
            source, failed[i] = _pixels(memory, images, i, buffers[worker], 0, 0, height, width)
            top, left = below(keys[i], 0, 2 * pad + 1) - pad, below(keys[i], 1, 2 * pad + 1) - pad
            flipped = flip and below(keys[i], 2, 2) == 1
            copy_window(source, height, width, top, left, flipped, out[i])
            i = _take(taken.ctypes.data)


@_kernel
def random_resized_crops(memory, images, keys, buffers, out, failed, flip):
    """Resizes the `random_window` of each image to H x W, and flips half of them if `flip`.

    The other arguments are those of `pad_crops`.
    """
    taken = np.zeros(1, dtype=np.int64)
    for worker in numba.prange(len(buffers)):
        i = _take(taken.ctypes.data)
        while i < len(keys):
            top, left, h, w = random_window(keys[i], images.height[i], images.width[i])
            source, failed[i] = _pixels(memory, images, i, buffers[worker], top, left, h, w)
            rows = _filter(float(top), h / out.shape[1], top, top + h, out.shape[1])
            columns = _filter(float(left), w / out.shape[2], left, left + w, out.shape[2])
            resize(source, images.width[i], rows, columns, flip and below(keys[i], _FLIP_DRAW, 2) == 1, out[i])
            i = _take(taken.ctypes.data)


@_kernel
def central_crops(memory, images, keys, buffers, out, failed):
    """Resizes the `central_box` of each image to H x W.

    The arguments are those of `pad_crops`; nothing is drawn.
    """
    taken = np.zeros(1, dtype=np.int64)
    for worker in numba.prange(len(buffers)):
        i = _take(taken.ctypes.data)
        while i < len(keys):
            height, width = images.height[i], images.width[i]
            top, left, row_step, column_step = central_box(height, width, out.shape[1])
            rows = _filter(top, row_step, 0, height, out.shape[1])
            columns = _filter(left, column_step, 0, width, out.shape[2])
            first, last = rows[0][0], min(height, rows[0][-1] + rows[1].shape[1])
            start, stop = columns[0][0], min(width, columns[0][-1] + columns[1].shape[1])
            source, failed[i] = _pixels(memory, images, i, buffers[worker], first, start, last - first, stop - start)
            resize(source, width, rows, columns, False, out[i])
            i = _take(taken.ctypes.data)


@_function
def scale_rows(rows, scale, shift, out):
    """Writes rows * scale + shift to `out` float32[N, M], for uint8[N, M] and float32[M]: pixels to a network's input.

    One thread does it, since memory is the limit.
    """
    for i in range(rows.shape[0]):
        for j in range(np.uint64(rows.shape[1])):
            out[i, j] = np.float32(rows[i, j]) * scale[j] + shift[j]


# Numba's threading layer "workqueue", its last resort, aborts the process when two threads run kernels at once. Taking
# turns costs two loaders nothing, as every kernel uses all the workers that it was given.
_one_kernel_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Crop:
    """A kernel of this file with its options set."""

    resolution: int  # side of the square images that come out, pixels
    run: Callable[..., None]  # (memory, images, keys, buffers, out, failed), as `pad_crops`


def whole_image(resolution: int) -> Crop:
    """The images as they are; all must be resolution x resolution."""
    return Crop(resolution, partial(pad_crops, pad=0, flip=False))


def padded_crop(resolution: int, *, flip: bool) -> Crop:
    """The papers' training crop of small images, padded by an eighth of their side: 4 pixels for 32 x 32."""
    return Crop(resolution, partial(pad_crops, pad=resolution // 8, flip=flip))


def random_resized_crop(resolution: int, *, flip: bool) -> Crop:
    """The papers' training crop of photographs; see `random_window`."""
    return Crop(resolution, partial(random_resized_crops, flip=flip))


def central_crop(resolution: int) -> Crop:
    """The papers' evaluation crop of photographs; see `central_box`."""
    return Crop(resolution, central_crops)


class ImageDecoder(SimpleRGBImageDecoder):
    """The first operation of FFCV's image pipeline: decodes, crops and flips straight into the batch's memory.

    JPEGs pass through one buffer per worker, where FFCV's own decoders hold max height x max width x 3 bytes for every
    image of every batch under way; raw images pass through none.

    Attributes:
        epoch: set before each epoch.

    Args:
        images: of the whole file, N rows.
        paired: whether the second half of a batch holds a peer for each sample of the first. A peer draws its crop
            anew: it may be in the same batch as a sample of its own.
        file: named in errors.
    """

    def __init__(self, images: Images, crop: Crop, *, seed: int, workers: int, paired: bool, file: Path):
        super().__init__()
        self.epoch = 0
        self._images, self._crop, self._seed, self._paired, self._file = images, crop, np.uint64(seed), paired, file
        largest = int((images.height * images.width * 3 * images.jpeg).max())
        self._buffers = np.empty((workers, largest), dtype=np.uint8)
        self._buffers.flags.writeable = False  # a type for numba, not a protection: see `pad_crops`

    def declare_state_and_memory(self, previous_state):
        """uint8[resolution, resolution, 3] for each image."""
        shape, dtype = (self._crop.resolution, self._crop.resolution, 3), np.dtype("u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(shape, dtype)

    def generate_code(self):
        """The function FFCV calls for each batch; raises `InputError` naming the first image that does not decode."""

        def decode(index, destination, metadata, storage):
            images = Images(*(column[index] for column in self._images))
            images = images._replace(offset=storage.locate(images.offset))
            keys = sample_keys(self._seed, self._streams(len(index)), index)
            failed = np.zeros(len(index), dtype=np.uint8)
            with _one_kernel_at_a_time:
                self._crop.run(storage.memory, images, keys, self._buffers, destination, failed)
            if failed.any():
                sample = index[failed.argmax()]
                raise InputError(f"{self._file}: the JPEG of sample {sample} is damaged; write the file again")
            return destination

        return decode

    def _streams(self, count: int) -> np.ndarray:
        """int64[B]: the stream that each image of a batch draws from."""
        streams = np.full(count, sample_stream(SampleStream.CROPS, self.epoch))
        if self._paired:
            streams[count // 2 :] = sample_stream(SampleStream.PAIR_CROPS, self.epoch)
        return streams


class ColumnDecoder(IntDecoder):
    """FFCV's decoder of an integer field, as int64[B] rather than [B, 1], and without a loop over the samples."""

    def declare_state_and_memory(self, previous_state):
        """One int64 for each sample."""
        return replace(previous_state, jit_mode=True, shape=(), dtype=self.dtype), AllocationQuery((), self.dtype)

    def generate_code(self):
        """The function FFCV calls for each batch."""

        def decode(index, destination, metadata, storage):
            destination[:] = metadata[index]
            return destination

        return decode
