"""The one exception that means "the user can mend this", and what a command does with it."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(Exception):
    """Something the user gave is wrong: an option, a file, a data set.

    The message is a single line that names the thing and, where it can, the mend.
    """


@contextlib.contextmanager
def exit_on_input_error() -> Iterator[None]:
    """Turns an `InputError` into one line on stderr and exit code 2, for `main` functions."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
