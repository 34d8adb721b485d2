"""The exceptions that a command turns into one line."""

import difflib
from collections.abc import Collection

_MOST_LISTED = 20  # names in one line


class InputError(Exception):
    """Something the user gave is wrong: an option, a file, a data set.

    The message is a single line that names the thing and, where it can, the mend.
    """


class TrainingFailed(Exception):
    """Training cannot go on, through no fault of the input's form; the message says where it stopped."""


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """A line on a name that is none of those known, with the nearest of them, or all."""
    close = difflib.get_close_matches(name, known, 1)
    listed = ", ".join(known) if len(known) <= _MOST_LISTED else ", ".join([*known][:_MOST_LISTED]) + " and others"
    return f"{name}: no such {what}; " + (f"did you mean {close[0]}?" if close else f"there are {listed}")
