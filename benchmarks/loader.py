"""How fast do batches come from disk, ready for a network: normalised float32, channels-last?

    python benchmarks/loader.py [--photographs FOLDER] [--parts cifar,photographs,first_batch] [--tiny]

Small images (32 x 32, raw, pad-4 crop and flip) and photographs (RandomResizedCrop(224) and flip; longest side 500;
as JPEG of quality 90 and as raw pixels), each from a `.beton` and against

    torchvision   the same images from memory (small) or from JPEG files, DataLoader, PIL transforms
    ffcv          FFCV's stock operations on the same `.beton`
    dali          NVIDIA DALI's CPU pipeline on the JPEG files, where `nvidia-dali-cuda120` is installed
    decode        only FFCV's turbojpeg call on those JPEGs, on all cores: the limit of a loader that decodes whole
                  images; `decode, ours` is the same with the JPEGs in our `.beton`

The others get JPEGs as FFCV's own writer encodes them. Those in our `.beton` have the same pixels, and restart
markers, with which our loader can skip more of an image; decoding a whole image takes some 5% longer with them.
Each contender runs with its fastest worker count in the warm-up. Ours is the trainer's Loader, followed by the
trainer's normalisation. `first_batch` is the time from making the loader to its first batch, each in a new process,
without the imports, with our compiled kernels cached on disk as they are after a first run.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import Report, at_least, at_most, in_turns
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from fastlsr.config import Data
from fastlsr.cores import cores
from fastlsr.data.loader import Loader
from fastlsr.data.prepare.beton import ALLOCATION, HEADER
from fastlsr.data.prepare.encoding import Encoding, load_rgb, shrunk
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.runtime import set_up_torch

BARS = {
    "cifar_vs_torchvision": at_least(50), "cifar_vs_ffcv": at_least(2),
    "jpeg_vs_torchvision": at_least(1.8), "jpeg_vs_dali": at_least(1.15), "jpeg_vs_decode": at_least(0.85),
    "raw_vs_torchvision": at_least(4), "raw_vs_dali": at_least(2.5), "raw_vs_ffcv": at_least(1.2),
    "first_batch": at_most(0.5),
}  # fmt: skip
MEAN, STD = (0.5, 0.45, 0.4), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")
SMALL_BATCH, PHOTO_BATCH = 256, 64


class Pictures(Dataset):
    """Images in memory or in files, opened by PIL and passed through `transform`."""

    def __init__(self, images: np.ndarray | list[Path], transform: Callable):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        image = self.images[at]
        return self.transform(
            Image.open(image).convert("RGB") if isinstance(image, Path) else Image.fromarray(image)
        ), 0


def torchvision_epochs(images, crop: Callable, batch: int, workers: int) -> Callable[[], None]:
    """One epoch of torchvision's transforms under a DataLoader with persistent workers."""
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    loader = DataLoader(Pictures(images, transforms.Compose(steps)), batch, shuffle=True, num_workers=workers,
                        persistent_workers=workers > 0)  # fmt: skip

    def epoch() -> None:
        for batch, _ in loader:
            batch.contiguous(memory_format=torch.channels_last)

    return epoch


def our_loader(beton: Path, batch: int, workers: int) -> Loader:
    return Loader(beton, Data(batch_size=batch, workers=workers), train=True, seed=0, device=CPU)


def our_epochs(beton: Path, batch: int, workers: int) -> Callable[[], None]:
    """One epoch of our loader, each batch normalised as in the training step."""
    loader, epochs = our_loader(beton, batch, workers), iter(range(10**6))
    normalise = Classifier(nn.Identity(), MEAN, STD, precision="fp32", channels_last=True)

    @torch.no_grad()
    def epoch() -> None:
        for images, _, _ in loader.epoch(next(epochs)):
            normalise(images)

    return epoch


def ffcv_loader(beton: Path, batch: int, workers: int):
    """FFCV's loader with the same output, by its own compiled crop, flip and NormalizeImage."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader as Stock
    from ffcv.loader import OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    mean, std = np.array(MEAN) * 255, np.array(STD) * 255
    if batch == SMALL_BATCH:
        crop = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=4)]
    else:
        crop = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip()]
    image = [*crop, NormalizeImage(mean, std, np.float32), ToTensor(), ToTorchImage(channels_last=True)]
    return Stock(str(beton), batch_size=batch, num_workers=workers, order=OrderOption.RANDOM, os_cache=True,
                 pipelines={"image": image, "label": [IntDecoder(), ToTensor()], "index": None})  # fmt: skip


def ffcv_epochs(beton: Path, batch: int, workers: int) -> Callable[[], None]:
    loader = ffcv_loader(beton, batch, workers)

    def epoch() -> None:
        for _ in loader:
            pass

    return epoch


def dali_epochs(files: list[Path], batch: int, workers: int) -> Callable[[], float]:
    """Seconds of an epoch of DALI's CPU pipeline with the same crop and output, without the prefetching after it.

    Raises:
        ImportError: if DALI is not installed.
    """
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None)
    def pipeline():
        encoded, _ = fn.readers.file(files=[str(path) for path in files], random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(
            encoded, device="cpu", output_type=types.RGB, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, resize_x=224, resize_y=224, interp_type=types.INTERP_TRIANGULAR)
        mean, std = [255 * m for m in MEAN], [255 * s for s in STD]
        return fn.crop_mirror_normalize(
            images, mirror=fn.random.coin_flip(), mean=mean, std=std, dtype=types.FLOAT, output_layout="HWC"
        )

    pipe = pipeline()
    pipe.build()

    def epoch() -> float:
        started = time.perf_counter()
        for _ in range(-(-len(files) // batch)):
            np.asarray(pipe.run()[0].as_tensor())
        taken = time.perf_counter() - started
        time.sleep(0.5)  # its threads prefetch two batches of the next epoch, which would slow the next contender
        return taken

    return epoch


def decode_epochs(contents: list[bytes], workers: int) -> Callable[[], None]:
    """Decodes all JPEGs whole by turbojpeg, as FFCV calls it, and drops the pixels."""
    from ffcv.libffcv import lib

    sizes = [Image.open(io.BytesIO(content)).size for content in contents]
    imdecode = lib.imdecode
    imdecode.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p,
                         *[ctypes.c_uint32] * 8]  # fmt: skip

    def decode(part: int) -> None:
        buffer = np.empty(max(width * height for width, height in sizes) * 3, dtype=np.uint8)
        for content, (width, height) in list(zip(contents, sizes, strict=True))[part::workers]:
            pointer = ctypes.cast(content, ctypes.c_void_p)
            if imdecode(pointer, len(content), height, width, buffer.ctypes.data, height, width, 0, 0, 1, 1, 0, 0):
                raise RuntimeError("a JPEG does not decode")

    pool = ThreadPoolExecutor(workers)
    return lambda: [None for _ in pool.map(decode, range(workers))] and None


def best(make: Callable[[int], Callable[[], None]], counts: list[int]) -> Callable[[], None]:
    """The epoch with the fastest worker count, by the second of two epochs with each."""
    tried = {}
    for count in counts:
        epoch = make(count)
        epoch()
        started = time.perf_counter()
        epoch()
        tried[count] = time.perf_counter() - started, epoch
    return min(tried.values(), key=lambda pair: pair[0])[1]


def jpegs_of(beton: Path) -> Iterator[bytes]:
    """The JPEG files in a `.beton`, in order."""
    content = beton.read_bytes()
    header = np.frombuffer(content, dtype=HEADER, count=1)[0]
    for row in np.frombuffer(content, dtype=ALLOCATION, offset=int(header["allocations_at"])):
        yield content[int(row["pointer"]) : int(row["pointer"] + row["size"])]


def photographs(folder: Path | None, count: int, scratch: Path) -> list[Path]:
    """`count` image files: those under `folder`, repeated, or else smooth random pictures of 500 x 375 pixels."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")) if folder else []
    if not files:
        for seed in range(32):
            coarse = np.random.default_rng(seed).integers(0, 256, (94, 125, 3), dtype=np.uint8)
            files.append(scratch / f"{seed}.jpg")
            Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(files[-1], quality=95)
    return [files[at % len(files)] for at in range(count)]


def write(images, path: Path, encoding: Encoding) -> Path:
    labels = np.zeros(len(images), dtype=np.int64)
    write_beton(Samples(images, labels), path, dataset="bench", split="train", classes=["a"], encoding=encoding)
    return path


def small_images(report: Report, images: int, rounds: int, counts: list[int], scratch: Path) -> None:
    """Adds the ratios of small images. Torchvision, 50 times as slow, gets a fifth of them; its time is scaled."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    beton = write(pixels, scratch / "small.beton", Encoding())
    share = 5
    crop = transforms.RandomCrop(32, padding=4)
    contenders = {
        "ours": best(lambda count: our_epochs(beton, SMALL_BATCH, count), counts),
        "ffcv": best(lambda count: ffcv_epochs(beton, SMALL_BATCH, count), counts),
        "torchvision": best(
            lambda count: torchvision_epochs(pixels[: images // share], crop, SMALL_BATCH, count), [0, *counts]
        ),
    }
    seconds = in_turns(contenders, rounds=rounds)
    seconds["torchvision"] = [share * taken for taken in seconds["torchvision"]]
    report.table(f"{images} raw images of 32 x 32, pad-4 crop and flip", seconds, unit="images", units=images)
    report.ratio("cifar_vs_torchvision", seconds["torchvision"], seconds["ours"])
    report.ratio("cifar_vs_ffcv", seconds["ffcv"], seconds["ours"])


def large_images(report: Report, files: list[Path], rounds: int, counts: list[int], scratch: Path) -> None:
    from ffcv.fields.rgb_image import encode_jpeg as ffcv_jpeg

    encodings = {mode: Encoding(mode=mode, max_resolution=500, jpeg_quality=90) for mode in ("jpg", "raw")}
    betons = {mode: write(files, scratch / f"{mode}.beton", encoding) for mode, encoding in encodings.items()}
    contents = [ffcv_jpeg(shrunk(load_rgb(file), 500), 90).tobytes() for file in files]
    same = [scratch / f"photo_{at}.jpg" for at in range(len(contents))]
    for path, content in zip(same, contents, strict=True):
        path.write_bytes(content)
    crop = transforms.RandomResizedCrop(224)
    contenders = {
        "ours, jpeg": best(lambda count: our_epochs(betons["jpg"], PHOTO_BATCH, count), counts),
        "ours, raw": best(lambda count: our_epochs(betons["raw"], PHOTO_BATCH, count), counts),
        "decode": best(lambda count: decode_epochs(contents, count), counts[-1:]),
        "decode, ours": best(lambda count: decode_epochs(list(jpegs_of(betons["jpg"])), count), counts[-1:]),
        "ffcv, raw": best(lambda count: ffcv_epochs(betons["raw"], PHOTO_BATCH, count), counts),
        "torchvision": best(lambda count: torchvision_epochs(same, crop, PHOTO_BATCH, count), [0, *counts]),
    }
    try:
        contenders["dali"] = best(lambda count: dali_epochs(same, PHOTO_BATCH, count), counts)
    except ImportError:
        print("nvidia-dali-cuda120 is not installed: DALI is not measured")
    seconds = in_turns(contenders, rounds=rounds)
    report.table(f"{len(files)} photographs, RandomResizedCrop(224) and flip", seconds, unit="images", units=len(files))
    for mode, others in (("jpeg", ("torchvision", "dali", "decode")), ("raw", ("torchvision", "dali", "ffcv, raw"))):
        for other in others:
            key = f"{mode}_vs_{other.split(',')[0]}"
            if other in seconds:
                report.ratio(key, seconds[other], seconds[f"ours, {mode}"])
            else:
                report.value(key, None)


def first_batches(report: Report, files: list[Path], rounds: int, scratch: Path) -> None:
    """Adds the ratio of the times to the first batch, each in a new process, because FFCV compiles once in each."""
    beton = write(files[: 2 * PHOTO_BATCH], scratch / "first.beton", Encoding(mode="jpg", max_resolution=500))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(name: str) -> float:
        script = f"import loader; print(loader.first_batch({name!r}, {str(beton)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        return float(done.stdout.split()[-1])

    seconds = in_turns({name: lambda name=name: run(name) for name in ("ours", "ffcv")}, rounds=rounds)
    report.table("making the loader, and its first batch of photographs", seconds, unit="starts")
    report.ratio("first_batch", seconds["ours"], seconds["ffcv"])


def first_batch(name: str, beton: str) -> float:
    """Seconds from making the loader to its first batch; to be called in a new process."""
    import ffcv.loader  # noqa: F401  imported by both before the clock starts

    make = {"ours": our_loader, "ffcv": ffcv_loader}[name]
    started = time.perf_counter()
    loader = make(Path(beton), PHOTO_BATCH, 2)
    next(iter(loader.epoch(0) if name == "ours" else loader))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder with JPEG files of about 500 pixels; else random ones")
    parser.add_argument("--parts", default="cifar,photographs,first_batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="only a few images, as a test")
    options = parser.parse_args()
    small, large = (2560, 128) if options.tiny else (50_000, 1000)
    counts = [cores()] if options.tiny else [1, cores()]
    set_up_torch(CPU)
    report = Report(BARS, {"small": small, "photographs": large, "rounds": options.rounds})
    with tempfile.TemporaryDirectory() as folder:
        scratch, parts = Path(folder), options.parts.split(",")
        files = photographs(options.photographs, large, scratch)
        if "cifar" in parts:
            small_images(report, small, options.rounds, counts, scratch)
        if "photographs" in parts:
            large_images(report, files, options.rounds, counts, scratch)
        if "first_batch" in parts:
            first_batches(report, files, options.rounds, scratch)
    report.finish()


if __name__ == "__main__":
    main()
