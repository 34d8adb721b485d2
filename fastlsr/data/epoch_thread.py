"""The thread that prepares an epoch's batches ahead of the consumer, and how the two hand slots to each other.

FFCV's own thread leaves its consumer waiting for ever when it fails, reuses memory that is still being copied to a GPU,
and is lost when an epoch is left early.

Ours is not a daemon: it ends by itself when the epoch is left or the main thread ends, so that the interpreter never
shuts down under running kernels.
"""

import queue
import threading
from typing import NamedTuple, NoReturn

import numba

from fastlsr.data.pipeline import Batch, Pipeline
from fastlsr.data.slots import Slot
from fastlsr.errors import InputError

_POLL_SECONDS = 0.2


class _Filled(NamedTuple):
    slot: Slot
    batch: Batch


class _Failure(NamedTuple):
    error: BaseException
    batch: int


class EpochThread(threading.Thread):
    """Prepares an epoch's batches. A slot is the thread's (free or being filled), or ready, or the consumer's."""

    def __init__(self, pipeline: Pipeline, epoch: int, first_batch: int):
        super().__init__(name=f"loader, epoch {epoch}")
        self._pipeline, self._epoch, self._first_batch = pipeline, epoch, first_batch
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Filled | _Failure | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._lent: Slot | None = None
        for slot in pipeline.slots:
            self._free.put(slot)

    def run(self) -> None:
        """Fills slots until the epoch ends; always queues an end marker or the failure, unless nobody waits for one."""
        number = self._first_batch
        try:
            numba.set_num_threads(self._pipeline.num_workers)  # counts for this thread alone
            batches = self._pipeline.batches(self._epoch)[self._first_batch :]
            with self._pipeline.storage.schedule_epoch(batches) as storage:
                for number, indices in enumerate(batches, start=self._first_batch):
                    slot = self._next_free()
                    if slot is None:
                        return
                    storage.start_batch(number - self._first_batch)
                    self._ready.put(_Filled(slot, self._pipeline.fill(slot, indices, storage)))
            self._ready.put(None)
        except BaseException as error:  # whatever it is, the consumer must not wait for it
            self._ready.put(_Failure(error, number))

    def next_batch(self) -> Batch | None:
        """The next batch, or None at the end of the epoch; the slot of the one before is the thread's again.

        Raises:
            InputError: an image cannot be decoded, or the file was changed.
            RuntimeError: the thread failed, or ended without reporting an error, or was closed.
        """
        self._take_back()
        ready = self._next_ready()
        if isinstance(ready, _Failure):
            self._raise(ready)
        if not isinstance(ready, _Filled):
            return None
        self._lent = ready.slot
        ready.slot.hand_out()
        return ready.batch

    def blocked_seconds(self) -> float:
        """How long the thread has waited for the device, which still reads or copies what the slots hold."""
        return sum(slot.blocked_seconds() for slot in self._pipeline.slots)

    def close(self) -> None:
        """Ends the thread, drops what it prepared, and waits until no copy is under way."""
        self._take_back()
        self._closed.set()
        self._free.put(None)  # wakes it
        self.join()
        for slot in self._pipeline.slots:
            slot.settle()

    def _take_back(self) -> None:
        if self._lent is not None:
            self._lent.take_back()
            self._free.put(self._lent)
            self._lent = None

    def _next_free(self) -> Slot | None:
        """A slot to fill, or None when nobody will ask for it any more."""
        while not self._closed.is_set() and threading.main_thread().is_alive():
            try:
                slot = self._free.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            return None if self._closed.is_set() else slot
        return None

    def _next_ready(self) -> _Filled | _Failure | None:
        while True:
            if self._closed.is_set():
                raise RuntimeError(f"{self.name}: this epoch was ended; another one was begun")
            try:
                return self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if not self.is_alive() and self._ready.empty():
                    raise RuntimeError(f"{self.name}: the thread is dead and has left no batch") from None

    def _raise(self, failure: _Failure) -> NoReturn:
        if isinstance(failure.error, InputError):
            raise InputError(str(failure.error)) from failure.error
        raise RuntimeError(f"{self.name}: batch {failure.batch} failed: {failure.error!r}") from failure.error
