"""A run's figures at W&B. The only home of wandb."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import wandb

from fastlsr.config import Config
from fastlsr.errors import InputError
from fastlsr.logs.loggers import Logger
from fastlsr.runs import Row, RunFolder, Summary

WandbMode = Literal["online", "offline", "disabled"]
_MODES = ("online", "offline", "disabled")
_STEPS = "step/"  # in front of figures inside an epoch, which have the axis "step"; all others have "epoch"


class WandbLog(Logger):
    """Mirrors rows, figures inside an epoch, soft labels and the summary to a W&B run."""

    def __init__(self, run: wandb.Run):
        self._run = run

    @classmethod
    def check(cls, config: Config) -> None:
        """Checks that there is an account where one is needed; raises as `wandb_mode`."""
        wandb_mode(config.log.wandb)

    @classmethod
    def start(
        cls, folder: RunFolder, config: Config, state: Mapping[str, Any] | None, report: Callable[[str], None]
    ) -> WandbLog | None:
        """A W&B run in the place of that of `state`; another one that an agent waits for gets the rows before, too.

        Raises:
            InputError: if W&B is requested by `log.wandb=online` and cannot be reached; `auto` goes on offline.
        """
        mode = wandb_mode(config.log.wandb)
        if mode == "disabled":
            return None
        former = state["wandb_id"] if state else None
        run_id = agent_run() or former
        try:
            run = _init(folder, config, mode, run_id)
        except wandb.Error as error:
            reason = _reason(error)
            if config.log.wandb != "auto" or mode != "online":
                raise InputError(f"log.wandb={config.log.wandb}: {reason}") from None
            report(f"warning: W&B cannot be reached, logging offline ({reason})")
            run = _init(folder, config, "offline", run_id)
        if state and run.id != former and not run.resumed:
            for row in state["rows"]:
                run.log(row)
        return cls(run)

    def state_dict(self) -> dict[str, Any]:
        """The id of the W&B run that has the rows."""
        return {"wandb_id": self._run.id}

    def row(self, row: Row) -> None:
        """Logs an epoch's row."""
        self._run.log(row)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures inside an epoch."""
        self._run.log({"step": step, **{f"{_STEPS}{key}": value for key, value in figures.items()}})

    def soft_labels(self, epoch: int, file: Path, picture: np.ndarray | None) -> None:
        """Logs the picture, and the file as the next version of an artifact."""
        if picture is not None:
            self._run.log({"epoch": epoch, "soft_labels": wandb.Image(picture)})
        artifact = wandb.Artifact(f"soft-labels-{self._run.id}", type="soft_labels", metadata={"epoch": epoch})
        artifact.add_file(str(file), policy="immutable", skip_cache=True)  # else it is copied into the home folder
        self._run.log_artifact(artifact)

    def summary(self, summary: Summary) -> None:
        """Makes `last/...` and `best/...` the run's summary."""
        named = {"last": summary["last"], "best": summary["best"]}
        self._run.summary.update({f"{kind}/{key}": value for kind, row in named.items() for key, value in row.items()})

    def close(self, exit_code: int) -> None:
        """Ends the W&B run."""
        with suppress(Exception):  # a W&B that cannot be reached must not take the results with it
            self._run.finish(exit_code=exit_code)


def _init(folder: RunFolder, config: Config, mode: WandbMode, run_id: str | None) -> wandb.Run:
    run = wandb.init(
        project=config.log.project,
        name=folder.path.name,
        config=config.as_dict(),
        dir=folder.path,
        mode=mode,
        id=run_id,
        resume="allow" if run_id else None,
    )
    run.define_metric("step")
    for name in ("train/loss", "lr"):  # by name: a pattern would compete with the one below
        run.define_metric(f"{_STEPS}{name}", step_metric="step")
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


def _reason(error: wandb.Error) -> str:
    return " ".join(str(error).split())[:200]


def with_project(config: Config) -> Config:
    """The options with the W&B project that they mean: where none was given, WANDB_PROJECT wins over the default."""
    project = os.environ.get("WANDB_PROJECT")
    if not project or "log.project" in config.given:
        return config
    return replace(config, log=replace(config.log, project=project))


def agent_run() -> str | None:
    """The id of the W&B run that `wandb agent`, or whoever set WANDB_RUN_ID, waits for."""
    return os.environ.get("WANDB_RUN_ID") or None


def wandb_mode(requested: str) -> WandbMode:
    """W&B's mode for `log.wandb`: `auto` is WANDB_MODE, else online with an account, else disabled.

    Raises:
        InputError: if `online` is requested and there is no account (W&B would wait for one to be typed), or WANDB_MODE
            is no mode.
    """
    if requested == "auto" and (mode := os.environ.get("WANDB_MODE")):
        if mode not in _MODES:
            raise InputError(f"WANDB_MODE={mode}: expected online, offline or disabled")
        return cast(WandbMode, mode)
    if requested in ("offline", "disabled"):
        return cast(WandbMode, requested)
    account = wandb.login(prompt=False, verify=False)
    if requested == "auto":
        return "online" if account else "disabled"
    if not account:
        raise InputError(
            "log.wandb=online: no W&B account; run `wandb login`, set WANDB_API_KEY or take log.wandb=offline"
        )
    return "online"


def log_finding(folder: RunFolder, config: Config, run_id: str, kind: str, files: Sequence[Path]) -> None:
    """Logs the numbers and the picture of an analysis to the W&B run `run_id`, which has a run's rows.

    Args:
        folder: of the run.
        config: of the run; with `log.wandb=disabled` nothing is logged.
        kind: of the analysis.
        files: of the finding: JSON, and PNG where there is a picture.
    """
    mode = wandb_mode(config.log.wandb)
    if mode == "disabled":
        return
    numbers = next(path for path in files if path.suffix == ".json")
    logged: dict[str, Any] = {f"analysis/{kind}": json.loads(numbers.read_text(encoding="utf-8"))}
    try:
        mirror = wandb.init(
            project=config.log.project, dir=folder.path, mode=mode, id=run_id, resume="allow",
            settings=wandb.Settings(silent=True),
        )  # fmt: skip
        mirror.summary.update(logged)
        mirror.log({f"analysis/{kind}": wandb.Image(str(path)) for path in files if path.suffix == ".png"})
        mirror.finish()
    except wandb.Error as error:
        print(f"warning: W&B did not take the analysis: {_reason(error)}", file=sys.stderr)
