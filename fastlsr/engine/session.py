"""Everything a run holds between its first and its last step, and how it is saved and restored."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlsr.config import Config, Data
from fastlsr.data.loader import Batch, Loader
from fastlsr.data.manifest import Manifest, digest_of
from fastlsr.data.soft_labels import SampleLabels, class_labels, sample_labels
from fastlsr.data.splits import data_digests, fold_name, held_out_subset, split_paths, training_subset
from fastlsr.engine.evaluation import evaluate
from fastlsr.engine.runtime import choose_compile, choose_precision
from fastlsr.engine.schedule import Schedule, build_optimizer, set_learning_rate
from fastlsr.engine.step import Classifier, MovingAverage, TrainStep
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.labels.class_means import ClassMeans, choose_peers
from fastlsr.labels.methods import (
    CORRECT,
    EXTRA_PASS,
    FORMER_NETWORK,
    LEARNED,
    TEACHER_CLASS,
    TEACHER_SAMPLE,
    Phase,
    phases,
)
from fastlsr.labels.targets import Targets
from fastlsr.models import build_model, expected_normalization, head_parameters

Watch = Callable[[Iterator[Batch]], Iterator[Batch]]

_ENTROPY_VALUES = 1 << 22  # of targets that are looked at together


@dataclass
class Position:
    """How far a run is: `epochs` whole epochs and `batches` of the one under way."""

    epochs: int = 0
    batches: int = 0


def training_loader(config: Config, device: torch.device, *, plain: bool = False, paired: bool = False) -> Loader:
    """The batches to train on; `plain` gives the same samples in the file's order and not augmented, `paired` each with
    another of its class.

    Raises:
        InputError: for files or options that do not fit.
    """
    train, _ = split_paths(config)
    seed, subset = config.train.seed, training_subset(config.data)
    return Loader(train, config.data, train=not plain, seed=seed, device=device, subset=subset, paired=paired)


def evaluation_loader(config: Config, device: torch.device) -> Loader:
    """The batches to evaluate on: those of the evaluation split, or of the fold held out of the training split.

    Raises:
        InputError: for files or options that do not fit.
    """
    _, val = split_paths(config)
    seed, subset = config.train.seed, held_out_subset(config.data)
    return Loader(val, config.data, train=False, seed=seed, device=device, subset=subset)


def teacher_digest(config: Config) -> str | None:
    """The digest of `method.teacher`, or None for a method that reads no teacher.

    Raises:
        InputError: if the file cannot be read.
    """
    sources = {phase.source for phase in phases(config.method, config.train.epochs)}
    if sources.isdisjoint({TEACHER_CLASS, TEACHER_SAMPLE}):
        return None
    try:
        return digest_of(Path(config.method.teacher))
    except OSError as error:
        raise InputError(f"method.teacher={config.method.teacher}: {error.strerror}") from None


def read_teacher(config: Config, manifest: Manifest, device: torch.device) -> tuple[Tensor | None, SampleLabels | None]:
    """(float32[K, K] by class, by sample): what the method's phases read of `method.teacher`; None where they do not.

    Raises:
        InputError: if the file cannot be read, or is not for this training split (`manifest`).
    """
    path, fold = Path(config.method.teacher), fold_name(config.data)
    sources = {phase.source for phase in phases(config.method, config.train.epochs)}
    table = class_labels(path, manifest, fold=fold) if TEACHER_CLASS in sources else None
    return table, sample_labels(path, manifest, fold=fold, device=device) if TEACHER_SAMPLE in sources else None


def build_network(config: Config, classes: int, resolution: int, *, pretrained: str) -> nn.Module:
    """The configured network, seeded, for square images of `resolution` pixels; `pretrained` as in `build_model`."""
    torch.manual_seed(config.train.seed)
    return build_model(config.model.name, classes=classes, pretrained=pretrained, resolution=resolution)


def wrap(model: nn.Module, decided: dict[str, Any], config: Config) -> Classifier:
    """The model as a classifier of uint8 images, with the precision and normalisation that a run decided on."""
    precision, channels_last = decided["precision"], config.train.channels_last
    return Classifier(model, *decided["normalization"], precision=precision, channels_last=channels_last)


def trained_network(state: dict[str, Any], config: Config, loader: Loader, device: torch.device) -> Classifier:
    """The network in a run's checkpoint as the run evaluates it: its moving average where there is one, in eval mode.

    Args:
        config: the run's, where its data or device may be others.
        loader: of images as the run saw them.

    Raises:
        InputError: if the classes are not those it was trained on.
    """
    manifest = loader.manifest
    if list(manifest.classes) != state["decided"]["classes"]:
        raise InputError(f"data.dataset={config.data.dataset} has other classes than the run was trained on")
    model = build_network(config, len(manifest.classes), loader.resolution, pretrained="")
    model.load_state_dict(state["ema"] or state["model"])
    return wrap(model, state["decided"], config).to(device).eval()


def _stream(seed: int, number: int) -> int:
    """62 bits that stand for a pair of whole numbers, as a seed of their own."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> np.uint64(2))


def refuse_lone_image(model: nn.Module, count: int, data: Data) -> None:
    """Refuses a last batch of one image for a network with batch normalisation, which has no statistics of one.

    Raises:
        InputError: then.
    """
    normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if normalises and not data.drop_last and min(count, data.batch_size) > 1 and count % data.batch_size == 1:
        raise InputError(
            f"data.batch_size={data.batch_size} leaves a last batch of one of {count} images, which batch "
            "normalisation cannot take; choose another, or data.drop_last=true"
        )


class Session:
    """A run under way: data, network, targets, optimizer, and its position.

    Args:
        config: the options.
        device: where to train.
        decided: what the run that this one resumes decided on: "precision", "compile", "normalization" (mean and
            std, those its pre-trained weights expect or else the training split's), "data" and "teacher" (digests)
            and "classes" (names). Empty for a new run.
        say: prints a line.

    Raises:
        InputError: for data, weights or options that do not fit.
    """

    def __init__(self, config: Config, device: torch.device, *, decided: dict[str, Any], say: Callable[[str], None]):
        self.config, self.device, self.decided, self.say = config, device, dict(decided), say
        self.position = Position()
        self.phases = phases(config.method, config.train.epochs)
        self.train = training_loader(config, device, paired=any(phase.pair_weight for phase in self.phases))
        self.test = evaluation_loader(config, device)
        if config.data.folds:
            held_out = f"{len(self.test.indices):,} of {self.train.manifest.count:,} training images are held out"
            say(f"fold {config.data.fold} of {config.data.folds}: {held_out}, and evaluated on as `test`")
        manifest, resolution = self.train.manifest, self.train.resolution
        if decided:
            model = build_network(config, len(manifest.classes), resolution, pretrained="")
        else:
            model = build_network(config, len(manifest.classes), resolution, pretrained=config.model.pretrained)
            expected = expected_normalization(model, config.model.pretrained) or (manifest.mean, manifest.std)
            self.decided["normalization"] = [list(values) for values in expected]
            self.decided["precision"] = choose_precision(config.train.precision, device, say)
            self.decided["data"] = data_digests(config)
            self.decided["teacher"] = teacher_digest(config)
            self.decided["classes"] = list(manifest.classes)
        refuse_lone_image(model, len(self.train.indices), config.data)
        self.network = wrap(model, self.decided, config).to(device)
        self.classes = len(manifest.classes)
        self.schedule = Schedule(
            config.optim, config.train.epochs, math.ceil(len(self.train) / config.optim.accumulate)
        )
        self.optimizer = build_optimizer(self.network.model, head_parameters(self.network.model), config.optim)
        self.targets = Targets(self.classes, self.phases, device=device)
        table, self.teacher = read_teacher(config, manifest, device)
        if table is not None:
            self.targets.table.copy_(table)
        self._entropies: dict[Phase, float] = {}
        self.former: Classifier | None = None
        kinds = {phase.learns for phase in self.phases} - {None}
        self.means, self.learned = None, None
        if kinds:
            correct_only = kinds == {CORRECT}
            self.means = ClassMeans(self.classes, manifest.count, correct_only=correct_only, device=device)
            uniform = torch.full((self.classes, self.classes), 1 / self.classes, device=device)
            self.learned = uniform if correct_only else torch.eye(self.classes, device=device)
        self.plain = training_loader(config, device, plain=True) if EXTRA_PASS in kinds else None
        self.ema = MovingAverage(self.network.model, config.train.ema) if config.train.ema else None
        self.wandb_id: str | None = None
        self.advised = False  # of what may help where training waits for its data
        self._compiled: set[tuple[str, int, Classifier | None]] = set()

    def prepare_steps(self) -> None:
        """Makes the training step and the evaluation's forward pass, compiled or not."""
        if "compile" not in self.decided:
            size = self.train.resolution
            count = min(self.config.data.batch_size, len(self.train.indices))
            images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
            images = images.to(self.device, memory_format=torch.channels_last)
            steps = len(self.train) * self.epochs
            wish = self.config.train.compile
            self.decided["compile"] = choose_compile(wish, self.network, images, steps, self.say)
        compile = self.decided["compile"]
        self.step = TrainStep(
            self.network,
            self.optimizer,
            self.targets,
            self.means,
            teacher=self.teacher,
            phases=self.phases,
            compile=compile,
        )
        evaluated = self.network if self.ema is None else self.network.around(self.ema.model)
        self.evaluated: nn.Module = evaluated
        self.forward = torch.compile(evaluated, dynamic=False) if compile else evaluated

    @property
    def epochs(self) -> int:
        """Epochs of the whole run: `train.epochs` for each generation."""
        return sum(phase.epochs for phase in self.phases)

    def phase_at(self, epoch: int) -> tuple[int, Phase, int]:
        """(0-based number, phase, its first epoch) of the phase that 0-based `epoch` belongs to."""
        first = 0
        for number, phase in enumerate(self.phases):
            if epoch < first + phase.epochs:
                return number, phase, first
            first += phase.epochs
        raise IndexError(epoch)

    def enter_epoch(self) -> None:
        """Prepares targets, class means and, for a new generation, the network, if the epoch is not under way yet."""
        number, phase, first = self.phase_at(self.position.epochs)
        self.step.label_seed.fill_(_stream(self.config.train.seed, self.position.epochs))
        if self.position.batches:
            return
        if self.position.epochs == first:
            self.targets.enter(phase)
            if phase.source == LEARNED:
                self.targets.table.copy_(self.learned)
            if phase.fresh:
                self._begin_generation(number)
        if phase.learns and phase.learns != EXTRA_PASS and self.phase_ends():
            self.means.start(self.peers(number, phase))
        self.step.totals.reset()

    def _begin_generation(self, number: int) -> None:
        """Freezes the network as the teacher of the next one, which begins anew in the tensors the step holds."""
        if self.phases[number].source == FORMER_NETWORK:
            # With train.ema the average is what the run is judged by, hence also what teaches.
            self._set_former(copy.deepcopy(self.network if self.ema is None else self.network.around(self.ema.model)))
        config = replace(self.config.train, seed=_stream(self.config.train.seed, number) % 2**31)
        fresh = build_network(
            replace(self.config, train=config),
            self.classes,
            self.train.resolution,
            pretrained=self.config.model.pretrained,
        )
        self.network.model.load_state_dict(fresh.state_dict())
        for state in self.optimizer.state.values():
            if state.get("momentum_buffer") is not None:  # there is none without momentum
                state["momentum_buffer"].zero_()
        if self.ema:
            self.ema.load_state_dict(self.network.model.state_dict())

    def _set_former(self, former: Classifier) -> None:
        self.former = former.eval().requires_grad_(False)
        self.step.former = self.former

    def phase_ends(self) -> bool:
        """Whether the epoch at hand is the last of its phase."""
        _, phase, first = self.phase_at(self.position.epochs)
        return self.position.epochs == first + phase.epochs - 1

    def samples_before(self, batch: int) -> int:
        """Samples in the batches of an epoch before number `batch`."""
        return min(batch * self.config.data.batch_size, len(self.train.indices))

    def peers(self, number: int, phase: Phase) -> Tensor:
        """float32[N]: which samples of the training file the class means of phase `number` are taken over."""
        labels, indices = self.train.labels, self.train.indices
        member = torch.zeros(len(labels))
        chosen = choose_peers(labels[indices], phase.peers, seed=self.config.train.seed, stage=number)
        member[torch.from_numpy(indices)] = torch.from_numpy(chosen)
        return member

    def class_counts(self) -> Tensor:
        """float64[K]: training images of each class."""
        return torch.tensor(self.train.class_counts, dtype=torch.float64)

    def steps_done(self) -> int:
        """Optimizer steps since the run's beginning."""
        inside = self.position.batches // self.config.optim.accumulate
        return self.position.epochs * self.schedule.steps_per_epoch + inside

    def learn_soft_labels(self, watch: Watch = iter) -> list[int] | None:
        """Turns the class means of the phase that just ended into `learned`, if it is one that learns.

        Returns the classes without a sample, or None if there was nothing to learn.
        """
        number, phase, _ = self.phase_at(self.position.epochs)
        if not phase.learns:
            return None
        if phase.learns == EXTRA_PASS:
            self.means.start(self.peers(number, phase))
            self._label_pass(watch)
        self.means.stop()
        self.learned, missing = self.means.soft_labels(phase.temperature, former=self.learned)
        return missing

    @torch.inference_mode()
    def _label_pass(self, watch: Watch) -> None:
        """The textbook pass of COLAM Alg. 1, lines 10-14: every training sample once, as evaluation would see it."""
        self.network.eval()
        for images, labels, index in watch(self.plain.epoch(0)):
            self.means.update(self.network(images), labels, index)
        self.network.train()

    def evaluate(self, watch: Watch = iter) -> dict[str, float]:
        """Test metrics of the network, or of its moving average where there is one; `watch` may end the pass."""
        self.evaluated.eval()
        metrics = evaluate(self._answers, watch(self.test.epoch(0)), self.targets)
        self.network.train()
        return metrics

    def _answers(self, images: Tensor) -> Tensor:
        with self._compiling_told("evaluation", images):
            return self.forward(images)

    @contextmanager
    def _compiling_told(self, what: str, images: Tensor) -> Iterator[None]:
        """Says, where a compiled run does `what` for the first time with so many images, that and how long it takes."""
        key = (what, len(images), self.former)  # torch.compile makes a graph for each
        if not self.decided["compile"] or key in self._compiled:
            yield
            return
        self._compiled.add(key)
        self.say(f"compiling {what} for batches of {len(images)}")
        start = time.perf_counter()
        yield
        self.say(f"compiled in {time.perf_counter() - start:.1f} s")

    def refuse_broken_weights(self) -> None:
        """Raises TrainingFailed if a weight is not finite: such a state must not become a checkpoint."""
        if not all(parameter.isfinite().all() for parameter in self.network.parameters()):
            raise TrainingFailed(f"the weights are not finite after batch {self.position.batches}")

    def accumulate(self, images: Tensor, labels: Tensor, index: Tensor) -> bool:
        """Takes in the batch at hand; moves the weights, and answers True, when it is the last of its group."""
        group = self.config.optim.accumulate
        first = self.position.batches - self.position.batches % group
        if self.position.batches == first:
            set_learning_rate(self.optimizer, self.learning_rate_factor(self.steps_done()))
        last = min(first + group, len(self.train))
        samples = self.samples_before(last) - self.samples_before(first)
        with self._compiling_told("the training step", images):
            self.step.accumulate(images, labels, index, samples=samples)
        self.position.batches += 1
        if self.position.batches < last:
            return False
        self.step.update()
        if self.ema:
            self.ema.update(self.network.model)
        return True

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the peak rate at a 0-based optimizer step; each generation runs through the schedule anew."""
        _, phase, _ = self.phase_at(step // self.schedule.steps_per_epoch)
        steps = self.config.train.epochs * self.schedule.steps_per_epoch
        return phase.lr_scale * self.schedule.factor(step % steps)

    def last_learning_rate(self) -> float:
        """The peak group's rate at the last step of the epoch that just ended."""
        return self.config.optim.lr * self.learning_rate_factor(self.steps_done() - 1)

    def target_entropy(self) -> float | None:
        """Mean entropy, in nats, of this phase's targets over the training split; None where a network makes them."""
        _, phase, _ = self.phase_at(self.position.epochs)
        if phase.soft and phase.source == FORMER_NETWORK:
            return None
        if not phase.soft or phase.source != TEACHER_SAMPLE:
            return self.targets.mean_entropy(self.class_counts())
        if phase not in self._entropies:
            self._entropies[phase] = self._mean_entropy_by_sample()
        return self._entropies[phase]

    def _mean_entropy_by_sample(self) -> float:
        """Mean entropy of the targets of the phase under way, with the teacher's soft labels by sample."""
        rows, total = max(1, _ENTROPY_VALUES // self.classes), 0.0
        columns = (self.train.indices, self.train.labels[self.train.indices])
        for block in zip(*(torch.from_numpy(column).split(rows) for column in columns), strict=True):
            index, labels = (part.to(self.device) for part in block)
            targets = self.targets.dense(labels, self.teacher.rows(index))
            total += torch.special.entr(targets.double()).sum().item()
        return total / len(self.train.indices)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as tensors and plain values."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "config": self.config.as_dict(),
            "position": [self.position.epochs, self.position.batches],
            "decided": self.decided,
            "wandb_id": self.wandb_id,
            "model": self.network.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "targets": self.targets.state_dict(),
            "means": self.means.state_dict() if self.means else None,
            "learned": self.learned,
            "former": self.former.model.state_dict() if self.former else None,
            "totals": self.step.totals.values,
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_before_steps(self, state: dict[str, Any]) -> None:
        """Restores weights, targets and position, and what `prepare_steps` is to know."""
        self.wandb_id = state["wandb_id"]
        self.position = Position(*state["position"])
        self.network.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.targets.load_state_dict(state["targets"])

    def load_after_steps(self, state: dict[str, Any]) -> None:
        """Restores the rest, once `prepare_steps` has made what holds it."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        if self.means:
            self.means.load_state_dict(state["means"])
            self.learned = state["learned"].to(self.device)
        if state["former"]:
            former = copy.deepcopy(self.network)
            former.model.load_state_dict(state["former"])
            self._set_former(former)
        self.step.totals.values.copy_(state["totals"])
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
