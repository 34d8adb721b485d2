"""A session restored from its state inside an epoch goes on to the same bits."""

import copy
import functools

import pytest
import torch

from fastlsr.config import load
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Session

CPU = torch.device("cpu")


def started(config, state=None):
    session = Session(config, CPU, decided=state["decided"] if state else {}, say=lambda text: None)
    set_up_torch(CPU, deterministic=False)
    if state:
        session.load_before_steps(state)
    session.prepare_steps()
    if state:
        session.load_after_steps(state)
    return session


def run(session, batches):
    """Takes `batches` batches, across epochs and phases, as `train` does."""
    while batches:
        session.enter_epoch()
        for batch in session.train.epoch(session.position.epochs, first_batch=session.position.batches):
            session.accumulate(*batch)
            batches -= 1
            if not batches:
                break
        if session.position.batches == len(session.train):
            _, phase, first = session.phase_at(session.position.epochs)
            if phase.learns and session.position.epochs == first + phase.epochs - 1:
                session.learn_soft_labels()
            session.position.epochs, session.position.batches = session.position.epochs + 1, 0
    return session


@functools.cache
def uninterrupted(config):
    return run(started(config), 22).state_dict()


def flat(tree, prefix=""):
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}{name}.").items()}
    return {prefix: tree}


@pytest.mark.parametrize(
    "options",
    [
        {"method.name": "colam", "method.stages": 2},
        {"method.name": "colam", "method.stages": 4, "method.peers": 20, "train.ema": 0.9, "optim.accumulate": 2},
        {"method.name": "colam", "method.stages": 2, "method.label_pass": "extra"},
        {"method.name": "tsla", "method.drop_epoch": 1, "optim.schedule": "cosine", "optim.warmup_epochs": 1.5},
    ],
    ids=["colam", "peers, average and accumulation", "extra pass", "tsla"],
)
# 6 batches an epoch: inside the first epoch, inside a collecting one, at an epoch's end, inside a later stage
@pytest.mark.parametrize("stop", [2, 8, 12, 16])
def test_a_restored_session_goes_on_to_the_same_bits(digits_dir, options, stop):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "data.flip": "false",
            "train.epochs": 4, "train.precision": "fp32", "train.compile": "off"}  # fmt: skip
    config = load(overrides=base | options)
    whole = uninterrupted(config)
    state = copy.deepcopy(run(started(config), stop).state_dict())
    resumed = run(started(config, state), 22 - stop).state_dict()
    one, other = flat(whole), flat(resumed)
    assert one.keys() == other.keys()
    different = [
        name
        for name in one
        if not (torch.equal(one[name], other[name]) if torch.is_tensor(one[name]) else one[name] == other[name])
    ]
    assert different == []


def test_the_last_batches_of_an_epoch_are_a_step_of_their_own_over_their_own_samples(digits_dir):
    config = load(overrides={"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8",
                             "train.precision": "fp32", "train.compile": "off", "optim.accumulate": 4})  # fmt: skip
    session = started(config)
    session.enter_epoch()
    stepped, samples = [], []
    for batch in session.train.epoch(0):
        stepped.append(session.accumulate(*batch))
        samples.append(round(1 / session.step.scale.item()))
    assert stepped == [False, False, False, True, False, True]
    assert samples == [4 * 256] * 4 + [1438 - 4 * 256] * 2
    assert all(parameter.grad is None for parameter in session.network.parameters())


def test_the_extra_label_pass_is_a_plain_evaluation_of_every_training_image(digits_dir):
    options = {"method.name": "colam", "method.stages": 1, "method.label_pass": "extra", "method.temperature": 2.0,
               "train.epochs": 1, "data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8",
               "train.precision": "fp32", "train.compile": "off"}  # fmt: skip
    session = started(load(overrides=options))
    session.enter_epoch()
    for batch in session.train.epoch(0):
        session.accumulate(*batch)
    assert session.learn_soft_labels() == []

    images, labels = zip(*((b.images.clone(), b.labels.clone()) for b in session.plain.epoch(0)), strict=True)
    with torch.no_grad():
        logits = torch.cat([session.network.eval()(part) for part in images])
    means = torch.stack([logits[torch.cat(labels) == label].mean(0) for label in range(10)])
    torch.testing.assert_close(session.learned, (means / 2).softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("peers", [0, 5])
def test_with_folds_class_means_and_counts_are_of_the_training_folds_alone(digits_dir, peers):
    options = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.folds": 5, "data.fold": 2}
    config = load(overrides={**options, "model.name": "resnet8", "method.name": "colam", "method.peers": peers})
    session = Session(config, CPU, decided={}, say=lambda text: None)
    held_out, trained = session.test.indices, session.train.indices
    member = session.peers(0, session.phases[0])
    assert member.shape == session.means.member.shape == (1438,), "by the sample's index in the file"
    assert not member[held_out].any() and member[trained].sum() == (10 * peers or len(trained))
    assert session.class_counts().sum() == len(trained) == 1438 - len(held_out)
