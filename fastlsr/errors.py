"""The exceptions that a command turns into one line."""

import difflib
from collections.abc import Collection

_MOST_LISTED = 20  # names in one line


class InputError(Exception):
    """Something the user gave is wrong: an option, a file, a data set.

    The message is a single line that names the faulty option or file and, where possible, the fix.
    """


class TrainingFailed(Exception):
    """Training failed on valid input, as at a loss that is not finite; the message gives epoch and step.

    Attributes:
        elsewhere: whether another rank of the run failed, and this one with it.
    """

    elsewhere = False


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """An error line for an unknown name, with the closest known name, or all of them."""
    return f"{name}: no such {what}; {nearest(name, known)}"


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error line for an unknown name: the closest known name, or all of them."""
    if close := difflib.get_close_matches(name, known, 1):
        return f"did you mean {close[0]}?"
    listed = ", ".join(known) if len(known) <= _MOST_LISTED else ", ".join([*known][:_MOST_LISTED]) + " and others"
    return f"there are {listed}"
