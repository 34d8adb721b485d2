"""Analyses a trained run: python -m fastlsr.analyze KIND RUN [--OPTION=VALUE ...] [--data.dir=DIR].

Each kind is a file of `fastlsr/analysis` with one function `analyze`, whose keyword arguments are its options; it
returns the numbers that this command prints as one JSON object.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path

from fastlsr import analysis
from fastlsr.cli import exit_on_input_error, read_arguments
from fastlsr.config import PLACES, check_places
from fastlsr.errors import InputError, unknown


def kinds() -> list[str]:
    """The names of the analyses."""
    return sorted(module.name for module in pkgutil.iter_modules(analysis.__path__))


def main(arguments: list[str] | None = None) -> int:
    """Prints the numbers; returns the exit code."""
    with exit_on_input_error():
        words = sys.argv[1:] if arguments is None else arguments
        if "--help" in words:
            print(f"{__doc__}\nKinds: {', '.join(kinds())}")
            return 0
        if len(words) < 2 or words[0].startswith("-") or words[1].startswith("-"):
            raise InputError(f"usage: python -m fastlsr.analyze KIND RUN --OPTION=VALUE; kinds: {', '.join(kinds())}")
        kind, path = words[0], Path(words[1])
        if kind not in kinds():
            raise InputError(unknown("kind of analysis", kind, kinds()))
        path_of_config, options, _ = read_arguments(words[2:])
        if path_of_config:
            raise InputError("--cfg is no option here: a run has its own")
        places = {key: options.pop(key) for key in list(options) if "." in key}
        check_places(places)
        if not path.exists():
            raise InputError(f"{path} is not the folder of a run")
        # Imported after these checks: it takes seconds.
        from fastlsr.engine.trained import open_run

        analyze = importlib.import_module(f"fastlsr.analysis.{kind}").analyze
        _check_options(kind, options, inspect.signature(analyze))
        print(json.dumps(analyze(open_run(path, places), **options), indent=2))
    return 0


def _check_options(kind: str, options: dict[str, str], signature: inspect.Signature) -> None:
    known = list(signature.parameters.values())[1:]  # after the run
    for name in options:
        if name not in [option.name for option in known]:
            names = [f"--{key}" for key in (*(option.name for option in known), *PLACES)]
            raise InputError(unknown(f"option of {kind}", f"--{name}", names))
    for option in known:
        if option.default is option.empty and option.name not in options:
            raise InputError(f"{kind} needs --{option.name}=VALUE")


if __name__ == "__main__":
    sys.exit(main())
