"""Evaluates a run's newest checkpoint: python -m fastlsr.evaluate RUN [--cfg FILE] [--data.dir=DIR] [--compile].

RUN               the run's folder, or one of its checkpoints, such as RUN/best.pt; --checkpoint RUN is the same
--cfg FILE        another place of its data, as in `fastlsr.teach`; of the options those that name places win over it
--data.val=test   evaluates a run that was trained with data.val=val on the test split
--compile         compiles where the run did, which takes longer than evaluating

After whole epochs the metrics are those the run logged, to the digit, on the same kind of machine; of a run that was
compiled they differ in rounding, unless --compile is given. A run that was stopped inside an epoch is evaluated as it
is; `batches` is then how many batches of that epoch it was trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastlsr.cli import exit_on_input_error, print_help, read_arguments, wants_help
from fastlsr.config import FOLDS, PLACES, TEST, Config, check_places, from_dict
from fastlsr.data.splits import naming_data_dir, places_of_run
from fastlsr.errors import InputError
from fastlsr.plugins import load_named


def main(arguments: list[str] | None = None) -> int:
    """Prints the metrics as one JSON object; returns the exit code."""
    with exit_on_input_error():
        words = load_named(arguments)
        if wants_help(words):
            print_help(str(__doc__))
            return 0
        run, path_of_config, overrides, compile = _read(words)
        print(json.dumps(evaluate_run(run, overrides, path_of_config, compile=compile), indent=2))
    return 0


def _read(words: Sequence[str]) -> tuple[Path, str, dict[str, str], bool]:
    """(run, config file or "", overrides, whether to compile) of a command line."""
    given = [*words[:1]] if words and not words[0].startswith("-") else []
    path_of_config, overrides, flags = read_arguments(words[len(given) :], ["compile"])
    runs = given + [overrides.pop(name) for name in ("checkpoint",) if name in overrides]
    if len(runs) != 1:
        names = ", ".join(f"--{key}" for key in PLACES)
        raise InputError(f"usage: python -m fastlsr.evaluate RUN [--compile] [--cfg FILE], with {names}")
    return Path(runs[0]), path_of_config, overrides, "compile" in flags


def evaluate_run(
    path: Path, overrides: Mapping[str, str], path_of_config: str = "", *, compile: bool = False
) -> dict[str, Any]:
    """{"epoch": whole epochs trained, "batches": of the next one, "test/NAME": figure...} of the newest checkpoint.

    The figures are "val/NAME" where the run evaluates on a validation split.

    Args:
        path: the run's folder, or one of its checkpoints.
        overrides: options to change: only where the data is and what computes. Folds have to be the run's.
        path_of_config: a config file that has other places.
        compile: whether to compile where the run did.

    Raises:
        InputError: if there is no checkpoint, the data has other classes, or an option may not change.
    """
    check_places({key: value for key, value in overrides.items() if key not in FOLDS})
    if not path.exists():
        near = Path(Config().run.dir) / path
        raise InputError(f"{path} is not the folder of a run" + (f"; did you mean {near}?" if near.exists() else ""))
    # Imported after these checks: it takes seconds.
    from fastlsr.engine.trained import opened, read_checkpoint

    state = read_checkpoint(path)
    own = from_dict(state["config"])
    places = places_of_run(own, path_of_config, overrides)
    at_end = own.data.selects_on_val and places.get("data.val") == TEST
    if at_end:
        places.pop("data.val")  # the run's own stays, since folds have no other
    with naming_data_dir():
        run = opened(state, path, places)
        figures = run.evaluate_at_end(compile=compile) if at_end else run.evaluate(compile=compile)
    split = TEST if at_end else run.config.data.evaluated_split
    named = {f"{split}/{name}": value for name, value in figures.items()}
    return {"epoch": run.position.epochs, "batches": run.position.batches, **named}


if __name__ == "__main__":
    sys.exit(main())
