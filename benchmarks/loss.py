"""What does a soft-target loss cost, forward and backward, on float32 logits?

    python benchmarks/loss.py [--batch 4096] [--rounds N]

For K = 100 and 1000 classes, targets q = hard * onehot(y) + uniform/K + soft * S[y], or what each contender can do:

    ours       the package's fused loss, compiled, all of q
    mix        the same q as eager tensors: one-hot * a + uniform * u + table[y] * w into F.cross_entropy
    dense      F.cross_entropy on the gathered rows table[y] alone (COLAM as usually written)
    torch_ls   F.cross_entropy(label_smoothing=0.1), labels alone (LSR and TSLA as usually written)

`extra_bk` is the peak memory of our forward and backward besides logits and labels, by torch's allocation records, in
units of a float32 [B, K] (the gradient it returns is one).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import Report, at_least, at_most, in_turns
from torch.nn import functional as F

from fastlsr.cores import cores
from fastlsr.labels.losses import soft_target_cross_entropy

BARS = {
    "vs_mix_100": at_least(3.5), "vs_mix_1000": at_least(5), "vs_dense_100": at_least(2), "vs_dense_1000": at_least(3),
    "vs_torch_ls_100": at_least(1.5), "vs_torch_ls_1000": at_least(1.5), "extra_bk": at_most(1.2),
}  # fmt: skip
HARD, UNIFORM, SOFT = 0.6, 0.1, 0.3


def contenders(batch: int, classes: int) -> dict[str, Callable[[], None]]:
    """Name -> a step that leaves the gradient of the mean loss in the same logits."""
    torch.manual_seed(0)
    logits = torch.randn(batch, classes, requires_grad=True)
    labels = torch.randint(classes, (batch,))
    table = torch.randn(classes, classes).softmax(1)
    mix, scale = torch.tensor([HARD, UNIFORM, SOFT, 1.0]), torch.tensor(1 / batch)
    fused = torch.compile(soft_target_cross_entropy, dynamic=False)

    @torch.no_grad()
    def ours() -> None:
        logits.grad = None
        _, logits.grad = fused(logits, labels, mix, table, scale)

    def mixed() -> torch.Tensor:
        targets = HARD * F.one_hot(labels, classes) + UNIFORM / classes + SOFT * table[labels]
        return F.cross_entropy(logits, targets)

    def dense() -> torch.Tensor:
        return F.cross_entropy(logits, table[labels])

    def smoothed() -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=0.1)

    def step(loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            logits.grad = None
            loss().backward()

        return run

    return {"ours": ours, "mix": step(mixed), "dense": step(dense), "torch_ls": step(smoothed)}


def repeated(step: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


def most_memory(step: Callable[[], None]) -> int:
    """Bytes: the peak of what a step allocates, by the profiler's record of every allocation."""
    step()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    report = Report(BARS, {"batch": options.batch, "rounds": options.rounds})
    for classes, times in ((100, 200), (1000, 20)):
        steps = contenders(options.batch, classes)
        seconds = in_turns({name: repeated(step, times) for name, step in steps.items()}, rounds=options.rounds, warm=2)
        seconds = {name: [taken / times for taken in all_taken] for name, all_taken in seconds.items()}
        report.table(f"B = {options.batch}, K = {classes}", seconds, unit="logits", units=options.batch * classes)
        for name in ("mix", "dense", "torch_ls"):
            report.ratio(f"vs_{name}_{classes}", seconds[name], seconds["ours"])
    report.value("extra_bk", most_memory(steps["ours"]) / (options.batch * classes * 4))
    report.finish()


if __name__ == "__main__":
    main()
