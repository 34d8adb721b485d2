"""What only a CUDA device shows: batches that stay whole, a loop that never waits, and the CPU's numbers."""

import pytest
import torch

from fastlsr.config import load
from fastlsr.data.loader import Loader
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Session
from fastlsr.labels.methods import make_plan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda", 0)


def session_on(device, digits_dir, **options):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.batch_size": 64, "model.name": "resnet8",
            "method.name": "colam", "method.stages": 1, "train.epochs": 1, "train.precision": "fp32"}  # fmt: skip
    chosen = base | {key.replace("__", "."): value for key, value in options.items()}
    set_up_torch(device)
    config = load(overrides=chosen)
    plan = make_plan(config.method, config.train.epochs)
    return Session(config, plan, device, report=lambda text: None)


def test_batches_are_the_cpus_even_when_the_device_lags_behind(digits_dir):
    data = load(overrides={"data.batch_size": 32}).data
    loaders = [
        Loader(digits_dir / "digits_train.beton", data, train=True, seed=0, device=torch.device(d))
        for d in ("cpu", CUDA)
    ]
    burden = torch.randn(2048, 2048, device=CUDA)
    kept = []
    for batch in loaders[1].epoch(0):
        for _ in range(20):
            burden = burden @ burden / 2048  # the host runs ahead of this
        kept.append(batch.images.clone())
    for mine, plain in zip(kept, loaders[0].epoch(0), strict=True):
        assert torch.equal(mine.cpu(), plain.images)


@pytest.mark.parametrize("options", [{"train__compile": "off"}, {"train__compile": "on"}, {"train__ema": 0.9},
                                     {"train__precision": "fp16"}])  # fmt: skip
def test_the_batch_loop_never_waits_for_the_device(digits_dir, options):
    session = session_on(CUDA, digits_dir, **options)
    try:
        for number, batch in enumerate(session.batches()):
            if number == 4:  # compiled and warm
                torch.cuda.set_sync_debug_mode("error")
            session.train_batch(*batch)
            session.totals.read_late()
            if number == 15:
                break
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_epoch_has_the_cpus_loss_and_class_means(digits_dir):
    found = []
    for device in (torch.device("cpu"), CUDA):
        session = session_on(device, digits_dir, train__compile="off", optim__lr=0.01)
        for batch in session.batches():
            session.train_batch(*batch)
        found.append((session.totals.read().loss, session.learner.means.count.cpu()))
    assert found[0][0] == pytest.approx(found[1][0], rel=0.02)
    assert torch.equal(found[0][1], found[1][1])
