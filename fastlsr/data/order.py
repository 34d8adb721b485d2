"""The order of an epoch: a pure function of (seed, epoch), whatever the threads and whenever the run was resumed."""

from collections.abc import Callable

import numpy as np

from fastlsr.data.ffcv_parts import TraversalOrder

_GROUP_BATCHES = 16  # how many batches the pages that quasi_random keeps in memory hold, about


def sequential(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64[count]: 0, 1, 2, ... in every epoch."""
    return np.arange(count, dtype=np.int64)


def shuffled(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """int64[count]: a uniformly random permutation, a function of (seed, epoch) alone."""
    return _generator(seed, epoch).permutation(count)


def page_wise(pages: np.ndarray, *, group: int, seed: int, epoch: int) -> np.ndarray:
    """int64[N]: a permutation that needs `group` pages of the file at a time, for files larger than the memory.

    The pages are shuffled and cut into groups of `group`; the samples of a group are shuffled together.

    Args:
        pages: int[N], the page each sample lies on.
    """
    generator = _generator(seed, epoch)
    names, page = np.unique(pages, return_inverse=True)
    group_of_page = generator.permutation(len(names)) // group
    return np.lexsort((generator.random(len(pages)), group_of_page[page]))


def peers_of(labels: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """int64[N]: for each sample another of its class, or itself where there is no other; a permutation.

    A function of (labels, seed, epoch): the members of a class stand in a random circle, and each is given the next.

    Args:
        labels: int[N].
    """
    shuffled_samples = _generator(seed, (1 << 32) + epoch).permutation(len(labels))  # not the order's own stream
    circle = shuffled_samples[np.argsort(labels[shuffled_samples], kind="stable")]
    ordered = labels[circle]
    following = np.arange(1, len(labels) + 1)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    following[last] = np.searchsorted(ordered, ordered[last])  # back to the first of the class
    peers = np.empty(len(labels), dtype=np.int64)
    peers[circle] = circle[following]
    return peers


class EpochOrder(TraversalOrder):
    """FFCV's hook for an order. Its own draw from RNG(seed + epoch): seed 0's epoch 1 is seed 1's epoch 0."""

    def __init__(self, loader, permutation: Callable[..., np.ndarray]):
        super().__init__(loader)
        self._permutation = permutation

    def sample_order(self, epoch: int) -> np.ndarray:
        """int64[n]: the indices of the loader's samples in the order of `epoch`."""
        return self.indices[self._permutation(seed=self.seed, epoch=epoch)]


def epoch_order(loader, kind: str) -> EpochOrder:
    """The order `kind` (random, quasi_random or sequential) of an FFCV loader."""
    count = len(loader.indices)
    if kind == "random":
        return EpochOrder(loader, lambda **key: shuffled(count, **key))
    if kind == "sequential":
        return EpochOrder(loader, lambda **key: sequential(count, **key))
    if kind == "quasi_random":
        pages = page_of_sample(loader.reader)[loader.indices]
        group = _pages_in_group(pages, loader.batch_size)
        return EpochOrder(loader, lambda **key: page_wise(pages, group=group, **key))
    raise ValueError(f"unknown order {kind!r}")


def _generator(seed: int, epoch: int) -> np.random.Generator:
    # Philox is keyed, not seeded: every (seed, epoch) has a stream of its own, and no sum of the two enters.
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))


def page_of_sample(reader) -> np.ndarray:
    """int64[N]: the page each sample's image begins on; FFCV never lets a sample cross pages."""
    table = reader.alloc_table
    pages = np.zeros(reader.num_samples, dtype=np.int64)
    pages[table["sample_id"].astype(np.int64)] = table["ptr"] // reader.page_size
    return pages


def _pages_in_group(pages: np.ndarray, batch_size: int) -> int:
    samples_per_page = len(pages) / len(np.unique(pages))
    return max(1, round(_GROUP_BATCHES * batch_size / samples_per_page))
