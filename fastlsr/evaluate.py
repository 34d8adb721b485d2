"""Evaluates a run's newest checkpoint: python -m fastlsr.evaluate RUN [--data.val=FILE] [--data.workers=N].

After whole epochs the metrics are those the run logged, to the digit, on the same kind of machine. A run that was
stopped inside an epoch is evaluated as it is; `batches` is then how many batches of that epoch it was trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastlsr.cli import as_started, exit_on_input_error, read_arguments, wants_help
from fastlsr.config import PLACES, check_places
from fastlsr.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Prints the metrics as one JSON object; returns the exit code."""
    with exit_on_input_error():
        words = sys.argv[1:] if arguments is None else arguments
        if wants_help(words):
            print(as_started(__doc__))
            return 0
        if not words or words[0].startswith("-"):
            raise InputError(f"usage: python -m fastlsr.evaluate RUN, with {', '.join(f'--{key}' for key in PLACES)}")
        path_of_config, overrides, _ = read_arguments(words[1:])
        if path_of_config:
            raise InputError("--cfg is no option here: a run has its own")
        print(json.dumps(evaluate_run(Path(words[0]), overrides), indent=2))
    return 0


def evaluate_run(path: Path, overrides: Mapping[str, str]) -> dict[str, Any]:
    """{"epoch": whole epochs trained, "batches": of the next one, "test/NAME": figure...} of the newest checkpoint.

    Args:
        path: the run's folder, or one of its checkpoints.
        overrides: options to change: only where the data is and what computes.

    Raises:
        InputError: if there is no checkpoint, the data has other classes, or an option may not change.
    """
    check_places(overrides)
    if not path.exists():
        raise InputError(f"{path} is not the folder of a run")
    # Imported after these checks: it takes seconds.
    from fastlsr.engine.trained import open_run

    run = open_run(path, overrides)
    figures = {f"test/{name}": value for name, value in run.evaluate().items()}
    return {"epoch": run.position.epochs, "batches": run.position.batches, **figures}


if __name__ == "__main__":
    sys.exit(main())
