"""The exceptions that a command turns into one line."""


class InputError(Exception):
    """Something the user gave is wrong: an option, a file, a data set.

    The message is a single line that names the thing and, where it can, the mend.
    """


class TrainingFailed(Exception):
    """Training cannot go on, through no fault of the input's form; the message says where it stopped."""
