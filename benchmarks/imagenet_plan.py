"""What would COLAM on ImageNet take on 1, 8 and 64 GPUs: minutes, memory, page cache, network?

    python benchmarks/imagenet_plan.py --photographs FOLDER [--plans 1x256,8x256] [--gpu-speed 2078 ...]

The recipe is that of configs/colam_imagenet.yaml. Measured here: the size of photographs of at most 500 pixels in a
`.beton`, how many of them a core loads in a second, the size of ResNet-50's gradients, and what a step on one GPU's
part of a batch keeps (in bf16, from a trial on two images). All else is assumed, and an option.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from loader import CPU, MEAN, PHOTO_BATCH, STD, our_epochs, photographs, write
from timing import print_tables

from fastlsr.config import load
from fastlsr.cores import cores
from fastlsr.data.prepare.encoding import Encoding
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.footprint import step_bytes
from fastlsr.engine.runtime import set_up_torch
from fastlsr.models import build_model

CONFIG = Path(__file__).parent.parent / "configs" / "colam_imagenet.yaml"
TRAIN, TEST, CLASSES = 1_281_167, 50_000, 1000  # ILSVRC 2012
MB, GB, GIB = 1e6, 1e9, 1 << 30
PLANS = "1x256,8x256,64x256,8x2048,64x2048,64x16384"
# GB of ImageNet's training split at 512 pixels and quality 90, by FFCV's own writer: docs.ffcv.io/benchmarks; for half
# of the images as JPEGs, their mean.
FFCV_SIZES = {"jpg": 65.47, "proportion": (65.47 + 616.18) / 2, "raw": 616.18}
# epochs, minutes of ResNet-50 on 8 A100, at 160 pixels, then 192: github.com/libffcv/ffcv-imagenet
PUBLISHED = [(16, 14.9), (88, 77.2)]


@dataclass(frozen=True)
class Assumed:
    """What is not measured here."""

    gpu_speed: float = 16_621 / 8
    least_step: float = 0.02
    evaluation: float = 3.0
    inside: float = 200e9
    between: float = 20e9
    per_node: int = 8


MEANING = {
    "gpu_speed": "images of 224 pixels a second that a GPU trains on; an eighth of ResNet-50's 16,621 on 8 A100-80GB "
    "(NVIDIA DeepLearningExamples)",
    "least_step": "seconds of the shortest step: the host has to start its kernels",
    "evaluation": "times as fast as training",
    "inside": "bytes a second of an all-reduce inside a node",
    "between": "bytes a second of an all-reduce between nodes",
    "per_node": "GPUs of a node",
}


def ring(size: float, ranks: int) -> float:
    """Bytes that each of the ranks sends in a ring's all-reduce of `size` bytes."""
    return 2 * (ranks - 1) / ranks * size


def step_seconds(gpus: int, batch: int, gradients: int, assumed: Assumed) -> tuple[float, str]:
    """Seconds of a step, and what takes them; gradients are exchanged beside the backward pass."""
    link = assumed.between if gpus > assumed.per_node else assumed.inside
    parts = {"computing": batch / gpus / assumed.gpu_speed, "starting kernels": assumed.least_step,
             "network": ring(gradients, gpus) / link}  # fmt: skip
    longest = max(parts, key=lambda name: parts[name])
    return parts[longest], longest


def stored(files: list[Path], rounds: int) -> Iterator[tuple[str, float, float]]:
    """(write mode, bytes an image, images a second of a core): the median of epochs with a thread on each core."""
    number = cores()
    with tempfile.TemporaryDirectory() as folder:
        for mode in FFCV_SIZES:
            beton = write(files, Path(folder, f"{mode}.beton"), Encoding(mode=mode, max_resolution=500))
            epoch, seconds = our_epochs(beton, PHOTO_BATCH, number), []
            for _ in range(rounds + 1):
                start = time.perf_counter()
                epoch()
                seconds.append(time.perf_counter() - start)
            yield mode, beton.stat().st_size / len(files), len(files) / statistics.median(seconds[1:]) / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder with JPEG files of about 500 pixels; else random ones")
    parser.add_argument("--images", type=int, default=2000, help="photographs that are stored and loaded")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of loading; the median counts")
    parser.add_argument("--plans", default=PLANS, help="GPUs x images in a batch of all of them; default: %(default)s")
    for each in fields(Assumed):
        name, meaning = "--" + each.name.replace("_", "-"), f"assumed: {MEANING[each.name]}; default: %(default)g"
        parser.add_argument(name, type=type(each.default), default=each.default, help=meaning)
    given = vars(parser.parse_args())
    assumed = Assumed(**{each.name: given[each.name] for each in fields(Assumed)})
    plans = [tuple(map(int, plan.split("x"))) for plan in given["plans"].split(",")]
    print("photographs:", given["photographs"] or "none given; random ones, which take more bytes as JPEGs")
    set_up_torch(CPU)
    config = load(CONFIG)
    resolution, epochs = config.data.resolution, config.train.epochs
    model = build_model(config.model.name, classes=CLASSES, resolution=resolution)
    network = Classifier(model, MEAN, STD, precision="bf16", channels_last=True)
    gradients = sum(each.numel() * each.element_size() for each in model.parameters())

    def storage() -> Iterator[dict[str, str]]:
        with tempfile.TemporaryDirectory() as scratch:
            files = photographs(given["photographs"], given["images"], Path(scratch))
            for mode, size, speed in stored(files, given["rounds"]):
                yield {"stored as": mode, "kB an image": f"{size / 1000:.1f}",
                       "GB for training": f"{size * TRAIN / GB:.0f}",
                       "GB of ImageNet by FFCV's writer": f"{FFCV_SIZES[mode]:.0f}",
                       "images/s of a core": f"{speed:,.0f}", "cores for a GPU": f"{assumed.gpu_speed / speed:.1f}",
                       }  # fmt: skip

    def memory() -> Iterator[dict[str, str]]:
        for part in sorted({batch // gpus for gpus, batch in plans}):
            weights, saved = step_bytes(network, resolution, part)
            yield {"images of a GPU": f"{part}", "GiB of weights, gradients, momentum": f"{weights / GIB:.1f}",
                   "GiB kept for the backward pass": f"{saved / GIB:.1f}"}  # fmt: skip

    def runs() -> Iterator[dict[str, str]]:
        sums = 4 * CLASSES * (CLASSES + 1)  # float32: logits by class, and how many
        for gpus, batch in plans:
            seconds, longest = step_seconds(gpus, batch, gradients, assumed)
            forward = gpus * assumed.gpu_speed * assumed.evaluation
            run = epochs * (-(-TRAIN // batch) * seconds + TEST / forward)
            extra = config.method.stages * TRAIN / forward
            yield {"GPUs": f"{gpus}", "batch": f"{batch:,}", "a step, ms": f"{1000 * seconds:.0f}, {longest}",
                   "minutes": f"{run / 60:,.0f}", "more by extra passes": f"{extra / 60:.1f}",
                   "MB sent in a step": f"{ring(gradients, gpus) / MB:.0f}",
                   "MB sent in a stage": f"{ring(sums, gpus) / MB:.1f}"}  # fmt: skip

    def anchors() -> Iterator[dict[str, str]]:
        for its_epochs, minutes in PUBLISHED:
            ours = its_epochs * (TRAIN + TEST / assumed.evaluation) / (8 * assumed.gpu_speed) / 60
            yield {"epochs": f"{its_epochs}", "minutes, 8 GPUs, 224 pixels, as assumed": f"{ours:.0f}",
                   "minutes as published, 8 A100, 160 to 192 pixels": f"{minutes}"}  # fmt: skip

    print_tables(storage(), memory(), runs(), anchors())


if __name__ == "__main__":
    main()
