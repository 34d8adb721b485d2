"""Runs a command of fastlsr: fastlsr COMMAND ..., or python -m fastlsr.COMMAND ..., which are the same."""

from __future__ import annotations

import runpy
import sys

from fastlsr import __version__
from fastlsr.cli import exit_on_input_error, wants_help
from fastlsr.errors import InputError, unknown

COMMANDS = {
    "train": "trains one run, or resumes it",
    "write": "writes a data set as .beton files, which all else reads",
    "teach": "makes soft labels of a pre-trained network or of a run",
    "labels": "imports soft labels by sample from a table of annotations",
    "evaluate": "prints the test metrics of a run",
    "sweep": "runs the trials of a W&B sweep file without an account",
    "report": "makes tables, comparisons, figures and a page of runs",
    "analyze": "looks into runs: soft labels, features, calibration and more",
    "export": "writes a run's weights for other programs",
    "doctor": "checks what training needs of this machine",
}


def main() -> None:
    """Runs the command that the first word names, as `python -m` would; without one it lists them."""
    with exit_on_input_error():
        words = sys.argv[1:]
        if not words or wants_help(words[:1]) or words == ["help"]:
            print(overview())
            return
        if words[0] == "--version":
            print(f"fastlsr {__version__}")
            return
        if words[0] not in COMMANDS:
            raise InputError(unknown("command", words[0], list(COMMANDS)))
    del sys.argv[1]
    runpy.run_module(f"fastlsr.{words[0]}", run_name="__main__", alter_sys=True)


def overview() -> str:
    """How a command is started, and a line for each."""
    lines = [f"  {name:10}{what}" for name, what in COMMANDS.items()]
    head = "usage: fastlsr COMMAND ..., or python -m fastlsr.COMMAND ...; --help lists a command's options"
    return "\n".join([head, "", *lines])


if __name__ == "__main__":
    main()
