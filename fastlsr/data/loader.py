"""Batches on the device, from a `.beton` file: an FFCV loader whose every byte is a function of (seed, epoch, index).

FFCV gives the file format, the graph of operations and their memory (`pipeline`). Ours are the operations (`augment`),
the order (`order`), the reading (`storage`), and the thread that prepares the batches (`epoch_thread`).

A process that loaded data must not fork (use spawn): the thread pool of the kernels does not survive it.
"""

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from fastlsr.config import Data
from fastlsr.cores import cores
from fastlsr.data import advice
from fastlsr.data.crops import evaluation_crop, input_resolution, training_crop
from fastlsr.data.epoch_thread import EpochThread
from fastlsr.data.manifest import Manifest, verify
from fastlsr.data.pipeline import Batch, Pipeline
from fastlsr.data.splits import Subset, whole
from fastlsr.data.tables import read_tables
from fastlsr.errors import InputError
from fastlsr.ranks import ALONE, Ranks, read_ranks

__all__ = ["Batch", "Loader", "check_pairs_storage", "worker_count"]

_MOST_WORKERS = 12


class Loader:
    """The batches of a `.beton`, epoch by epoch; the same ones whatever the number of workers.

    With `train`, in the order and with the augmentation of `data`; otherwise every sample once, in the order of
    the file, not augmented. With `paired`, the second half of each batch holds, for every sample of the first, another
    of its class (itself, if the class has no other) with a crop of its own, so that B samples make a batch of 2B. Of
    several `ranks`, each gets its part of every batch, which may be empty: together, what one alone would get. Only
    one epoch of a loader is under way at a time: beginning another ends it.

    Attributes:
        indices: int64[n], ascending: the samples of the file that an epoch consists of, those that `subset` takes.
        labels: int64[N], the label of each sample of the file, by its index.
        class_counts: int64[K], how many of the n samples each class has.
        workers: threads that decode.
        wait_seconds: spent waiting for data in the epoch under way, or in the last one; not for the device.
        first_wait_seconds: of them for the first batch, during which nothing else could be done.

    Raises:
        InputError: the file is not what its manifest states, has other fields than image, label and index, or does not
            allow what `data` asks for; or pairs without the system's file cache.
    """

    def __init__(
        self,
        beton: Path,
        data: Data,
        *,
        train: bool,
        seed: int,
        device: torch.device,
        subset: Subset = whole,
        paired: bool = False,
        ranks: Ranks = ALONE,
    ):
        if paired:
            check_pairs_storage(data)
        self.manifest: Manifest = verify(beton)
        self.resolution = input_resolution(self.manifest, data)
        self.workers = worker_count(data.workers, device=device)
        self.wait_seconds = self.first_wait_seconds = 0.0
        self._data, self._paired = data, paired
        tables = read_tables(beton, self.manifest)
        self.labels: np.ndarray = tables.labels
        self.indices: np.ndarray = subset(self.labels)
        self.class_counts = np.bincount(self.labels[self.indices], minlength=len(self.manifest.classes))
        self._pipeline = Pipeline(
            tables,
            data,
            training_crop(self.manifest, data) if train else evaluation_crop(self.manifest, data),
            self.indices,
            file_bytes=self.manifest.bytes,
            train=train,
            seed=seed,
            device=device,
            workers=self.workers,
            paired=paired,
            ranks=ranks,
        )
        self._thread: EpochThread | None = None
        if not len(self):
            raise InputError(f"{beton} has {len(self.indices)} images, not one batch of {data.batch_size}")

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._pipeline)

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of `epoch` from number `first_batch` on; its thread ends however the iterator is left.

        Raises:
            InputError: an image cannot be decoded, or the file was changed; the message names it.
            RuntimeError: the loader failed or died, with the cause; or another epoch was begun meanwhile.
        """
        if self._thread is not None:
            self._thread.close()
        self.wait_seconds = 0.0
        thread = self._thread = EpochThread(self._pipeline, epoch, first_batch)
        thread.start()
        try:
            batch = self._timed_next(thread)
            self.first_wait_seconds = self.wait_seconds
            while batch is not None:
                yield batch
                batch = self._timed_next(thread)
        finally:
            thread.close()

    def remedies(self) -> list[str]:
        """What may help where batches come too slowly; see `advice.remedies`."""
        return advice.remedies(
            self.manifest,
            self._data,
            resolution=self.resolution,
            workers=self.workers,
            cores=_cores(),
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            paired=self._paired,
        )

    def _timed_next(self, thread: EpochThread) -> Batch | None:
        begin, blocked = time.perf_counter(), thread.blocked_seconds()
        batch = thread.next_batch()
        # Not where the thread itself waits for the device, which lags behind a host that runs ahead.
        self.wait_seconds += max(0.0, time.perf_counter() - begin - (thread.blocked_seconds() - blocked))
        return batch


def check_pairs_storage(data: Data) -> None:
    """Checks that the options suit a method that pairs images.

    Raises:
        InputError: they leave out the system's file cache.
    """
    if not data.os_cache:
        raise InputError("data.os_cache=false: pairs come from all over the file, so this method needs true")


def worker_count(requested: int, *, device: torch.device) -> int:
    """Threads that decode: as requested up to the cores, which the ranks on this machine share; 0 chooses.

    A GPU leaves the cores to the loader: all of them, up to 12. On the CPU the network needs them, and torch takes all
    (`engine.runtime.threads`): one thread decodes hundreds of photographs a second, where two cores train tens, so
    that training waits for it in less than a hundredth of the time.
    """
    if requested:
        return min(requested, _cores())
    return min(_cores(), _MOST_WORKERS) if device.type == "cuda" else 1


def _cores() -> int:
    """This rank's share of the cores, or fewer, where the environment gives numba fewer."""
    settings: Any = numba.config  # whose attributes are made at import
    return max(1, min(cores(), settings.NUMBA_NUM_THREADS) // read_ranks().local_world_size)
