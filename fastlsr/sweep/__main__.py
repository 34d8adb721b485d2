"""Runs a W&B sweep file without an account: python -m fastlsr.sweep FILE [--jobs N] [--devices-per-trial N] ...

--section.key=value is an option of every trial, and wins over the file, unless the sweep varies it.
Each trial is a process and a run of its own; started again, the sweep skips what is finished and resumes what is not.
Exit codes: 0 all trials finished, 1 some failed, 2 wrong input, 130 and 143 stopped by SIGINT and SIGTERM, which
the trials under way were sent, so that they left checkpoints.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastlsr.cli import Parser, exit_on_input_error
from fastlsr.errors import InputError
from fastlsr.files import sole_use
from fastlsr.shipped import SWEEPS, names
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.jobs import Jobs, choose_jobs
from fastlsr.sweep.overrides import override, split_overrides
from fastlsr.sweep.plan import plan_text, plan_trials
from fastlsr.sweep.results import (
    check_metric,
    check_metric_is_evaluated,
    outcomes_of,
    selection_text,
    sweep_table,
    table_legend,
)
from fastlsr.sweep.runner import Runner, cuda_devices


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sweep that the command line names; returns the exit code."""
    with exit_on_input_error():
        words, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        options = _parser().parse_args(words)
        sweep = override(read_sweep(options.file), overrides)
        try:
            check_metric(sweep)
            planned, rejected = plan_trials(sweep, options.count, ranks=options.devices_per_trial)
            check_metric_is_evaluated(sweep, planned)
        except InputError as error:
            raise InputError(f"{options.file}: {error}") from None
        if options.dry_run:
            print(plan_text(planned, rejected))
            return 1 if rejected else 0
        folder = Path(planned[0].config.run.dir) / "sweeps" / Path(options.file).stem
        # Trials inherit the lock, so that it also outlives a sweep that was killed.
        with sole_use(folder, f"{folder}: this sweep, or a trial of it, is still running") as lock:
            ranks = options.devices_per_trial
            if options.jobs:
                number = min(options.jobs, len(planned))
                jobs = Jobs(at_once=number, shares=number)
            else:
                jobs = choose_jobs(planned, ranks, cuda_devices())
                print(f"trials at a time: {jobs.at_once}, each with 1/{jobs.shares} of the cores", flush=True)
            runner = Runner(sweep, planned, folder, jobs=jobs, ranks=ranks, lock=lock)
            for repeated in planned:
                if repeated.same:
                    print(repeated.same_runs, flush=True)
            for trial in rejected:
                print(f"trial {trial.number} failed: {trial.line}", flush=True)
            stopped = asyncio.run(runner.run())
        outcomes = outcomes_of(planned, runner.summaries)
        if runner.summaries:
            # Piped, lines are long enough for nothing to be cut off.
            console = Console(width=None if sys.stdout.isatty() else 160)
            with console.capture() as table:
                console.print(sweep_table(sweep, outcomes))
            print(f"{table.get()}{table_legend(sweep, outcomes)}")
        if stopped:
            return 128 + stopped
        if options.select:
            print(selection_text(sweep, outcomes))
        return 1 if rejected or runner.failed else 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m fastlsr.sweep",
        description=__doc__,
        epilog=f"sweeps that come with fastlsr, in {SWEEPS}:\n  " + "\n  ".join(names(SWEEPS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_plugin()
    parser.add_argument("file", help="a W&B sweep file, with method: grid or random; or a name of those below")
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="trials at a time (default: one for each CUDA device or core)"
    )
    parser.add_argument("--count", type=_positive, metavar="N", help="only the first N trials")
    parser.add_argument(
        "--devices-per-trial",
        type=_positive,
        default=1,
        metavar="N",
        help="ranks of each trial, under torchrun",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--select", action="store_true", help="print the command of the setting with the best mean")
    either.add_argument("--dry-run", action="store_true", help="print the trials and their commands, run nothing")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
