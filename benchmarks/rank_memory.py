"""What does a rank need of memory, and how long do ranks take to add up class means?

    python benchmarks/rank_memory.py [--images 160000] [--ranks 1,2,4]

Each of the ranks goes once through a file of random images of 32 pixels, as in training. When all have, it prints, in
MiB, of each:

    file        proportional set size of the file's mapping: a page that n processes have counts 1/n in each
    own         what it holds besides, which nobody shares (private pages), without and
    training    with a ResNet-18, its optimizer and a step on a batch of 128 in all

and the seconds of an `all_reduce` of COLAM's sums, float32[K, K], for K = 1000 and 10,000 over gloo.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from cifar import options, write_random
from timing import print_tables

from fastlsr.config import load
from fastlsr.engine import distributed
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Session
from fastlsr.labels.methods import make_plan

CPU = torch.device("cpu")
MIB = 1 << 20
CLASSES = (1000, 10_000)


def memory(file: str) -> dict[str, float]:
    """MiB of this process: the file's mapping by proportional set size, and all private pages."""
    found = {"file": 0.0, "own": 0.0}
    mapped = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapped = line.endswith(file)
        elif mapped and line.startswith("Pss:"):
            found["file"] += int(line.split()[1]) / 1024
        elif line.startswith(("Private_Clean:", "Private_Dirty:")) and not mapped:
            found["own"] += int(line.split()[1]) / 1024
    return found


def reduced(classes: int) -> float:
    """Seconds to add up float32[K, K] over the ranks: the least of three."""
    sums, seconds = torch.ones(classes, classes), []
    for _ in range(3):
        distributed.agree(0)  # all begin together
        start = time.perf_counter()
        distributed.sum_(sums)
        seconds.append(time.perf_counter() - start)
    return distributed.agree(min(seconds))


def measured(words: list[str]) -> None:
    """Prints what each rank measured, from the main one."""
    set_up_torch(CPU)
    torch.set_num_threads(1)
    config = load(overrides=dict(word.split("=", 1) for word in words))
    with distributed.process_group(CPU) as ranks:
        session = Session(config, make_plan(config.method, 1), CPU, report=lambda text: None, ranks=ranks)
        for batch in session.train.epoch(0):
            batch.images.sum()
        distributed.agree(0)
        before = memory("_train.beton")
        batch = next(session.batches())
        session.train_batch(*batch)
        distributed.agree(0)
        after = memory("_train.beton")
        rows = distributed.gather({"file": before["file"], "own": before["own"], "training": after["own"]})
        seconds = {str(classes): reduced(classes) for classes in CLASSES}
        if distributed.is_main():
            print(json.dumps({"ranks": ranks.world_size, "each": rows, "reduce": seconds}), flush=True)


def row(words: list[str], ranks: int) -> dict[str, str]:
    """The means over so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *words], check=True, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=1200,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    file, own, training = (sum(each[key] for each in found["each"]) / ranks for key in ("file", "own", "training"))
    seconds = {f"K = {classes:,}": f"{found['reduce'][str(classes)]:.3f}" for classes in CLASSES}
    return {"ranks": f"{ranks}", "file, each": f"{file:.0f}", "file, all": f"{file * ranks:.0f}", "own": f"{own:.0f}",
            "training": f"{training:.0f}", **seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160_000)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)  # of a rank
    given = parser.parse_args()
    if given.words:
        measured(given.words)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random(folder, train=given.images, test=128)
        size = next(folder.glob("*_train.beton")).stat().st_size / MIB
        print(f"file {size:.0f} MiB; MiB, and seconds to add up sums of K classes")
        chosen = options(folder, model__name="resnet18", data__batch_size=128, train__precision="fp32")
        words = [f"{key}={value}" for key, value in chosen.items()]
        print_tables(row(words, ranks) for ranks in map(int, given.ranks.split(",")))


if __name__ == "__main__":
    main()
