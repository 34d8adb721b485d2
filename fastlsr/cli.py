"""How a command reads its words and how it ends."""

import argparse
import contextlib
import difflib
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from fastlsr.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises `InputError` for what it cannot read, where argparse would print several lines."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message}; --help lists the options")


def read_arguments(arguments: Sequence[str], flags: Sequence[str] = ()) -> tuple[str, dict[str, str], set[str]]:
    """(config file or "", overrides as `section.key` to text, flags seen) from a command line.

    Options are spelled `--section.key=value` or `--section.key value`, as a W&B agent does; `--cfg FILE` names the
    YAML; `flags` are the bare switches this command knows.

    Raises:
        InputError: for a word that is no option, or an option without its value.
    """
    path, overrides, seen = "", {}, set()
    words = iter(arguments)
    for word in words:
        if not word.startswith("--"):
            raise InputError(f"{word!r} is not an option; options are spelled --section.key=value")
        name, equals, value = word[2:].partition("=")
        if name in flags and not equals:
            seen.add(name)
            continue
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                close = difflib.get_close_matches(name, flags, 1)
                hint = f"; did you mean --{close[0]}?" if close else f": --{name}=value"
                raise InputError(f"--{name} needs a value{hint}")
            value = following
        if name == "cfg":
            path = value
        else:
            overrides[name] = value
    return path, overrides, seen


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an `InputError` into one line on stderr and exit code 2, and Ctrl-C into code 130, for `main` functions.

    Where nobody reads what is printed any more, as in `... | head`, the command ends with code 141 and prints nothing.
    """
    try:
        yield
        if sys.stdout:  # none where the shell closed it
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):  # another pipe or connection broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        sys.exit(128 + signal.SIGPIPE)


def _nobody_reads(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
