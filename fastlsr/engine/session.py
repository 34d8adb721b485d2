"""A run's training state between its first and its last step, and how it is saved and restored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastlsr import rng
from fastlsr.config import Config, Data
from fastlsr.data.loader import Batch, Loader
from fastlsr.data.manifest import Manifest
from fastlsr.data.soft_labels import SampleLabels, class_labels, sample_labels
from fastlsr.data.splits import Subset, fold_name, held_out_subset, split_paths, test_path, training_subset, whole
from fastlsr.engine import distributed
from fastlsr.engine.batchnorm import BatchNorm, running_statistics, synchronise
from fastlsr.engine.checkpoint import State
from fastlsr.engine.classifier import Classifier, MovingAverage
from fastlsr.engine.compiling import CompileNotices, choose_compile
from fastlsr.engine.convolutions import WHOLE, choose_weight_gradients, set_weight_gradients
from fastlsr.engine.cuda_graphs import copy_all, graphed_step
from fastlsr.engine.evaluation import CollectedLogits, evaluate
from fastlsr.engine.label_learning import LabelLearner, LearnedLabels, Watch
from fastlsr.engine.optimizers import build_optimizer, set_learning_rate
from fastlsr.engine.plugin_checks import check_registered
from fastlsr.engine.provenance import pretrained_source, source_digests
from fastlsr.engine.runtime import choose_precision
from fastlsr.engine.schedule import LearningRate, Schedule
from fastlsr.engine.step import TrainStep
from fastlsr.engine.totals import EpochTotals, Totals
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.labels.plan import EXTRA_PASS, FORMER_NETWORK, LEARNED, TEACHER_CLASS, TEACHER_SAMPLE, Plan
from fastlsr.labels.targets import Targets
from fastlsr.models import build_model, expected_normalization, head_parameters
from fastlsr.models.pretrained import has_fresh_classifier
from fastlsr.ranks import ALONE, Ranks, largest_share, share_size

_ENTROPY_VALUES = 1 << 22  # of targets that are looked at together
_MOST_RANKS = 1 << 12  # of the numbers that `rng.Stream.RANKS` has for an epoch


@dataclass
class Position:
    """How far a run is: `epochs` whole epochs and `batches` of the one under way."""

    epochs: int = 0
    batches: int = 0


@dataclass(frozen=True)
class EpochEnd:
    """The results of ending an epoch.

    Attributes:
        learning_rate: of its last step (of the classifier, with optim.backbone_lr).
        target_entropy: mean entropy of its targets over the training split, nats; None where a network makes them.
        learned: the soft labels of the phase that ended with it, if it learned any.
    """

    learning_rate: float
    target_entropy: float | None
    learned: LearnedLabels | None


def training_loader(
    config: Config,
    device: torch.device,
    *,
    plain: bool = False,
    paired: bool = False,
    chosen: Subset = whole,
    ranks: Ranks = ALONE,
) -> Loader:
    """The batches to train on.

    Args:
        plain: the same samples in the file's order and not augmented.
        paired: each sample with another of its class.
        chosen: takes some of the samples, from the labels of all of them.
        ranks: which part of each batch.

    Raises:
        InputError: for files or options that do not fit.
    """
    train, _ = split_paths(config)
    seed, of_split = config.train.seed, training_subset(config.data)

    def subset(labels: np.ndarray) -> np.ndarray:
        samples = of_split(labels)
        return samples[chosen(labels[samples])]

    return Loader(
        train, config.data, train=not plain, seed=seed, device=device, subset=subset, paired=paired, ranks=ranks
    )


def evaluation_loader(config: Config, device: torch.device, ranks: Ranks = ALONE) -> Loader:
    """The batches to evaluate on: those of the evaluation split, or of the fold held out of the training split.

    Raises:
        InputError: for files or options that do not fit.
    """
    _, val = split_paths(config)
    seed, subset = config.train.seed, held_out_subset(config.data)
    return Loader(val, config.data, train=False, seed=seed, device=device, subset=subset, ranks=ranks)


def loader_at_end(config: Config, device: torch.device, ranks: Ranks = ALONE) -> Loader:
    """The batches of the test split, on which a run that `selects_on_val` is evaluated at its end.

    Raises:
        InputError: for files or options that do not fit.
    """
    return Loader(test_path(config), config.data, train=False, seed=config.train.seed, device=device, ranks=ranks)


def read_teacher(
    config: Config, plan: Plan, manifest: Manifest, device: torch.device
) -> tuple[Tensor | None, SampleLabels | None]:
    """(float32[K, K] by class, by sample): what the plan's phases read of `method.teacher`; None where they do not.

    Raises:
        InputError: if the file cannot be read, or is not for this training split (`manifest`).
    """
    path, fold = Path(config.method.teacher), fold_name(config.data)
    table = class_labels(path, manifest, fold=fold) if TEACHER_CLASS in plan.sources else None
    return table, sample_labels(path, manifest, fold=fold, device=device) if TEACHER_SAMPLE in plan.sources else None


def build_network(config: Config, classes: int, resolution: int, *, pretrained: str) -> nn.Module:
    """The configured network, seeded, for square images of `resolution` pixels; `pretrained` as in `build_model`."""
    torch.manual_seed(config.train.seed)
    drops = {"drop_path": config.model.drop_path, "dropout": config.model.dropout}
    return build_model(config.model.name, classes=classes, pretrained=pretrained, resolution=resolution, **drops)


def classifier_of(model: nn.Module, decided: State, config: Config) -> Classifier:
    """The model as a classifier of uint8 images, with the precision and normalisation that a run decided on."""
    precision, channels_last = decided["precision"], config.train.channels_last
    return Classifier(model, *decided["normalization"], precision=precision, channels_last=channels_last)


def check_last_batch(model: nn.Module, count: int, data: Data) -> None:
    """Checks that no batch is a single image where the network has batch normalisation, which needs more than one.

    Raises:
        InputError: if one has.
    """
    normalises = any(isinstance(module, BatchNorm) for module in model.modules())
    if normalises and not data.drop_last and min(count, data.batch_size) > 1 and count % data.batch_size == 1:
        raise InputError(
            f"data.batch_size={data.batch_size} leaves a last batch of one of {count} images, which batch "
            "normalisation cannot take; choose another, or data.drop_last=true"
        )


class Session:
    """A run's training state. For each epoch: `batches`, `train_batch` for each of them, `evaluate`, `end_epoch`.

    Args:
        config: the options.
        plan: of its method.
        device: where to train.
        state: what to go on from, as `state_dict` gave it; None begins.
        report: prints a line.
        ranks: which of the processes that train the run together this is.

    Attributes:
        position: how far the run is.
        decided: what was decided when it began: "precision", "weight_gradients" ("in parts" or "whole"), "compile",
            "normalization" (mean and std, those its pre-trained weights expect or else the training split's), "data",
            "teacher" and "pretrained" (digests), "resolution" (pixels) and "classes".
        train, test: the loaders.
        network: what is trained.
        graphed: the training step as CUDA graphs, or None.
        schedule: the learning rate; another one may take its place before the first step.

    Raises:
        InputError: for data, weights or options that do not fit.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        device: torch.device,
        *,
        state: State | None = None,
        report: Callable[[str], None],
        ranks: Ranks = ALONE,
    ):
        self.config, self.plan, self.device, self.ranks = config, plan, device, ranks
        self.position = Position()
        self.train = training_loader(config, device, paired=plan.pairs, ranks=ranks)
        self.test = evaluation_loader(config, device, ranks)
        self._report_fold(report)
        manifest = self.train.manifest
        self.classes = len(manifest.classes)
        check_registered(plan, self.classes, report)
        model = self._build_network("" if state else config.model.pretrained)
        check_last_batch(model, len(self.train.indices), config.data)
        self.decided: State = dict(state["decided"]) if state else self._decide(model, report)
        self.network = classifier_of(model, self.decided, config).to(device)
        # A run that was begun before there were parts lacks the key, and goes on without them.
        set_weight_gradients(self.network, self.decided.get("weight_gradients", WHOLE))
        steps = math.ceil(len(self.train) / config.optim.accumulate)
        self.schedule: LearningRate = Schedule(config.optim, config.train.epochs, steps)
        self.optimizer = build_optimizer(model, head_parameters(model), config.optim)
        self._fresh_optimizer: State = copy.deepcopy(self.optimizer.state_dict()) if plan.begins_anew else {}
        self.targets = Targets(self.classes, plan, device=device)
        table, self.teacher = read_teacher(config, plan, manifest, device)
        if table is not None and self.targets.table is not None:
            self.targets.table.copy_(table)
        self.learner: LabelLearner | None = None
        if plan.learns:
            plain = training_loader(config, device, plain=True, ranks=ranks) if EXTRA_PASS in plan.learns else None
            self.learner = LabelLearner(plan, self.train, plain, seed=config.train.seed, device=device)
        self.ema = MovingAverage(model, config.train.ema) if config.train.ema else None
        if not state:
            self.decided["compile"] = self._decide_to_compile(report)
        compile = self.decided["compile"]
        if config.train.sync_batchnorm and ranks.world_size > 1:
            compile = self._synchronise(report) and compile
        self._notices = CompileNotices(compile, report)
        means = self.learner.means if self.learner else None
        self.step = TrainStep(
            self.network,
            self.optimizer,
            self.targets,
            means,
            teacher=self.teacher,
            clip_norm=config.optim.clip_norm,
            compile=compile,
        )
        self.graphed = graphed_step(self.step, config, device, ranks, report)
        self._evaluated = self.network if self.ema is None else self.network.around(self.ema.model)
        self._forward = torch.compile(self._evaluated, dynamic=False) if compile else self._evaluated
        self._entropies: dict[int, float] = {}
        if state:
            self._restore(state)
        else:
            self._draw_apart()

    def _synchronise(self, report: Callable[[str], None]) -> bool:
        """Synchronises the network's batch norms; returns whether it compiles with them."""
        synchronise(self.network, self.device)
        on_cpu = self.device.type == "cpu"
        if on_cpu and self.decided["compile"]:
            report("compile: off (batch norm that is synchronised on CPUs does not compile)")
        return not on_cpu

    def _report_fold(self, report: Callable[[str], None]) -> None:
        data = self.config.data
        if data.folds:
            held_out = f"{len(self.test.indices):,} of {self.train.manifest.count:,} training images are held out"
            report(f"fold {data.fold} of {data.folds}: {held_out}, and evaluated on as `{data.evaluated_split}`")

    def _build_network(self, pretrained: str, seed: int | None = None) -> nn.Module:
        config = self.config
        if seed is not None:
            config = replace(config, train=replace(config.train, seed=seed))
        return build_network(config, self.classes, self.train.resolution, pretrained=pretrained)

    def _decide(self, model: nn.Module, report: Callable[[str], None]) -> State:
        """The choices that stay fixed for the whole run, also when it is resumed elsewhere."""
        manifest = self.train.manifest
        pretrained = pretrained_source(model, self.config.model.pretrained)
        distributed.check_alike({f"model.pretrained={self.config.model.pretrained}": pretrained})
        if pretrained:
            rest = "; its classifier begins anew" if has_fresh_classifier(model) else ""
            report(f"weights: model.pretrained={self.config.model.pretrained}{rest}")
        expected = expected_normalization(model, self.config.model.pretrained) or (manifest.mean, manifest.std)
        precision = distributed.from_main(lambda: choose_precision(self.config.train.precision, self.device, report))
        return {
            "normalization": [list(values) for values in expected],
            "precision": precision,
            "weight_gradients": choose_weight_gradients(precision, self.device),
            **source_digests(self.config, self.plan),
            "pretrained": pretrained,
            "resolution": self.train.resolution,
            "classes": list(manifest.classes),
        }

    def _decide_to_compile(self, report: Callable[[str], None]) -> bool:
        size = self.train.resolution
        images = torch.randint(0, 256, (self.largest_batch(), 3, size, size), dtype=torch.uint8)
        images = images.to(self.device, memory_format=torch.channels_last)
        steps = len(self.train) * self.plan.epochs
        requested = self.config.train.compile
        return distributed.from_main(lambda: choose_compile(requested, self.network, images, steps, report))

    @property
    def totals(self) -> Totals:
        """Sums over the epoch under way."""
        return self.step.totals

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        return self.position.epochs == self.plan.epochs

    def batches(self) -> Generator[Batch, None, None]:
        """The batches of the epoch under way that were not trained on yet, on the device."""
        if not self.position.batches:
            self._begin_epoch()
        self.step.label_seed.fill_(rng.derived_seed(rng.Stream.REDRAWS, self.config.train.seed, self.position.epochs))
        return self.train.epoch(self.position.epochs, first_batch=self.position.batches)

    def _begin_epoch(self) -> None:
        """Prepares the targets, the class means and, for a new generation, the network."""
        number, phase, first = self.plan.at(self.position.epochs)
        if self.position.epochs == first:
            self.targets.enter(phase)
            if phase.source == LEARNED and self.targets.table is not None and self.learner:
                self.targets.table.copy_(self.learner.learned)
            if phase.fresh:
                self._begin_generation(number)
        if self.learner:
            self.learner.begin_epoch(self.position.epochs)
        self.totals.reset()

    def _begin_generation(self, number: int) -> None:
        """Freezes the network as the teacher of the next one, which begins anew in the tensors the step holds."""
        if self.plan.phases[number].source == FORMER_NETWORK:
            # With train.ema the average is what is evaluated, so it also teaches.
            self._set_former(copy.deepcopy(self.network if self.ema is None else self.network.around(self.ema.model)))
        if self.graphed:
            self.graphed.forget()
        seed = rng.derived_seed(rng.Stream.GENERATIONS, self.config.train.seed, number) % 2**31
        fresh = self._build_network(self.config.model.pretrained, seed)
        self._check_pretrained(fresh)
        self.network.model.load_state_dict(fresh.state_dict())
        self.optimizer.load_state_dict(copy.deepcopy(self._fresh_optimizer))
        if self.ema:
            self.ema.load_state_dict(self.network.model.state_dict())
        self._draw_apart()

    def _check_pretrained(self, fresh: nn.Module) -> None:
        """Raises InputError if a generation would start from other weights than the first one did."""
        pretrained = self.config.model.pretrained
        noted = "pretrained" in self.decided  # not by earlier versions
        if noted and self.decided["pretrained"] != pretrained_source(fresh, pretrained):
            raise InputError(f"model.pretrained={pretrained} has changed since the run began")

    def _draw_apart(self) -> None:
        """Gives each rank's dropout draws of its own from here on; rank 0 has those that it would have alone."""
        if rank := self.ranks.rank:
            number = self.position.epochs * _MOST_RANKS + rank
            torch.manual_seed(rng.derived_seed(rng.Stream.RANKS, self.config.train.seed, number))

    def _set_former(self, former: Classifier) -> None:
        self.step.former = former.eval().requires_grad_(False)

    def train_batch(self, images: Tensor, labels: Tensor, index: Tensor) -> bool:
        """Trains on the next batch; returns whether it moved the weights, as the last one of its group does.

        Args:
            images: uint8 [B, 3, H, W]; labels, index: int64 [B].
        """
        group = self.config.optim.accumulate
        first = self.position.batches - self.position.batches % group
        if self.position.batches == first:
            set_learning_rate(self.optimizer, self.learning_rate_factor(self.steps_done()))
        last = min(first + group, len(self.train))
        samples = self.samples_before(last) - self.samples_before(first)
        with self._notices.announced("the training step", len(images), self.step.former):
            moves = self.position.batches + 1 == last
            if self.graphed:
                self.graphed(images, labels, index, samples=samples)
            else:
                self.step.accumulate(images, labels, index, samples=samples, exchange=moves)
                if moves:
                    self.step.update()
        self.position.batches += 1
        if moves and self.ema:
            self.ema.update()
        return moves

    def evaluate(self, watch: Watch = iter, collect: CollectedLogits | None = None) -> dict[str, float]:
        """Figures of the network, or of its moving average where there is one, on the evaluation split.

        Args:
            watch: passes the batches on, and may end the pass by raising.
            collect: where the logits are added, too.
        """
        return self._evaluate_on(self.test, watch, collect)

    def evaluate_at_end(self, watch: Watch = iter, collect: CollectedLogits | None = None) -> dict[str, float]:
        """As `evaluate`, on the test split, which is opened for it."""
        return self._evaluate_on(loader_at_end(self.config, self.device, self.ranks), watch, collect)

    def _evaluate_on(self, loader: Loader, watch: Watch, collect: CollectedLogits | None) -> dict[str, float]:
        distributed.mean_(self._statistics(), counts=self._has_samples())
        self._evaluated.eval()
        metrics = evaluate(self._logits, watch(loader.epoch(0)), self.targets, collect)
        self.network.train()
        return metrics

    def _logits(self, images: Tensor) -> Tensor:
        with self._notices.announced("evaluation", len(images), self.step.former):
            return self._forward(images)

    def end_epoch(self, watch: Watch = iter) -> EpochEnd:
        """Learns the soft labels of a phase that ends here, and moves the position to the next epoch.

        Args:
            watch: as for `evaluate`; if it raises, the position stays.
        """
        learned = self.learner.end_epoch(self.position.epochs, self.network, watch) if self.learner else None
        entropy = self._target_entropy()
        self.position.epochs, self.position.batches = self.position.epochs + 1, 0
        learning_rate = self.config.optim.lr * self.learning_rate_factor(self.steps_done() - 1)
        return EpochEnd(learning_rate, entropy, learned)

    def largest_batch(self) -> int:
        """Images of the largest part of a full batch that any rank has; pairs count as two."""
        return largest_share(self.samples_before(1), self.ranks.world_size) * (2 if self.plan.pairs else 1)

    def _has_samples(self) -> bool:
        """Whether this rank has a part of any batch: then it has one of the first."""
        return share_size(self.samples_before(1), self.ranks.rank, self.ranks.world_size) > 0

    def samples_before(self, batch: int) -> int:
        """Samples in the batches of an epoch before number `batch`."""
        return min(batch * self.config.data.batch_size, len(self.train.indices))

    def steps_done(self) -> int:
        """Optimizer steps since the run's beginning."""
        inside = self.position.batches // self.config.optim.accumulate
        return self.position.epochs * self.schedule.steps_per_epoch + inside

    def learning_rate_factor(self, step: int) -> float:
        """Factor of the peak rate at a 0-based optimizer step; each generation runs through the schedule anew."""
        epoch, inside = divmod(step, self.schedule.steps_per_epoch)
        of_generation = self.plan.within_generation(epoch) * self.schedule.steps_per_epoch + inside
        return self.plan.at(epoch).phase.lr_scale * self.schedule.factor(of_generation)

    def learning_rate_at(self, batches: float) -> float:
        """The rate (of the classifier, with optim.backbone_lr) that so many batches of the epoch under way end with."""
        groups = max(0, math.ceil(batches / self.config.optim.accumulate) - 1)
        step = self.position.epochs * self.schedule.steps_per_epoch + groups
        return self.config.optim.lr * self.learning_rate_factor(step)

    def check_weights(self) -> None:
        """Checks that a checkpoint of this state would be good.

        Raises:
            TrainingFailed: if a weight is not finite.
        """
        broken = not all(parameter.isfinite().all() for parameter in self.network.parameters())
        if distributed.agree(int(broken)):
            raise TrainingFailed(f"the weights are not finite after batch {self.position.batches}")

    def class_counts(self) -> Tensor:
        """float64[K]: training images of each class."""
        return torch.tensor(self.train.class_counts, dtype=torch.float64)

    def _target_entropy(self) -> float | None:
        """Mean entropy, in nats, of this phase's targets over the training split; None where a network makes them."""
        number, phase, _ = self.plan.at(self.position.epochs)
        if phase.soft and phase.source == FORMER_NETWORK:
            return None
        if not phase.soft or self.teacher is None:
            return self.targets.mean_entropy(self.class_counts())
        if number not in self._entropies:
            self._entropies[number] = self._mean_entropy_by_sample(self.teacher)
        return self._entropies[number]

    def _mean_entropy_by_sample(self, teacher: SampleLabels) -> float:
        """Mean entropy of the targets of the phase under way, with the teacher's soft labels by sample."""
        rows, total = max(1, _ENTROPY_VALUES // self.classes), 0.0
        columns = (self.train.indices, self.train.labels[self.train.indices])
        for block in zip(*(torch.from_numpy(column).split(rows) for column in columns), strict=True):
            index, labels = (part.to(self.device) for part in block)
            targets = self.targets.dense(labels, teacher.rows(index))
            total += torch.special.entr(targets.double()).sum().item()
        return total / len(self.train.indices)

    def state_dict(self) -> State:
        """All that the rest of the run depends on, as tensors and plain values; whole on the main rank only.

        Averages batch norm's statistics over the ranks. What each rank had of its own is under "ranks", from which as
        many of them go on to the same bits.
        """
        own: State = {"rng": self._random_state(), "sums": [], "statistics": []}
        if self.position.batches:  # between two epochs ranks have nothing else of their own
            own |= {"sums": _copies(self._sums()), "statistics": _copies(self._statistics())}
        distributed.mean_(self._statistics(), counts=self._has_samples())
        former = self.step.former
        return {
            "config": self.config.as_dict(),
            "position": [self.position.epochs, self.position.batches],
            "decided": self.decided,
            "model": self.network.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "targets": self.targets.state_dict(),
            **(self.learner.state_dict() if self.learner else {"means": None, "learned": None}),
            "former": former.model.state_dict() if former else None,
            "totals": self.totals.values,
            "logged": astuple(self.totals.logged),
            "rng": own["rng"],
            "ranks": distributed.gather(own) if self.ranks.world_size > 1 else None,
        }

    def _sums(self) -> list[Tensor]:
        """The tensors that are this rank's, and add up over ranks."""
        return [self.totals.sums, *(self.learner.means.sums if self.learner else ())]

    def _statistics(self) -> list[Tensor]:
        """Batch norm's running statistics, which are this rank's between two evaluations."""
        return running_statistics(self.network) + (running_statistics(self.ema.model) if self.ema else [])

    def _random_state(self) -> State:
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def _restore(self, state: State) -> None:
        """Goes on from what `state_dict` gave, to as many ranks or another number of them."""
        self.position = Position(*state["position"])
        self.network.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.targets.enter(self.plan.last_trained(self.position.epochs, self.position.batches))
        self.targets.load_state_dict(state["targets"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        if self.learner:
            self.learner.load_state_dict(state)
        if state["former"]:
            former = copy.deepcopy(self.network)
            former.model.load_state_dict(state["former"])
            self._set_former(former)
        self.totals.values.copy_(state["totals"])
        self.totals.logged = EpochTotals(*state.get("logged", ()))  # not of earlier versions
        self._set_random_state(state["rng"])
        ranks = state.get("ranks") or []
        if len(ranks) == self.ranks.world_size:
            self._set_random_state(ranks[self.ranks.rank]["rng"])
        else:
            self._draw_apart()
        if self.position.batches:
            self._restore_own(ranks)

    def _restore_own(self, ranks: Sequence[State]) -> None:
        """Goes on from the sums and statistics of ranks inside an epoch; of another number, rank 0 from all sums."""
        sums = self._sums()
        if len(ranks) == self.ranks.world_size:
            own = ranks[self.ranks.rank]
            copy_all(own["sums"], sums)
            copy_all(own["statistics"], self._statistics())
        elif self.ranks.rank:
            copy_all([torch.zeros(())] * len(sums), sums)
        elif ranks:
            copy_all([torch.stack(parts).sum(0) for parts in zip(*(each["sums"] for each in ranks), strict=True)], sums)

    def _set_random_state(self, state: State) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to("cpu", copy=True) for tensor in tensors]
