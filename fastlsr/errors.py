"""The exceptions that a command answers in one line, and what it does with "the user can mend this"."""

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


class InputError(Exception):
    """Something the user gave is wrong: an option, a file, a data set.

    The message is a single line that names the thing and, where it can, the mend.
    """


class TrainingFailed(Exception):
    """Training cannot go on, through no fault of the input's form; the message says where it stopped."""


class Parser(argparse.ArgumentParser):
    """Raises `InputError` for what it cannot read, where argparse would print several lines."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message}; --help lists the options")


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an `InputError` into one line on stderr and exit code 2, for `main` functions.

    Where nobody reads what is printed any more, as in `... | head`, the command ends without a word.
    """
    try:
        yield
        if sys.stdout:  # none where the shell closed it
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):  # another pipe or connection broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        sys.exit(128 + signal.SIGPIPE)


def _nobody_reads(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
