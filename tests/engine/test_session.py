"""A session restored from its state inside an epoch goes on to the same bits."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch

from fastlsr.config import load
from fastlsr.engine.runtime import set_up_torch
from fastlsr.engine.session import Position, Session, training_loader
from fastlsr.errors import InputError
from fastlsr.labels.methods import METHODS, make_plan
from fastlsr.labels.plan import IN_PASS, LEARNED, Phase
from fastlsr.models import build_model

CPU = torch.device("cpu")


def started(config, state=None):
    set_up_torch(CPU)
    plan = make_plan(config.method, config.train.epochs)
    return Session(config, plan, CPU, state=state, report=lambda text: None)


def run(session, batches):
    """Takes `batches` batches, across epochs and phases, as `train` does."""
    while batches:
        for batch in session.batches():
            session.train_batch(*batch)
            batches -= 1
            if not batches:
                break
        if session.position.batches == len(session.train):
            session.end_epoch()
    return session


@functools.cache
def uninterrupted(config):
    return run(started(config), 22).state_dict()


def flat(tree, prefix=""):
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}{name}.").items()}
    return {prefix: tree}


def differing(one, other):
    """The names of what differs between two states, to the bit."""
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    return [
        name
        for name in one
        if not (torch.equal(one[name], other[name]) if torch.is_tensor(one[name]) else one[name] == other[name])
    ]


COLAM_2 = {"method.name": "colam", "method.stages": 2}
PEERS = {"method.name": "colam", "method.stages": 4, "method.peers": 20, "train.ema": 0.9, "optim.accumulate": 2}
EXTRA = {**COLAM_2, "method.label_pass": "extra"}
TSLA = {"method.name": "tsla", "method.drop_epoch": 1, "optim.schedule": "cosine", "optim.warmup_epochs": 1.5}
PLAIN_SGD = {"method.name": "label_refinery", "train.epochs": 2, "optim.momentum": 0}
REFINERY = {"method.name": "label_refinery", "train.epochs": 2, "train.ema": 0.9}
ADAMW = {"method.name": "label_refinery", "train.epochs": 2, "optim.name": "adamw", "optim.clip_norm": 1}


# 6 batches an epoch: inside the first epoch, inside a collecting one, at an epoch's end, inside a later stage
@pytest.mark.parametrize(
    ("options", "stop"),
    [
        *((options, stop) for options in (COLAM_2, PEERS, EXTRA, TSLA) for stop in (2, 8, 12, 16)),
        *((options, 16) for options in (PLAIN_SGD, ADAMW)),
        *((REFINERY, stop) for stop in (8, 12, 16)),  # the last two at and inside the second generation
        *(({"method.name": name}, 8) for name in ("online", "disturb_label", "confidence_penalty", "cs_kd")),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value),
)
def test_a_restored_session_goes_on_to_the_same_bits(digits_dir, options, stop):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "data.flip": "false",
            "train.epochs": 4, "train.precision": "fp32", "train.compile": "off"}  # fmt: skip
    config = load(overrides=base | options)
    whole = uninterrupted(config)
    state = copy.deepcopy(run(started(config), stop).state_dict())
    resumed = run(started(config, state), 22 - stop).state_dict()
    assert differing(whole, resumed) == []


def test_the_last_batches_of_an_epoch_are_a_step_of_their_own_over_their_own_samples(digits_dir):
    config = load(overrides={"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8",
                             "train.precision": "fp32", "train.compile": "off", "optim.accumulate": 4})  # fmt: skip
    session = started(config)
    stepped, samples = [], []
    for batch in session.batches():
        stepped.append(session.train_batch(*batch))
        samples.append(round(1 / session.step.scale.item()))
    assert stepped == [False, False, False, True, False, True]
    assert samples == [4 * 256] * 4 + [1438 - 4 * 256] * 2
    assert all(parameter.grad is None for parameter in session.network.parameters())


def test_the_extra_label_pass_is_a_plain_evaluation_of_every_training_image(digits_dir):
    options = {"method.name": "colam", "method.stages": 1, "method.label_pass": "extra", "method.temperature": 2.0,
               "train.epochs": 1, "data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8",
               "train.precision": "fp32", "train.compile": "off"}  # fmt: skip
    session = started(load(overrides=options))
    for batch in session.batches():
        session.train_batch(*batch)
    learned = session.end_epoch().learned
    assert learned.missing == [] and learned.count.sum() == 1438

    plain = training_loader(session.config, CPU, plain=True).epoch(0)
    images, labels = zip(*((b.images.clone(), b.labels.clone()) for b in plain), strict=True)
    with torch.no_grad():
        logits = torch.cat([session.network.eval()(part) for part in images])
    means = torch.stack([logits[torch.cat(labels) == label].mean(0) for label in range(10)])
    torch.testing.assert_close(learned.soft_labels, (means / 2).softmax(1), rtol=1e-4, atol=1e-5)


def session_with_drops(folder, state=None, **method):
    """Of a transformer with stochastic depth and dropout, 45 batches an epoch."""
    options = {"data.dataset": "digits", "data.dir": str(folder), "data.batch_size": 32, "data.resolution": 32,
               "data.augment": "resized_crop", "model.name": "timm/test_vit", "model.drop_path": 0.4,
               "model.dropout": 0.2, "train.epochs": 1, "train.precision": "fp32", "train.compile": "off"}  # fmt: skip
    return started(load(overrides=options | {f"method.{name}": value for name, value in method.items()}), state)


@pytest.mark.parametrize("method", [{"name": "colam", "stages": 1}, {"name": "tsla", "drop_epoch": 1}])
def test_a_restored_session_draws_the_dropout_that_it_would_have_drawn(digits_dir, method):
    whole = run(session_with_drops(digits_dir, **method), 6).state_dict()
    state = copy.deepcopy(run(session_with_drops(digits_dir, **method), 3).state_dict())
    resumed = run(session_with_drops(digits_dir, state, **method), 3).state_dict()
    assert differing(whole, resumed) == []


def test_nothing_is_dropped_where_the_network_is_evaluated_or_teaches(digits_dir):
    session = run(session_with_drops(digits_dir, name="label_refinery"), 3)
    images = next(iter(training_loader(session.config, CPU, plain=True).epoch(0))).images.clone()
    with torch.no_grad():
        assert not torch.equal(session.network(images), session.network(images))
    before = torch.get_rng_state()
    session.evaluate()
    assert session.network.training and torch.equal(torch.get_rng_state(), before), "nothing is drawn"
    session.position = Position(epochs=1)
    session.batches().close()  # enters the second generation
    assert torch.equal(session.step.former(images), session.step.former(images))


@pytest.mark.parametrize("peers", [0, 5])
def test_with_folds_class_means_and_counts_are_of_the_training_folds_alone(digits_dir, peers):
    options = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.folds": 5, "data.fold": 2}
    config = load(
        overrides={
            **options,
            "model.name": "resnet8",
            "method.name": "colam",
            "method.peers": peers,
            "train.compile": "off",
        }
    )
    session = started(config)
    held_out, trained = session.test.indices, session.train.indices
    member = session.learner.members(0)
    assert member.shape == session.learner.means.member.shape == (1438,), "by the sample's index in the file"
    assert not member[held_out].any() and member[trained].sum() == (10 * peers or len(trained))
    assert session.class_counts().sum() == len(trained) == 1438 - len(held_out)


def test_with_a_moving_average_that_is_what_teaches_the_next_generation(digits_dir):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "train.precision": "fp32",
            "train.compile": "off", "method.name": "label_refinery", "train.epochs": 1, "train.ema": 0.9}  # fmt: skip
    session = run(started(load(overrides=base)), 6)
    average = copy.deepcopy(session.ema.state_dict())
    session.batches().close()  # enters the epoch
    assert all(torch.equal(average[name], tensor) for name, tensor in session.step.former.model.state_dict().items())


def test_pairs_are_an_error_without_the_systems_file_cache(digits_dir):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "method.name": "cs_kd", "data.os_cache": "false"}
    with pytest.raises(InputError, match="data.os_cache=false"):
        started(load(overrides=base))


def test_a_generation_begins_anew_and_its_teacher_is_the_network_before(digits_dir):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "train.precision": "fp32",
            "train.compile": "off", "method.name": "label_refinery", "train.epochs": 1}  # fmt: skip
    session = run(started(load(overrides=base)), 6)
    before = copy.deepcopy(session.network.model.state_dict())
    session.batches().close()  # enters the epoch
    after = session.network.model.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in session.step.former.model.state_dict().items())
    assert not any(torch.equal(before[name], after[name]) for name in after if "conv" in name and "weight" in name)
    assert not any(state["momentum_buffer"].any() for state in session.optimizer.state.values())
    assert session.learning_rate_factor(session.steps_done()) == session.learning_rate_factor(0)
    images = next(session.train.epoch(1)).images
    first = session.step.former(images)
    assert torch.equal(first, session.step.former(images)) and not first.requires_grad, "in evaluation mode"


def test_fresh_weights_train_on_the_learned_labels_where_the_phase_says_so(digits_dir, monkeypatch):
    def anew(epochs):
        return [Phase(epochs, learns=IN_PASS), Phase(epochs, hard=0, soft=1, source=LEARNED, fresh=True)]

    monkeypatch.setitem(METHODS, "anew", anew)
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "train.precision": "fp32",
            "train.compile": "off", "method.name": "anew", "train.epochs": 1}  # fmt: skip
    session = run(started(load(overrides=base)), 6)
    session.batches().close()  # enters the epoch
    assert session.step.former is None and torch.equal(session.targets.table, session.learner.learned)


def test_a_phase_scales_the_learning_rate(digits_dir):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "train.precision": "fp32",
            "train.compile": "off", "method.name": "tsla", "train.epochs": 4, "method.drop_epoch": 2,
            "optim.schedule": "constant", "method.second_lr": 0.25}  # fmt: skip
    session = started(load(overrides=base))
    assert [session.learning_rate_factor(step) for step in (0, 11, 12, 23)] == [1, 1, 0.25, 0.25]


def test_each_sample_of_a_batch_has_a_peer_of_its_class(digits_dir):
    base = {"data.dataset": "digits", "data.dir": str(digits_dir), "method.name": "cs_kd", "data.folds": 5,
            "model.name": "resnet8", "train.precision": "fp32"}  # fmt: skip
    session = started(load(overrides={**base, "train.compile": "off"}))
    trained, seen = set(session.train.indices.tolist()), []
    for batch in session.train.epoch(0):
        (labels, peer_labels), (index, peers) = batch.labels.chunk(2), batch.index.chunk(2)
        assert torch.equal(labels, peer_labels) and not (index == peers).any()
        assert set(peers.tolist()) <= trained
        seen += index.tolist()
    assert sorted(seen) == sorted(trained), "every sample once, besides being a peer"


def test_a_generation_does_not_begin_from_other_pretrained_weights_than_the_first(digits_dir, tmp_path):
    path = tmp_path / "w.pt"
    options = {"data.dataset": "digits", "data.dir": str(digits_dir), "model.name": "resnet8", "train.compile": "off",
               "method.name": "label_refinery", "train.epochs": 1, "model.pretrained": str(path)}  # fmt: skip
    for seed, error in ((0, False), (1, True)):
        torch.manual_seed(0)
        torch.save(build_model("resnet8", classes=10, resolution=8).state_dict(), path)
        session = run(started(load(overrides=options)), 6)
        torch.manual_seed(seed)
        torch.save(build_model("resnet8", classes=10, resolution=8).state_dict(), path)
        with pytest.raises(InputError, match="has changed") if error else nullcontext():
            run(session, 1)
