"""Opening a trained run: its options, its network and its data. Evaluation, teachers and analyses all start here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastlsr.config import Config, check_places, from_dict
from fastlsr.data.crops import input_resolution
from fastlsr.data.loader import Loader
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import Subset, split_paths, whole
from fastlsr.engine import checkpoint
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.evaluation import CollectedLogits, evaluate
from fastlsr.engine.runtime import choose_device, set_up_torch
from fastlsr.engine.session import (
    Position,
    State,
    build_network,
    classifier_of,
    evaluation_loader,
    loader_at_end,
    training_loader,
)
from fastlsr.errors import InputError, unknown
from fastlsr.labels.methods import make_plan
from fastlsr.labels.plan import Plan
from fastlsr.labels.targets import Targets
from fastlsr.models.weight_files import evaluated_weights
from fastlsr.ranks import ALONE, Ranks
from fastlsr.runs import RunFolder, folder_of


@dataclass(frozen=True)
class TrainedRun:
    """A run's newest checkpoint.

    Attributes:
        config: the run's options, with other places of its data or another device where those were given.
        plan: of its method.
        device: what computes.
        position: how far it was trained.
        decided: as in `Session`.
        state: the whole checkpoint, on the CPU.
        folder: of the run.
    """

    config: Config
    plan: Plan
    device: torch.device
    position: Position
    decided: dict[str, Any]
    state: State
    folder: RunFolder

    @property
    def classes(self) -> list[str]:
        """The names of its classes; the position is the label."""
        return self.decided["classes"]

    @property
    def resolution(self) -> int:
        """Side of the images that it was trained on, pixels.

        Raises:
            InputError: where an earlier version trained it, which did not note this, and its data is not there.
        """
        noted = self.decided.get("resolution")
        return noted or input_resolution(read_manifest(split_paths(self.config)[0]), self.config.data)

    @property
    def at_epoch(self) -> str:
        """What a picture adds to the run's label: ", epoch 40" for a checkpoint before the run's end, else ""."""
        return f", epoch {self.position.epochs}" if self.position.epochs < self.plan.epochs else ""

    def labels_named(self, names: str) -> list[int]:
        """The labels of classes, "man,palm_tree"; each once, in the order of their names.

        Raises:
            InputError: for a class that is not the run's.
        """
        chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
        for name in chosen:
            if name not in self.classes:
                raise InputError(unknown("class of the run", name, self.classes))
        return [self.classes.index(name) for name in chosen]

    def evaluation_loader(self) -> Loader:
        """The batches that the run evaluates on.

        Raises:
            InputError: for files that do not fit.
        """
        return self._checked(evaluation_loader(self.config, self.device))

    def plain_training_loader(self, chosen: Subset = whole) -> Loader:
        """The samples that the run trained on, in the file's order and not augmented.

        Args:
            chosen: takes some of them, from the labels of all of them.

        Raises:
            InputError: for files that do not fit, or other data than the run was trained on.
        """
        loader = self._checked(training_loader(self.config, self.device, plain=True, chosen=chosen))
        if loader.manifest.digest != self.decided["data"][0]:
            raise InputError(f"the run was trained on other data than {split_paths(self.config)[0]}")
        return loader

    def _checked(self, loader: Loader) -> Loader:
        if list(loader.manifest.classes) != self.classes:
            raise InputError(f"data.dataset={self.config.data.dataset} has other classes than the run was trained on")
        return loader

    def network(self, resolution: int) -> Classifier:
        """The network as the run evaluates it: its moving average where there is one, in evaluation mode.

        Args:
            resolution: side of its images, pixels: that of a loader.
        """
        model = build_network(self.config, len(self.classes), resolution, pretrained="")
        model.load_state_dict(evaluated_weights(self.state))
        return classifier_of(model, self.decided, self.config).to(self.device).eval()

    def targets(self) -> Targets:
        """The targets of the phase that was trained last."""
        targets = Targets(len(self.classes), self.plan, device=self.device)
        targets.enter(self.plan.last_trained(self.position.epochs, self.position.batches))
        targets.load_state_dict(self.state["targets"])
        return targets

    @property
    def compiled(self) -> bool:
        """Whether the run's steps were."""
        return bool(self.decided["compile"])

    def evaluate(self, *, compile: bool = False) -> dict[str, float]:
        """The figures of this checkpoint on the evaluation split.

        Args:
            compile: whether to compile where the run did, which takes longer than a pass; the figures are then those
                it logs, on the same kind of machine to the digit. Without, they differ in rounding.
        """
        return self._evaluate_on(self.evaluation_loader(), compile)

    def evaluate_at_end(
        self, collect: CollectedLogits | None = None, ranks: Ranks = ALONE, *, compile: bool = False
    ) -> dict[str, float]:
        """As `evaluate`, on the test split of a run that `selects_on_val`, with folds, too.

        Args:
            collect: where the logits are added, too.
            ranks: which part of each batch this process evaluates, if all of them call.
            compile: as for `evaluate`.
        """
        return self._evaluate_on(self._checked(loader_at_end(self.config, self.device, ranks)), compile, collect)

    def _evaluate_on(self, loader: Loader, compile: bool, collect: CollectedLogits | None = None) -> dict[str, float]:
        network = self.network(loader.resolution)
        forward = torch.compile(network, dynamic=False) if compile and self.compiled else network
        return evaluate(forward, loader.epoch(0), self.targets(), collect)


def open_run(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainedRun:
    """The newest checkpoint of a run, opened for reading; sets torch up for it.

    Args:
        path: the run's folder, or the file of one checkpoint.
        overrides: `section.key` to value: only where the data is and what computes (`config.PLACES`).

    Raises:
        InputError: if there is no checkpoint of a run, or an option may not change.
    """
    return opened(read_checkpoint(path), path, overrides or {})


def read_checkpoint(path: Path) -> State:
    """The newest whole checkpoint of a run's folder, or of a file.

    A damaged newest checkpoint is reported on stderr, and the one before it is returned.

    Raises:
        InputError: if there is none, or what is there is not of a run.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    state, remark = checkpoint.load_newest(path)
    if not isinstance(state, dict) or not state.keys() >= set(checkpoint.FOR_ANALYSES):
        raise InputError(f"{path} holds no checkpoint of a run")
    if remark:
        print(f"warning: {remark}", file=sys.stderr)
    return state


def opened(state: State, path: Path, overrides: Mapping[str, Any]) -> TrainedRun:
    """A checkpoint that was read from `path`, opened for reading. Arguments and exceptions as for `open_run`."""
    check_places(overrides)
    config = from_dict(state["config"], overrides)
    device = choose_device(config.train.device)
    set_up_torch(device, config.train)
    plan = make_plan(config.method, config.train.epochs)
    return TrainedRun(config, plan, device, Position(*state["position"]), state["decided"], state, folder_of(path))
