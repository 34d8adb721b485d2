"""What is written can be read by FFCV, is the same for any number of workers, and is there whole or not at all."""

import functools
import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numba
import numpy as np
import pytest
from PIL import Image

from fastlsr.data.manifest import manifest_path, read_manifest, verify
from fastlsr.data.prepare import beton
from fastlsr.data.prepare.encoding import Encoding, channel_sums, encode_images, jpeg, load_rgb, shrunk
from fastlsr.data.prepare.sources import read_dataset
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.errors import InputError

COMMAND = [sys.executable, str(Path(__file__).resolve().parents[3] / "data_prep" / "write_ffcv.py")]


def write(samples: Samples, path: Path, **options):
    classes = [f"class {at}" for at in range(int(max(samples.labels)) + 1)]
    return write_beton(samples, path, dataset="some", split="train", classes=classes, **options)


def random_arrays(count: int = 5, height: int = 4, width: int = 6) -> Samples:
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return Samples(images, np.arange(count) % 3)


def files(*paths: Path) -> Samples:
    return Samples(paths, np.zeros(len(paths), dtype=np.int64))


def stored(path: Path) -> list[tuple[int, int, int, int, bytes]]:
    """(mode, width, height, label, bytes) of each sample, read by FFCV's own reader."""
    from ffcv.reader import Reader

    reader, data = Reader(str(path)), path.read_bytes()
    sizes = {int(row["ptr"]): int(row["size"]) for row in reader.alloc_table}
    found = []
    for image, label, _ in reader.metadata:
        start = int(image[3])
        found.append((int(image[0]), int(image[1]), int(image[2]), int(label), data[start : start + sizes[start]]))
    return found


@pytest.fixture(scope="module")
def photos(photo_tree) -> Samples:
    return read_dataset("folder", photo_tree, photo_tree).splits["train"]


# --- the format


def test_the_formats_types_are_ffcvs_own():
    from ffcv import types
    from ffcv.fields import IntField, RGBImageField

    ffcvs = types.get_metadata_type([RGBImageField(), IntField(), IntField()])
    pairs = [(beton.HEADER, types.HeaderType), (beton.DESCRIPTION, types.FieldDescType),
             (beton.METADATA, ffcvs), (beton.ALLOCATION, types.ALLOC_TABLE_TYPE),
             (beton.IMAGE, RGBImageField().metadata_type)]  # fmt: skip
    for ours, theirs in pairs:
        assert ours.itemsize == theirs.itemsize
        assert [ours.fields[name][1] for name in ours.names] == [theirs.fields[name][1] for name in theirs.names]
    assert types.CURRENT_VERSION == 2


def test_ffcvs_reader_finds_the_fields_in_order(tmp_path):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader

    write(random_arrays(), tmp_path / "a.beton")
    reader = Reader(str(tmp_path / "a.beton"))
    assert {name: type(handler) for name, handler in reader.handlers.items()} == {
        "image": RGBImageField, "label": IntField, "index": IntField
    }  # fmt: skip
    assert [int(row[2]) for row in reader.metadata] == list(range(5))


@pytest.fixture
def numba_types_stay():
    """FFCV's own loader writes into numba's types of arrays, which our kernels in this process are keyed by."""
    kept = [getattr(numba, name)[::1] for name in ("uint8", "uint64", "uint32")]
    yield
    for kind in kept:
        kind.mutable = True


@pytest.mark.usefixtures("numba_types_stay")
def test_raw_pixels_labels_and_index_come_back_through_ffcvs_loader(tmp_path):
    from ffcv import Loader
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import OrderOption

    samples = random_arrays(70, 8, 8)
    write(samples, tmp_path / "a.beton")
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()], "index": [IntDecoder()]}
    loader = Loader(str(tmp_path / "a.beton"), batch_size=35, num_workers=1, os_cache=False,
                    order=OrderOption.SEQUENTIAL, drop_last=False, pipelines=pipelines)  # fmt: skip
    batches = [tuple(np.array(part) for part in batch) for batch in loader]
    images, labels, index = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert (images == samples.images).all()
    assert (labels[:, 0] == samples.labels).all() and (index[:, 0] == np.arange(70)).all()


def test_no_sample_crosses_a_page_and_large_samples_make_larger_pages(tmp_path):
    from ffcv.reader import Reader

    sides = [700, 900, 100, 700, 1300, 50, 700]  # 1300 * 1300 * 3 bytes are more than two of the smallest pages
    sources = [tmp_path / f"{at}.png" for at in range(len(sides))]
    for path, side in zip(sources, sides, strict=True):
        Image.fromarray(np.full((side, side, 3), side % 251, dtype=np.uint8)).save(path)
    write(files(*sources), tmp_path / "a.beton")
    reader = Reader(str(tmp_path / "a.beton"))
    assert reader.page_size == 2**23
    first, last = reader.alloc_table["ptr"], reader.alloc_table["ptr"] + reader.alloc_table["size"] - 1
    assert (first // reader.page_size == last // reader.page_size).all()
    assert [(width, set(data)) for _, width, _, _, data in stored(tmp_path / "a.beton")] == [
        (side, {side % 251}) for side in sides
    ]


# --- the pixels


def test_files_are_stored_as_pillow_decodes_them(photos, tmp_path):
    write(photos, tmp_path / "a.beton")
    for row, path, label in zip(stored(tmp_path / "a.beton"), photos.images, photos.labels, strict=True):
        pixels = np.asarray(Image.open(path))
        assert row == (1, pixels.shape[1], pixels.shape[0], label, pixels.tobytes())


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_fast_jpeg_decoder_gives_pillows_pixels(tmp_path, subsampling, progressive, photos):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees", to be ignored
    for mode in ("RGB", "L"):
        path = tmp_path / f"{mode}.jpg"
        with Image.open(photos.images[0]) as photo:
            photo.convert(mode).save(path, subsampling=subsampling, progressive=progressive, exif=exif)
        assert (load_rgb(path) == np.asarray(Image.open(path).convert("RGB"))).all()


KINDS = [("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png"), ("LA", "png")]


@pytest.mark.parametrize(("mode", "suffix"), KINDS)
def test_every_kind_of_picture_becomes_rgb_as_pillow_converts_it(tmp_path, photos, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    with Image.open(photos.images[0]) as photo:
        photo.convert(mode).save(path)
    write(files(path), tmp_path / "a.beton")
    with Image.open(path) as opened:
        assert opened.mode == mode
        assert stored(tmp_path / "a.beton")[0][-1] == np.asarray(opened.convert("RGB")).tobytes()


FIRST, SECOND = (10, 20, 30), (200, 100, 50)


def two_pixels(mode: str = "RGB", first: object = FIRST, second: object = SECOND) -> Image.Image:
    made = Image.new(mode, (2, 1), first)
    made.putpixel((1, 0), second)
    return made


def palette(**options) -> Callable[[Path], None]:
    made = two_pixels("P", 0, 1)
    made.putpalette([*FIRST, *SECOND])
    return lambda path: made.save(path, "PNG", **options)


def saved(made: Image.Image, kind: str, **options) -> Callable[[Path], None]:
    return lambda path: made.save(path, kind, **options)


def frames(kind: str, **options) -> Callable[[Path], None]:
    other = two_pixels(first=(0, 0, 0), second=(0, 0, 0))
    return saved(two_pixels(), kind, save_all=True, append_images=[other], **options)


PICTURES = {
    "palette": (palette(), [FIRST, SECOND]),
    "palette with a transparent colour": (palette(transparency=0), [FIRST, SECOND]),
    "palette with an alpha for each colour": (palette(transparency=b"\x00\x80"), [FIRST, SECOND]),
    "RGB with a transparent colour": (saved(two_pixels(), "PNG", transparency=FIRST), [FIRST, SECOND]),
    "RGBA": (saved(two_pixels("RGBA", (*FIRST, 0), (*SECOND, 128)), "PNG"), [FIRST, SECOND]),
    "grey": (saved(two_pixels("L", 7, 255), "PNG"), [(7,) * 3, (255,) * 3]),
    "grey and alpha": (saved(two_pixels("LA", (7, 0), (9, 255)), "PNG"), [(7,) * 3, (9,) * 3]),
    "1 bit": (saved(two_pixels("1", 0, 1), "PNG"), [(0,) * 3, (255,) * 3]),
    "1 bit in a TIFF": (saved(two_pixels("1", 0, 1), "TIFF", compression="group4"), [(0,) * 3, (255,) * 3]),
    "CMYK": (saved(two_pixels("CMYK", (0, 0, 0, 0), (255, 0, 0, 0)), "TIFF"), [(255,) * 3, (0, 255, 255)]),
    "animated GIF": (frames("GIF"), [FIRST, SECOND]),
    "animated WebP": (frames("WEBP", lossless=True), [FIRST, SECOND]),
    "animated PNG": (frames("PNG"), [FIRST, SECOND]),
    "TIFF of two pages": (frames("TIFF"), [FIRST, SECOND]),
    "TIFF that is to be mirrored": (saved(two_pixels(), "TIFF", tiffinfo={274: 2}), [SECOND, FIRST]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", PICTURES)
def test_each_kind_of_picture_has_the_rgb_values_of_its_first_frame_without_alpha(tmp_path, kind):
    save, expected = PICTURES[kind]
    save(tmp_path / "image")
    assert load_rgb(tmp_path / "image").tolist() == [[list(pixel) for pixel in expected]]


GREY_16 = np.array([[0, 128, 129, 32_767, 32_768, 65_535]], dtype=np.uint16)
GREY_8 = [0, 0, 1, 127, 128, 255]  # a value v / 257, rounded


def grey_16(mode: str = "I;16") -> Image.Image:
    return Image.frombytes(mode, (6, 1), GREY_16.astype(">u2" if mode == "I;16B" else "<u2").tobytes())


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "PPM")])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, mode, kind):
    grey_16(mode).save(tmp_path / "image", kind)
    pixels = load_rgb(tmp_path / "image")
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[value] * 3 for value in GREY_8]]


def other_tag(tag: int, old: int, new: int) -> Callable[[Path], None]:
    """Saves a 16-bit grey TIFF, then changes a tag that Pillow always writes the same."""

    def save(path: Path) -> None:
        grey_16().save(path, "TIFF")
        former, latter = (struct.pack("<HHIHH", tag, 3, 1, value, 0) for value in (old, new))
        assert path.read_bytes().count(former) == 1
        path.write_bytes(path.read_bytes().replace(former, latter))

    return save


WITHOUT_RANGE = {
    "floating point": saved(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "TIFF"),
    "floating point in a PFM": saved(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "PPM"),
    "32 bits": saved(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), "TIFF"),
    "12 bits": other_tag(258, 16, 12),
    "16 bits with 0 as white": other_tag(262, 1, 0),
}


@pytest.mark.parametrize("kind", WITHOUT_RANGE)
def test_grey_of_no_certain_range_is_an_error_that_names_the_file_and_its_mode(tmp_path, kind):
    WITHOUT_RANGE[kind](tmp_path / "image.tif")
    with pytest.raises(
        InputError, match="image.tif: the image cannot be decoded .*grey values .*, mode [IF]"
    ) as raised:
        load_rgb(tmp_path / "image.tif")
    assert "\n" not in str(raised.value)


def test_jpeg_pixels_and_sizes_are_those_of_ffcvs_own_encoder(photos):
    from ffcv.fields.rgb_image import encode_jpeg, resizer

    pixels = load_rgb(photos.images[0])
    ours, theirs = (cv2.imdecode(encode(pixels, 80), cv2.IMREAD_COLOR) for encode in (jpeg, encode_jpeg))
    assert (ours == theirs).all()
    for side in range(20, 120):
        assert np.array_equal(shrunk(pixels, side), resizer(pixels, side))


@pytest.mark.parametrize(("width", "columns"), [(500, 8), (375, 6), (333, 7), (65, 5), (64, 1)])
def test_restart_markers_cut_a_jpeg_into_columns_of_at_most_64_pixels(width, columns):
    data = jpeg(np.random.default_rng(0).integers(0, 256, (100, width, 3), dtype=np.uint8), 90).tobytes()
    markers = re.findall(rb"\xff[\xd0-\xd7]", data)
    assert len(markers) == (columns * 7 - 1 if width > 64 else 0)


def test_max_resolution_bounds_the_longest_side_and_enlarges_nothing(photos, tmp_path):
    manifest = write(photos, tmp_path / "a.beton", encoding=Encoding(max_resolution=64))
    sizes = [(width, height) for _, width, height, _, _ in stored(tmp_path / "a.beton")]
    originals = [Image.open(path).size for path in photos.images]
    for size, original in zip(sizes, originals, strict=True):
        assert size == original if max(original) <= 64 else max(size) in (63, 64)  # FFCV rounds down, so do we
    assert manifest.widths == (min(w for w, _ in sizes), max(w for w, _ in sizes))
    assert manifest.heights == (min(h for _, h in sizes), max(h for _, h in sizes))


def test_a_very_long_image_keeps_at_least_one_pixel():
    assert shrunk(np.zeros((1, 900, 3), dtype=np.uint8), 100).shape == (1, 100, 3)


def test_smart_compresses_above_its_threshold_only(photos, tmp_path):
    write(photos, tmp_path / "a.beton", encoding=Encoding(mode="smart", smart_threshold=15_000))
    rows = stored(tmp_path / "a.beton")
    assert {mode for mode, *_ in rows} == {0, 1}
    assert all((mode == 0) == (width * height * 3 > 15_000) for mode, width, height, *_ in rows)


@pytest.mark.parametrize(("probability", "modes"), [(0.0, {1}), (1.0, {0}), (0.5, {0, 1})])
def test_proportion_at_its_ends_is_raw_and_jpg(photos, tmp_path, probability, modes):
    write(photos, tmp_path / "a.beton", encoding=Encoding(mode="proportion", compress_probability=probability))
    assert {mode for mode, *_ in stored(tmp_path / "a.beton")} == modes


def test_jpeg_stays_near_the_pixels(photos, tmp_path):
    write(photos, tmp_path / "a.beton", encoding=Encoding(mode="jpg", jpeg_quality=95))
    _, width, height, _, data = stored(tmp_path / "a.beton")[0]
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert decoded.shape == (height, width, 3)
    assert abs(decoded.astype(int) - load_rgb(photos.images[0])).mean() < 4


# --- the statistics


def test_mean_and_std_are_numpys_over_all_stored_pixels(photos, tmp_path):
    manifest = write(photos, tmp_path / "a.beton")
    pixels = np.concatenate([load_rgb(path).reshape(-1, 3) for path in photos.images]) / 255
    np.testing.assert_allclose(manifest.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(manifest.std, pixels.std(0), rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (375, 501), (3000, 2000)])
def test_channel_sums_are_exact(shape):
    random = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for pixels in (random, np.full_like(random, 255)):
        sums, squares = channel_sums(pixels)
        assert (sums == pixels.sum((0, 1), dtype=np.int64)).all()
        assert (squares == (pixels.astype(np.int64) ** 2).sum((0, 1))).all()


def test_one_colour_has_no_deviation(tmp_path):
    samples = Samples(np.full((3, 5, 5, 3), 51, dtype=np.uint8), np.zeros(3, dtype=np.int64))
    manifest = write(samples, tmp_path / "a.beton")
    assert manifest.mean == (0.2, 0.2, 0.2) and manifest.std == (0, 0, 0)


def test_the_manifest_counts_classes_and_knows_the_file(tmp_path):
    manifest = write(random_arrays(), tmp_path / "a.beton")
    assert manifest.class_counts == (2, 2, 1) and manifest.count == 5
    assert manifest.bytes == (tmp_path / "a.beton").stat().st_size
    assert verify(tmp_path / "a.beton") == manifest == read_manifest(tmp_path / "a.beton")


# --- the same bytes


@pytest.mark.parametrize("mode", ["raw", "jpg", "proportion"])
def test_any_number_of_workers_writes_the_same_bytes(photos, tmp_path, mode):
    encoding = Encoding(mode=mode, max_resolution=90)
    photos = Samples(photos.images * 4, np.tile(photos.labels, 4))  # more chunks than are under way at once
    for workers in (1, 2, 3):
        write(photos, tmp_path / f"{workers}.beton", encoding=encoding, workers=workers)
    for suffix in ("beton", "json"):
        one, two, three = ((tmp_path / f"{workers}.{suffix}").read_bytes() for workers in (1, 2, 3))
        assert one == two == three


def test_raw_arrays_copied_at_once_equal_arrays_encoded_one_by_one():
    from fastlsr.data.prepare.encoding import copy_images

    images = random_arrays().images
    at_once, one_by_one = copy_images(images), encode_images(images, range(5), Encoding())
    assert replace(at_once, stored=()) == replace(one_by_one, stored=())
    assert [row.tobytes() for row in at_once.stored] == [row.tobytes() for row in one_by_one.stored]


def test_another_seed_chooses_other_images_to_compress(photos, tmp_path):
    modes = []
    for seed in (0, 1):
        write(photos, tmp_path / "a.beton", encoding=Encoding(mode="proportion", seed=seed))
        modes.append([mode for mode, *_ in stored(tmp_path / "a.beton")])
    assert modes[0] != modes[1]


# --- bad images


def truncated(path: Path, good: bytes) -> None:
    path.write_bytes(good[: len(good) // 2])


def without_its_end(path: Path, good: bytes) -> None:
    path.write_bytes(good[:-2])


def truncated_png(path: Path, good: bytes) -> None:
    png = io.BytesIO()
    Image.open(io.BytesIO(good)).save(png, "PNG")
    path.write_bytes(png.getvalue()[:-600])


BAD = {
    "corrupt": lambda path, good: path.write_bytes(b"\xff\xd8" + bytes(range(256)) * 4),
    "truncated": truncated,
    "truncated PNG": truncated_png,
    "without its last marker": without_its_end,
    "empty": lambda path, good: path.write_bytes(b""),
    "missing": lambda path, good: None,
    "text": lambda path, good: path.write_text("<html>404</html>"),
    "folder": lambda path, good: path.mkdir(),
    "pipe": lambda path, data: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_and_nothing_is_left(photos, tmp_path, kind):
    bad = tmp_path / "bad.jpg"
    BAD[kind](bad, photos.images[0].read_bytes())
    out = tmp_path / "out"
    with pytest.raises(InputError, match="bad.jpg: the image") as raised:
        write(files(photos.images[0], bad), out / "a.beton")
    assert "\n" not in str(raised.value)
    assert "0x" not in str(raised.value), "a memory address: another text in each run"
    assert list(out.iterdir()) == []


def test_a_bad_image_in_a_worker_is_named_and_nothing_is_left(photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    truncated(bad, photos.images[0].read_bytes())
    with pytest.raises(InputError, match="bad.jpg"):
        write(files(*photos.images, bad, *photos.images), tmp_path / "out" / "a.beton", workers=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_write_leaves_the_older_file_alone(tmp_path):
    older = write(random_arrays(), tmp_path / "a.beton")
    with pytest.raises(InputError):
        write(files(tmp_path / "missing.jpg"), tmp_path / "a.beton")
    assert verify(tmp_path / "a.beton") == older


def test_skipping_lists_what_is_left_out_and_numbers_the_rest_without_gaps(photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    samples = Samples((photos.images[0], bad, photos.images[1], tmp_path / "gone.jpg"), np.array([0, 1, 2, 3]))
    manifest = write(samples, tmp_path / "a.beton", skip_bad=True)
    assert [label for _, _, _, label, _ in stored(tmp_path / "a.beton")] == [0, 2]
    assert manifest.count == 2 and manifest.class_counts == (1, 0, 1, 0)
    assert ["bad.jpg" in manifest.skipped[0], "gone.jpg" in manifest.skipped[1]] == [True, True]
    assert verify(tmp_path / "a.beton") == manifest


def test_skipping_everything_is_an_error(tmp_path):
    with pytest.raises(InputError, match="not one of the images"):
        write(files(tmp_path / "gone.jpg"), tmp_path / "a.beton", skip_bad=True)
    assert list(tmp_path.iterdir()) == []


def test_labels_outside_the_classes_and_no_samples_are_errors(tmp_path):
    with pytest.raises(InputError, match="outside the 1 classes"):
        write_beton(random_arrays(), tmp_path / "a.beton", dataset="some", split="train", classes=["one"])
    with pytest.raises(InputError, match="no image"):
        write_beton(Samples((), np.zeros(0, int)), tmp_path / "a.beton", dataset="some", split="train", classes=["one"])


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write(random_arrays(), tmp_path / "file" / "a.beton")


# --- killed


@pytest.fixture
def busy(photo_tree, tmp_path):
    """A writer at work on more images than it can write meanwhile; (process, its out folder, its arguments)."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(photo_tree, tree)
    for at in range(20_000):
        os.link(tree / "train" / "class_0" / "00.jpg", tree / "train" / "class_0" / f"{at:05d}x.jpg")
    arguments = ["folder", "--data-dir", tree, "--out", out, "--workers", "1"]
    former = out / ".writing-folder" / ".folder_train.json.123.partial"
    former.parent.mkdir(parents=True)
    former.write_text("left by a killed writer")
    # A suite that a script started in the background has SIGINT ignored, and its processes would inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, preexec_fn=heed)
    while not (out / ".writing-folder" / ".folder_train.beton.partial").exists():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGSTOP)  # so that it does not finish while the test starts others
    assert not former.exists()
    yield process, out, arguments
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_writer_that_is_stopped_leaves_what_was_there_before_and_nothing_else(busy, number, code):
    process, out, _ = busy
    before = {"folder_test.beton": b"the former", "folder_test.json": b"pair"}
    for name, content in before.items():
        (out / name).write_bytes(content)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == code
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("complete", [True, False])
def test_the_partial_file_of_a_killed_writer_goes_with_the_next_ones(tmp_path, complete):
    (tmp_path / ".a.beton.partial").write_bytes(b"left over" * 100_000)
    if complete:
        write(random_arrays(), tmp_path / "a.beton")
        write(random_arrays(), tmp_path / "b.beton")
        assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    else:
        with pytest.raises(InputError):
            write(files(tmp_path / "missing.jpg"), tmp_path / "a.beton")
    assert list(tmp_path.glob(".*")) == []


def test_a_killed_writer_leaves_nothing_that_looks_finished_and_the_next_one_clears_up(busy):
    process, out, arguments = busy
    second = run(*arguments)
    assert second.returncode == 2 and "being written by another process" in second.stderr
    process.kill()
    process.wait()
    assert [path.name for path in out.iterdir()] == [".writing-folder"]
    assert run(*arguments, "--subset", 5).returncode == 0
    assert {path.name for path in out.iterdir()} == {
        f"folder_{split}.{kind}" for split in ("train", "test") for kind in ("beton", "json", "samples.gz")
    }


# --- the command


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_the_command_writes_the_digits_with_manifests_and_no_bar_in_a_pipe(tmp_path, digits_dir):
    done = run("digits", "--out", tmp_path)
    assert done.returncode == 0 and "\r" not in done.stdout + done.stderr
    for name in ("digits_train.beton", "digits_test.beton"):
        assert (tmp_path / name).read_bytes() == (digits_dir / name).read_bytes()
        assert verify(tmp_path / name).classes == tuple("0123456789")


def test_the_command_ends_with_2_and_leaves_no_split_when_one_has_a_bad_image(photo_tree, tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(photo_tree, tree)
    (tree / "train" / "class_1" / "aa.jpg").write_bytes(b"")
    done = run("folder", "--data-dir", tree, "--out", out, "--workers", 1)
    assert done.returncode == 2 and list(out.iterdir()) == [] and not done.stdout
    assert done.stderr.startswith("error: ") and "aa.jpg" in done.stderr and done.stderr.count("\n") == 1


def test_a_name_of_ones_own_is_that_of_the_files_and_of_the_manifest(photo_tree, tmp_path):
    done = run("folder", "--data-dir", photo_tree, "--out", tmp_path, "--name", "birds", "--subset", 8)
    assert done.returncode == 0 and read_manifest(tmp_path / "birds_train.beton").dataset == "birds"
    assert read_manifest(tmp_path / "birds_train.beton").class_counts == (2, 2, 2, 2), "a subset is of all classes"


def test_the_command_writes_chosen_classes_under_a_name_of_their_own(photo_tree, tmp_path):
    words = ("folder", "--data-dir", photo_tree, "--out", tmp_path, "--classes", "class_3,class_1")
    done = run(*words)
    assert done.returncode == 2 and "--classes needs --name" in done.stderr and not list(tmp_path.iterdir())
    assert run(*words, "--name", "two").returncode == 0
    manifest = read_manifest(tmp_path / "two_train.beton")
    assert (manifest.classes, manifest.class_counts) == (("class_3", "class_1"), (9, 9))


def test_the_command_can_skip_choose_splits_and_draw_a_subset(photo_tree, tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(photo_tree, tree)
    (tree / "test" / "class_1" / "aa.jpg").write_bytes(b"")
    done = run("folder", "--data-dir", tree, "--out", out, "--workers", 1, "--skip-bad", "--splits", "test",
               "--subset", 13, "--write-mode", "raw")  # fmt: skip
    assert done.returncode == 0 and "left out: " in done.stderr and "aa.jpg" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "folder_test.beton", "folder_test.json", "folder_test.samples.gz"]  # fmt: skip
    manifest = read_manifest(out / "folder_test.beton")
    assert manifest.count == 12 and len(manifest.skipped) == 1 and manifest.options["mode"] == "raw"
    assert manifest_path(out / "folder_test.beton").read_text().startswith("{\n")


@pytest.mark.parametrize("arguments", [["cifar1000"], ["digits", "--jpeg-quality", "101"], ["digits", "--subset", "0"],
                                       ["digits", "--splits", "valid"], ["digits", "--splits", ","],
                                       ["digits", "--seed", str(2**40)],
                                       ["digits", "--compress-probability", "nan"]])  # fmt: skip
def test_a_wrong_option_ends_the_command_with_2_and_nothing_is_written(tmp_path, arguments):
    assert run(*arguments, "--out", tmp_path / "out").returncode == 2
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_the_command_starts_shows_no_traceback(tmp_path):
    (tmp_path / "tqdm.py").write_text("""
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    print("later")
except KeyboardInterrupt:
    raise ImportError("as numpy's extension does")
""")
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [*COMMAND, "digits", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=heed)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


# --- files that are there already


@pytest.fixture
def written(photo_tree, tmp_path):
    """(a copy of the tree, the folder its files were written to, what writes them again)."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(photo_tree, tree)
    again = functools.partial(run, "folder", "--data-dir", tree, "--out", out)
    assert again().returncode == 0
    return tree, out, again


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """File name -> (inode, time, bytes): differs for a file that was replaced, even by the same bytes."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.iterdir() if path.suffix in (".beton", ".json")}  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_writing_the_same_again_changes_nothing_and_is_reported_in_a_line_a_file(written, options):
    _, out, again = written
    before = state(out)
    done = again(*options)
    assert done.returncode == 0 and state(out) == before
    assert [line.endswith("there already and is unchanged") for line in done.stdout.splitlines()] == [True, True]


def repaint(tree: Path, out: Path) -> None:
    Image.new("RGB", (50, 50)).save(tree / "train" / "class_0" / "00.jpg")


def add_an_image(tree: Path, out: Path) -> None:
    shutil.copy(tree / "train" / "class_0" / "00.jpg", tree / "train" / "class_0" / "new.jpg")


def damage(tree: Path, out: Path) -> None:
    with open(out / "folder_train.beton", "r+b") as file:
        file.seek(20_000)
        file.write(b"damaged")


def remove_the_manifest(tree: Path, out: Path) -> None:
    (out / "folder_train.json").unlink()


def leave_a_foreign_json(tree: Path, out: Path) -> None:
    (out / "folder_train.beton").unlink()
    (out / "folder_train.json").write_text("somebody's")


def of_another_version(tree: Path, out: Path) -> None:
    path = out / "folder_train.json"
    path.write_text(re.sub(r'"numpy": "[^"]*"', '"numpy": "1.0"', path.read_text()))


OTHER_CONTENT = {
    "other pixels": (repaint, [], "folder_train.beton is there with other content"),
    "another image": (add_an_image, [], "folder_train.beton is there and differs in count"),
    "another option": (
        None,
        ["--max-resolution", 64],
        "folder_test.beton is there and differs in options.max_res",
    ),
    "a subset": (None, ["--subset", 8], "folder_train.beton is there and differs in count, options.subset"),
    "a damaged file": (damage, [], "folder_train.beton is there with other content"),
    "no manifest": (remove_the_manifest, [], "folder_train.beton is there without a readable manifest"),
    "a foreign JSON": (leave_a_foreign_json, [], "folder_train.beton is there without a readable manifest"),
}


def test_the_same_content_of_another_version_stays(written):
    tree, out, again = written
    of_another_version(tree, out)
    before = state(out)
    done = again()
    assert done.returncode == 0 and done.stdout.count("is unchanged") == 2 and state(out) == before


@pytest.mark.parametrize("kind", OTHER_CONTENT)
def test_other_content_is_replaced_by_request_only(written, kind):
    tree, out, again = written
    change, options, message = OTHER_CONTENT[kind]
    if change:
        change(tree, out)
    before = state(out)
    done = again(*options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.endswith("--overwrite replaces it\n")
    assert done.stderr.count("\n") == 1 and not done.stdout
    assert state(out) == before and not (out / ".writing-folder").exists()
    assert again(*options, "--overwrite").returncode == 0
    for name in ("folder_train.beton", "folder_test.beton"):
        verify(out / name)
    assert state(out)["folder_train.beton"] != before.get("folder_train.beton")


def test_other_options_are_noticed_before_an_image_is_read(written):
    tree, _, again = written
    for split in ("train", "test"):
        (tree / split / "class_0" / "bad.jpg").write_bytes(b"")
    assert "differs in" in again("--write-mode", "raw").stderr
    assert "bad.jpg" in again("--write-mode", "raw", "--overwrite").stderr


def test_a_missing_split_is_added_beside_one_that_is_there(written):
    _, out, again = written
    before = state(out)
    for kind in ("beton", "json"):
        (out / f"folder_test.{kind}").unlink()
    assert again().returncode == 0
    after = state(out)
    assert after.keys() == before.keys() and verify(out / "folder_test.beton")
    assert all(after[f"folder_train.{kind}"] == before[f"folder_train.{kind}"] for kind in ("beton", "json"))


def test_a_missing_split_is_not_added_beside_one_of_other_content(written):
    tree, out, again = written
    for kind in ("beton", "json"):
        (out / f"folder_test.{kind}").unlink()
    repaint(tree, out)
    before = state(out)
    assert again().returncode == 2 and state(out) == before


def test_left_out_images_are_the_same_in_each_run(written):
    tree, out, again = written
    (tree / "test" / "class_1" / "aa.jpg").write_text("<html>404</html>")
    assert again("--skip-bad", "--overwrite").returncode == 0
    before = state(out)
    assert again("--skip-bad").returncode == 0 and state(out) == before
