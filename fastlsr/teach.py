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

import difflib
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastlsr.cli import exit_on_input_error, read_arguments
from fastlsr.config import Config, from_dict, load
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import fold_name, split_paths
from fastlsr.errors import InputError

OWN = ("model", "checkpoint", "out")
PLACES = ("dataset", "dir", "train", "val", "batch_size", "workers", "os_cache")  # data: the same images for all that
OF_ANY = (*(f"data.{name}" for name in PLACES), "data.folds", "data.fold", "train.device")
OF_MODEL = ("data.resolution", "model.pretrained", "train.precision", "train.channels_last", "train.deterministic")


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command: 0 done, 2 wrong input, 130 interrupted; then nothing was written."""
    with exit_on_input_error():
        path, options, flags = read_arguments(sys.argv[1:] if arguments is None else arguments, flags=("help",))
        if "help" in flags:
            print(__doc__)
            return 0
        model, run, out = (options.pop(name, "") for name in OWN)
        refuse_unknown(options, from_run=bool(run))
        if not out or not (model or run):
            raise InputError("usage: python -m fastlsr.teach --cfg FILE --model NAME (or --checkpoint RUN) --out FILE")
        refuse_place(Path(out))
        if run and not Path(run).exists():
            raise InputError(f"--checkpoint={run}: no such file or folder")
        config = None if run else config_of_model(path, options, model)
        if config:
            read_manifest(split_paths(config)[0])
        print("loading torch and FFCV", flush=True)
        try:
            # Here and not above: it takes seconds, and most of what can be wrong has been said by now.
            from fastlsr.engine import teaching

            state = teaching.read_run(Path(run)) if run else None
            teaching.teach(config or config_of_run(state, path, options, model), state, Path(out))
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


def refuse_unknown(options: Iterable[str], *, from_run: bool) -> None:
    """None.

    Raises:
        InputError: for an option that no teacher depends on (names the nearest one that it may).
    """
    known = [*OWN, "cfg", *OF_ANY, *(() if from_run else OF_MODEL)]
    for name in options:
        if name in OF_MODEL and name not in known:
            raise InputError(f"--{name} is the run's own with --checkpoint")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean --{close[0]}?" if close else f"there are {', '.join(f'--{name}' for name in known)}"
            raise InputError(f"--{name} is no option of a teacher; {hint}")


def refuse_place(out: Path) -> None:
    """None.

    Raises:
        InputError: if a teacher cannot be written to `out`.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--out={out}: expected a file that ends in .safetensors")
    if out.is_dir():
        raise InputError(f"--out={out} is a folder")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out={out} cannot be written: {out.parent} is no folder that can be written to")


def config_of_model(path: str, options: dict[str, str], model: str) -> Config:
    """The configuration, with the network `model` and timm's weights for it where no others are named.

    Raises:
        InputError: as `config.load`.
    """
    config = load(path, options)
    given = config.model.pretrained if "model.pretrained" in options or config.model.name == model else ""
    return replace(config, model=replace(config.model, name=model, pretrained=given or "timm"))


def config_of_run(state: dict[str, Any], path: str, options: dict[str, str], model: str) -> Config:
    """The run's configuration, with the data where `path` and `options` say it is.

    Raises:
        InputError: as `config.load`, and for a run of another network or with other folds.
    """
    run = from_dict(state["config"])
    given = load(path, options) if path else from_dict(state["config"], options)
    if model and model != run.model.name:
        raise InputError(f"--model={model}: the run's network is {run.model.name}; leave --model out")
    if fold_name(given.data) != fold_name(run.data):
        raise InputError(
            f"--checkpoint: the run was trained with data.folds={run.data.folds} and data.fold={run.data.fold}, not "
            f"{given.data.folds} and {given.data.fold}"
        )
    places = {name: getattr(given.data, name) for name in PLACES if f"data.{name}" in given.given}
    return replace(run, data=replace(run.data, **places), train=replace(run.train, device=given.train.device))


if __name__ == "__main__":
    sys.exit(main())
