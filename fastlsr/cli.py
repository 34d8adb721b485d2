"""How a command reads its arguments and how it ends."""

import argparse
import contextlib
import difflib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastlsr.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message}; --help lists the options")

    def print_help(self, file: Any = None) -> None:
        """Prints the help, and raises BrokenPipeError if nobody reads it, which argparse ignores."""
        print(self.format_help(), end="", file=file, flush=True)


def read_arguments(arguments: Sequence[str], flags: Sequence[str] = ()) -> tuple[str, dict[str, str], set[str]]:
    """(config file or "", overrides as `section.key` to text, flags seen) from a command line.

    Options are spelled `--section.key=value` or `--section.key value`, as a W&B agent does; `--cfg FILE` names the
    YAML; `--plugin NAME` may be repeated, and gives one text; `flags` are the options that take no value.

    Raises:
        InputError: for an argument that is not an option, or an option without its value.
    """
    path, seen = "", set[str]()
    overrides: dict[str, str] = {}
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
        elif name == "plugin" and name in overrides:
            overrides[name] += f",{value}"
        else:
            overrides[name] = value
    return path, overrides, seen


def check_out(out: Path, *suffixes: str) -> None:
    """Checks that the file `--out` of one of these kinds can be written.

    Raises:
        InputError: if not.
    """
    if out.suffix not in suffixes:
        raise InputError(f"--out={out}: expected a file that ends in {' or '.join(suffixes)}")
    if out.is_dir():
        raise InputError(f"--out={out} is a folder")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out={out} cannot be written: {out.parent} is no folder that can be written to")


def to_stderr(line: str) -> None:
    """Prints a line to stderr."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def exit_on_input_error(say: Callable[[str], None] = to_stderr) -> Iterator[None]:
    """Ends a command as a shell expects, around the body of a `main` function.

    `InputError` becomes one line on stderr and exit code 2, KeyboardInterrupt exit code 130. When the reader of stdout
    is gone, as after `... | head`, the command ends with code 141 and prints nothing.

    Args:
        say: prints the line.
    """
    try:
        yield
        if sys.stdout:  # None when the shell closed it
            sys.stdout.flush()
    except InputError as error:
        say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        if not sys.stdout or not _has_lost_its_reader(sys.stdout.fileno()):  # another pipe or connection broke
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        sys.exit(128 + signal.SIGPIPE)


@contextlib.contextmanager
def interrupts_raised() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt where `fastlsr/__init__.py` made it end the process.

    For what has something to clean up, after its imports: C++ code may abort on an exception while it is imported.
    """
    former = signal.getsignal(signal.SIGINT)
    if former is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if former is signal.SIG_DFL:
            signal.signal(signal.SIGINT, former)


def _has_lost_its_reader(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
