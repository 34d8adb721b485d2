"""Batches on the device, from a `.beton` file: an FFCV loader whose every byte is a function of (seed, epoch, index).

What FFCV gives: the file format, the pipeline of operations, the memory managers and its C functions. What is
ours: the operations (`augment`), the order (`order`), and the thread that prepares the batches, since FFCV's waits
for ever when it fails, reuses memory that is still being copied to a GPU, and is lost when an epoch is left early.

The thread is not a daemon: it ends by itself when the epoch is left or the main thread ends, so that the
interpreter never goes down under running kernels. A process that loaded data must not fork (use spawn): the
kernels' thread pool does not survive it.
"""

import os
import queue
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import torch

from fastlsr.config import LARGEST_SMALL_IMAGE, Data
from fastlsr.data import advice, augment
from fastlsr.data.ffcv_parts import (
    Compiler,
    FFCVLoader,
    OrderOption,
    OSCacheManager,
    Reader,
    ToDevice,
    ToTensor,
    ToTorchImage,
    select_buffer,
)
from fastlsr.data.manifest import Manifest, verify
from fastlsr.data.order import epoch_order, page_of_sample, peers_of
from fastlsr.data.splits import Subset, whole
from fastlsr.data.storage import MappedFile, PagedFile
from fastlsr.errors import InputError

FIELDS = ["image", "label", "index"]
_PHOTOGRAPH_RESOLUTION = 224
_MOST_WORKERS = 12
_BATCHES_AHEAD = 3
_POLL_SECONDS = 0.2


class Batch(NamedTuple):
    """B samples on the device. Once the next batch is asked for, the memory is used again: clone what must live on."""

    images: torch.Tensor  # uint8 [B, 3, H, W], channels-last in memory
    labels: torch.Tensor  # int64 [B]
    index: torch.Tensor  # int64 [B], position of the sample in the file


class Loader:
    """The batches of a `.beton`, epoch by epoch; the same ones whatever the number of workers.

    With `train`, in the order and with the augmentation of `data`; otherwise every sample once, in the order of
    the file, not augmented. With `paired`, the second half of each batch holds, for every sample of the first, another
    of its class (itself, if the class has no other), so that B samples make a batch of 2B. One epoch of a loader is
    under way at a time: beginning another ends it.

    Attributes:
        indices: int64[n], ascending: the samples of the file that an epoch consists of, those that `subset` takes.
        class_counts: int64[K], how many of them each class has.

    Raises:
        InputError: the file is not what its manifest says (it is not opened then), has other fields than
            image, label and index, or does not allow what `data` asks for; or pairs without the system's file cache.
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
    ):
        if paired:
            refuse_paged_pairs(data)
        self.manifest: Manifest = verify(beton)
        self._data, self._paired = data, paired
        self.resolution: int = input_resolution(self.manifest, data)
        self.wait_seconds = 0.0  # spent waiting for data in the epoch under way, or in the last one
        self.first_wait_seconds = 0.0  # of them for the first batch, which nothing could be done during
        crop = train_crop(self.manifest, data) if train else test_crop(self.manifest, data)
        reader = _checked_reader(beton, self.manifest)
        self.indices = subset(reader.metadata["f1"])
        self._pipeline = _Pipeline(
            reader, data, crop, self.indices, train=train, seed=seed, device=device, paired=paired
        )
        self.class_counts = np.bincount(self.labels[self.indices], minlength=len(self.manifest.classes))
        self._thread: _EpochThread | None = None
        if not len(self):
            raise InputError(f"{beton} has {len(self.indices)} images, not one batch of {data.batch_size}")

    @property
    def labels(self) -> np.ndarray:
        """int64[N]: the label of each sample of the file, by its index."""
        return self._pipeline.reader.metadata["f1"]

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._pipeline)

    @property
    def workers(self) -> int:
        """Threads that decode."""
        return self._pipeline.num_workers

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of `epoch` from number `first_batch` on; its thread ends however the iterator is left.

        Raises:
            InputError: an image cannot be decoded; the message names it.
            RuntimeError: the loader failed or died, with the cause; or another epoch was begun meanwhile.
        """
        if self._thread is not None:
            self._thread.close()
        self.wait_seconds = 0.0
        thread = self._thread = _EpochThread(self._pipeline, epoch, first_batch)
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
            cores=numba.config.NUMBA_NUM_THREADS,
            memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            paired=self._paired,
        )

    def _timed_next(self, thread: "_EpochThread") -> Batch | None:
        begin = time.perf_counter()
        batch = thread.next_batch()
        self.wait_seconds += time.perf_counter() - begin
        return batch


def input_resolution(manifest: Manifest, data: Data) -> int:
    """Side of the network's input, pixels: as configured, else the images' own if all are equal and small, else 224."""
    return data.resolution or _own_side(manifest) or _PHOTOGRAPH_RESOLUTION


def train_crop(manifest: Manifest, data: Data) -> augment.Crop:
    """What training makes of an image. `data.augment` "none" leaves out the flips, too.

    Raises:
        InputError: pad_crop of images that are not all of the input's size.
    """
    resolution = input_resolution(manifest, data)
    fits = _own_side(manifest) == resolution
    if data.augment == "none":
        return test_crop(manifest, data)
    if data.augment == "pad_crop" and not _is_square(manifest, resolution):
        raise InputError(f"data.augment=pad_crop needs images of {resolution} x {resolution} pixels; use resized_crop")
    if data.augment == "pad_crop" or (data.augment == "auto" and fits):
        return augment.padded_crop(resolution, flip=data.flip)
    return augment.random_resized_crop(resolution, flip=data.flip)


def test_crop(manifest: Manifest, data: Data) -> augment.Crop:
    """What evaluation makes of an image: nothing if it is small and of the input's size, else the central crop."""
    resolution = input_resolution(manifest, data)
    if _own_side(manifest) == resolution:
        return augment.whole_image(resolution)
    return augment.central_crop(resolution)


def refuse_paged_pairs(data: Data) -> None:
    """None, for a method that pairs images.

    Raises:
        InputError: without the system's file cache.
    """
    if not data.os_cache:
        raise InputError("data.os_cache=false: pairs come from all over the file, so this method needs true")


def worker_count(requested: int, *, device: torch.device) -> int:
    """Threads that decode: as requested up to the cores; 0 chooses.

    A GPU leaves the cores to the loader: all of them, up to 12. On the CPU the network needs them, and torch takes all
    (`engine.runtime.threads`): one thread decodes hundreds of photographs a second, where two cores train tens, so
    that training waits for it in less than a hundredth of the time.
    """
    cores = numba.config.NUMBA_NUM_THREADS  # those this process may run on, unless the environment says otherwise
    if requested:
        return min(requested, cores)
    return min(cores, _MOST_WORKERS) if device.type == "cuda" else 1


def _is_square(manifest: Manifest, side: int) -> bool:
    return {*manifest.heights, *manifest.widths} == {side}


def _own_side(manifest: Manifest) -> int:
    """Side of the images if they are all equal, square and small; else 0."""
    side = manifest.heights[0]
    return side if side <= LARGEST_SMALL_IMAGE and _is_square(manifest, side) else 0


def _checked_reader(beton: Path, manifest: Manifest) -> Reader:
    """FFCV's reader of `beton`, after a look at all that the kernels read through raw pointers."""
    try:
        reader = Reader(str(beton))
    except AssertionError as error:
        raise InputError(f"{beton} is not a .beton of this FFCV: {error}") from None
    if reader.field_names != FIELDS:
        raise InputError(f"{beton} has the fields {reader.field_names}, not {FIELDS}")
    if reader.num_samples != manifest.count or not manifest.count:
        raise InputError(f"{beton} has {reader.num_samples} samples, its manifest says {manifest.count}")
    labels = reader.metadata["f1"]
    if manifest.count and not 0 <= labels.min() <= labels.max() < len(manifest.classes):
        raise InputError(f"{beton} has labels outside the {len(manifest.classes)} classes of its manifest")
    return reader


def _image_table(reader: Reader) -> augment.Rows:
    """Where each of the N images lies. Raises InputError where one lies outside the file or is of a wrong size."""
    image, table = reader.metadata["f0"], reader.alloc_table
    sizes = np.zeros(reader.num_samples, dtype=np.int64)
    sizes[table["sample_id"].astype(np.int64)] = table["size"]
    columns = (image["data_ptr"], sizes, image["height"], image["width"], image["mode"] == augment.JPEG)
    index = np.arange(reader.num_samples)
    rows = augment.Rows(*(np.ascontiguousarray(column, dtype=np.int64) for column in (index, *columns)))
    bad = (rows.offset + rows.size > os.path.getsize(reader.file_name)) | (rows.size <= 0)
    bad |= (rows.jpeg == 0) & (rows.size != rows.height * rows.width * 3)
    if bad.any():
        raise InputError(f"{reader.file_name}: sample {bad.argmax()} lies outside the file; write it again")
    return rows


class _Pipeline(FFCVLoader):
    """FFCV's loader around our operations: file, order, and the ring of buffers with the code that fills them."""

    def __init__(
        self,
        reader: Reader,
        data: Data,
        crop: augment.Crop,
        indices: np.ndarray,
        *,
        train: bool,
        seed: int,
        device: torch.device,
        paired: bool,
    ):
        self.paired = paired
        workers = worker_count(data.workers, device=device)
        self.decoder = augment.ImageDecoder(
            _image_table(reader), crop, seed=seed, workers=workers, file=reader.file_name
        )
        with _ffcv_as_a_frame():
            super().__init__(
                reader.file_name,
                batch_size=data.batch_size,
                num_workers=workers,
                order=OrderOption.SEQUENTIAL,  # FFCV takes only its own here; ours replaces it below
                seed=seed,
                indices=indices.astype(np.uint64),  # as FFCV's own: the kernels are compiled for it
                pipelines=_operations(self.decoder, device),
                drop_last=train and data.drop_last,
                batches_ahead=_BATCHES_AHEAD,
            )
        self.traversal_order = epoch_order(self, data.order if train else "sequential")
        self.storage = _storage(reader, os_cache=data.os_cache)
        # One slot is the consumer's, one is being filled, the others wait. They live as long as the loader: fresh
        # (pinned) memory for every epoch, as in FFCV, costs more than many an epoch's first batch.
        images, slots = min(data.batch_size, len(indices)) * (2 if paired else 1), _BATCHES_AHEAD + 2
        self._memory = self.graph.allocate_memory(images, slots)
        self.slots = [_Slot(number, device) for number in range(slots)]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The sample indices of each batch of `epoch`."""
        order = self.traversal_order.sample_order(epoch)
        batches = [order[n * self.batch_size : (n + 1) * self.batch_size] for n in range(len(self))]
        if not self.paired:
            return batches
        labels, peers = self.reader.metadata["f1"], np.zeros(self.reader.num_samples, dtype=np.int64)
        peers[self.indices] = self.indices[peers_of(labels[self.indices], seed=self.seed, epoch=epoch)]
        return [np.concatenate([batch, peers[batch].astype(batch.dtype)]) for batch in batches]

    def fill(self, slot: "_Slot", indices: np.ndarray, storage) -> Batch:
        """The batch of these samples, in the memory of `slot`."""
        stages, outputs = self.code
        values = {"batch_indices": indices, "metadata": self.reader.metadata, "storage_state": storage}
        for prefix, kind in (("memory_", "operation"), ("shared_memory_", "shared")):
            for node, buffer in self._memory[kind].items():
                values[f"{prefix}{node}"] = select_buffer(buffer, slot.number, len(indices))
        with slot.filling():
            for code, produced in stages:
                values.update(zip((f"result_{node}" for node in produced), code(**values), strict=True))
        return Batch(*(values[f"result_{node}"] for node in outputs))


class _Slot:
    """One set of buffers of the ring; with CUDA, what keeps it from being overwritten while a copy or kernel reads it.

    FFCV lets the GPU wait, but not the host: a host that runs ahead would decode into pinned memory whose copy
    has not begun.
    """

    def __init__(self, number: int, device: torch.device):
        self.number = number
        self._device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._stream = torch.cuda.Stream(device)
            self._copied = torch.cuda.Event(blocking=True)  # by the stream: the pinned memory is free
            self._read = torch.cuda.Event()  # by the consumer's kernels: the device memory is free
            self.take_back()  # what this memory was freed from may have kernels under way

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Inside, both memories may be written, and copies go to the slot's own stream. For the loader's thread."""
        if not self._cuda:
            yield
            return
        self._copied.synchronize()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._read)
            yield
            self._copied.record(self._stream)

    def hand_out(self) -> None:
        """None; what the consumer queues from now on runs after the copy. Waits for nothing on the host."""
        if self._cuda:
            torch.cuda.current_stream(self._device).wait_event(self._copied)

    def take_back(self) -> None:
        """None; the slot is filled again only after what the consumer has queued so far."""
        if self._cuda:
            self._read.record(torch.cuda.current_stream(self._device))

    def settle(self) -> None:
        """None; no copy is under way: torch may give the memories to others, whose streams know nothing of ours."""
        if self._cuda:
            self._copied.synchronize()


class _Failure(NamedTuple):
    error: BaseException
    batch: int


class _EpochThread(threading.Thread):
    """Prepares an epoch's batches, a few ahead of the consumer. A slot is the thread's, or ready, or the consumer's."""

    def __init__(self, pipeline: _Pipeline, epoch: int, first_batch: int):
        super().__init__(name=f"loader, epoch {epoch}")
        self._pipeline, self._epoch, self._first_batch = pipeline, epoch, first_batch
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[tuple[_Slot, Batch] | _Failure | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._lent: _Slot | None = None
        for slot in pipeline.slots:
            self._free.put(slot)

    def run(self) -> None:
        """None; every way this ends leaves a last word in the queue."""
        number = self._first_batch
        try:
            numba.set_num_threads(self._pipeline.num_workers)  # counts for this thread alone
            self._pipeline.decoder.epoch = self._epoch
            batches = self._pipeline.batches(self._epoch)[self._first_batch :]
            if not batches:
                self._ready.put(None)
                return
            with self._pipeline.storage.schedule_epoch(batches) as storage:
                for number, indices in enumerate(batches, start=self._first_batch):
                    storage.start_batch(number - self._first_batch)
                    slot = self._next_free()
                    if slot is None:
                        return
                    self._ready.put((slot, self._pipeline.fill(slot, indices, storage)))
            self._ready.put(None)
        except BaseException as error:  # whatever it is, the consumer must not wait for it
            self._ready.put(_Failure(error, number))

    def next_batch(self) -> Batch | None:
        """The next batch, or None at the end of the epoch; the batch given before is the thread's again.

        Raises:
            InputError: an image cannot be decoded.
            RuntimeError: the thread failed, or ended without a word, or was closed.
        """
        self._take_back()
        said = self._next_ready()
        if isinstance(said, _Failure):
            self._raise(said)
        if said is None:
            return None
        self._lent, batch = said
        self._lent.hand_out()
        return batch

    def close(self) -> None:
        """None; the thread has ended, and what it prepared is dropped."""
        self._take_back()
        self._left.set()
        self._free.put(None)  # wakes it
        self.join()
        for slot in self._pipeline.slots:
            slot.settle()

    def _take_back(self) -> None:
        if self._lent is not None:
            self._lent.take_back()
            self._free.put(self._lent)
            self._lent = None

    def _next_free(self) -> _Slot | None:
        """A slot to fill, or None when nobody will ask for it any more."""
        while not self._left.is_set() and threading.main_thread().is_alive():
            try:
                slot = self._free.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            return None if self._left.is_set() else slot
        return None

    def _next_ready(self) -> tuple[_Slot, Batch] | _Failure | None:
        while True:
            if self._left.is_set():
                raise RuntimeError(f"{self.name}: this epoch was ended; another one was begun")
            try:
                return self._ready.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if not self.is_alive() and self._ready.empty():
                    raise RuntimeError(f"{self.name}: the thread is dead and has left no batch") from None

    def _raise(self, failure: _Failure) -> None:
        if isinstance(failure.error, InputError):
            raise InputError(str(failure.error)) from failure.error
        raise RuntimeError(f"{self.name}: batch {failure.batch} failed: {failure.error!r}") from failure.error


def _operations(decoder: augment.ImageDecoder, device: torch.device) -> dict[str, list]:
    """FFCV's pipelines of the three fields. Decoders come first: FFCV spins for ever on one after ToTensor."""
    to_device = [ToDevice(device, non_blocking=True)] if device.type == "cuda" else []
    return {
        "image": [decoder, ToTensor(), *to_device, ToTorchImage(channels_last=True)],
        "label": [augment.ColumnDecoder(), ToTensor(), *to_device],
        "index": [augment.ColumnDecoder(), ToTensor(), *to_device],
    }


def _storage(reader: Reader, *, os_cache: bool) -> MappedFile | PagedFile:
    if os_cache:
        return MappedFile(reader.file_name)
    return PagedFile(reader.file_name, page_bytes=int(reader.page_size), page_of_sample=page_of_sample(reader))


@contextmanager
def _ffcv_as_a_frame() -> Iterator[None]:
    """Inside, FFCV compiles nothing (our kernels are compiled already), and torch's thread count survives it.

    Nor does its memory manager, whose place `storage` takes, do anything: it would make sets of the samples of each
    page, hundreds of bytes an image, and a reader, for which it writes `mutable = False` into numba's one type of
    uint8 arrays, whose hash then changes, so that kernels of ours that are compiled for it cannot be found any more.
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
