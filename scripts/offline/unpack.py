"""Unpacks, on a machine without a network, what `scripts/offline/pack.py` packed, and prints what a shell then needs.

    eval "$(python3 scripts/offline/unpack.py)"

With the Python that has torch, in each new shell, and again when another part of the data has come. Needs nothing but
Python.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import shutil
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KIT, WORK = ROOT / ".offline" / "kit.tar.xz", ROOT / ".offline-work"

FIRST = Path(".offline-data-1", "index.json")


def say(text: str) -> None:
    """Prints to where the shell does not read."""
    print(f"offline: {text}", file=sys.stderr)


def unpack_kit(kit: Path) -> None:
    """Unpacks packages and libraries unless that was done, and puts our compiled part where it belongs."""
    stamp, digest = WORK / "kit.sha256", hashlib.sha256(kit.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        say("unpacking the packages")
        for name in ("site", "lib", "fastlsr"):
            shutil.rmtree(WORK / name, ignore_errors=True)
        with tarfile.open(kit) as archive:
            extract(archive, WORK)
        stamp.write_text(digest)
    for path in (WORK / "fastlsr").iterdir():  # the clone may be a fresh copy
        target = ROOT / "fastlsr" / "data" / path.name
        if not target.is_file() or target.read_bytes() != path.read_bytes():
            shutil.copyfile(path, target)


def unpack_data() -> None:
    """Unpacks the data once all their parts are here; keeps each part as it comes, until then."""
    kept, stamp = WORK / "data", WORK / "data.sha256"
    done = stamp.read_text() if stamp.is_file() else ""
    first = next((path for path in (ROOT / FIRST, kept / FIRST) if path.is_file()), None)
    if first is not None and json.loads(first.read_text())["sha256"] == done:
        return
    for part in ROOT.glob(".offline-data-*"):
        shutil.copytree(part, kept / part.name, dirs_exist_ok=True)
    if not (kept / FIRST).is_file():
        return
    about = json.loads((kept / FIRST).read_text())
    paths = [kept / f".offline-data-{number}" / "part" for number in range(1, about["parts"] + 1)]
    if missing := [path.parent.name for path in paths if not path.is_file()]:
        say(f"the data are not whole yet: {', '.join(missing)}")
        return
    content = b"".join(path.read_bytes() for path in paths)
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise SystemExit("offline: the data are not what was packed; pack them again")
    target = ROOT / about["folder"]
    say(f"unpacking the data to {target}")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:xz") as archive:
        extract(archive, target)
    stamp.write_text(about["sha256"])
    shutil.rmtree(kept)
    (kept / FIRST).parent.mkdir(parents=True)
    (kept / FIRST).write_text(json.dumps(about))


def extract(archive: tarfile.TarFile, target: Path) -> None:
    """Extracts all; Python before 3.11.4 knows no filters."""
    target.mkdir(parents=True, exist_ok=True)
    if hasattr(tarfile, "data_filter"):
        archive.extractall(target, filter="data")
    else:
        archive.extractall(target)


def main() -> None:
    """Unpacks, and prints the shell's commands."""
    if not KIT.is_file():
        raise SystemExit(
            "offline: there is no .offline/ here; scripts/offline/pack.py makes it where there is a network"
        )
    unpack_kit(KIT)
    unpack_data()
    paths = shlex.quote(f"{WORK / 'site'}:{ROOT}")
    print(f"export PYTHONPATH={paths}${{PYTHONPATH:+:$PYTHONPATH}}")
    print(f"export TORCHINDUCTOR_CACHE_DIR={shlex.quote(str(WORK / 'inductor'))}")


if __name__ == "__main__":
    main()
