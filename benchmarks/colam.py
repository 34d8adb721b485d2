"""What do COLAM's soft labels cost an epoch?

    python benchmarks/colam.py [--images 4096] [--rounds 11] [--model resnet8]

The same training epoch, on the same kind of data,

    without       on one-hot labels
    in_pass       as the last epoch of a stage, whose steps add their logits to the class means
    extra_pass    as the last epoch of a stage that is followed by a pass over the training split in evaluation mode

`in_pass` is in_pass / without: the price of the means. `extra_pass` is extra_pass / in_pass: what the shortcut saves.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from cifar import options, write_random
from timing import Report, at_least, at_most, in_turns

from fastlsr.config import load
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Session

BARS = {"in_pass": at_most(1.01), "extra_pass": at_least(1.2)}
CPU = torch.device("cpu")


def epochs(folder: Path, count: int, **more: object) -> Callable[[], None]:
    """What trains one more of `count` epochs, each the last of its stage."""
    config = load(overrides=options(folder, data__batch_size=128, train__epochs=count, train__precision="fp32", **more))
    session = Session(config, CPU, decided={}, say=lambda line: None)
    session.prepare_steps()

    def epoch() -> None:
        session.enter_epoch()
        for batch in session.train.epoch(session.position.epochs):
            session.accumulate(*batch)
        session.learn_soft_labels()
        session.position.epochs, session.position.batches = session.position.epochs + 1, 0

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--model", default="resnet8")
    given = parser.parse_args()
    set_up_torch(CPU, deterministic=False)
    report = Report(BARS, {"images": given.images, "rounds": given.rounds, "model": given.model})
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), given.rounds + 1
        write_random(folder, train=given.images, test=128)
        colam = {"method__name": "colam", "method__stages": count}
        contenders = {
            "without": epochs(folder, count, model__name=given.model, method__name="hard"),
            "in_pass": epochs(folder, count, model__name=given.model, **colam),
            "extra_pass": epochs(folder, count, model__name=given.model, method__label_pass="extra", **colam),
        }
        seconds = in_turns(contenders, rounds=given.rounds)
    report.table(f"a training epoch of {given.model}", seconds, unit="images", units=given.images)
    report.ratio("in_pass", seconds["in_pass"], seconds["without"])
    report.ratio("extra_pass", seconds["extra_pass"], seconds["in_pass"])
    report.finish()


if __name__ == "__main__":
    main()
