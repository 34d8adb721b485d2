"""How do time and memory grow with images, classes and epochs, and does memory grow while nothing else does?

Each figure `exponent_...` is the slope of log(amount) over log(size), by least squares: 1 is proportional. The sizes
are large enough for what is constant not to hide the slope; what is constant is subtracted from memory (that of the
same program at the smallest size), never from time.

- images: seconds of an epoch of the loader (random 32x32 images, raw, cropped and flipped) and of training (ResNet-8 on
  8x8 images: the cost of an image does not matter here); anonymous memory of a process that holds a run and has gone
  through an epoch of its data. The .beton itself is mapped: its pages are the page cache's, and do not count.
- classes: seconds of a step's share that depends on their number K (linear classifier, soft-target loss with a class
  table, backward, class means), for batches of 128; anonymous memory of a process that has gone through an epoch by
  label smoothing, which needs no table; and, for COLAM, the bytes by K*K of the peak of training, evaluation and
  checkpoint (table, sums and learned labels are 12 at rest).
- epochs: seconds until the end of an epoch of one run, with evaluation, rows, summary and checkpoint.
- `leak_mb`: anonymous memory after the last of 200 such epochs less that after the 20th, after a garbage collection.
"""

from __future__ import annotations

import fastlsr  # isort: skip  # noqa: F401  before torch: it says how torch's threads wait for one another

import argparse
import ctypes
import gc
import io
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from sessions import begin
from timing import Report, at_most, in_turns

from fastlsr.config import load
from fastlsr.data.loader import Loader
from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.engine.loop import StopRequest, run_epochs
from fastlsr.engine.session import Session
from fastlsr.labels.class_means import ClassMeans
from fastlsr.labels.losses import soft_target_cross_entropy
from fastlsr.logs.run_log import RunLog
from fastlsr.runs import RunFolder

CPU = torch.device("cpu")
BATCH = 128
MOST_ROUNDS = 1000  # epochs that a timed session may take


def write_split(folder: Path, split: str, images: int, *, side: int, classes: int) -> None:
    """`folder`/bench_SPLIT.beton: random pixels."""
    random = np.random.default_rng(images)
    pixels = random.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    samples = Samples(pixels, random.integers(0, classes, images))
    names = [str(number) for number in range(classes)]
    path = folder / f"bench_{split}.beton"
    write_beton(samples, path, dataset="bench", split=split, classes=names, encoding=Encoding(mode="raw"))


def data_set(scratch: Path, images: int, *, side: int = 8, classes: int = 10, test: int = BATCH) -> Path:
    """A folder with both splits, made if it is not there."""
    folder = scratch / f"{images} {side} {classes}"
    if not folder.is_dir():
        folder.mkdir()
        write_split(folder, "train", images, side=side, classes=classes)
        write_split(folder, "test", test, side=side, classes=classes)
    return folder


def run_under_way(folder: Path, *, epochs: int, method: str) -> tuple[Session, RunLog]:
    """A run as `fastlsr.train` makes it, before its first step."""
    options = {"data.dataset": "bench", "data.dir": folder, "data.batch_size": BATCH, "model.name": "resnet8",
               "method.name": method, "method.stages": 2, "train.epochs": epochs, "train.compile": "off",
               "train.device": "cpu", "optim.lr": 0.01, "run.dir": folder, "run.name": "run",
               "log.wandb": "disabled"}  # fmt: skip
    session = begin(options)
    (folder / "run").mkdir(exist_ok=True)
    return session, WatchedLog(RunFolder(folder / "run"), session.config, session.plan.epochs)


class WatchedLog(RunLog):
    """A run's log that notes, at each row, when it came, and now and then how much memory was held."""

    def __init__(self, *arguments: object):
        super().__init__(*arguments)
        self.times: list[float] = [time.perf_counter()]
        self.memory: dict[int, int] = {}

    def row(self, row: dict[str, object]) -> None:
        super().row(row)
        self.times.append(time.perf_counter())
        if len(self.rows) % 10 == 0:
            self.memory[len(self.rows)] = anonymous_bytes()


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's, without what is garbage or free and kept for the next step."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return of_status("RssAnon")


def of_status(name: str) -> int:
    """Bytes, from Linux's account of this process. Not getrusage's peak: a process inherits that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1])


def memory_of_epoch(folder: Path, method: str) -> int:
    """Anonymous bytes once a run has gone through an epoch of its data, training on the first batch."""
    session, _ = run_under_way(folder, epochs=2, method=method)
    for number, batch in enumerate(session.batches()):
        if number == 0:
            session.train_batch(*batch)
    return anonymous_bytes()


def peak_of_run(folder: Path, method: str) -> int:
    """Peak resident bytes of a run of two epochs."""
    session, log = run_under_way(folder, epochs=2, method=method)
    with redirect_stdout(io.StringIO()):
        run_epochs(session, log, StopRequest())
    return of_status("VmHWM")


def watched_run(folder: Path, epochs: int) -> tuple[list[float], dict[int, int]]:
    """(seconds until the end of each epoch, epoch -> anonymous bytes)."""
    session, log = run_under_way(folder, epochs=epochs, method="lsr")
    with redirect_stdout(io.StringIO()):
        run_epochs(session, log, StopRequest())
    return [moment - log.times[0] for moment in log.times[1:]], log.memory


def in_own_process(function: Callable, *arguments: object):
    """What the function answers in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def exponent(sizes: Sequence[int], amounts: Sequence[float]) -> float:
    """Slope of log(amount) over log(size), by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(amounts), 1)[0])


def note_exponent(report: Report, key: str, sizes: Sequence[int], rounds: Sequence[Sequence[float]]) -> None:
    """Notes the exponent of each size's median over the rounds, and its spread over them; a size is a column."""
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    report.value(key, exponent(sizes, medians), rounds=[exponent(sizes, amounts) for amounts in rounds])


def time_sizes(
    report: Report, key: str, title: str, tasks: dict[int, Callable[[], None]], *, rounds: int, fitted: int
) -> None:
    """Times the tasks in turns and notes the exponent over the `fitted` largest sizes."""
    seconds = in_turns({str(size): task for size, task in tasks.items()}, rounds=rounds)
    report.table(title, seconds, unit="times", units=1)
    sizes = sorted(tasks)[-fitted:]
    note_exponent(report, key, sizes, list(zip(*(seconds[str(size)] for size in sizes), strict=True)))


def note_memory(report: Report, what: str, method: str, least: Path, folders: dict[int, Path], *, rounds: int) -> None:
    """Notes the exponent of what processes hold above one with the `least` data, over the three largest sizes."""
    base = in_own_process(memory_of_epoch, least, method)
    above = [
        [in_own_process(memory_of_epoch, folder, method) - base for folder in folders.values()]
        for _ in range(min(rounds, 3))
    ]
    print(f"\nanonymous memory of {method} above {base / 1e6:.0f} MB, by {what}")
    for size, extra in zip(folders, map(statistics.median, zip(*above, strict=True)), strict=True):
        print(f"  {size:12,} {extra / 1e6:9.2f} MB {extra / size:9.1f} bytes each")
    note_exponent(report, f"exponent_{what}_memory", list(folders)[-3:], [amounts[-3:] for amounts in above])


def loader_epoch(folder: Path) -> Callable[[], None]:
    """An epoch of the loader alone."""
    data = load("", {"data.dataset": "bench", "data.dir": str(folder), "data.batch_size": str(BATCH)}).data
    loader = Loader(folder / "bench_train.beton", data, train=True, seed=0, device=CPU)
    return lambda: [None for _ in loader.epoch(0)] and None


def training_epoch(folder: Path) -> Callable[[], None]:
    """An epoch of training, without what comes after it."""
    session, _ = run_under_way(folder, epochs=2 * MOST_ROUNDS, method="colam")

    def epoch() -> None:
        for batch in session.batches():
            session.train_batch(*batch)
        session.end_epoch()

    return epoch


def class_step(classes: int) -> Callable[[], None]:
    """What of a training step depends on the number of classes, ten times."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, 64, generator=random)
    weight = torch.randn(64, classes, generator=random, requires_grad=True)
    labels = torch.randint(classes, (BATCH,), generator=random)
    index, one = torch.arange(BATCH), torch.ones(())
    mix, table = torch.tensor([0.5, 0.1, 0.4, 0.5]), torch.full((classes, classes), 1 / classes)
    means = ClassMeans(classes, BATCH, device=CPU)
    means.start(torch.ones(BATCH))

    def steps() -> None:
        for _ in range(10):
            weight.grad = None
            logits = features @ weight
            _, gradients = soft_target_cross_entropy(logits, labels, mix, table, one / BATCH)
            logits.backward(gradients)
            means.update(logits, labels, index)

    return steps


def images(report: Report, scratch: Path, most: int, rounds: int) -> None:
    """Time and memory against the number of images."""
    sizes = [most // 8, most // 4, most // 2, most]
    loaders = {size: loader_epoch(data_set(scratch, size, side=32)) for size in sizes}
    time_sizes(report, "exponent_images_loader", "an epoch of the loader, by images", loaders, rounds=rounds, fitted=3)
    del loaders
    epochs = {size // 2: training_epoch(data_set(scratch, size // 2)) for size in sizes}
    time_sizes(report, "exponent_images", "an epoch of training, by images", epochs, rounds=rounds, fitted=3)
    del epochs
    many = [16 * size for size in sizes]  # so many that what one process differs by from another does not count
    folders = {size: data_set(scratch, size) for size in many}
    note_memory(report, "images", "colam", data_set(scratch, BATCH), folders, rounds=rounds)


def classes(report: Report, scratch: Path, most: int, rounds: int) -> None:
    """Time and memory against the number of classes."""
    sizes = [10, most // 10, most // 4, most // 2, most]
    tasks = {size: class_step(size) for size in sizes}
    time_sizes(report, "exponent_classes", "ten steps' loss, by classes", tasks, rounds=rounds, fitted=3)
    del tasks
    base_folder = data_set(scratch, 8 * BATCH)
    folders = {size: data_set(scratch, 8 * BATCH, classes=size) for size in sizes[2:]}
    note_memory(report, "classes", "lsr", base_folder, folders, rounds=rounds)
    base = in_own_process(peak_of_run, base_folder, "colam")
    print(f"\npeak memory of colam above {base / 1e6:.0f} MB, by classes")
    for size, folder in folders.items():
        extra = in_own_process(peak_of_run, folder, "colam") - base
        print(f"  {size:12,} {extra / 1e6:9.2f} MB {extra / size**2:9.1f} bytes a class squared")
    report.value("bytes_by_classes_squared", extra / most**2)


def epochs(report: Report, scratch: Path, most: int, rounds: int) -> None:
    """Time against epochs, and what memory grows by meanwhile."""
    folder = data_set(scratch, 2 * BATCH)
    runs = [in_own_process(watched_run, folder, most) for _ in range(rounds)]
    sizes = [most // 8, most // 4, most // 2, most]
    reached = [[seconds[size - 1] for size in sizes] for seconds, _ in runs]
    table = {str(size): [amounts[at] for amounts in reached] for at, size in enumerate(sizes)}
    report.table("a run, by epochs", table, unit="times", units=1)
    note_exponent(report, "exponent_epochs", sizes, reached)
    first = max(most // 100 * 10, 10)
    grown = [(memory[max(memory)] - memory[first]) / 1e6 for _, memory in runs]
    print(f"\nmemory from epoch {first} to {most}: {', '.join(f'{each:+.2f}' for each in grown)} MB")
    report.value("leak_mb", max(grown), rounds=grown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=65_536, help="the most (65,536; memory up to 16 times as many)")
    parser.add_argument("--classes", type=int, default=10_000, help="the most")
    parser.add_argument("--epochs", type=int, default=200, help="the most")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    linear = ("images_loader", "images", "images_memory", "classes", "classes_memory", "epochs")
    report = Report({**{f"exponent_{name}": at_most(1.05) for name in linear}, "leak_mb": at_most(5)}, vars(options))
    with tempfile.TemporaryDirectory() as scratch:
        images(report, Path(scratch), options.images, options.rounds)
        classes(report, Path(scratch), options.classes, options.rounds)
        epochs(report, Path(scratch), options.epochs, options.rounds)
    report.finish()


if __name__ == "__main__":
    main()
