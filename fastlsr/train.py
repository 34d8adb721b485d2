"""Trains one run: python -m fastlsr.train --cfg FILE --section.key=value [--dry-run | --find-lr].

--dry-run prints what would be done; --find-lr draws the loss at rising learning rates (Smith's range test).

Exit codes: 0 done, 1 failed, 2 wrong input, 130 and 143 stopped by SIGINT and SIGTERM with a checkpoint.
"""

from __future__ import annotations

import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping

from fastlsr.cli import exit_on_input_error, interrupts_raised, print_help, read_arguments, to_stderr
from fastlsr.config import Config, differences, load, scaled_by_recipe, usage
from fastlsr.data.manifest import NoSuchData
from fastlsr.data.splits import data_digests
from fastlsr.engine.schedule import Schedule
from fastlsr.errors import InputError, TrainingFailed
from fastlsr.labels.methods import make_plan, options_of, overview
from fastlsr.plugins import load_named
from fastlsr.ranks import check_batch_divides, read_ranks
from fastlsr.runs import Summary, run_folder
from fastlsr.shipped import CONFIGS, names


def main(arguments: list[str] | None = None) -> int:
    """Trains as the command line asks for; returns the exit code."""
    with exit_on_input_error(say_once):
        started = time.perf_counter()
        words = sys.argv[1:] if arguments is None else arguments
        if not words:
            raise InputError(
                "usage: python -m fastlsr.train --cfg FILE --section.key=value [--dry-run | --find-lr]; or --help"
            )
        path, overrides, flags = read_arguments(words, flags=("dry-run", "find-lr", "help"))
        if "help" in flags:
            load_named(words)
            print_help(str(__doc__))
            print(f"\nMethods, with their options:\n{overview()}\n")
            print(f"Options, with their defaults:\n{usage()}\n")
            print(f"Configs that come with fastlsr, for --cfg NAME, in {CONFIGS}:\n  {' '.join(names(CONFIGS))}")
            return 0
        config = load(path, overrides)
        check_batch_divides(config.data.batch_size, read_ranks().world_size)
        plan = make_plan(config.method, config.train.epochs)
        if "dry-run" not in flags:  # which prints the plan before it looks for the data
            try:
                data_digests(config)
            except NoSuchData as error:
                if summary := finished_before(config):
                    return show_without_data(config, summary, error)
                raise
        if read_ranks().rank and "dry-run" in flags:
            return 0  # the main rank prints it
        if not read_ranks().rank:
            for warning in warnings(config, overrides):
                print(f"warning: {warning}", file=sys.stderr)
            if scaled := scaled_by_recipe(config):
                used = [f"{key}={value}" for key, value in scaled.items() if is_used(key, config)]
                print(f"scaled to train.epochs={config.train.epochs}: {', '.join(used)}")
            print("loading torch, FFCV and W&B", flush=True)
        try:
            # Imported after these checks: it takes seconds.
            if "dry-run" in flags:
                from fastlsr.engine.preview import preview

                for line in preview(config, plan):
                    print(line, flush=True)
                return 0
            if "find-lr" in flags:
                from fastlsr.engine.learning_rate_test import find_learning_rate

                with interrupts_raised():
                    find_learning_rate(config, plan)
                return 0
            from fastlsr.engine.loop import train

            with interrupts_raised():
                return train(config, plan, started=started)
        except TrainingFailed as error:
            say_once(f"failed: {error}; the last checkpoint, if there is one, is good", of_any=error.elsewhere)
            return 1
        except KeyboardInterrupt:  # before the first step, or the second one: nothing is left to save
            print("interrupted; the last checkpoint, if there is one, is good", file=sys.stderr)
            return 128 + signal.SIGINT


def finished_before(config: Config) -> Summary | None:
    """The results of this very run, if it is finished and may be resumed; None otherwise."""
    folder = run_folder(config)
    if config.run.resume == "never" or not (summary := folder.finished_summary()):
        return None
    return None if differences(config, folder.read_config()) else summary


def show_without_data(config: Config, summary: Summary, error: NoSuchData) -> int:
    """Prints the results of a finished run whose data are gone; returns the exit code."""
    if not read_ranks().rank:
        from fastlsr.logs.run_log import results_table  # which loads W&B
        from fastlsr.terminal import terminal

        print(f"finished before; its data are not looked at: {error.beton} does not exist")
        terminal().print(results_table(summary))
        print(f"results: {run_folder(config).path}")
    return 0


def say_once(line: str, *, of_any: bool = False) -> None:
    """Prints a line to stderr, unless another rank of the run has; with `of_any` unless one has printed any line."""
    ranks = read_ranks()
    if ranks.world_size > 1:
        from fastlsr.engine.distributed import is_first_to_say  # which loads torch

        if not is_first_to_say(line, of_any=of_any):
            return
    several_nodes = ranks.world_size > ranks.local_world_size
    to_stderr(f"{line} (rank {ranks.rank}, on {platform.node()})" if several_nodes else line)


def warnings(config: Config, overrides: Mapping[str, str]) -> Iterator[str]:
    """Lines on options that are probably not meant so.

    Args:
        overrides: the options of the command line; what the config has for other methods is no mistake.
    """
    changed = differences(config, Config())
    unused = [key for key in changed if key in overrides and not is_used(key, config)]
    if unused:
        yield f"method {config.method.name} does not use {', '.join(unused)}"
    if config.optim.warmup_epochs > config.train.epochs:
        epochs = f"optim.warmup_epochs={config.optim.warmup_epochs:g} of train.epochs={config.train.epochs}"
        yield f"the learning rate never reaches optim.lr={config.optim.lr:g}: {epochs}"
    if is_used("method.drop_epoch", config) and config.method.drop_epoch >= config.train.epochs:
        yield f"method.drop_epoch={config.method.drop_epoch} of train.epochs={config.train.epochs}: nothing is dropped"
    yield from _turns_not_reached(config)


def is_used(key: str, config: Config) -> bool:
    """Whether `section.key` is no option of methods, or one of the configured method."""
    section, _, name = key.partition(".")
    return section != "method" or name in ("name", *options_of(config.method.name))


def _turns_not_reached(config: Config) -> Iterator[str]:
    """A line on turns of the learning rate that lie behind the run's end, as of a recipe that was cut short."""
    epochs = config.train.epochs
    turns = Schedule(config.optim, epochs, steps_per_epoch=1).boundaries()
    if late := [turn for turn in turns if turn >= epochs]:
        never = "never turns" if late == turns else "does not turn again"
        option = "optim.step_epochs" if config.optim.schedule == "step" else "optim.milestones"
        line = f"the learning rate {never}: {option} has {', '.join(map(str, late))}, train.epochs={epochs}"
        scales = f"; --train.scale_to={epochs} instead of --train.epochs={epochs} scales a whole recipe"
        yield line + ("" if "train.scale_to" in config.given else scales)


if __name__ == "__main__":
    sys.exit(main())
