"""How a command reads its arguments and how it ends."""

import argparse
import contextlib
import difflib
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastlsr.errors import InputError

PLUGIN_HELP = "code of your own, loaded first; repeatable (docs/plugins.md)"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` where argparse would print its usage and exit.

    A flag may also be spelled `--flag=true` or `--flag=false`, as a W&B agent does.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, which the other ways of parsing call."""
        flags = [word.removeprefix("--") for each in self._actions if each.nargs == 0 for word in each.option_strings]
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args(_bare_flags(words, flags), namespace)

    def error(self, message: str) -> NoReturn:
        """Raises InputError."""
        raise InputError(f"{message}; --help lists the options")

    def add_plugin(self) -> None:
        """Lists `--plugin`, which `plugins.load_named` has taken from the words before."""
        self.add_argument("--plugin", action="append", metavar="FILE.py", help=PLUGIN_HELP)

    def print_help(self, file: Any = None) -> None:
        """Prints the help, and raises BrokenPipeError if nobody reads it, which argparse ignores."""
        print(as_started(self.format_help()), end="", file=file, flush=True)


def typed_command() -> list[str]:
    """The words that started this process, as they would be typed: without the folders of `python` and `fastlsr`."""
    words = sys.orig_argv[1:] if _is_console_script() else sys.orig_argv
    return [os.path.basename(words[0]), *words[1:]]


def as_started(text: str) -> str:
    """The text with its commands spelled as this one was: `fastlsr train` for `python -m fastlsr.train`."""
    return re.sub(r"\bpython -m fastlsr\.(?=[a-z])", "fastlsr ", text) if _is_console_script() else text


def _is_console_script() -> bool:
    """Whether this process is the script `fastlsr` that pip installs, not `python -m fastlsr...`."""
    return len(sys.orig_argv) > 1 and os.path.basename(sys.orig_argv[1]) == "fastlsr"


def print_help(text: str) -> None:
    """Prints the help of a command that reads `section.key` options."""
    print(as_started(f"{text.rstrip()}\n\n--plugin FILE.py  {PLUGIN_HELP}"))


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether -h or --help is among the words of a command line."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def _bare_flags(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words, with `--flag` for `--flag=true` and nothing for `--flag=false`.

    Raises:
        InputError: for a flag with another value.
    """
    kept = []
    for word in arguments:
        name, equals, value = word.removeprefix("--").partition("=")
        if not (word.startswith("--") and equals and name in flags):
            kept.append(word)
        elif value.lower() == "true":
            kept.append(f"--{name}")
        elif value.lower() != "false":
            raise InputError(f"{word}: expected true or false, or --{name} alone")
    return kept


def read_arguments(arguments: Sequence[str], flags: Sequence[str] = ()) -> tuple[str, dict[str, str], set[str]]:
    """(config file or "", overrides as `section.key` to text, flags seen) from a command line.

    Options are spelled `--section.key=value` or `--section.key value`, as a W&B agent does; `--cfg FILE` names the
    YAML; `--plugin NAME` may be repeated, and gives one text; `flags` are the options that take no value, or true or
    false.

    Raises:
        InputError: for an argument that is not an option, or an option without its value.
    """
    path, seen = "", set[str]()
    overrides: dict[str, str] = {}
    words = iter(_bare_flags(arguments, flags))
    for word in words:
        if word == "-h" and "help" in flags:
            word = "--help"
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
        if name in ("config", "config-file"):
            raise InputError(f"--{name} is spelled --cfg")
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
        say(as_started(f"error: {error}"))
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
