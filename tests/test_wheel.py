"""What an sdist and its wheel hold, and that what is installed from them needs no clone beside it."""

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fastlsr.shipped import CONFIGS, SWEEPS, names

ROOT = Path(__file__).parents[1]
BUILDING = ("pyproject.toml", "MANIFEST.in", "README.md", "constraints.txt", "configs", "fastlsr")


def build(kind: str, source: Path, out: Path) -> Path:
    """The sdist or wheel that pip would have setuptools make of a folder."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, check=True, capture_output=True, timeout=120)
    return next(iter(out.glob("*.whl" if kind == "wheel" else "*.tar.gz")))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """The unpacked sdist of a clean copy of this checkout."""
    clean, out = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("sdist")
    for name in BUILDING:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clean / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, clean / name)
    with tarfile.open(build("sdist", clean, out)) as archive:
        archive.extractall(out, filter="data")
    return next(path for path in out.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory) -> Path:
    """A folder with what the wheel of the sdist holds."""
    out = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", sdist, out)) as archive:
        archive.extractall(out / "site-packages")
    return out / "site-packages"


def fastlsr(installed: Path, here: Path, *words: str) -> subprocess.CompletedProcess:
    """What the console script of the wheel does with the words, in the folder `here`."""
    entry_points = configparser.ConfigParser()
    entry_points.read(next(installed.glob("*.dist-info")) / "entry_points.txt")
    module, _, function = entry_points["console_scripts"]["fastlsr"].partition(":")
    script = installed / "fastlsr-script" / "fastlsr"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n", encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(script), *words], cwd=here, env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def files_below(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if "__pycache__" not in name and not name.endswith(".so")}


def test_the_wheel_holds_every_file_of_the_package_the_configs_and_the_built_decoder(installed):
    configs = {f"configs/{name}" for name in files_below(ROOT / "configs")}
    assert files_below(installed / "fastlsr") == files_below(ROOT / "fastlsr") | configs
    assert len(list((installed / "fastlsr/data").glob("_jpeg_window.*.so"))) == 1
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} <= {"fastlsr", "fastlsr-script"}


def test_the_sdist_holds_what_building_needs_and_the_versions_that_were_tried(sdist):
    assert {"pyproject.toml", "constraints.txt", "fastlsr/data/jpeg_window.c"} <= files_below(sdist)
    assert not (sdist / "tests").exists()  # they need the clone


def test_an_installed_package_finds_its_own_configs_from_an_empty_folder(installed, tmp_path):
    done = fastlsr(installed, tmp_path, "train", "--help")
    assert f"in {installed / 'fastlsr/configs'}:\n  {' '.join(names(CONFIGS))}\n" in done.stdout, done.stderr
    done = fastlsr(installed, tmp_path, "train", "--cfg", "tsla_cifar100", "--train.epochs=0")
    assert done.stderr == "error: train.epochs=0: expected a whole number of at least 1\n"


def test_a_shipped_sweep_s_trials_find_their_config_from_an_empty_folder(installed, tmp_path):
    done = fastlsr(installed, tmp_path, "sweep", "quickstart_seeds", "--count=2", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "trial 2:" in done.stdout and "rejected" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_in_a_clone_the_configs_are_those_beside_the_package():
    assert (CONFIGS, SWEEPS) == (ROOT / "configs", ROOT / "configs/sweeps")
