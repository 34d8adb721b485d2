"""How fast are images loaded by ranks that together get a quarter of the file's size as memory?

    python benchmarks/larger_than_memory.py [--images 110000] [--ranks 1,2,4] [--rounds 3] [--folder FOLDER]

Raw images of 224 pixels, training batches of 64 in all, nothing but loading; each of the ranks has one loader
thread. Needs root and a memory cgroup, whose limit counts what the ranks and torchrun hold (0.7 and 0.5 GiB) and the
pages of the file that they read; these are dropped before each limited epoch, and read before each other one.

    cached      no limit, the file in the page cache, data.order=random
    mapped      limited, data.order=random: every image is a page fault that reads the disk
    paged       limited, data.os_cache=false data.order=quasi_random
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from cifar import options
from timing import print_tables

from fastlsr.config import load
from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.engine import distributed
from fastlsr.engine.session import training_loader

CPU = torch.device("cpu")
GROUP = Path("/sys/fs/cgroup/memory/fastlsr_benchmark")
HOWS = {"cached": ["data.order=random"], "mapped": ["data.order=random"],
        "paged": ["data.order=quasi_random", "data.os_cache=false"]}  # fmt: skip
MOST_SECONDS = 20.0  # of an epoch; then it is left, and its speed so far counts


def write_raw(folder: Path, **counts: int) -> None:
    """Writes `bench_train.beton` and `bench_test.beton`, of one image that is stored again and again."""
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    for split, count in counts.items():
        samples = Samples(np.broadcast_to(image, (count, 224, 224, 3)), np.arange(count) % 10)
        write_beton(
            samples, folder / f"bench_{split}.beton", dataset="bench", split=split,
            classes=[str(label) for label in range(10)], encoding=Encoding(),
        )  # fmt: skip


def measured(words: list[str]) -> None:
    """Prints images a second of all ranks, each over the time that it took."""
    config = load(overrides=dict(word.split("=", 1) for word in words))
    with distributed.process_group(CPU) as ranks:
        loader = training_loader(config, CPU, ranks=ranks)
        seen, start = 0, time.perf_counter()
        for batch in loader.epoch(0):
            seen += len(batch.images)
            if time.perf_counter() - start > MOST_SECONDS:
                break
        seconds = time.perf_counter() - start
        speed = distributed.sum_(torch.tensor(seen / seconds, dtype=torch.float64)).item()
        if distributed.is_main():
            print(f"{speed:.0f}", flush=True)


def run(words: list[str], ranks: int, *, limited: bool) -> float:
    """Images a second of an epoch on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *launcher, __file__, "--", *words]
    if limited:  # a shell that puts itself into the group, and with it what it becomes
        command = ["sh", "-c", f'echo $$ > {GROUP}/cgroup.procs && exec "$@"', "sh", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment, timeout=600)
    return float(done.stdout.split()[-1])


def bring_into_cache(file: Path) -> None:
    with open(file, "rb", buffering=0) as opened:
        while opened.read(1 << 24):
            pass


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def rows(counts: list[int], rounds: int, folder: Path) -> Iterator[dict[str, str]]:
    """For each how the medians of images a second, and their spread; the numbers of ranks take turns."""
    for how, chosen in HOWS.items():
        words = [f"{key}={value}" for key, value in options(folder, data__batch_size=64, data__workers=1).items()]
        if how == "cached":
            bring_into_cache(folder / "bench_train.beton")
        speeds: dict[int, list[float]] = {ranks: [] for ranks in counts}
        for _ in range(rounds):
            for ranks in counts:
                if how != "cached":
                    drop_caches()
                speeds[ranks].append(run([*words, *chosen], ranks, limited=how != "cached"))
        columns = {f"{ranks} {'ranks' if ranks > 1 else 'rank'}":
                   f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})"
                   for ranks, each in speeds.items()}  # fmt: skip
        yield {"images/s": how, **columns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=110_000)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)  # of a rank
    given = parser.parse_args()
    if given.words:
        measured(given.words)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_raw(folder, train=given.images, test=64)
        size = (folder / "bench_train.beton").stat().st_size
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(size // 4))
        try:
            print(f"file {size / 2**30:.1f} GiB, memory {size / 2**32:.1f} GiB; images a second, n = {given.rounds}")
            print_tables(rows(list(map(int, given.ranks.split(","))), given.rounds, folder))
        finally:
            GROUP.rmdir()


if __name__ == "__main__":
    main()
