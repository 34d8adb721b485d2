"""How the bytes of a `.beton` reach the kernels: mapped by the operating system, or page by page.

Both are what FFCV calls a memory manager and its context at once: `schedule_epoch(batches)` gives a context whose
`start_batch(n)` makes the bytes of batch n readable; `locate` says where in `memory` they are.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fastlsr.data.ffcv_parts import compute_schedule

_READERS = 4  # threads that read pages; they wait for the disk, not for a core


class MappedFile:
    """The whole file in the address space; the operating system decides what stays in memory."""

    def __init__(self, path: str):
        self.memory = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))

    def schedule_epoch(self, batches: list[np.ndarray]) -> "MappedFile":
        """Itself: nothing needs preparing."""
        return self

    def __enter__(self) -> "MappedFile":
        return self

    def __exit__(self, *error) -> None:
        pass

    def start_batch(self, number: int) -> None:
        """None; every batch is readable at any time."""

    def locate(self, addresses: np.ndarray) -> np.ndarray:
        """int64[B]: positions in `memory` of the file's addresses."""
        return addresses


class PagedFile:
    """Only the pages that the batches under way need, each read once; for files larger than the memory."""

    def __init__(self, path: str, *, page_bytes: int, page_of_sample: np.ndarray):
        self._path, self._page_bytes, self._page_of_sample = path, page_bytes, page_of_sample

    def schedule_epoch(self, batches: list[np.ndarray]) -> "_PagedEpoch":
        """The context of an epoch with these sample indices in its batches."""
        pages = [set(np.unique(self._page_of_sample[batch]).tolist()) for batch in batches]
        return _PagedEpoch(self._path, self._page_bytes, pages)


class _PagedEpoch:
    # FFCV's own context waits for ever when its reading threads die, and does not look at what a read returned.
    def __init__(self, path: str, page_bytes: int, pages: list[set[int]]):
        self._path, self._page_bytes = path, page_bytes
        self._schedule = compute_schedule(pages)
        self._slots = np.empty((self._schedule.num_slots, page_bytes), dtype=np.uint8)
        self.memory = self._slots.reshape(-1).view()
        self.memory.flags.writeable = False
        self._slot_of_page = np.zeros(max(self._schedule.page_to_slot) + 1, dtype=np.int64)
        for page, slot in self._schedule.page_to_slot.items():
            self._slot_of_page[page] = slot
        self._reads: dict[int, Future] = {}

    def __enter__(self) -> "_PagedEpoch":
        self._file = os.open(self._path, os.O_RDONLY)
        self._readers = ThreadPoolExecutor(_READERS)
        return self

    def __exit__(self, *error) -> None:
        self._readers.shutdown(cancel_futures=True)
        os.close(self._file)

    def start_batch(self, number: int) -> None:
        """None, once the pages of batch `number` are in memory and those of the next few are on their way."""
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
        wanted, done = min(self._page_bytes, os.fstat(self._file).st_size - start), 0
        while done < wanted:
            got = os.preadv(self._file, [target[done:wanted]], start + done)
            if got == 0:
                raise OSError(f"{self._path} ended while it was read")
            done += got
