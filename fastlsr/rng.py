"""Named random streams. Every draw of the program comes from one of them, under a key of (stream, seed, number).

Three kinds of generator, each where it is cheapest. Different (stream, seed, number) never share a key:

- `generator`: numpy's Philox, for what is drawn once an epoch or a phase.
- `sample_stream`: the epoch's part of the key of `data.augment.sample_key`, for what each sample draws in an epoch.
- `position_uniform`: splitmix64, for one number an image when files are written.

Network weights and dropout are torch's own generator under `torch.manual_seed`.
"""

import hashlib
from enum import IntEnum

import numpy as np

_NUMBERS = 32  # bits of a key below the stream: epochs or phases
_SEEDS = 40  # bits of a writer's key below the stream
_FOLDS_KEY = 0x0F01D5


class Stream(IntEnum):
    """The streams of `generator`; the comment names the number that goes with each."""

    ORDER = 0  # of an epoch's samples (epoch)
    PAIRS = 1  # which sample of its class goes with each sample, CS-KD (epoch)
    PEERS = 2  # the samples of a class whose logits are averaged, COLAM (phase)
    REDRAWS = 3  # labels redrawn by DisturbLabel (epoch)
    GENERATIONS = 4  # fresh weights (phase)
    RANKS = 6  # torch's own generator of each rank but the first (epoch * 2**12 + rank)
    ANALYSES = 5  # the samples that an analysis looks at (0), and their bootstrap (1)


class SampleStream(IntEnum):
    """The streams of `sample_stream`."""

    CROPS = 0  # crop and flip of a sample
    PAIR_CROPS = 1  # crop and flip of the sample that goes with another, CS-KD


class WriteStream(IntEnum):
    """The streams of `position_uniform`."""

    SPLIT = 0  # which images of a tree without splits are for testing
    SUBSET = 1  # which images `--subset` takes
    PROPORTION = 2  # which images `--write-mode proportion` stores as JPEG


def generator(stream: Stream, seed: int, number: int = 0) -> np.random.Generator:
    """The generator of a stream; the same one for the same arguments.

    Args:
        seed: of the run, in [0, 2**63).
        number: of the epoch or the phase, in [0, 2**32).
    """
    # Philox is keyed, not seeded: no sum or hash of the arguments enters, so that equal draws mean equal arguments.
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream << _NUMBERS | number], dtype=np.uint64)))


def derived_seed(stream: Stream, seed: int, number: int) -> int:
    """A number in [0, 2**62), the seed of another generator: torch's, or a hash on the device."""
    return int(generator(stream, seed, number).integers(1 << 62))


def sample_stream(stream: SampleStream, epoch: int) -> int:
    """The integer that encodes (stream, epoch) in the key of a sample's augmentation; the epoch itself for CROPS."""
    return stream << _NUMBERS | epoch


def folds_generator() -> np.random.Generator:
    """The generator of the folds of cross-validation, without a seed: settings are compared on the same folds.

    Its key is that of ORDER for one seed, 983,509, and epoch 0. Another would change the folds of runs under way.
    """
    return np.random.Generator(np.random.Philox(key=_FOLDS_KEY))


def named_generator(name: str, number: int) -> np.random.Generator:
    """The generator of one parameter in one trial of a random search, or of an analysis's draws by their name."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key=[key, number]))


def position_uniform(stream: WriteStream, seed: int, position: int) -> float:
    """A number in [0, 1), a function of the arguments alone: two rounds of splitmix64.

    Args:
        seed: of the writer, in [0, 2**40).
        position: of the image in its list.
    """
    state = _mixed(_mixed(seed ^ (stream << _SEEDS)) + position)
    return (state >> 11) / 2**53


def _mixed(state: int) -> int:
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)
