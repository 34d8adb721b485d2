"""How many images a second does a whole training run take in: ours, timm's training script, a plain PyTorch loop?

Whole: a contender is a program of its own that goes through epochs of CIFAR-100 (reading, a random crop of the padded
image, a flip, training, evaluation on a fifth as many images, a checkpoint) and writes a line at the end of each. A
round is the time from line to line; between its turns a program is halted by SIGSTOP, so that nobody disturbs the
others. Images a second are training images over all of that time.

- ours: `python -m fastlsr.train`, from .beton files, method lsr; compiled if `train.compile=auto` finds that faster, as
  in a run of many epochs (compiling falls into the first epoch, which does not count). `ours, eager` never compiles.
- timm: timm.data.create_dataset("torch/cifar100") and create_loader, its loss, optimizer, scheduler, meters and
  CheckpointSaver, in the loop of train_one_epoch and validate in its published train.py, written anew. On a CPU without
  the prefetcher, which is for CUDA. The loader's transform is replaced by the crop and flip of the others.
- plain: torchvision's CIFAR100 and transforms, a DataLoader, torch's own loss, optimizer and scheduler.

All train the same network from fastlsr.models with the same batch size, precision, number of torch threads and label
smoothing 0.1. timm and plain try out 0, 1 and 2 workers and both memory formats first and go on with the fastest; the
ratios `vs_timm_...` and `vs_plain_...` are against those. `..._as_written` are against the same loops in torch's
default memory format, which timm's script keeps unless told otherwise; `..._eager` are those of `ours, eager`.
"""

from __future__ import annotations

import fastlsr  # isort: skip  # noqa: F401  before torch: it says how torch's threads wait for one another

import argparse
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from timing import Report, at_least, in_turns
from torch import Tensor, nn

from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.sources import Samples
from fastlsr.data.prepare.writing import write_beton
from fastlsr.engine.classifier import AUTOCAST
from fastlsr.engine.runtime import choose_device, choose_precision, threads
from fastlsr.models import build_model

CLASSES = 100
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
SMOOTHING, LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.05, 0.9, 5e-4
EPOCHS = 20_000  # never reached; so many that `auto` compiles where that is faster
TRIAL_STEPS = 8


@dataclass(frozen=True)
class Job:
    """What a contender is to do, and how."""

    folder: Path  # holds cifar-100-python
    model: str
    batch_size: int
    workers: int = 0
    channels_last: bool = False

    @property
    def device(self) -> torch.device:
        return choose_device("auto")

    @property
    def format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def network(self) -> nn.Module:
        network = build_model(self.model, classes=CLASSES, pretrained="", resolution=32)
        return network.to(self.device, memory_format=self.format)

    def autocast(self) -> AbstractContextManager:
        dtype = AUTOCAST[choose_precision("auto", self.device, lambda line: None)]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def moved(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.device, non_blocking=True, memory_format=self.format)
        return images, labels.to(self.device, non_blocking=True)


def plain(job: Job, out: Path) -> tuple[Callable[[], Iterator[None]], Callable[[], None]]:
    """(train, finish): an epoch's steps, and what comes after them: evaluation, schedule and checkpoint."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR100

    whole = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augmented = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *whole])
    options = {"batch_size": job.batch_size, "num_workers": job.workers, "persistent_workers": job.workers > 0,
               "pin_memory": job.device.type == "cuda"}  # fmt: skip
    loader = DataLoader(CIFAR100(job.folder, train=True, transform=augmented), shuffle=True, **options)
    test = DataLoader(CIFAR100(job.folder, train=False, transform=transforms.Compose(whole)), **options)
    network = job.network()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    loss_of = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def train() -> Iterator[None]:
        network.train()
        loss_sum, correct = torch.zeros((), device=job.device), torch.zeros((), device=job.device)
        for batch in loader:
            images, labels = job.moved(*batch)
            with job.autocast():
                logits = network(images)
                loss = loss_of(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            yield

    @torch.inference_mode()
    def finish() -> None:
        network.eval()
        sums = torch.zeros(3, device=job.device)
        for batch in test:
            images, labels = job.moved(*batch)
            with job.autocast():
                logits = network(images)
            hits = logits.topk(5).indices == labels[:, None]
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
            sums += torch.stack([loss, hits[:, 0].sum(), hits.sum()])
        schedule.step()
        torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, out / "plain.pt")

    return train, finish


def timm_loaders(job: Job):
    """Timm's loaders of the training and the test images, with the crops of the plain loop."""
    from timm.data import create_dataset, create_loader
    from timm.data.transforms import MaybePILToTensor
    from torchvision import transforms

    prefetch = job.device.type == "cuda"
    options = {"input_size": (3, 32, 32), "batch_size": job.batch_size, "mean": MEAN, "std": STD, "device": job.device,
               "num_workers": job.workers, "use_prefetcher": prefetch, "pin_memory": prefetch}  # fmt: skip
    data = create_dataset("torch/cifar100", root=str(job.folder), split="train", is_training=True)
    held_out = create_dataset("torch/cifar100", root=str(job.folder), split="validation")
    loaders = create_loader(data, is_training=True, **options), create_loader(held_out, **options)
    whole = [MaybePILToTensor()] if prefetch else [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    data.transform, held_out.transform = transforms.Compose([*crop, *whole]), transforms.Compose(whole)
    return loaders


def timm(job: Job, out: Path) -> tuple[Callable[[], Iterator[None]], Callable[[], None]]:
    """The same from timm's parts."""
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import AverageMeter, CheckpointSaver, accuracy

    loader, test = timm_loaders(job)
    network = job.network()
    optimizer = create_optimizer_v2(network, opt="sgd", lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    steps = len(loader)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, updates_per_epoch=steps)
    train_loss, test_loss = LabelSmoothingCrossEntropy(SMOOTHING), nn.CrossEntropyLoss()
    folder = out / f"timm {job.workers} {job.channels_last}"
    folder.mkdir(parents=True, exist_ok=True)
    saver = CheckpointSaver(network, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), max_history=1)
    epoch = 0

    def train() -> Iterator[None]:
        network.train()
        losses = AverageMeter()
        for number, batch in enumerate(loader):
            images, labels = job.moved(*batch)
            with job.autocast():
                loss = train_loss(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(loss.item(), len(images))
            schedule.step_update(num_updates=epoch * steps + number + 1, metric=losses.avg)
            yield

    @torch.inference_mode()
    def finish() -> None:
        nonlocal epoch
        network.eval()
        losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
        for batch in test:
            images, labels = job.moved(*batch)
            with job.autocast():
                logits = network(images)
                loss = test_loss(logits, labels)
            one, five = accuracy(logits, labels, topk=(1, 5))
            losses.update(loss.item(), len(images))
            top1.update(one.item(), len(images))
            top5.update(five.item(), len(images))
        epoch += 1
        saver.save_checkpoint(epoch, metric=top1.avg)
        schedule.step(epoch, top1.avg)

    return train, finish


def contend(name: str, job: Job, out: Path, formats: list[bool]) -> None:
    """Runs one of the loops above for ever, with the best settings; a line in `out`/rows.jsonl an epoch."""
    use_files_without_checksums()
    torch.set_num_threads(threads())
    make = {"plain": plain, "timm": timm}[name]

    def seconds(workers: int, channels_last: bool) -> float:
        train, _ = make(replace(job, workers=workers, channels_last=channels_last), out / "trials")
        taken = []
        for _ in range(2):
            steps = train()
            next(steps)  # starts the workers
            begin = time.perf_counter()
            done = sum(1 for _, _ in zip(range(TRIAL_STEPS), steps, strict=False))
            taken.append((time.perf_counter() - begin) / max(done, 1))
            steps.close()
        return min(taken)

    channels_last = min(formats, key=lambda wish: seconds(0, wish)) if len(formats) > 1 else formats[0]
    workers = min((0, 1, 2), key=lambda number: seconds(number, channels_last))
    print(f"loop: {workers} workers, {'channels_last' if channels_last else 'contiguous'}", flush=True)
    train, finish = make(replace(job, workers=workers, channels_last=channels_last), out)
    while True:
        for _ in train():
            pass
        finish()
        with open(out / "rows.jsonl", "a", encoding="utf-8") as rows:
            rows.write("an epoch\n")


def use_files_without_checksums() -> None:
    """Torchvision checks that its files are the official ones, whole; ours are a part of them, or random."""
    from torchvision.datasets import CIFAR100

    CIFAR100.train_list, CIFAR100.test_list = [["train", None]], [["test", None]]
    CIFAR100.meta = {**CIFAR100.meta, "md5": None}


def write_data(official: Path | None, folder: Path, counts: dict[str, int]) -> None:
    """`folder`/cifar-100-python and cifar100_{train,test}.beton: the first images of each split, or random ones."""
    inner = folder / "cifar-100-python"
    inner.mkdir()
    names = [str(label) for label in range(CLASSES)]
    (inner / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    for split, count in counts.items():
        pixels, labels = read_split(official, split, count)
        (inner / split).write_bytes(pickle.dumps({"data": pixels, "fine_labels": labels.tolist()}))
        images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        beton = folder / f"cifar100_{split}.beton"
        samples = Samples(np.ascontiguousarray(images), labels)
        write_beton(samples, beton, dataset="cifar100", split=split, classes=names, encoding=Encoding(mode="raw"))


def read_split(official: Path | None, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, labels): uint8[count, 3072] as the official file has them, and int64[count]."""
    if official is None:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count) % CLASSES
    with open(official / "cifar-100-python" / split, "rb") as file:
        read = pickle.load(file, encoding="latin1")
    return read["data"][:count], np.asarray(read["fine_labels"][:count], dtype=np.int64)


class Program:
    """A contender's process, halted but for its turns; it adds a line to `rows` at the end of each epoch."""

    def __init__(self, command: list[str], rows: Path):
        self.command, self.rows, self.log = command, rows, rows.parent / "log.txt"
        self.process: subprocess.Popen | None = None

    def epoch(self) -> None:
        """Lets it run to the end of the epoch under way; the first call starts it."""
        done = self.lines()
        if self.process is None:
            with open(self.log, "w", encoding="utf-8") as log:
                self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        else:
            os.killpg(self.process.pid, signal.SIGCONT)
        while self.lines() == done:
            if self.process.poll() is not None:
                raise SystemExit(f"{' '.join(self.command)}\n{self.log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.004)
        os.killpg(self.process.pid, signal.SIGSTOP)

    def lines(self) -> int:
        return self.rows.read_bytes().count(b"\n") if self.rows.exists() else 0

    def says(self) -> str:
        """What it chose."""
        log = self.log.read_text(encoding="utf-8")
        return "; ".join(line for line in log.splitlines() if line.startswith(("precision: ", "compile: ", "loop: ")))

    def close(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def ours(data: Path, model: str, out: Path, *, batch_size: int, compile: str) -> Program:
    """The trainer as users start it."""
    options = {"data.dataset": "cifar100", "data.dir": data, "data.batch_size": batch_size, "model.name": model,
               "method.name": "lsr", "method.smoothing": SMOOTHING, "optim.lr": LR, "train.epochs": EPOCHS,
               "train.compile": compile, "run.dir": out.parent, "run.name": out.name,
               "log.wandb": "disabled"}  # fmt: skip
    words = [f"--{key}={value}" for key, value in options.items()]
    return Program([sys.executable, "-u", "-m", "fastlsr.train", *words], out / "metrics.jsonl")


def loop(name: str, data: Path, model: str, out: Path, *, batch_size: int, formats: str) -> Program:
    """One of the loops above, by this very file."""
    words = ["--contender", name, "--data", data, "--out", out, "--models", model, "--formats", formats]
    command = [sys.executable, "-u", str(Path(__file__).resolve()), *map(str, words), "--batch-size", str(batch_size)]
    return Program(command, out / "rows.jsonl")


def compare(model: str, data: Path, options: argparse.Namespace, report: Report) -> None:
    """Times all contenders on one network, and notes the ratios."""
    made: dict[str, Program] = {}

    def folder(name: str) -> Path:
        path = data / f"{model} {name}"
        path.mkdir()
        return path

    for name, compile in (("ours", options.compile), ("ours, eager", "off")):
        made[name] = ours(data, model, folder(name), batch_size=options.batch_size, compile=compile)
    for kind in ("timm", "plain"):
        for suffix, formats in (("", "both"), (", as written", "contiguous")):
            name = kind + suffix
            made[name] = loop(kind, data, model, folder(name), batch_size=options.batch_size, formats=formats)
    try:
        seconds = in_turns({name: program.epoch for name, program in made.items()}, rounds=options.rounds)
    finally:
        for program in made.values():
            program.close()
    report.table(f"{model}, an epoch of {options.images} images", seconds, unit="images", units=options.images)
    for name, program in made.items():
        print(f"  {name}: {program.says()}")
    report.work[model] = {name: program.says() for name, program in made.items()}
    for kind in ("timm", "plain"):
        report.ratio(f"vs_{kind}_{model}", seconds[kind], seconds["ours"])
        report.ratio(f"vs_{kind}_{model}_eager", seconds[kind], seconds["ours, eager"])
        report.ratio(f"vs_{kind}_{model}_as_written", seconds[f"{kind}, as written"], seconds["ours"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar-dir", type=Path, help="holds cifar-100-python; else random pixels")
    parser.add_argument("--images", type=int, default=2560, help="training images, a multiple of the batch size (2560)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="resnet8,resnet20")
    parser.add_argument("--compile", default="auto", help="train.compile of ours (auto)")
    for hidden in ("--contender", "--data", "--out", "--formats"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        formats = [False, True] if options.formats == "both" else [False]
        job = Job(Path(options.data), options.models, options.batch_size)
        contend(options.contender, job, Path(options.out), formats)
        return
    if options.images % options.batch_size:
        parser.error("--images: not a multiple of the batch size (timm drops the rest, the others do not)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the programs end with this one
    models = options.models.split(",")
    bars = {f"vs_{kind}_{model}{suffix}": at_least(1.5)
            for model in models for kind in ("timm", "plain") for suffix in ("", "_as_written")}  # fmt: skip
    work = {"images": options.images, "batch_size": options.batch_size, "rounds": options.rounds}
    report = Report(bars, {**work, "pixels": "CIFAR-100" if options.cifar_dir else "random"})
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        write_data(options.cifar_dir, data, {"train": options.images, "test": options.images // 5})
        for model in models:
            compare(model, data, options, report)
    report.finish()


if __name__ == "__main__":
    main()
