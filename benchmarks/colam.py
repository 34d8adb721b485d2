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

from cifar import options, write_random
from sessions import begin
from timing import Report, at_least, at_most, in_turns

BARS = {"in_pass": at_most(1.01), "extra_pass": at_least(1.2)}


def epochs(folder: Path, count: int, **more: object) -> Callable[[], None]:
    """What trains one more of `count` epochs, each the last of its stage."""
    session = begin(options(folder, data__batch_size=128, train__epochs=count, train__precision="fp32", **more))

    def epoch() -> None:
        for batch in session.batches():
            session.train_batch(*batch)
        session.end_epoch()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--model", default="resnet8")
    given = parser.parse_args()
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
