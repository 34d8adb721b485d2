"""A real run of two epochs of every method, against a replay of it in plain NumPy from the papers' formulas.

The network is a linear softmax classifier, so that all of it can be written down here. The replay takes four things of
the package: the batches that the loader gives for (seed, epoch), the weights that a generation begins with, the labels
as `redrawn` drew them, and COLAM's peers as `choose_peers` chose them. Losses are formulas; their derivatives are taken
numerically, so that no gradient is derived twice in the same way.
"""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from fastlsr import rng, train
from fastlsr.config import load
from fastlsr.engine import checkpoint
from fastlsr.engine.session import evaluation_loader, training_loader
from fastlsr.labels.class_means import choose_peers
from fastlsr.labels.losses import redrawn
from fastlsr.labels.methods import METHODS
from fastlsr.models import registry
from fastlsr.models.small import SmallImageNetwork

CPU = torch.device("cpu")
CLASSES, INPUTS = 10, 3 * 8 * 8
SEED, RATE, MOMENTUM, DECAY, WARMUP_EPOCHS = 3, 0.05, 0.9, 5e-3, 0.5
THETA, T, ALPHA, BETA, LAMBDA, PEERS = 0.3, 2.0, 0.25, 0.4, 1.5, 20
OPTIONS = {
    "data.dataset": "digits", "data.batch_size": 64, "model.name": "linear", "optim.lr": RATE,
    "optim.momentum": MOMENTUM, "optim.weight_decay": DECAY, "optim.schedule": "cosine",
    "optim.warmup_epochs": WARMUP_EPOCHS, "train.seed": SEED, "train.device": "cpu", "train.precision": "fp32",
    "train.compile": "off", "log.wandb": "disabled",
}  # fmt: skip


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def cross_entropy(q, z):
    """float64[B], -sum_k q_k log softmax(z)_k, of targets q and logits z, both [B, K]."""
    return -(q * log_softmax(z)).sum(1)


def derivative(losses, z, step=1e-5):
    """float64[B, K], d losses(z)_i / d z_i by central differences; a sample's loss depends on its own logits alone."""
    moves = step * np.eye(z.shape[1])
    return np.stack([(losses(z + move) - losses(z - move)) / (2 * step) for move in moves], axis=1)


def read(batches):
    """What a loader gives, in NumPy: x uint8[B, 3, H, W] pixels, y int[B] labels, hot [B, K], i int[B] the samples."""
    copies = [[tensor.numpy().copy() for tensor in batch] for batch in batches]  # the loader uses its memory again
    return [SimpleNamespace(x=x, y=y, hot=np.eye(CLASSES)[y], i=i) for x, y, i in copies]


class Replay:
    """A linear softmax classifier in float64 and SGD with momentum, on the batches of a run.

    Attributes:
        epochs: the batches of each epoch, `plain` those of the training split as it is, `test` those of the test split;
            x float64[B, D] is normalised.
        train_loss, test_nll: what the run is to have logged for each epoch.
    """

    def __init__(self, config, *, starts, paired):
        self.plain = read(training_loader(config, CPU, plain=True).epoch(0))
        self.test = read(evaluation_loader(config, CPU).epoch(0))
        loader = training_loader(config, CPU, paired=paired)
        self.epochs = [read(loader.epoch(epoch)) for epoch in range(2)]
        pixels = np.concatenate([batch.x for batch in self.plain]) / 255
        mean, std = pixels.mean((0, 2, 3), keepdims=True), pixels.std((0, 2, 3), keepdims=True)
        for batch in sum(self.epochs, self.plain + self.test):
            batch.x = ((batch.x / 255 - mean) / std).reshape(len(batch.x), INPUTS)
        if paired:  # the second half of a batch are the peers of the first
            for batch in sum(self.epochs, []):
                (batch.x, batch.peers), (batch.y, peer_labels) = np.split(batch.x, 2), np.split(batch.y, 2)
                batch.hot, batch.i = np.eye(CLASSES)[batch.y], np.split(batch.i, 2)[0]
                assert (batch.y == peer_labels).all()
        self.starts, self.generation_epochs = iter(starts), config.train.epochs
        self.train_loss, self.test_nll = [], []
        self.begin()

    def begin(self):
        """Fresh weights, optimizer and schedule."""
        self.weight, self.bias = next(self.starts)
        self.velocity, self.steps = (np.zeros_like(self.weight), np.zeros_like(self.bias)), 0

    def answer(self, x):
        """Logits [B, K] of the weights at hand."""
        return x @ self.weight.T + self.bias

    def learning_rate(self):
        """Linear warm-up from zero, times half a cosine over the run."""
        epoch = self.steps / len(self.epochs[0])
        warm = min(1, (self.steps + 1) / (WARMUP_EPOCHS * len(self.epochs[0])))
        return RATE * warm * (1 + np.cos(np.pi * epoch / self.generation_epochs)) / 2

    def epoch(self, number, loss, *, rate=1.0):
        """(logits, labels) that the epoch saw, each batch's before its step, trained on `loss(z, batch)`."""
        logits, losses = [], []
        for batch in self.epochs[number]:
            z = self.answer(batch.x)
            logits.append(z)
            losses.append(loss(z, batch))
            slope = derivative(functools.partial(loss, b=batch), z) / len(z)
            self.step((slope.T @ batch.x, slope.sum(0)), rate * self.learning_rate())
        self.train_loss.append(np.concatenate(losses).mean())
        self.test_nll.append(np.concatenate([cross_entropy(b.hot, self.answer(b.x)) for b in self.test]).mean())
        return np.concatenate(logits), np.concatenate([batch.y for batch in self.epochs[number]])

    def step(self, gradients, rate):
        """Weight decay as part of the gradient, the momentum's sum, and the step against it."""
        weights = self.weight, self.bias
        gradients = [g + DECAY * w for g, w in zip(gradients, weights, strict=True)]
        self.velocity = tuple(MOMENTUM * v + g for v, g in zip(self.velocity, gradients, strict=True))
        self.weight, self.bias = (w - rate * v for w, v in zip(weights, self.velocity, strict=True))
        self.steps += 1


def smoothed(hot, theta, towards=1 / CLASSES):
    """TSLA Eq. 3: (1 - theta) y + theta y-hat."""
    return (1 - theta) * hot + theta * towards


def by_label(values, labels):
    """float64[K, K]: the mean of the values [N, K] of each class."""
    return np.stack([values[labels == label].mean(0) for label in range(CLASSES)])


def hard(run, teacher):
    for epoch in range(2):
        run.epoch(epoch, lambda z, b: cross_entropy(b.hot, z))


def lsr(run, teacher):
    for epoch in range(2):
        run.epoch(epoch, lambda z, b: cross_entropy(smoothed(b.hot, THETA), z))


def tsla(run, teacher):
    """TSLA Algorithm 2 with s = 1, the second stage at eta2 = eta1 / 2."""
    run.epoch(0, lambda z, b: cross_entropy(smoothed(b.hot, THETA), z))
    run.epoch(1, lambda z, b: cross_entropy(b.hot, z), rate=0.5)


def lsr_pre(run, teacher):
    for epoch in range(2):
        run.epoch(epoch, lambda z, b: cross_entropy(smoothed(b.hot, THETA, teacher["by_sample"][b.i]), z))


def tsla_pre(run, teacher):
    run.epoch(0, lambda z, b: cross_entropy(smoothed(b.hot, THETA, teacher["by_class"][b.y]), z))
    run.epoch(1, lambda z, b: cross_entropy(b.hot, z))


def table_by_class(run, teacher):
    for epoch in range(2):
        run.epoch(epoch, lambda z, b: cross_entropy(teacher["by_class"][b.y], z / T))


def table_by_sample(run, teacher):
    for epoch in range(2):
        run.epoch(epoch, lambda z, b: cross_entropy(teacher["by_sample"][b.i], z / T))


def colam(run, teacher):
    """COLAM Algorithm 1 with m = 2; the class means (Eq. 6) are of the logits that the first stage trained on."""
    logits, labels = run.epoch(0, lambda z, b: cross_entropy(b.hot, z / T))
    soft = softmax(by_label(logits, labels) / T)
    run.epoch(1, lambda z, b: cross_entropy(soft[b.y], z / T))


def colam_extra(run, teacher):
    """The same, the means over what the network says of every image once the stage is over."""
    run.epoch(0, lambda z, b: cross_entropy(b.hot, z / T))
    logits = np.concatenate([run.answer(b.x) for b in run.plain])
    soft = softmax(by_label(logits, np.concatenate([b.y for b in run.plain])) / T)
    run.epoch(1, lambda z, b: cross_entropy(soft[b.y], z / T))


def colam_peers(run, teacher):
    """The means are of a few random samples of each class (Sect. 5.3)."""
    logits, labels = run.epoch(0, lambda z, b: cross_entropy(b.hot, z / T))
    chosen = choose_peers(np.concatenate([b.y for b in run.plain]), PEERS, seed=SEED, stage=0)
    assert (np.bincount(np.concatenate([b.y for b in run.plain]), weights=chosen) == PEERS).all()
    counts = chosen[np.concatenate([b.i for b in run.epochs[0]])] > 0
    soft = softmax(by_label(logits[counts], labels[counts]) / T)
    run.epoch(1, lambda z, b: cross_entropy(soft[b.y], z / T))


def online(run, teacher):
    """Zhang et al. 2021: half hard, half the former epoch's mean prediction over those it got right; first uniform."""
    logits, labels = run.epoch(0, lambda z, b: cross_entropy(0.5 * b.hot + 0.5 / CLASSES, z))
    right = logits.argmax(1) == labels
    soft = by_label(softmax(logits[right]), labels[right])
    run.epoch(1, lambda z, b: cross_entropy(0.5 * b.hot + 0.5 * soft[b.y], z))


def disturb_label(run, teacher):
    """Xie et al. 2016; every epoch draws anew."""
    for epoch in range(2):
        seed = torch.tensor(rng.derived_seed(rng.Stream.REDRAWS, SEED, epoch))

        def labels(b, seed=seed):
            drawn = redrawn(torch.from_numpy(b.y), torch.from_numpy(b.i), torch.tensor(ALPHA), CLASSES, seed)
            return np.eye(CLASSES)[drawn.numpy()]

        run.epoch(epoch, lambda z, b: cross_entropy(labels(b), z))


def confidence_penalty(run, teacher):
    """Pereyra et al. 2017: -log p_y - beta H(p)."""
    for epoch in range(2):
        run.epoch(epoch, lambda z, b: cross_entropy(b.hot, z) - BETA * cross_entropy(softmax(z), z))


def cs_kd(run, teacher):
    """Yun et al. 2020: -log p_y + lambda T^2 KL(p(peer; T) || p(x; T)), the peer's prediction a constant."""

    def loss(z, b):
        peer = softmax(run.answer(b.peers) / T)
        divergence = (peer * (np.log(peer) - log_softmax(z / T))).sum(1)
        return cross_entropy(b.hot, z) + LAMBDA * T**2 * divergence

    for epoch in range(2):
        run.epoch(epoch, loss)


def label_refinery(run, teacher):
    """Bagherinezhad et al. 2018: fresh weights, towards what the former network says of the same crop."""
    run.epoch(0, lambda z, b: cross_entropy(b.hot, z))
    weight, bias = run.weight, run.bias
    run.begin()
    run.epoch(1, lambda z, b: cross_entropy(softmax(b.x @ weight.T + bias), z))


BY_CLASS, BY_SAMPLE = {"teacher_key": "class"}, {"teacher_key": "sample"}
CASES = {  # the plain version -> options of its run
    hard: {"name": "hard"},
    lsr: {"name": "lsr", "smoothing": THETA},
    tsla: {"name": "tsla", "smoothing": THETA, "drop_epoch": 1, "second_lr": 0.5},
    lsr_pre: {"name": "lsr_pre", "smoothing": THETA, **BY_SAMPLE},
    tsla_pre: {"name": "tsla_pre", "smoothing": THETA, "drop_epoch": 1, **BY_CLASS},
    table_by_class: {"name": "table", "temperature": T, **BY_CLASS},
    table_by_sample: {"name": "table", "temperature": T, **BY_SAMPLE},
    colam: {"name": "colam", "stages": 2, "temperature": T},
    colam_extra: {"name": "colam", "stages": 2, "temperature": T, "label_pass": "extra"},
    colam_peers: {"name": "colam", "stages": 2, "temperature": T, "peers": PEERS},
    online: {"name": "online"},
    disturb_label: {"name": "disturb_label", "alpha": ALPHA},
    confidence_penalty: {"name": "confidence_penalty", "beta": BETA},
    cs_kd: {"name": "cs_kd", "kd_weight": LAMBDA, "kd_temperature": T},
    label_refinery: {"name": "label_refinery", "generations": 2},
}


def linear_network(classes):
    as_maps = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (INPUTS, 1, 1)))
    return SmallImageNetwork(as_maps, num_features=INPUTS, classes=classes)


@pytest.fixture
def starts(monkeypatch):
    """The weights that each linear network began with; `model.name=linear` builds one."""
    begun = []

    def linear(classes):
        network = linear_network(classes)
        begun.append([tensor.detach().double().numpy().copy() for tensor in (network.fc.weight, network.fc.bias)])
        return network

    monkeypatch.setitem(registry.SMALL_IMAGE_NETWORKS, "linear", linear)
    return begun


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_in(tmp_path_factory.mktemp("teacher"))


def teacher_in(folder):
    """(file, its tables): soft labels by class and by sample, in 1024ths, which float16 holds exactly."""
    random = np.random.default_rng(0)
    tables = {
        "by_class": random.multinomial(1024, random.dirichlet(np.ones(CLASSES), CLASSES)) / 1024,
        "by_sample": random.multinomial(1024, random.dirichlet(np.ones(CLASSES), 1438)) / 1024,
    }
    path = folder / "teacher.safetensors"
    save_file({name: table.astype(np.float16) for name, table in tables.items()}, path)
    return path, tables


@pytest.mark.parametrize("plain", CASES, ids=lambda plain: plain.__name__)
def test_a_run_is_its_replay_in_plain_numpy(plain, digits_dir, tmp_path, starts, teacher):
    method = {f"method.{name}": value for name, value in CASES[plain].items()}
    method |= {"method.teacher": teacher[0]} if "method.teacher_key" in method else {}
    epochs = 1 if plain is label_refinery else 2  # of a generation
    places = {"data.dir": digits_dir, "run.dir": tmp_path, "run.name": "run", "train.epochs": epochs}
    words = [f"--{key}={value}" for key, value in (OPTIONS | method | places).items()]
    assert train.main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = checkpoint.load_newest(tmp_path / "run")[0]["model"]

    replay = Replay(load(overrides=words), starts=starts, paired=plain is cs_kd)
    plain(replay, teacher[1])
    np.testing.assert_allclose([row["train/loss"] for row in rows], replay.train_loss, atol=1e-5)
    np.testing.assert_allclose([row["test/nll"] for row in rows], replay.test_nll, atol=1e-5)
    np.testing.assert_allclose(trained["fc.weight"], replay.weight, atol=1e-5)
    np.testing.assert_allclose(trained["fc.bias"], replay.bias, atol=1e-5)


def test_every_method_has_its_replay():
    assert {options["name"] for options in CASES.values()} == set(METHODS)
