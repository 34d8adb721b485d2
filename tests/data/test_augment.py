"""The kernels: pixels against plain numpy, randomness against its distribution, crops against torchvision."""

import io
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize
from torchvision.transforms.functional import resized_crop

from fastlsr.data import augment
from fastlsr.data.augment import Images, below, central_box, random_window, sample_key, sample_keys, uniform
from fastlsr.data.prepare.encoding import jpeg
from fastlsr.rng import SampleStream, sample_stream

DRAWS = 20_000


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: low frequencies only, like a photograph out of focus."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def raw_batch(images: np.ndarray) -> tuple[np.ndarray, Images]:
    """(memory, where they are in it) of uint8 [B, H, W, 3] images, as they lie in a raw .beton."""
    count, height, width, _ = images.shape
    size = height * width * 3
    memory = images.reshape(-1).copy()
    memory.flags.writeable = False
    columns = [np.full(count, value) for value in (size, height, width, 0)]
    return memory, Images(np.arange(count) * size, *columns)


def run(
    crop: augment.Crop,
    memory,
    images: Images,
    *,
    index: np.ndarray | None = None,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 2,
    scratch: int = 0,
) -> np.ndarray:
    """uint8 [B, H, W, 3]: the crops of the images, samples 0, 1, ... or `index`; JPEGs decode into `scratch` bytes."""
    count = len(images.offset)
    drawn = sample_keys(np.uint64(seed), np.full(count, epoch), np.arange(count) if index is None else index)
    buffers = np.full((workers, scratch), 77, dtype=np.uint8)
    buffers.flags.writeable = False
    out = np.full((count, crop.resolution, crop.resolution, 3), 77, dtype=np.uint8)
    failed = np.zeros(count, dtype=np.uint8)
    crop.run(memory, images, drawn, buffers, out, failed)
    assert not failed.any()
    return out


def keys(count: int = DRAWS, *, seed: int = 0, epoch: int = 0) -> list:
    return [np.uint64(sample_key(np.uint64(seed), epoch, index)) for index in range(count)]


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def plain_pad_crop(image: np.ndarray, top: int, left: int, flipped: bool, pad: int) -> np.ndarray:
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    window = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return window[:, ::-1] if flipped else window


@pytest.mark.parametrize(("side", "pad"), [(32, 4), (8, 1)])
def test_pad_crop_and_flip_equal_plain_numpy_given_the_same_draws(side, pad):
    images = np.random.default_rng(1).integers(1, 256, (200, side, side, 3), dtype=np.uint8)
    out = run(augment.padded_crop(side, flip=True), *raw_batch(images), seed=5, epoch=3)
    for image, key, cropped in zip(images, keys(200, seed=5, epoch=3), out, strict=True):
        top, left = below(key, 0, 2 * pad + 1), below(key, 1, 2 * pad + 1)
        assert np.array_equal(cropped, plain_pad_crop(image, top, left, below(key, 2, 2) == 1, pad))


def test_the_whole_image_is_copied_unchanged():
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(run(augment.whole_image(8), *raw_batch(images)), images)


@pytest.mark.parametrize("crop", [augment.padded_crop(16, flip=True), augment.random_resized_crop(16, flip=True)])
def test_an_image_is_augmented_alike_wherever_in_a_batch_and_on_however_many_threads(crop):
    memory, images = raw_batch(np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8))
    backwards = Images(*(column[::-1].copy() for column in images))
    forwards = run(crop, memory, images, workers=1)
    assert np.array_equal(forwards, run(crop, memory, images, workers=3))
    assert np.array_equal(forwards, run(crop, memory, backwards, index=np.arange(30)[::-1].copy())[::-1])


@pytest.mark.parametrize("crop", [augment.padded_crop(16, flip=True), augment.random_resized_crop(16, flip=True)])
@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_another_seed_or_epoch_augments_otherwise(crop, other):
    batch = raw_batch(np.random.default_rng(1).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8))
    same = (run(crop, *batch) == run(crop, *batch, **other)).all(axis=(1, 2, 3))
    assert same.mean() < 0.2


def test_flip_mirrors_half_of_the_resized_crops():
    batch = raw_batch(np.stack([smooth_image(40, 50)] * 400))
    flipped = run(augment.random_resized_crop(16, flip=True), *batch)
    straight = run(augment.random_resized_crop(16, flip=False), *batch)
    mirrored = (flipped == straight[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (flipped == straight).all(axis=(1, 2, 3))).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations


@pytest.mark.parametrize(("draw", "count"), [(0, 9), (1, 9), (2, 2)])
def test_integer_draws_are_uniform_over_samples(draw, count):
    counts = np.bincount([below(key, draw, count) for key in keys()], minlength=count)
    assert len(counts) == count
    assert chi_square(counts) < 26.2  # 8 degrees of freedom: the 99.9th percentile


def test_draws_are_uniform_over_epochs_of_one_sample():
    counts = np.bincount(
        [below(np.uint64(sample_key(np.uint64(0), epoch, 17)), 0, 9) for epoch in range(DRAWS)], minlength=9
    )
    assert chi_square(counts) < 26.2


def test_different_draws_of_a_sample_are_independent():
    pairs = [below(key, 0, 4) * 4 + below(key, 1, 4) for key in keys()]
    assert chi_square(np.bincount(pairs, minlength=16)) < 37.7  # 15 degrees of freedom


def test_uniform_draws_fill_their_range_and_stay_inside():
    draws = np.array([uniform(key, 0, -1.0, 3.0) for key in keys()])
    assert draws.min() >= -1.0 and draws.max() < 3.0
    assert chi_square(np.histogram(draws, bins=20, range=(-1, 3))[0]) < 43.8  # 19 degrees of freedom


def test_keys_of_all_seeds_streams_and_samples_differ():
    streams = [sample_stream(kind, epoch) for kind in SampleStream for epoch in range(20)]
    made = {sample_key(np.uint64(s), stream, i) for s in range(20) for stream in streams for i in range(50)}
    assert len(made) == 20 * 40 * 50


def test_the_keys_of_a_batch_are_those_of_its_samples_one_by_one():
    streams, index = np.array([0, 7, 1 << 32]), np.array([5, 5, 1])
    together = sample_keys(np.uint64(3), streams, index)
    assert together.tolist() == [sample_key(np.uint64(3), *pair) for pair in zip(streams, index, strict=True)]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (60, 400), (300, 50)])
def test_random_windows_are_distributed_as_torchvisions(height, width):
    """The last two sizes are so narrow that the central fallback is used often."""
    ours = np.array([random_window(key, height, width) for key in keys(4000)], dtype=np.float64)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=np.float64
    )
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
    for column in range(4):
        assert kolmogorov_distance(ours[:, column], theirs[:, column]) < 1.95 * np.sqrt(2 / 4000)  # p = 0.001
    assert kolmogorov_distance(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 1.95 * np.sqrt(2 / 4000)


def kolmogorov_distance(a: np.ndarray, b: np.ndarray) -> float:
    places = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), places, side="right") / len(a)
    below_b = np.searchsorted(np.sort(b), places, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (300, 300), (150, 200), (257, 256)])
def test_the_central_crop_is_torchvisions_within_one_grey_level(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = run(augment.central_crop(224), *raw_batch(image[None]))[0]
    theirs = np.asarray(CenterCrop(224)(Resize(256)(Image.fromarray(image))))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(375, 500), (90, 60)])
def test_the_random_resized_crop_is_torchvisions_of_the_same_window_within_one_grey_level(height, width):
    images = np.random.default_rng(0).integers(0, 256, (20, height, width, 3), dtype=np.uint8)
    out = run(augment.random_resized_crop(112, flip=False), *raw_batch(images), seed=1, epoch=2)
    for image, key, ours in zip(images, keys(20, seed=1, epoch=2), out, strict=True):
        theirs = np.asarray(resized_crop(Image.fromarray(image), *random_window(key, height, width), [112, 112]))
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_the_central_box_of_256_pixels_is_224_wide():
    assert central_box(256, 256, 224) == (16, 16, 1, 1)
    assert central_box(256, 512, 224) == (16, 144, 1, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"subsampling": 0, "restart_marker_blocks": 3},  # of 21 in a row
        {"subsampling": 1, "restart_marker_blocks": 1},
        {"subsampling": 2, "restart_marker_blocks": 1},
        {"subsampling": 2, "restart_marker_rows": 1},
        {"subsampling": 2, "restart_marker_blocks": 4},  # of 11: rows are not cut alike
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("make", [partial(augment.random_resized_crop, flip=True), augment.central_crop])
def test_a_crop_of_a_jpeg_is_that_of_its_pixels(mode, options, make):
    """To the bit, though only a window of it is decoded, wherever the window lies and however colours are stored."""
    noise = np.random.default_rng(0).integers(-20, 20, (131, 167, 3))
    image = Image.fromarray((smooth_image(131, 167) + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    data = np.frombuffer(file.getvalue(), dtype=np.uint8)
    columns = [np.full(300, value) for value in (0, len(data), *pixels.shape[:2], 1)]
    out = run(make(24), data, Images(*columns), scratch=pixels.size)
    assert (out == run(make(24), *raw_batch(np.repeat(pixels[None], 300, axis=0)))).all()


def test_what_a_crop_does_not_touch_of_a_jpeg_with_restart_markers_is_not_decoded():
    data = jpeg(smooth_image(300, 500), 90)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    coded = data.tobytes().index(b"\xff\xda") + 14  # after the header of the scan
    first, *_, last = (found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data.tobytes()))
    data[coded:first], data[last + 2 : -2] = 0, 0  # the upper left and the lower right corner
    data.flags.writeable = False
    images = Images(*(np.array([value]) for value in (0, len(data), 300, 500, 1)))
    central = augment.central_crop(224)
    assert (run(central, data, images, scratch=pixels.size) == run(central, *raw_batch(pixels[None]))).all()


def test_a_damaged_jpeg_is_told_or_decoded_and_nothing_is_written_behind_its_image():
    random, copies = np.random.default_rng(0), 2000
    data = np.tile(jpeg(random.integers(0, 256, (80, 130, 3), dtype=np.uint8), 90), (copies, 1))
    for file in data[1:]:
        file[random.integers(len(file), size=3)] = random.choice([0, 0xC0, 0xD0, 0xD9, 0xDD, 0xFF], size=3)
    columns = [np.full(copies, value) for value in (data.shape[1], 80, 130, 1)]
    images = Images(np.arange(copies) * data.shape[1], *columns)
    buffers = np.full((2, 80 * 130 * 3 + 5000), 77, dtype=np.uint8)
    data.flags.writeable = buffers.flags.writeable = False
    out, failed = np.zeros((copies, 24, 24, 3), dtype=np.uint8), np.zeros(copies, dtype=np.uint8)
    crop = augment.random_resized_crop(24, flip=True)
    drawn = sample_keys(np.uint64(0), np.zeros(copies, dtype=np.int64), np.arange(copies))
    crop.run(data.reshape(-1), images, drawn, buffers, out, failed)
    assert not failed[0] and copies / 4 < failed.sum() < copies
    assert (buffers[:, 80 * 130 * 3 :] == 77).all()
