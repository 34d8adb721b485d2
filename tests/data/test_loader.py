"""The loader from file to batches: every sample, the same ones always, and no way to wait for ever."""

import gc
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlsr.config import Data
from fastlsr.data.crops import input_resolution, training_crop
from fastlsr.data.loader import Loader, worker_count
from fastlsr.data.manifest import digest_of, read_manifest, write_manifest
from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.errors import InputError
from fastlsr.ranks import ALONE, Ranks

CPU = torch.device("cpu")
COUNT = 41  # with batches of 8 the last holds one
PHOTO_SIZES = [(40, 60), (64, 48), (50, 50), (33, 90), (70, 34)]


def write(path: Path, images, encoding: Encoding = Encoding()) -> Path:
    """A .beton of uint8 images [N, H, W, 3] or of image files, labels 0..4 in turn."""
    labels = np.arange(len(images)) % 5
    write_beton(
        Samples(images=images, labels=labels),
        path,
        dataset="made",
        split="train",
        classes=list("abcde"),
        encoding=encoding,
    )
    return path


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3], grey, of low frequencies and without black: little that JPEG compression alters."""
    coarse = np.random.default_rng(seed).integers(64, 192, (4, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.convert("RGB"))


@pytest.fixture(scope="module")
def small_images() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (COUNT, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory, small_images) -> Path:
    return write(tmp_path_factory.mktemp("small") / "small.beton", small_images)


@pytest.fixture(scope="module")
def photo_files(tmp_path_factory) -> list[Path]:
    folder, files = tmp_path_factory.mktemp("photos"), []
    for number in range(23):
        files.append(folder / f"{number}.png")
        Image.fromarray(smooth(*PHOTO_SIZES[number % len(PHOTO_SIZES)], seed=number)).save(files[-1])
    return files


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photo_files) -> Path:
    return write(tmp_path_factory.mktemp("jpg") / "photos.beton", photo_files, Encoding(mode="jpg"))


def load(
    beton: Path, *, train: bool = True, seed: int = 0, paired: bool = False, ranks: Ranks = ALONE, **options
) -> Loader:
    data = Data(**{"batch_size": 8, "workers": 2, **options})
    return Loader(beton, data, train=train, seed=seed, device=CPU, paired=paired, ranks=ranks)


def epoch_of(loader: Loader, epoch: int = 0, **options) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(tensor.clone() for tensor in batch) for batch in loader.epoch(epoch, **options)]


def equal(a: list, b: list) -> bool:
    pairs = [pair for p, q in zip(a, b, strict=False) for pair in zip(p, q, strict=True)]
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in pairs)


def wait_until_far_ahead(loader: Loader) -> None:
    """Returns when all slots but the consumer's are full: the thread can only go on with the one being read."""
    while loader._thread.is_alive() and loader._thread._ready.qsize() < 4:
        pass


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def reseal(beton: Path) -> None:
    """Makes the manifest agree with the altered file, as if it had been written so."""
    write_manifest(replace(read_manifest(beton), digest=digest_of(beton), bytes=beton.stat().st_size), beton)


def test_a_batch_is_uint8_channels_last_with_int64_labels_and_index(small):
    batch = next(load(small).epoch(0))
    assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.shape == batch.index.shape == (8,)
    assert batch.labels.dtype == batch.index.dtype == torch.int64


def test_evaluation_gives_every_sample_once_in_order_and_unaltered(small, small_images):
    loader = load(small, train=False, drop_last=True, order="random")
    batches = epoch_of(loader)
    assert [len(labels) for _, labels, _ in batches] == [8] * 5 + [1] and len(loader) == 6
    images, labels, index = (torch.cat(column) for column in zip(*batches, strict=True))
    assert torch.equal(index, torch.arange(COUNT)) and torch.equal(labels, torch.arange(COUNT) % 5)
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(small_images))


def test_training_gives_every_sample_once_with_its_own_label(small):
    _, labels, index = (torch.cat(column) for column in zip(*epoch_of(load(small)), strict=True))
    assert torch.equal(index.sort().values, torch.arange(COUNT)) and torch.equal(labels, index % 5)
    assert not torch.equal(index, torch.arange(COUNT))


@pytest.mark.parametrize("name", ["small", "photos"])
@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_epochs_are_the_same_for_any_number_of_workers(name, order, request):
    beton = request.getfixturevalue(name)
    one, two, three = (epoch_of(load(beton, workers=workers, order=order), 2) for workers in (1, 2, 3))
    assert equal(one, two) and equal(one, three)


PAGED = {"order": "quasi_random", "os_cache": False}


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("how", [{}, {"train": False}, PAGED, {**PAGED, "train": False}, {"paired": True}])
def test_the_parts_of_all_ranks_are_the_batches_of_one(count, how, photos):
    """The last batch, of four samples, leaves all ranks but two without any."""
    alone = epoch_of(load(photos, batch_size=18, **how), 1)
    parts = [epoch_of(load(photos, batch_size=18, ranks=Ranks(rank, count), **how), 1) for rank in range(count)]
    halves = 2 if how.get("paired") else 1  # samples, and their peers
    for batch, of_ranks in zip(alone, zip(*parts, strict=True), strict=True):
        for whole, columns in zip(batch, zip(*of_ranks, strict=True), strict=True):
            halved = [each.unflatten(0, (halves, -1)) if len(each) else each[None].expand(halves, *each.shape)
                      for each in (whole, *columns)]  # fmt: skip
            assert torch.equal(torch.cat(halved[1:], 1), halved[0])
    assert (len(parts[-1][-1][2]) == 0) == (count > 2)


def test_epochs_and_seeds_differ_and_do_not_add_up(small):
    loader, other = load(small, seed=0), load(small, seed=1)
    zero, one, other_zero = epoch_of(loader, 0), epoch_of(loader, 1), epoch_of(other, 0)
    assert not equal(zero, one) and not equal(one, other_zero) and not equal(zero, other_zero)
    assert equal(zero, epoch_of(loader, 0))


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("first_batch", [0, 2, 5, 6])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(small, first_batch, os_cache):
    whole = epoch_of(load(small, order="quasi_random", os_cache=os_cache), 3)
    tail = epoch_of(load(small, order="quasi_random", os_cache=os_cache), 3, first_batch=first_batch)
    assert equal(tail, whole[first_batch:])


def test_pages_and_mapping_give_the_same_batches(photos):
    assert equal(epoch_of(load(photos, os_cache=True)), epoch_of(load(photos, os_cache=False)))


def test_drop_last_leaves_out_the_ragged_batch_in_training(small):
    loader = load(small, drop_last=True)
    assert [len(labels) for _, labels, _ in epoch_of(loader)] == [8] * 5 and len(loader) == 5


def test_a_batch_larger_than_the_data_is_all_of_it(small):
    assert [len(labels) for _, labels, _ in epoch_of(load(small, batch_size=1000))] == [COUNT]


def test_dropping_the_only_batch_is_an_error(small):
    with pytest.raises(InputError, match="41 images, not one batch of 1000"):
        load(small, batch_size=1000, drop_last=True)


def test_photographs_of_all_shapes_come_at_one_resolution(photos):
    assert epoch_of(load(photos))[0][0].shape == (8, 3, 224, 224)
    assert epoch_of(load(photos, resolution=40), 0)[0][0].shape == (8, 3, 40, 40)
    assert epoch_of(load(photos, train=False, resolution=40))[-1][0].shape == (7, 3, 40, 40)


def test_raw_and_jpeg_photographs_look_alike(tmp_path, photos, photo_files):
    raw = write(tmp_path / "raw.beton", photo_files, Encoding(mode="raw"))
    for train in (True, False):
        ours, theirs = (epoch_of(load(file, train=train, resolution=32))[0][0] for file in (raw, photos))
        assert (ours.float() - theirs.float()).abs().mean() < 3


def test_small_jpegs_are_padded_and_cropped_as_raw_images_are(tmp_path):
    images = np.stack([smooth(16, 16, seed) for seed in range(20)])
    raw = write(tmp_path / "raw.beton", images)
    jpeg = write(tmp_path / "jpg.beton", images, Encoding(mode="jpg", jpeg_quality=100))
    a, b = epoch_of(load(raw))[0][0], epoch_of(load(jpeg))[0][0]
    assert (a.float() - b.float()).abs().mean() < 3
    assert torch.equal(a == 0, b == 0)  # the same borders


def test_a_batch_is_left_alone_until_the_next_is_asked_for(small):
    loader = load(small, batch_size=2)
    expected = epoch_of(loader, 0)
    for number, batch in enumerate(loader.epoch(0)):
        wait_until_far_ahead(loader)
        assert equal([tuple(batch)], [expected[number]])


def test_leaving_an_epoch_early_ends_its_thread(small):
    loader = load(small)
    for _ in loader.epoch(0):
        break
    gc.collect()
    assert not loader_threads()
    assert len(epoch_of(loader, 1)) == 6


def test_an_error_in_the_training_loop_ends_the_thread(small):
    def step():
        for _ in load(small).epoch(0):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    gc.collect()
    assert not loader_threads()


def test_beginning_another_epoch_ends_the_one_under_way(small):
    loader = load(small)
    first = loader.epoch(0)
    next(first)
    assert len(epoch_of(loader, 1)) == 6
    with pytest.raises(RuntimeError, match="another one was begun"):
        next(first)


def test_two_loaders_may_be_iterated_at_once(small, photos):
    pairs = list(zip(load(small).epoch(0), load(photos, resolution=32).epoch(0), strict=False))
    assert len(pairs) == 3
    gc.collect()
    assert not loader_threads()


def test_an_altered_jpeg_raises_and_is_named(tmp_path, photo_files):
    beton = write(tmp_path / "photos.beton", photo_files, Encoding(mode="jpg"))
    content = bytearray(beton.read_bytes())
    starts = [at for at in range(len(content) - 2) if content[at : at + 3] == b"\xff\xd8\xff"]
    content[starts[9] + 700 : starts[9] + 760] = b"\xff\xd9" * 30
    beton.write_bytes(content)
    with pytest.raises(InputError, match="digest"):
        load(beton)
    reseal(beton)
    for train in (True, False):
        with pytest.raises(InputError, match="sample 9 is damaged"):
            epoch_of(load(beton, train=train, resolution=32))
    assert not loader_threads()


def test_a_truncated_file_is_an_error_before_it_is_opened(tmp_path, small_images):
    beton = write(tmp_path / "small.beton", small_images)
    beton.write_bytes(beton.read_bytes()[:-1000])
    with pytest.raises(InputError, match="bytes"):
        load(beton)


def test_a_truncated_file_with_a_matching_manifest_is_an_error(tmp_path, small_images):
    beton = write(tmp_path / "small.beton", small_images)
    beton.write_bytes(beton.read_bytes()[:-1000])
    reseal(beton)
    with pytest.raises(InputError):
        load(beton)


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("amid", [False, True], ids=["before the epoch", "amid the epoch"])
@pytest.mark.parametrize("change", ["cut", "grown", "written to"])
def test_a_file_changed_after_the_loader_was_built_is_an_input_error(tmp_path, small_images, os_cache, amid, change):
    beton = write(tmp_path / "small.beton", small_images)
    loader = load(beton, os_cache=os_cache, batch_size=2)
    batches = loader.epoch(0)
    if amid:
        next(batches)
        wait_until_far_ahead(loader)
    before = beton.stat()
    if change == "written to":
        with open(beton, "r+b") as file:
            file.write(b"\0")
        os.utime(beton, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # the clock may tick too slowly to show it
    else:
        os.truncate(beton, before.st_size // 2 if change == "cut" else before.st_size + 1)
    with pytest.raises(InputError, match="small.beton was changed while it was in use"):
        list(batches)
    assert not loader_threads()


@pytest.mark.parametrize("os_cache", [True, False])
def test_another_file_at_the_same_path_is_not_mixed_in(tmp_path, small, small_images, os_cache):
    beton = write(tmp_path / "small.beton", small_images)
    loader = load(beton, os_cache=os_cache)
    os.replace(write(tmp_path / "other.beton", 255 - small_images), beton)
    assert equal(epoch_of(loader), epoch_of(load(small)))


@pytest.mark.parametrize("name", ["small", "photos"])
def test_a_peer_is_cropped_anew_and_samples_as_without_peers(name, request):
    beton = request.getfixturevalue(name)
    batches = epoch_of(load(beton, paired=True, workers=1), 2)
    assert equal(batches, epoch_of(load(beton, paired=True, workers=3), 2))
    halves = [[column.chunk(2) for column in batch] for batch in batches]
    assert equal([tuple(own for own, _ in batch) for batch in halves], epoch_of(load(beton), 2))
    crops: tuple[dict, dict] = ({}, {})
    for images, _, index in halves:
        for found, pictures, samples in zip(crops, images, index, strict=True):
            found.update(zip(samples.tolist(), pictures, strict=True))
    own, as_peer = crops
    assert own.keys() == as_peer.keys() == set(range(len(own)))
    assert sum(torch.equal(own[sample], as_peer[sample]) for sample in own) < len(own) / 5


def test_peers_have_the_label_of_their_samples_and_other_crops_in_each_epoch(small):
    loader = load(small, paired=True)
    epochs = [epoch_of(loader, epoch) for epoch in (0, 1)]
    for _, labels, _ in epochs[0] + epochs[1]:
        assert torch.equal(*labels.chunk(2))
    assert not equal(*epochs)


def test_a_failing_loader_thread_raises_in_the_consumer_with_its_cause(small):
    """An epoch number that no hash takes fails inside the thread, where FFCV would leave the consumer waiting."""
    with pytest.raises(RuntimeError, match="epoch -1: batch 0 failed") as caught:
        epoch_of(load(small), -1)
    assert isinstance(caught.value.__cause__, OverflowError)


def test_a_thread_dead_without_a_word_raises_in_the_consumer(small):
    loader = load(small)
    batches = loader.epoch(0)
    next(batches)
    thread = loader._thread
    while thread.next_batch():  # the consumer's part is played here, so that the thread runs to its end
        pass
    thread.join()
    with pytest.raises(RuntimeError, match="dead and has left no batch"):
        next(batches)


def test_a_process_that_ends_amid_an_epoch_exits_cleanly(small):
    code = f"""
import sys, torch
from pathlib import Path
from fastlsr.config import Data
from fastlsr.data.loader import Loader
loader = Loader(Path({str(small)!r}), Data(batch_size=4), train=True, seed=0, device=torch.device("cpu"))
batches = loader.epoch(0)
next(batches)
sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, text=True)
    assert (done.returncode, done.stderr) == (3, "")


def test_building_a_loader_leaves_torchs_threads_alone(small):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        epoch_of(load(small, workers=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_loader_for_the_cpu_pins_no_memory_and_leaves_pinning_as_it_was(small, monkeypatch):
    """Pinning opens a context on a CUDA device, where there is one."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned.append)
    load(small)
    monkeypatch.undo()
    assert pinned == [] and torch.Tensor.pin_memory is torch._C.TensorBase.pin_memory


def test_waiting_is_counted(small):
    loader = load(small)
    epoch_of(loader)
    assert 0 < loader.first_wait_seconds < loader.wait_seconds


def test_small_equal_images_keep_their_size_and_others_become_224(small, photos):
    assert load(small).resolution == 16
    assert load(photos).resolution == 224
    assert input_resolution(read_manifest(small), Data(resolution=64)) == 64


def test_no_augmentation_is_the_evaluation_crop(small):
    plain = epoch_of(load(small, augment="none", order="sequential"))
    assert equal(plain, epoch_of(load(small, train=False)))


def test_pad_crop_of_unequal_images_is_an_error(photos):
    with pytest.raises(InputError, match="pad_crop"):
        training_crop(read_manifest(photos), Data(augment="pad_crop"))


def test_workers_are_chosen_from_the_cores():
    cuda = torch.device("cuda")
    assert worker_count(0, device=CPU) == 1
    assert 1 <= worker_count(0, device=cuda) <= 12
    assert worker_count(10_000, device=CPU) == worker_count(10_001, device=cuda)


def test_ranks_of_one_machine_share_its_cores_among_their_workers(monkeypatch):
    alone = worker_count(10_000, device=CPU)
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert worker_count(10_000, device=CPU) == max(1, alone // 2)
