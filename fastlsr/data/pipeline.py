"""FFCV's loader around our operations, order and storage: from sample indices to a batch in a slot's memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from fastlsr.config import Data
from fastlsr.data.augment import ColumnDecoder, Crop, ImageDecoder
from fastlsr.data.ffcv_parts import (
    Compiler,
    FFCVLoader,
    OrderOption,
    OSCacheManager,
    ToDevice,
    ToTensor,
    ToTorchImage,
    select_buffer,
)
from fastlsr.data.order import epoch_order, peers_of
from fastlsr.data.slots import Slot
from fastlsr.data.storage import EpochStorage, MappedFile, PagedFile
from fastlsr.data.tables import Tables
from fastlsr.ranks import Ranks, share, share_size

_BATCHES_AHEAD = 3


class Batch(NamedTuple):
    """B samples on the device. Their memory is used again once the next batch is asked for: clone what you keep."""

    images: torch.Tensor  # uint8 [B, 3, H, W], channels-last in memory
    labels: torch.Tensor  # int64 [B]
    index: torch.Tensor  # type: ignore[assignment]  # int64 [B], position in the file; hides tuple.index, unused


class Pipeline(FFCVLoader):
    """FFCV's loader, of which we use the graph of operations and its memory; order, storage and thread are ours.

    Attributes:
        storage: the file.
        slots: the ring of buffers.

    Args:
        indices: int64[n], the samples of the file that are used.
        file_bytes: the file's size.
        workers: threads that decode.
        ranks: which part of each batch to prepare.
    """

    def __init__(
        self,
        tables: Tables,
        data: Data,
        crop: Crop,
        indices: np.ndarray,
        *,
        file_bytes: int,
        train: bool,
        seed: int,
        device: torch.device,
        workers: int,
        paired: bool,
        ranks: Ranks,
    ):
        self._metadata, self._paired, self._ranks = tables.metadata, paired, ranks
        self._decoder = ImageDecoder(tables.images, crop, seed=seed, workers=workers, paired=paired, file=tables.path)
        with _ffcv_without_compiling():
            super().__init__(
                str(tables.path),
                batch_size=data.batch_size,
                num_workers=workers,
                order=OrderOption.SEQUENTIAL,  # FFCV takes only its own here; `batches` uses ours
                seed=seed,
                indices=indices,
                pipelines=_operations(self._decoder, device),
                drop_last=train and data.drop_last,
                batches_ahead=_BATCHES_AHEAD,
            )
        self._order = epoch_order(data.order if train else "sequential", tables.page[indices], data.batch_size)
        self.storage: MappedFile | PagedFile
        if data.os_cache:
            self.storage = MappedFile(tables.path, file_bytes)
        else:
            self.storage = PagedFile(tables.path, file_bytes, page_bytes=tables.page_bytes, page_of_sample=tables.page)
        # One slot is the consumer's, one is being filled, the others wait. They live as long as the loader: fresh
        # (pinned) memory for every epoch, as in FFCV, can take longer than an epoch's first batch.
        images, slots = self._most_samples() * (2 if paired else 1), _BATCHES_AHEAD + 2
        with _pinned_for(device):
            self._memory = self.graph.allocate_memory(images, slots)
        self.slots = [Slot(number, device) for number in range(slots)]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The samples, int64[B], of this rank's part of each batch of `epoch`, which `fill` crops for from now on.

        A part may be empty.
        """
        self._decoder.epoch = epoch
        order = self.indices[self._order(seed=self.seed, epoch=epoch)]
        whole = (order[n * self.batch_size : (n + 1) * self.batch_size] for n in range(len(self)))
        batches = [batch[self._share(len(batch))] for batch in whole]
        if not self._paired:
            return batches
        peers = np.zeros(len(self._metadata), dtype=np.int64)
        peers[self.indices] = self.indices[peers_of(self._metadata["f1"][self.indices], seed=self.seed, epoch=epoch)]
        return [np.concatenate([batch, peers[batch]]) for batch in batches]

    def _share(self, count: int) -> slice:
        return share(count, self._ranks.rank, self._ranks.world_size)

    def _most_samples(self) -> int:
        """Of this rank in any batch, at least 1; the last one's part can be larger than that of a full one."""
        sizes = (min(self.batch_size, len(self.indices)), len(self.indices) % self.batch_size)
        return max(1, *(share_size(size, self._ranks.rank, self._ranks.world_size) for size in sizes))

    def fill(self, slot: Slot, indices: np.ndarray, storage: EpochStorage) -> Batch:
        """The batch of these samples, in the memory of `slot`."""
        stages, outputs = self.code
        values: dict[str, Any] = {"batch_indices": indices, "metadata": self._metadata, "storage_state": storage}
        for prefix, kind in (("memory_", "operation"), ("shared_memory_", "shared")):
            for node, buffer in self._memory[kind].items():
                values[f"{prefix}{node}"] = select_buffer(buffer, slot.number, len(indices))
        with slot.filling():
            for code, produced in stages:
                values.update(zip((f"result_{node}" for node in produced), code(**values), strict=True))
        return Batch(*(values[f"result_{node}"] for node in outputs))


def _operations(decoder: ImageDecoder, device: torch.device) -> dict[str, list]:
    """FFCV's pipelines of the three fields. Decoders come first: FFCV spins for ever on one after ToTensor."""
    to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    return {
        "image": [decoder, ToTensor(), *to_device, ToTorchImage(channels_last=True)],
        "label": [ColumnDecoder(), ToTensor(), *to_device],
        "index": [ColumnDecoder(), ToTensor(), *to_device],
    }


def _pinned_for(device: torch.device) -> AbstractContextManager[object]:
    """Inside, FFCV allocates pinned memory only for a CUDA device: a CPU loader's would open a context there, too."""
    if device.type == "cuda":
        return nullcontext()
    return mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor)


@contextmanager
def _ffcv_without_compiling() -> Iterator[None]:
    """Inside, FFCV compiles nothing (our kernels are compiled already), and torch's thread count survives it.

    FFCV's memory manager, whose place `storage` takes, does nothing either. It would make sets of the samples of each
    page, hundreds of bytes an image. And its reader would set `mutable = False` on numba's only type of uint8 arrays,
    whose hash then changes, so that numba no longer finds our kernels that are compiled for it.
    """
    threads, manager = torch.get_num_threads(), (OSCacheManager.__init__, OSCacheManager.compile_reader)
    Compiler.set_enabled(False)
    OSCacheManager.__init__ = lambda self, reader: None
    OSCacheManager.compile_reader = lambda self: None
    try:
        yield
    finally:
        Compiler.set_enabled(True)
        OSCacheManager.__init__, OSCacheManager.compile_reader = manager
        torch.set_num_threads(threads)
