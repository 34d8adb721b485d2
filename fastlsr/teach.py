"""Makes a teacher: soft predictions for a training split, by sample and by class, for lsr_pre, tsla_pre and table.

    python -m fastlsr.teach --cfg FILE --model NAME [--model.pretrained=FILE] --out TEACHER.safetensors
    python -m fastlsr.teach --checkpoint RUN [--cfg FILE] --out TEACHER.safetensors

--model NAME      a network with pre-trained weights, timm's or those of model.pretrained; it is frozen, and a linear
                  head is fitted on its features of the training images, which are not augmented
--checkpoint RUN  a run of this data, its folder or one of its checkpoints: its own network, taken whole
--cfg FILE        which data; with --checkpoint the run's own, unless the file names another place for them

Of the options only those that a teacher depends on are taken: where the data is, data.folds, data.fold, train.device;
with --model also data.resolution, model.pretrained, and how train computes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fastlsr.cli import check_out, exit_on_input_error, interrupts_raised, print_help, read_arguments
from fastlsr.config import FOLDS, PLACES, Config, from_dict, load
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import naming_data_dir, places_of_run, split_paths
from fastlsr.errors import InputError, unknown
from fastlsr.plugins import load_named

OWN = ("model", "checkpoint", "out")
OF_ANY = (*PLACES, *FOLDS)
OF_MODEL = ("data.resolution", "model.pretrained", "train.precision", "train.channels_last", "train.deterministic")


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command: 0 done, 2 wrong input, 130 interrupted; then nothing was written."""
    with exit_on_input_error():
        path, options, flags = read_arguments(load_named(arguments), flags=("help",))
        if "help" in flags:
            print_help(str(__doc__))
            return 0
        model, run, out = (options.pop(name, "") for name in OWN)
        check_teacher_options(options, from_run=bool(run))
        if not out or not (model or run):
            raise InputError("usage: python -m fastlsr.teach --cfg FILE --model NAME (or --checkpoint RUN) --out FILE")
        check_out(Path(out), ".safetensors")
        if run and not Path(run).exists():
            raise InputError(f"--checkpoint={run}: no such file or folder")
        config = None if run else config_of_model(path, options, model)
        if config:
            read_manifest(split_paths(config)[0])
        print("loading torch and FFCV", flush=True)
        # Imported after these checks: it takes seconds.
        from fastlsr.engine.trained import opened, read_checkpoint
        from fastlsr.inference import teaching

        with interrupts_raised():
            if config:
                teaching.teach(config, Path(out))
                return 0
            state = read_checkpoint(Path(run))
            own = from_dict(state["config"])
            check_model(model, own)
            with naming_data_dir():
                teaching.teach(opened(state, Path(run), places_of_run(own, path, options)), Path(out))
    return 0


def check_teacher_options(options: Iterable[str], *, from_run: bool) -> None:
    """Checks the names of the options.

    Raises:
        InputError: for an option that no teacher depends on (names the nearest one that it may).
    """
    known = [*OWN, "cfg", *OF_ANY, *(() if from_run else OF_MODEL)]
    for name in options:
        if name in OF_MODEL and name not in known:
            raise InputError(f"--{name} is the run's own with --checkpoint")
        if name not in known:
            raise InputError(unknown("option of a teacher", f"--{name}", [f"--{key}" for key in known]))


def config_of_model(path: str, options: dict[str, str], model: str) -> Config:
    """The configuration, with the network `model` and timm's weights for it where no others are named.

    Raises:
        InputError: as `config.load`.
    """
    config = load(path, options)
    given = config.model.pretrained if "model.pretrained" in options or config.model.name == model else ""
    return replace(config, model=replace(config.model, name=model, pretrained=given or "timm"))


def check_model(model: str, run: Config) -> None:
    """Checks that --model, beside --checkpoint, is the run's own.

    Raises:
        InputError: if it is another one.
    """
    if model and model != run.model.name:
        raise InputError(f"--model={model}: the run's network is {run.model.name}; leave --model out")


if __name__ == "__main__":
    sys.exit(main())
