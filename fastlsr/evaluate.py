"""Evaluates a run's newest checkpoint: python -m fastlsr.evaluate RUN [--data.val=FILE] [--data.workers=N].

After whole epochs the metrics are those the run logged, to the digit, on the same kind of machine. A run that was
stopped inside an epoch is evaluated as it is; `batches` then says how many of that epoch's it had seen.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from fastlsr.cli import exit_on_input_error, read_arguments
from fastlsr.config import Config, from_dict, load
from fastlsr.errors import InputError
from fastlsr.labels.methods import phases

CHANGEABLE = ("data.dir", "data.val", "data.workers", "train.device")


def main(arguments: list[str] | None = None) -> int:
    """Prints the metrics as one JSON object; the exit code."""
    with exit_on_input_error():
        words = sys.argv[1:] if arguments is None else arguments
        if "--help" in words:
            print(__doc__)
            return 0
        if not words or words[0].startswith("-"):
            raise InputError(f"usage: python -m fastlsr.evaluate RUN, with {', '.join(f'--{k}' for k in CHANGEABLE)}")
        print(json.dumps(evaluate_run(Path(words[0]), words[1:]), indent=2))
    return 0


def evaluate_run(folder: Path, words: list[str]) -> dict[str, Any]:
    """{"epoch": whole epochs trained, "batches": of the next one, "test/NAME": metric...} of the newest checkpoint.

    Args:
        folder: the run's.
        words: options to change, as on a command line; only where the data is and what computes.

    Raises:
        InputError: if there is no checkpoint, the data has other classes, or an option may not change.
    """
    overrides = changes(words)
    if not folder.is_dir():
        raise InputError(f"{folder} is not the folder of a run")
    # Here and not above: it takes seconds, and most of what can be wrong has been said by now.
    from fastlsr.engine import checkpoint

    state, remark = checkpoint.load(folder)
    if state is None:
        raise InputError(f"{folder} holds no checkpoint")
    if remark:
        print(f"warning: {remark}", file=sys.stderr)
    epochs, batches = state["position"]
    metrics = evaluate_state(state, from_dict(state["config"], overrides))
    return {"epoch": epochs, "batches": batches, **{f"test/{name}": value for name, value in metrics.items()}}


def changes(words: list[str]) -> dict[str, str]:
    """The options on a command line.

    Raises:
        InputError: for options other than `CHANGEABLE`, or a value that is none.
    """
    _, overrides, _ = read_arguments(words)
    for key in overrides:
        if key not in CHANGEABLE:
            raise InputError(f"--{key} cannot change in an evaluation; {', '.join(CHANGEABLE)} can")
    load(overrides=overrides)
    return overrides


def evaluate_state(state: dict[str, Any], config: Config) -> dict[str, float]:
    """Test metrics (see `engine.evaluation.evaluate`) of the network in a checkpoint."""
    import torch

    from fastlsr.engine.evaluation import evaluate
    from fastlsr.engine.runtime import choose_device, set_up_torch
    from fastlsr.engine.session import evaluation_loader, trained_network
    from fastlsr.labels.targets import Targets

    device = choose_device(config.train.device)
    set_up_torch(device, deterministic=config.train.deterministic)
    loader = evaluation_loader(config, device)
    network = trained_network(state, config, loader, device)
    targets = Targets(len(loader.manifest.classes), phases(config.method, config.train.epochs), device=device)
    targets.load_state_dict(state["targets"])
    forward = torch.compile(network, dynamic=False) if state["decided"]["compile"] else network
    return evaluate(forward, loader.epoch(0), targets)


if __name__ == "__main__":
    sys.exit(main())
