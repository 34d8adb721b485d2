"""Data that several test files share, each built once a session by the package's own writer."""

import itertools
import signal
import tarfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from fastlsr import plugins, train
from fastlsr.analysis import OWN_KINDS
from fastlsr.config import SECTIONS
from fastlsr.data.prepare.encoding import Encoding
from fastlsr.data.prepare.sources import SOURCES, Dataset, read_dataset
from fastlsr.data.prepare.writing import write_beton
from fastlsr.engine.loop import Stopped, StopRequest
from fastlsr.labels.losses import TERMS
from fastlsr.labels.methods import METHODS
from fastlsr.metrics import METRICS
from fastlsr.models.registry import OWN_NETWORKS

# No test is timed: the machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images beside the checkout; tests that want it are skipped where it is absent."""
    folder = _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def unpacked(real_data, tmp_path_factory):
    """archive name -> the folder it was unpacked into, once a session."""
    folders = {}

    def unpack(name: str) -> Path:
        if name not in folders:
            if not (real_data / name).is_file():
                pytest.skip(f"../shared/data/{name} is not here")
            folder = tmp_path_factory.mktemp("unpacked")
            with tarfile.open(real_data / name) as archive:
                archive.extractall(folder, filter="data")
            folders[name] = folder
        return folders[name]

    return unpack


@pytest.fixture(scope="session")
def cifar100_dir(unpacked) -> Path:
    """The folder that holds `cifar-100-python`, as torchvision wants it."""
    return unpacked("cifar-100-python.tar.xz")


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    """digits_train.beton (1,438 images of 8x8) and digits_test.beton (359)."""
    out = tmp_path_factory.mktemp("digits")
    _write_all("digits", read_dataset("digits", None, out), out, SOURCES["digits"].encoding)
    return out


@pytest.fixture(scope="session")
def train_digits(digits_dir):
    """(folder, {"section.key": value}) -> the folder, after a run of two epochs of ResNet-8 on the digits is in it."""

    def run(folder: Path, options: dict[str, object] | None = None) -> Path:
        given = {"data.dataset": "digits", "data.dir": digits_dir, "model.name": "resnet8", "train.epochs": 2,
                 "train.compile": "off", "train.precision": "fp32", "log.wandb": "disabled",
                 "optim.schedule": "constant", "run.dir": folder.parent, "run.name": folder.name,
                 **(options or {})}  # fmt: skip
        assert train.main([f"--{name}={value}" for name, value in given.items()]) == 0
        return folder

    return run


@pytest.fixture
def stopping(monkeypatch):
    """batches -> a context in which a run is stopped, as by SIGTERM, once it has trained on so many."""

    @contextmanager
    def stopping(batches: int):
        left = itertools.count(batches - 1, -1)

        def check_step(request: StopRequest) -> None:
            if next(left) == 0:
                request.signal = signal.SIGTERM
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "check_step", check_step)
            yield

    return stopping


@pytest.fixture
def registries():
    """A function that forgets all plugins, as a new process does not know them; also called at a test's end."""
    filled = (plugins._loaded, METHODS, TERMS, METRICS, OWN_NETWORKS, SOURCES, OWN_KINDS, SECTIONS)
    before = [dict(registry) for registry in filled]

    def forget():
        for registry, values in zip(filled, before, strict=True):
            registry.clear()
            registry.update(values)

    yield forget
    forget()


@pytest.fixture(scope="session")
def photo_tree(tmp_path_factory) -> Path:
    """train/CLASS and test/CLASS with 48 small JPEGs of 4 classes, every size another, 40 to 110 pixels."""
    root = tmp_path_factory.mktemp("photo_tree")
    for at in range(48):
        folder = root / ("test" if at % 4 == 3 else "train") / f"class_{at // 12}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(at)).save(folder / f"{at:02d}.jpg", quality=92)
    return root


@pytest.fixture(scope="session")
def small_photos_dir(photo_tree, tmp_path_factory) -> Path:
    """photos_train.beton (36 images, 4 classes) and photos_test.beton (12), JPEG and raw mixed."""
    out = tmp_path_factory.mktemp("photos")
    encoding = Encoding(mode="proportion", compress_probability=0.5, max_resolution=100)
    _write_all("photos", read_dataset("folder", photo_tree, out), out, encoding)
    return out


def picture(seed: int) -> np.ndarray:
    """A smooth coloured picture, uint8 [H, W, 3], its size and content a function of `seed`."""
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(40, 111, 2))
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _write_all(name: str, dataset: Dataset, out: Path, encoding: Encoding) -> None:
    for split, samples in dataset.splits.items():
        path = out / f"{name}_{split}.beton"
        write_beton(samples, path, dataset=name, split=split, classes=dataset.classes, encoding=encoding)
