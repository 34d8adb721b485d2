"""How the bytes of a `.beton` reach the kernels: mapped by the operating system, or page by page.

Both are what FFCV calls a memory manager and its context: `schedule_epoch(batches)` is a context whose
`start_batch(n)` makes the bytes of batch n readable; `locate` gives their place in `memory`.

Each holds the file open for as long as the loader lives, so that another file at the same path is not mixed in, and
checks before each batch and after the last that nobody has written to it. One gap remains: a mapped file that is cut
while a kernel reads it ends the process with SIGBUS.
"""

import mmap
import os
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from fastlsr.data.ffcv_parts import compute_schedule
from fastlsr.errors import InputError

_READERS = 4  # threads that read pages; they wait for the disk, not for a core


class EpochStorage(Protocol):
    """The file during one epoch.

    Attributes:
        memory: uint8, read-only.
    """

    memory: np.ndarray

    def start_batch(self, number: int) -> None:
        """Makes the bytes of batch `number` readable; batches come in order."""

    def locate(self, addresses: np.ndarray) -> np.ndarray:
        """int64[B]: positions in `memory` of the file's addresses."""


class _WatchedFile:
    """A file held open, and the size and time of its last change when it was opened."""

    def __init__(self, path: Path, size: int):
        self.path, self.size = path, size
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self._changed = os.fstat(self.descriptor).st_mtime_ns
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Checks, within a microsecond, that the file is as it was opened.

        Raises:
            InputError: it was written to, or is shorter or longer.
        """
        state = os.fstat(self.descriptor)
        if (state.st_size, state.st_mtime_ns) != (self.size, self._changed):
            raise InputError(
                f"{self.path} was changed while it was in use; it has {state.st_size} of {self.size} bytes"
            )


class MappedFile:
    """The whole file in the address space; the operating system decides what stays in memory.

    Args:
        size: the file's, in bytes.
    """

    def __init__(self, path: Path, size: int):
        self._file = _WatchedFile(path, size)
        self.memory = np.frombuffer(mmap.mmap(self._file.descriptor, size, access=mmap.ACCESS_READ), dtype=np.uint8)

    @contextmanager
    def schedule_epoch(self, batches: list[np.ndarray]) -> Iterator[EpochStorage]:
        """The file itself: nothing needs preparing."""
        yield self
        self._file.check_unchanged()

    def start_batch(self, number: int) -> None:
        """Checks the file; every batch is readable at any time."""
        self._file.check_unchanged()

    def locate(self, addresses: np.ndarray) -> np.ndarray:
        """int64[B]: positions in `memory` of the file's addresses."""
        return addresses


class PagedFile:
    """Only the pages that the batches under way need, each read once; for files larger than the memory.

    Args:
        size: the file's, in bytes.
        page_of_sample: int64[N], the page that holds each sample's image.
    """

    def __init__(self, path: Path, size: int, *, page_bytes: int, page_of_sample: np.ndarray):
        self._file = _WatchedFile(path, size)
        self._page_bytes, self._page_of_sample = page_bytes, page_of_sample

    @contextmanager
    def schedule_epoch(self, batches: list[np.ndarray]) -> Iterator[EpochStorage]:
        """The storage of an epoch with these sample indices in its batches; inside, threads read."""
        pages = [set(np.unique(self._page_of_sample[batch]).tolist()) for batch in batches]
        readers = ThreadPoolExecutor(_READERS)
        try:
            yield _PagedEpoch(self._file, self._page_bytes, pages, readers)
        finally:
            readers.shutdown(cancel_futures=True)
        self._file.check_unchanged()


class _PagedEpoch:
    # FFCV's own context waits for ever when its reading threads die, and does not look at what a read returned.
    def __init__(self, file: _WatchedFile, page_bytes: int, pages: list[set[int]], readers: ThreadPoolExecutor):
        self._file, self._page_bytes, self._readers = file, page_bytes, readers
        self._schedule = compute_schedule(pages)
        self._slots = np.empty((self._schedule.num_slots, page_bytes), dtype=np.uint8)
        self.memory = self._slots.reshape(-1).view()
        self.memory.flags.writeable = False
        self._slot_of_page = np.zeros(max(self._schedule.page_to_slot, default=-1) + 1, dtype=np.int64)
        for page, slot in self._schedule.page_to_slot.items():
            self._slot_of_page[page] = slot
        self._reads: dict[int, Future[None]] = {}

    def start_batch(self, number: int) -> None:
        """Waits for the pages of batch `number`, and begins to read those of the next few."""
        self._file.check_unchanged()
        for page in self._schedule.can_prefetch_at[number]:
            self._reads[page] = self._readers.submit(self._read, page)
        for page in self._schedule.entering_at[number]:
            self._reads.pop(page).result()

    def locate(self, addresses: np.ndarray) -> np.ndarray:
        """int64[B]: positions in `memory` of the file's addresses."""
        page, within = np.divmod(addresses, self._page_bytes)
        return self._slot_of_page[page] * self._page_bytes + within

    def _read(self, page: int) -> None:
        start, target = page * self._page_bytes, memoryview(self._slots[self._slot_of_page[page]])
        wanted, done = min(self._page_bytes, self._file.size - start), 0
        while done < wanted:
            got = os.preadv(self._file.descriptor, [target[done:wanted]], start + done)
            if got == 0:
                raise InputError(f"{self._file.path} became shorter while it was read; it had {self._file.size} bytes")
            done += got
