"""Trains one run: python -m fastlsr.train --cfg FILE --section.key=value [--dry-run].

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 stopped by SIGINT and SIGTERM with a checkpoint.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping

from fastlsr.cli import exit_on_input_error, read_arguments
from fastlsr.config import Config, differences, load, usage
from fastlsr.data.splits import data_digests
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.labels.methods import options_of, overview, phases


def main(arguments: list[str] | None = None) -> int:
    """The exit code of a run as the command line asks for it."""
    with exit_on_input_error():
        started = time.perf_counter()
        words = sys.argv[1:] if arguments is None else arguments
        if not words:
            raise InputError("usage: python -m fastlsr.train --cfg FILE --section.key=value [--dry-run]; or --help")
        path, overrides, flags = read_arguments(words, flags=("dry-run", "help"))
        if "help" in flags:
            print(f"{__doc__}\nMethods, with their options:\n{overview()}\n")
            print(f"Options, with their defaults:\n{usage()}")
            return 0
        config = load(path, overrides)
        refuse_early(config, with_data="dry-run" not in flags)
        warn_of_unused(config, overrides)
        print("loading torch, FFCV and W&B", flush=True)
        try:
            # Here and not above: it takes seconds, and most of what can be wrong has been said by now.
            from fastlsr.engine import loop

            if "dry-run" in flags:
                for line in loop.describe(config):
                    print(line, flush=True)
                return 0
            return loop.train(config, started=started)
        except TrainingFailed as error:
            print(f"failed: {error}; the last checkpoint, if there is one, is good", file=sys.stderr)
            return 1
        except KeyboardInterrupt:  # before the first step, or the second one: nothing is left to save
            print("interrupted; the last checkpoint, if there is one, is good", file=sys.stderr)
            return 128 + signal.SIGINT


def refuse_early(config: Config, *, with_data: bool) -> None:
    """Refuses what can be known to be wrong before the seconds that torch and FFCV take to load.

    A dry run looks for the data later: its phases and rates can be printed without.

    Raises:
        InputError: for options that do not make a run of any data, or data that is not there.
    """
    phases(config.method, config.train.epochs)
    config.run_name()
    if with_data:
        data_digests(config)


def warn_of_unused(config: Config, overrides: Mapping[str, str]) -> None:
    """Names, in one line on stderr, the options of the command line that change what the method does not read."""
    used = {"method.name", *(f"method.{name}" for name in options_of(config.method.name))}
    changed = differences(config, Config())
    unused = [key for key in changed if key in overrides and key.startswith("method.") and key not in used]
    if unused:
        print(f"warning: method {config.method.name} does not use {', '.join(unused)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
