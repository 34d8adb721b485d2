"""Does the trainer keep the processor busy with steps, and with nothing else?

    python benchmarks/step.py [--images 4096] [--epochs 6] [--model resnet8]

One run of the program itself, `fastlsr.train`, whose steps and evaluations are timed from outside. After each of its
epochs come as many of its own steps on one batch that stays where it is.

`trainer_vs_static` is the time from an epoch's first step to the end of its last, over that of those static steps:
what loading costs. `gap` is the time between an epoch's last step and the next one's first, without the evaluation,
over the epoch: log, checkpoint, and the loader's new start.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

from cifar import options, write_random
from timing import Report, at_most

from fastlsr.engine.session import Session
from fastlsr.train import main as train

BARS = {"trainer_vs_static": at_most(1.03), "gap": at_most(0.02)}
train_batch, evaluate = Session.train_batch, Session.evaluate  # the trainer's own


class Clock:
    """What a run spends on its steps, in turns with as many static ones."""

    def __init__(self) -> None:
        self.loaded: list[float] = []  # seconds of each epoch, from its first step to its last one's end
        self.static: list[float] = []
        self.gaps: list[float] = []  # from an epoch's last step to the next one's first, without the evaluation
        self._first = self._last = self._aside = 0.0
        self._batch = None

    def step(self, session: Session, *batch) -> bool:
        """The session's own step."""
        began = time.perf_counter()
        if session.position.batches == 0:
            if self._last:
                self.gaps.append(began - self._last - self._aside)
            self._first, self._batch = began, tuple(part.clone() for part in batch)
        stepped = train_batch(session, *batch)
        self._last = time.perf_counter()
        return stepped

    def evaluation(self, session: Session, *arguments) -> dict[str, float]:
        """The session's own evaluation, and then the static steps."""
        self.loaded.append(self._last - self._first)
        began = time.perf_counter()
        metrics = evaluate(session, *arguments)
        start = time.perf_counter()
        for _ in range(len(session.train)):
            session.step.accumulate(*self._batch, samples=len(self._batch[1]))
            session.step.update()
        self.static.append(time.perf_counter() - start)
        self._aside = time.perf_counter() - began
        return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--model", default="resnet8")
    given = parser.parse_args()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), train=given.images, test=512)
        chosen = options(Path(folder), data__batch_size=128, model__name=given.model, train__epochs=given.epochs,
                         train__precision="fp32", method__name="lsr")  # fmt: skip
        # Wrapped, not replaced: every call goes through to the session.
        with (
            mock.patch.object(Session, "train_batch", lambda session, *batch: clock.step(session, *batch)),
            mock.patch.object(Session, "evaluate", lambda session, *more: clock.evaluation(session, *more)),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            train([f"--{name}={value}" for name, value in chosen.items()])
    report = Report(BARS, {"images": given.images, "epochs": given.epochs, "model": given.model})
    seconds = {"trainer": clock.loaded[1:], "static": clock.static[1:], "gap": clock.gaps}  # the first one warms up
    report.table(f"an epoch of {given.model}", seconds, unit="images", units=given.images)
    report.ratio("trainer_vs_static", seconds["trainer"], seconds["static"])
    report.value("gap", statistics.median(clock.gaps) / statistics.median(clock.loaded[1:]))
    report.finish()


if __name__ == "__main__":
    main()
