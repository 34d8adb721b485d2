"""Writes a run's weights for other programs: python -m fastlsr.export RUN --out FILE [--which=best] [--weights=raw].

RUN               a run's folder, or one of its checkpoints
--out FILE        .safetensors: the state dict, for torch, timm's create_model(checkpoint_path=) and model.pretrained;
                  .onnx: from uint8 images, RGB, to logits, the normalisation inside (pip install onnx onnxscript)
--which WHICH     last (the default), or the best that run.keep_best has kept
--weights WEIGHTS raw, or ema: their moving average (train.ema); the default is what the run evaluates

Classes, normalisation, resolution, network, data set, run, epoch and top-1 are in the file's metadata. Where an
earlier version trained the run, its data must be there, as for fastlsr.evaluate with its options.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastlsr.cli import check_out, exit_on_input_error, interrupts_raised, print_help, read_arguments, wants_help
from fastlsr.config import PLACES
from fastlsr.errors import InputError, unknown
from fastlsr.plugins import load_named
from fastlsr.runs import KINDS, RunFolder

WEIGHTS = ("ema", "raw")
OWN = ("out", "which", "weights")


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command: 0 done, 2 wrong input, 130 interrupted; then nothing was written."""
    with exit_on_input_error():
        words = load_named(arguments)
        if wants_help(words):
            print_help(str(__doc__))
            return 0
        if not words or words[0].startswith("-"):
            raise InputError("usage: python -m fastlsr.export RUN --out FILE; or --help")
        path_of_config, options, _ = read_arguments(words[1:])
        if path_of_config:
            raise InputError("--cfg is no option here: a run has its own")
        check_export_options(options)
        out, which, weights = (options.pop(name, "") for name in OWN)
        check_out(Path(out), ".safetensors", ".onnx")
        checkpoint = checkpoint_of(Path(words[0]), which)
        # Imported after these checks: it takes seconds.
        from fastlsr.engine.trained import open_run
        from fastlsr.inference.exporting import check_is_best, export

        run = open_run(checkpoint, options)
        if which == "best":
            check_is_best(run)
        with interrupts_raised():
            print(export(run, Path(out), weights))
    return 0


def check_export_options(options: dict[str, str]) -> None:
    """Checks the options' names, and the values of `--which` and `--weights`.

    Raises:
        InputError: for one that is not known (names the nearest), or where `--out` is missing.
    """
    for name in options:
        if name not in (*OWN, *PLACES):
            raise InputError(unknown("option of an export", f"--{name}", [f"--{key}" for key in (*OWN, *PLACES)]))
    for name, values in (("which", KINDS), ("weights", WEIGHTS)):
        if options.get(name, values[0]) not in values:
            raise InputError(f"--{name}={options[name]}: expected {' or '.join(values)}")
    if not options.get("out"):
        raise InputError("usage: python -m fastlsr.export RUN --out FILE; or --help")


def checkpoint_of(run: Path, which: str) -> Path:
    """What `--which` chooses of a run: its best checkpoint, or what `engine.trained.open_run` takes for the last.

    Raises:
        InputError: if it is not there.
    """
    if not run.exists():
        raise InputError(f"{run} is not the folder of a run")
    if which and not run.is_dir():
        raise InputError(f"--which={which}: {run} is one checkpoint, not the folder of a run")
    if which != "best":
        return run
    best = RunFolder(run).best_checkpoint
    if not best.exists():
        raise InputError(f"--which=best: {run} has no {best.name}, which run.keep_best keeps")
    return best


if __name__ == "__main__":
    sys.exit(main())
