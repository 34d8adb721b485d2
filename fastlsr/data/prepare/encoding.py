"""One image file or array -> the bytes a `.beton` stores for it. Runs in the writer's threads.

Pixels follow FFCV's `RGBImageField` (area resize to a longest side, JPEG by OpenCV). That class is not called
because it decides `proportion` by an unseeded generator, and because `import ffcv` takes seconds.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fastlsr.config import LARGEST_SMALL_IMAGE
from fastlsr.errors import InputError
from fastlsr.rng import WriteStream, position_uniform

WRITE_MODES = ("raw", "jpg", "smart", "proportion")
JPG, RAW = 0, 1  # FFCV's IMAGE_MODES
_LARGEST_SIDE = 2**16 - 1  # FFCV stores sides as uint16
_JPEG_END = b"\xff\xd9"
_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_BITS_PER_SAMPLE, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1  # TIFF tags, and a value of the second


@dataclass(frozen=True)
class Encoding:
    """How images are stored.

    mode: raw (pixels), jpg, smart (JPEG where the pixels take more than `smart_threshold` bytes),
        proportion (JPEG for a `compress_probability` share of the images, drawn by (seed, position)).
    max_resolution: longest side in pixels, larger images are shrunk; 0 keeps every size.
    """

    mode: str = "raw"
    max_resolution: int = 0
    jpeg_quality: int = 90
    compress_probability: float = 0.5
    smart_threshold: int = 2**18
    seed: int = 0


@dataclass(frozen=True)
class Chunk:
    """Encoded images in order.

    stored: the bytes of each image, uint8 [size].
    rows: (mode, width, height, size in bytes) of each image.
    sums, squares: int per channel, over all stored pixels; integers, so that no order of adding changes them.
    bad: (position in the chunk, why) of images that could not be read; these have no entry elsewhere.
    """

    stored: Sequence[np.ndarray]
    rows: Sequence[tuple[int, int, int, int]]
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    bad: tuple[tuple[int, str], ...] = ()


def encode_images(images: Sequence[Path | np.ndarray], positions: range, encoding: Encoding) -> Chunk:
    """The images, encoded one by one; `bad` lists those that cannot be read.

    Args:
        images: files, or arrays uint8 [H, W, 3].
        positions: of the images in the whole list of samples; `proportion` depends on them.
    """
    stored, rows, bad = [], [], []
    sums = squares = np.zeros(3, dtype=np.int64)
    for at, (image, position) in enumerate(zip(images, positions, strict=True)):
        try:
            pixels = shrunk(load_rgb(image), encoding.max_resolution)
        except InputError as error:
            bad.append((at, str(error)))
            continue
        mode = mode_of(pixels, position, encoding)
        kept = jpeg(pixels, encoding.jpeg_quality) if mode == JPG else np.ascontiguousarray(pixels).reshape(-1)
        stored.append(kept)
        rows.append((mode, pixels.shape[1], pixels.shape[0], kept.nbytes))
        image_sums, image_squares = channel_sums(pixels)
        sums, squares = sums + image_sums, squares + image_squares
    return Chunk(stored, rows, tuple(sums.tolist()), tuple(squares.tolist()), tuple(bad))


def copy_images(images: np.ndarray) -> Chunk:
    """The images uint8 [N, H, W, 3], stored raw: equal to `encode_images`, without a Python step for each image."""
    count, height, width, channels = images.shape
    images = np.ascontiguousarray(images)
    rows = [(RAW, width, height, height * width * channels)] * count
    sums, squares = channel_sums(images.reshape(count * height, width, channels))
    return Chunk(list(images.reshape(count, -1)), rows, tuple(sums.tolist()), tuple(squares.tolist()))


def load_rgb(image: Path | np.ndarray) -> np.ndarray:
    """The pixels of an image file, uint8 [H, W, 3]; an array is returned as it is.

    Palette and CMYK become RGB, alpha and transparency are dropped, EXIF orientation is ignored in a JPEG and
    applied in a TIFF, and of several frames the first is taken: all as Pillow, and so `torchvision.datasets`, does.
    Only 16-bit grey differs: Pillow would clip it at 255, here it is divided by 257, so that 65535 becomes 255.

    Raises:
        InputError: naming a file that is missing, empty, truncated, no image, or of values without a known range
            (32-bit or floating-point grey). Damage inside JPEG data that its decoder papers over is not seen.
    """
    if isinstance(image, np.ndarray):
        return image
    if image.exists() and not image.is_file():  # reading a pipe would wait for a writer
        raise InputError(f"{image}: the image is not a regular file")
    try:
        with open(image, "rb") as file:
            pixels = _decoded(file.read())
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged files
        raise InputError(f"{image}: {_reason(image, error)}") from None
    if max(pixels.shape) > _LARGEST_SIDE:
        raise InputError(f"{image}: a side is longer than {_LARGEST_SIDE} pixels")
    return pixels


def _decoded(data: bytes) -> np.ndarray:
    """The pixels of an image file. Pillow decides what the file is and whether it is whole.

    OpenCV decodes the ordinary JPEG, from the same libjpeg-turbo to the same pixels, in about 60% of the time. Not
    every version of it detects a truncated one, so it gets only those that close with the end-of-image marker:
    entropy-coded data that ends so cannot make the decoder ask for more.
    """
    with Image.open(io.BytesIO(data)) as opened:
        if opened.format == "JPEG" and opened.mode in ("RGB", "L") and data.endswith(_JPEG_END):
            pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), _AS_STORED)
            if pixels is not None and pixels.shape == (opened.height, opened.width, 3):
                return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
        if opened.mode.startswith(("I", "F")):
            return _from_wide_grey(opened)
        opened.info.pop("transparency", None)  # dropped in any case; Pillow would warn of it first
        return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))


def _from_wide_grey(opened: Image.Image) -> np.ndarray:
    """The pixels of a grey image of more than 8 bits, where its values are known to span 0 (black) to 65535."""
    plain = {_BITS_PER_SAMPLE: (16,), _PHOTOMETRIC: _BLACK_IS_ZERO}
    tags = getattr(opened, "tag_v2", plain)  # a TIFF's
    # Pillow scales a PGM of more than 8 bits to 16, in mode I; older versions of it read 16-bit PNGs in that mode.
    sixteen_bits = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM"))
    if not sixteen_bits or any(tags.get(tag) != value for tag, value in plain.items()):
        kind = f"{opened.format}, mode {opened.mode}"
        raise ValueError(f"its grey values ({kind}) have no certain range; save it in 8 or 16 bits with 0 as black")
    grey = (np.asarray(opened).astype(np.uint32) + 128) // 257
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def shrunk(pixels: np.ndarray, max_resolution: int) -> np.ndarray:
    """`pixels` with the longest side at most `max_resolution` (0: as they are), by area averaging as in FFCV."""
    height, width = pixels.shape[:2]
    if not 0 < max_resolution < max(height, width):
        return pixels
    ratio = max_resolution / max(height, width)
    size = max(1, int(ratio * width)), max(1, int(ratio * height))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def mode_of(pixels: np.ndarray, position: int, encoding: Encoding) -> int:
    """JPG or RAW, as which this image is stored."""
    compress = {
        "raw": False,
        "jpg": True,
        "smart": pixels.nbytes > encoding.smart_threshold,
        "proportion": position_uniform(WriteStream.PROPORTION, encoding.seed, position) < encoding.compress_probability,
    }
    return JPG if compress[encoding.mode] else RAW


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """The JPEG file's bytes, uint8 [n], of RGB pixels; OpenCV's encoder and its 4:2:0, as in FFCV.

    Restart markers cut it into segments, so that the loader decodes only those that a crop touches.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, restart_interval(pixels.shape[1])]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise InputError(f"an image of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be stored as JPEG")
    return encoded.reshape(-1)


def restart_interval(width: int) -> int:
    """MCUs (16 x 16 pixels) from one restart marker to the next, the same in each row; 0 for small images: none.

    The largest divisor up to 4 of a row's MCUs: a photograph of 500 pixels takes 2% more bytes, and 6% if it were 1.
    """
    units = -(-width // 16)
    return max(n for n in range(1, 5) if units % n == 0) if width > LARGEST_SMALL_IMAGE else 0


def channel_sums(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per channel the sum of the values and of their squares, int64 [3] each.

    Exact: for bytes OpenCV adds in integers. The norm comes back as the square of a rounded root, off by some
    1e-16 of itself, which rounding to the integer removes.
    """
    squares = [round(cv2.norm(channel, cv2.NORM_L2SQR)) for channel in cv2.split(pixels)]
    return np.array(cv2.sumElems(pixels)[:3], dtype=np.int64), np.array(squares, dtype=np.int64)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the image does not exist"
    if isinstance(error, OSError) and error.errno:
        return f"the image cannot be opened ({error.strerror})"
    if path.is_file() and path.stat().st_size == 0:
        return "the image is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):  # its text holds a memory address
        return "the image cannot be decoded (its format is not known)"
    return f"the image cannot be decoded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
