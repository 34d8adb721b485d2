"""Do ranks see and learn what one process does?

    python benchmarks/ranks.py --data FOLDER [--dataset trees_people] [--epochs 3] [optim.lr=0.001 ...]

COLAM in as many stages as epochs, ResNet-8, float32, gloo:

    1 process with two threads        how far rounding by itself carries a run
    2 and 4 processes                 of one thread each, with batch norm's statistics over the whole batch
                                      (`train.sync_batchnorm`) or over each rank's part of it
    4, then 2, then 1                 a run that is killed inside an epoch, resumed, killed again and resumed

It prints, against one process with one thread: whether every step had the same samples and the same pixels, and the
largest differences of the first steps' and of all losses, of the class tables and of the metrics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import print_tables

from fastlsr.config import load
from fastlsr.engine import checkpoint, distributed
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Session
from fastlsr.labels.methods import make_plan
from fastlsr.runs import RunFolder

CPU = torch.device("cpu")
FIRST_STEPS = 5
METRICS = ("nll", "top1", "top5", "ece")


def trained(words: list[str], folder: Path, stop: tuple[int, int] | None) -> None:
    """Trains on, from the folder's checkpoint if there is one, and adds what each step and epoch saw to a file.

    At `stop` it writes a checkpoint, and the last rank kills itself while the others train on.
    """
    set_up_torch(CPU)
    torch.set_num_threads(int(os.environ["THREADS"]))
    config = load(overrides=dict(word.split("=", 1) for word in words))
    plan = make_plan(config.method, config.train.epochs)
    with distributed.process_group(CPU) as ranks:
        state, _ = checkpoint.load_newest(folder)
        session = Session(config, plan, CPU, state=state, report=lambda text: None, ranks=ranks)
        while not session.finished:
            for batch in session.batches():
                seen = distributed.gather((batch.index.numpy().copy(), batch.images.numpy().copy()))
                before = session.totals.values[0].item()
                session.train_batch(*batch)
                loss = distributed.sum_(session.totals.values[:1].clone() - before).item()
                if distributed.is_main():
                    columns = zip(*seen, strict=True)
                    digests = [hashlib.sha256(np.concatenate(column).tobytes()).hexdigest() for column in columns]
                    write(folder, {"step": digests, "loss": loss / sum(len(index) for index, _ in seen)})
                if (session.position.epochs, session.position.batches) == stop:
                    whole = session.state_dict()
                    if distributed.is_main():
                        checkpoint.save(RunFolder(folder), whole)
                    distributed.agree(0)
                    if ranks.rank == ranks.world_size - 1:
                        os.kill(os.getpid(), signal.SIGKILL)
            metrics, end = session.evaluate(), session.end_epoch()
            if distributed.is_main():
                assert end.learned is not None
                write(folder, {"metrics": metrics, "table": end.learned.soft_labels.tolist()})


def write(folder: Path, row: dict[str, Any]) -> None:
    with open(folder / "seen.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def run(words: list[str], folder: Path, ranks: int, threads: int = 1, stop: str = "") -> list[dict[str, Any]]:
    """What the steps and epochs of a run on so many processes saw; with `stop`, "EPOCHS,BATCHES", it is killed then."""
    folder.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, __file__, "--folder", str(folder), "--stop", stop, *words]
    environment = {**os.environ, "THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=not stop, env=environment, timeout=1800)
    assert not stop or done.returncode
    return [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]


def row(name: str, rows: list[dict[str, Any]], alone: list[dict[str, Any]]) -> dict[str, str]:
    """The largest differences from what one process saw."""
    steps, its_steps = ([each for each in some if "step" in each] for some in (rows, alone))
    ends, its_ends = ([each for each in some if "metrics" in each] for some in (rows, alone))
    both = list(zip(steps, its_steps, strict=True))
    same = [all(one["step"][at] == other["step"][at] for one, other in both) for at in (0, 1)]
    losses = [abs(one["loss"] - other["loss"]) for one, other in both]
    pairs = list(zip(ends, its_ends, strict=True))
    tables = max(np.abs(np.subtract(one["table"], other["table"])).max() for one, other in pairs)
    metrics = [max(abs(one["metrics"][key] - other["metrics"][key]) for one, other in pairs) for key in METRICS]
    largest = {f"loss, first {FIRST_STEPS} steps": max(losses[:FIRST_STEPS]), "loss": max(losses)}
    largest |= {"class table": tables, **dict(zip(METRICS, metrics, strict=True))}
    yes = ["yes" if each else "NO" for each in same]
    return {"processes": name, "steps": f"{len(steps)}", "same samples": yes[0], "same pixels": yes[1],
            **{column: f"{difference:.1e}" for column, difference in largest.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dataset", default="trees_people")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of training, section.key=value")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a rank
    parser.add_argument("--stop", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        stop = tuple(map(int, given.stop.split(","))) if given.stop else None
        trained(given.options, given.folder, stop)  # type: ignore[arg-type]
        return
    chosen = {"data.dataset": given.dataset, "data.dir": given.data.absolute(), "data.batch_size": 128,
              "model.name": "resnet8", "train.epochs": given.epochs, "train.compile": "off", "train.precision": "fp32",
              "method.name": "colam", "method.stages": given.epochs}  # fmt: skip
    words = [*(f"{name}={value}" for name, value in chosen.items()), *given.options]
    whole = [*words, "train.sync_batchnorm=true"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = run(words, folder / "1", 1)
        found = {
            "1 process, two threads": run(words, folder / "1x2", 1, threads=2),
            "2, statistics of the whole batch": run(whole, folder / "2", 2),
            "4, statistics of the whole batch": run(whole, folder / "4", 4),
            "2, statistics of each part": run(words, folder / "2 parts", 2),
            "4, statistics of each part": run(words, folder / "4 parts", 4),
        }
        resumed = folder / "resumed"
        run(whole, resumed, 4, stop="0,20")
        run(whole, resumed, 2, stop="1,7")
        found["4, then 2, then 1"] = run(whole, resumed, 1)
    print_tables(row(name, rows, alone) for name, rows in found.items())


if __name__ == "__main__":
    main()
