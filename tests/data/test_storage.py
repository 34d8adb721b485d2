"""The bytes of a file, mapped or page by page: right, or an error that names the file."""

import os

import numpy as np
import pytest

from fastlsr.data.storage import MappedFile, PagedFile
from fastlsr.errors import InputError

PAGE = 64
SIZE = 10 * PAGE - 20  # the last page is not full
BATCHES = [np.array([3, 0]), np.array([9, 3]), np.array([5])]  # sample n is page n


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.beton"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


@pytest.fixture(params=["mapped", "paged"])
def storage(request, path):
    if request.param == "mapped":
        return MappedFile(path, SIZE)
    return PagedFile(path, SIZE, page_bytes=PAGE, page_of_sample=np.arange(10))


def test_every_byte_of_a_batch_is_the_files(storage, path):
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    with storage.schedule_epoch(BATCHES) as epoch:
        for number, batch in enumerate(BATCHES):
            epoch.start_batch(number)
            for page in batch:
                addresses = np.arange(page * PAGE, min((page + 1) * PAGE, SIZE))
                assert np.array_equal(epoch.memory[epoch.locate(addresses)], content[addresses])


def test_an_epoch_without_batches_ends(storage):
    with storage.schedule_epoch([]):
        pass


def test_a_file_cut_during_the_last_batch_is_an_input_error(storage, path):
    def one_epoch():
        with storage.schedule_epoch(BATCHES) as epoch:
            for number in range(len(BATCHES)):
                epoch.start_batch(number)
            os.truncate(path, SIZE // 2)

    with pytest.raises(InputError, match="some.beton was changed"):
        one_epoch()


def test_a_file_of_another_size_is_not_opened(path):
    os.truncate(path, SIZE - 1)
    with pytest.raises(InputError, match="some.beton"):
        MappedFile(path, SIZE)
    with pytest.raises(InputError, match="some.beton"):
        PagedFile(path, SIZE, page_bytes=PAGE, page_of_sample=np.arange(10))


def test_files_are_closed_with_their_storage(path):
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        MappedFile(path, SIZE)
        PagedFile(path, SIZE, page_bytes=PAGE, page_of_sample=np.arange(10))
    assert len(os.listdir("/proc/self/fd")) == opened
