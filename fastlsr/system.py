"""The system packages needed to build FFCV and our JPEG decoder: which are missing, and how to install them.

Imports only the standard library, since `scripts/setup.sh` runs it before anything is installed.
"""

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

from fastlsr.cli import Parser, exit_on_input_error

_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Need:
    """One requirement of building or loading FFCV, and the packages that provide it ("": part of the system)."""

    name: str
    present: Callable[[], bool]
    apt: str
    dnf: str
    conda: str


def _has_pkg_config() -> bool:
    return shutil.which("pkg-config") is not None


def _pkg_config_finds(library: str) -> bool:
    # FFCV's build finds libraries in this way only.
    return _has_pkg_config() and subprocess.run(["pkg-config", "--exists", library], check=False).returncode == 0


def _has_opencv() -> bool:
    return _pkg_config_finds("opencv4") or _pkg_config_finds("opencv")


def _has_turbojpeg() -> bool:
    return _pkg_config_finds("libturbojpeg") and _pkg_config_finds("libjpeg")  # for FFCV and fastlsr/data/jpeg_window.c


def has_compiler() -> bool:
    """True if there is a C++ compiler: the one named by CXX (set by conda), else g++."""
    return shutil.which(os.environ.get("CXX", "g++").split()[0]) is not None


def _has_python_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").exists()


def _has_ensurepip() -> bool:
    # Debian packages it apart; without it `python3 -m venv` fails half way.
    return importlib.util.find_spec("ensurepip") is not None


def _has_cv2_libraries() -> bool:
    # pip's opencv-python, which FFCV imports, links these two but does not include them.
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
    """Those of `NEEDS` that this machine does not meet."""
    return tuple(need for need in NEEDS if not need.present())


def install_lines(needs: Iterable[Need]) -> tuple[str, str, str]:
    """The commands that install what is needed: one line each for apt, dnf and conda."""
    columns = zip(*((need.apt, need.dnf, need.conda) for need in needs), strict=True)
    apt, dnf, conda = (" ".join(filter(None, column)) for column in columns)
    return (
        f"apt:   sudo apt-get install -y --no-install-recommends {apt}",
        f"dnf:   sudo dnf install -y {dnf or _PYTHON}",
        f"conda: conda install -y -c conda-forge {conda or 'python'}",
    )


def main() -> int:
    """Prints what is missing and how to install it; the exit code is 2 if anything is."""
    with exit_on_input_error():
        parser = Parser(prog="python -m fastlsr.system", description=main.__doc__)
        parser.add_argument("--apt", action="store_true", help="print only the missing Debian packages")
        apt_only = parser.parse_args().apt
        missing = missing_needs()
        if missing and apt_only:
            print(" ".join(need.apt for need in missing))
        elif missing:
            print(f"missing: {', '.join(need.name for need in missing)}", *install_lines(missing), sep="\n  ")
        return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
