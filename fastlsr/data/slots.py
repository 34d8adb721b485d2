"""The ring of buffers that batches pass through, and what keeps CUDA's copies and kernels from colliding in it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Slot:
    """One set of buffers of the ring: host memory, and with CUDA device memory that it is copied to.

    FFCV lets the GPU wait, but not the host: a host that runs ahead would decode into pinned memory whose copy
    has not begun.
    """

    def __init__(self, number: int, device: torch.device):
        self.number = number
        self._device = device
        self._cuda = device.type == "cuda"
        self._blocked, self._blocked_since = 0.0, 0.0
        if self._cuda:
            self._stream = torch.cuda.Stream(device)
            self._copied = torch.cuda.Event(blocking=True)  # by the stream: the pinned memory is free
            self._read = torch.cuda.Event()  # by the consumer's kernels: the device memory is free
            self.take_back()  # kernels may still be using what torch has just given us as fresh memory

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Waits until the memory may be written; inside, copies go to the slot's own stream."""
        if not self._cuda:
            yield
            return
        self._blocked_since = time.perf_counter()
        self._copied.synchronize()
        self._blocked, self._blocked_since = self.blocked_seconds(), 0.0
        # A new thread's device is number 0: on another, leaving the stream would open a context there, too.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(self._read)
            yield
            self._copied.record(self._stream)

    def blocked_seconds(self) -> float:
        """How long `filling` has waited for the device so far, also while it does; to be read from any thread."""
        since = self._blocked_since
        return self._blocked + (time.perf_counter() - since if since else 0.0)

    def hand_out(self) -> None:
        """Lets what the consumer queues from now on run after the copy. The host does not wait."""
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(self._copied)

    def take_back(self) -> None:
        """Lets the slot be filled again only after what the consumer has queued so far."""
        if self._cuda:
            self._read.record(torch.cuda.current_stream(self._device))

    def settle(self) -> None:
        """Waits for the copy under way: torch may then give the memory to streams that know nothing of it."""
        if self._cuda:
            self._copied.synchronize()
