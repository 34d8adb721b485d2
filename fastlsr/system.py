"""What building FFCV and our JPEG decoder takes from the operating system: whether it is there, and what to install.

Only the standard library is imported, because `scripts/setup.sh` asks this file before anything is installed.
"""

import argparse
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Need:
    """One thing that building or loading FFCV takes, and the packages that bring it; "" where it is there anyway."""

    name: str
    present: Callable[[], bool]
    apt: str
    dnf: str
    conda: str


def _has_pkg_config() -> bool:
    return shutil.which("pkg-config") is not None


def _knows(library: str) -> bool:
    # FFCV's own build asks pkg-config, too, and nothing else.
    return _has_pkg_config() and subprocess.run(["pkg-config", "--exists", library], check=False).returncode == 0


def _has_opencv() -> bool:
    return _knows("opencv4") or _knows("opencv")


def _has_turbojpeg() -> bool:
    return _knows("libturbojpeg") and _knows("libjpeg")  # FFCV takes the one, fastlsr/data/jpeg_window.c the other


def has_compiler() -> bool:
    """True if there is a C++ compiler; conda names its own in CXX."""
    return shutil.which(os.environ.get("CXX", "g++").split()[0]) is not None


def _has_python_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def _has_ensurepip() -> bool:
    # Debian ships venv without it, and `python3 -m venv` then fails half way.
    return importlib.util.find_spec("ensurepip") is not None


def _has_cv2_libraries() -> bool:
    # pip's opencv-python, which FFCV imports, links these two and does not bring them.
    try:
        return all(ctypes.CDLL(name) for name in ("libGL.so.1", "libgthread-2.0.so.0"))
    except OSError:
        return False


NEEDS = (
    Need("pkg-config", _has_pkg_config, "pkg-config", "pkgconf-pkg-config", "pkg-config"),
    Need("OpenCV headers", _has_opencv, "libopencv-dev", "opencv-devel", "opencv"),
    Need(
        "TurboJPEG headers",
        _has_turbojpeg,
        "libturbojpeg0-dev libjpeg-dev",
        "turbojpeg-devel libjpeg-turbo-devel",
        "libjpeg-turbo",
    ),
    Need("C++ compiler", has_compiler, "g++", "gcc-c++", "cxx-compiler"),
    Need("libGL and GLib", _has_cv2_libraries, "libgl1 libglib2.0-0", "mesa-libGL glib2", "libgl glib"),
    Need("Python headers", _has_python_headers, f"{_PYTHON}-dev", f"{_PYTHON}-devel", ""),
    Need("Python's ensurepip", _has_ensurepip, f"{_PYTHON}-venv", "", ""),
)


def missing_needs() -> tuple[Need, ...]:
    """The needs that this machine does not meet, in the order of `NEEDS`."""
    return tuple(need for need in NEEDS if not need.present())


def install_lines(needs: Iterable[Need]) -> tuple[str, str, str]:
    """The commands that install the needs: one line each for apt, dnf and conda."""
    columns = zip(*((need.apt, need.dnf, need.conda) for need in needs))
    apt, dnf, conda = (" ".join(filter(None, column)) for column in columns)
    return (
        f"apt:   sudo apt-get install -y --no-install-recommends {apt}",
        f"dnf:   sudo dnf install -y {dnf or _PYTHON}",
        f"conda: conda install -y -c conda-forge {conda or 'python'}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What FFCV needs of the system and lacks; exit code 2 if anything.")
    parser.add_argument("--apt", action="store_true", help="print only the missing Debian packages")
    apt_only = parser.parse_args().apt
    missing = missing_needs()
    if missing and apt_only:
        print(" ".join(need.apt for need in missing))
    elif missing:
        print(f"missing: {', '.join(need.name for need in missing)}", *install_lines(missing), sep="\n  ")
    sys.exit(2 if missing else 0)


if __name__ == "__main__":
    main()
