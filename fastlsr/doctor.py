"""Checks whether this machine can train, and prints what is missing and how to install it: python -m fastlsr.doctor.

Imports only the standard library, so that it runs before anything is installed. What may crash or hang (FFCV's
extension, torch, numba) is imported in a subprocess with a time limit. Exit codes: 0 training is possible, 2 it is not.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlsr.cli import Parser, exit_on_input_error, interrupts_raised
from fastlsr.cores import cores
from fastlsr.system import NEEDS, has_compiler, install_lines, missing_needs

if TYPE_CHECKING:
    from fastlsr.data.loader import Loader

_PROBE_SECONDS = 120.0  # a first `import torch` from a cold disk takes tens of seconds
_SELF_CHECK_SECONDS = 240.0

_TORCH = """
import json, torch, torchvision
cuda = torch.cuda
names = [cuda.get_device_name(i) + ", %.0f GiB" % (cuda.get_device_properties(i).total_memory / 2**30)
         for i in range(cuda.device_count())] if cuda.is_available() else []
print(json.dumps({"version": torch.__version__, "build": torch.version.cuda, "devices": names}))
"""

_FFCV = """
import json, ffcv.libffcv, ffcv.fields, ffcv.loader
print(json.dumps({"file": ffcv._libffcv.__file__}))
"""

_THREADS = """
import json, numba
@numba.njit(parallel=True)
def total(n):
    s = 0
    for i in numba.prange(n):
        s += i
    return s
total(8)
print(json.dumps({"layer": numba.threading_layer(), "threads": numba.get_num_threads()}))
"""

_SELF_CHECK = """
import json, sys
from pathlib import Path
from fastlsr.doctor import self_check
print(json.dumps(self_check(Path(sys.argv[1]))))
"""


_PIP = f"{Path(sys.executable).name} -m pip install"
# All packages at once, because torch and torchvision must be of the same build.
_INSTALL = ("make setup; or, for an environment of your own, in fastlsr's folder:", f"{_PIP} -c constraints.txt -e .")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was checked.
        state: "ok", "note" (training is possible without it), "missing" or "fails" (training is not possible).
        detail: version, path or error.
        fix: lines that say how to fix it.
    """

    name: str
    state: str
    detail: str
    fix: tuple[str, ...] = ()

    @property
    def blocks(self) -> bool:
        """True if training is not possible until this is fixed."""
        return self.state in ("missing", "fails")


@dataclass(frozen=True)
class Probe:
    """The outcome of a subprocess: the values it printed, or the problem that kept it from doing so."""

    values: dict[str, Any]
    problem: str = ""


def in_new_process(code: str, *arguments: str, seconds: float) -> Probe:
    """The JSON object on the last line that `code` prints, run in a subprocess for at most so many seconds."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Probe({}, f"not done after {seconds:g} s")
    if done.returncode < 0:
        return Probe({}, f"crashed with {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        return Probe({}, _final_line(done.stderr) or f"exit code {done.returncode}")
    try:
        return Probe(json.loads(_final_line(done.stdout)))
    except ValueError:
        return Probe({}, f"printed {_final_line(done.stdout)!r}")


def _final_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


_SAME_MODULE = {"opencv-python": "opencv-python-headless"}  # which clusters have, without windows


def machine() -> Iterator[Finding]:
    """Findings on Python, the platform and the cores."""
    fit = (3, 10) <= sys.version_info[:2] <= (3, 14)
    fix = () if fit else ("make setup PYTHON=/path/to/python3.13", "conda: conda env create -f environment.yml")
    yield Finding("python", "ok" if fit else "missing", f"{platform.python_version()} ({sys.executable})", fix)
    yield Finding("platform", "ok", platform.platform())
    yield Finding("cores", "ok", f"{cores()} usable of {os.cpu_count()}")


def packages() -> Iterator[Finding]:
    """A finding for each package that pyproject.toml requires, with its installed version."""
    try:
        requirements = importlib.metadata.requires("fastlsr") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("fastlsr", "missing", "not installed for this Python", _INSTALL)
        return
    yield Finding("fastlsr", "ok", importlib.metadata.version("fastlsr"))
    yield from (package(requirement) for requirement in requirements if "extra ==" not in requirement)


def package(requirement: str) -> Finding:
    """Whether a requirement such as "torch>=2.11" is met."""
    name, _, least = requirement.replace(" ", "").partition(">=")
    try:
        version = importlib.metadata.version(name)  # not the module's: ffcv.__version__ is wrong
    except importlib.metadata.PackageNotFoundError:
        if name in _SAME_MODULE:
            return package(requirement.replace(name, _SAME_MODULE[name]))
        return Finding(name, "missing", "not installed", _INSTALL)
    if least and _release(version) < _release(least):
        return Finding(name, "missing", f"{version} is too old, {requirement} is needed", _INSTALL)
    return Finding(name, "ok", version)


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 11, 0) of "2.11.0+cu128"."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def torch_and_cuda() -> Iterator[Finding]:
    """Whether torch and torchvision can be imported together, and the CUDA devices they find."""
    done = in_new_process(_TORCH, seconds=_PROBE_SECONDS)
    if done.problem:
        yield Finding("import torch", "fails", done.problem, _INSTALL)
        return
    yield Finding("import torch", "ok", f"with torchvision; CUDA build {done.values['build'] or 'none, CPU only'}")
    devices = done.values["devices"]
    yield Finding("CUDA devices", "ok" if devices else "note", "; ".join(devices) or _why_no_device())


def _why_no_device() -> str:
    if shutil.which("nvidia-smi"):
        return "none that torch can use, though there is an nvidia-smi: is the driver new enough for this torch?"
    return "none; training runs on the CPU"


def ffcv_extension() -> Iterator[Finding]:
    """Whether FFCV and its compiled extension can be imported."""
    done = in_new_process(_FFCV, seconds=_PROBE_SECONDS)
    if done.problem:
        yield Finding("import ffcv", "fails", done.problem, _ffcv_fix())
    else:
        yield Finding("import ffcv", "ok", done.values["file"])


def jpeg_decoder() -> Iterator[Finding]:
    """Whether our own compiled extension is built and can be loaded."""
    spec = importlib.util.find_spec("fastlsr.data._jpeg_window")
    path = spec.origin if spec else None
    problem = "" if path else "not built"
    try:
        ctypes.CDLL(path)
    except OSError as error:
        problem = str(error)
    if problem:
        fix = ("built on your machine; it needs these system packages:", *_install_missing(), *_INSTALL)
        yield Finding("JPEG decoder", "fails", problem, fix)
    else:
        yield Finding("JPEG decoder", "ok", path or "")


def _ffcv_fix() -> tuple[str, ...]:
    return (
        "its C++ extension is built on your machine; it needs these system packages:",
        *_install_missing(),
        # Not from pip's cache: a wheel built against another OpenCV may be just what does not load.
        f"then:  {_PIP} --force-reinstall --no-deps --no-cache-dir ffcv",
    )


def _install_missing() -> tuple[str, ...]:
    return install_lines(missing_needs() or NEEDS)


def threading_layer() -> Iterator[Finding]:
    """The threading layer that numba uses; with `workqueue`, two loaders cannot be read at once."""
    done = in_new_process(_THREADS, seconds=_PROBE_SECONDS)
    if done.problem:
        yield Finding("numba threads", "fails", done.problem, _INSTALL)
        return
    layer = done.values["layer"]
    detail = f"{layer}, {done.values['threads']} threads"
    if layer == "workqueue":
        fix = ("apt:   sudo apt-get install -y libgomp1", "dnf:   sudo dnf install -y libgomp",
               "conda: conda install -y -c conda-forge tbb")  # fmt: skip
        yield Finding("numba threads", "note", f"{detail}; two loaders cannot be read at once", fix)
    else:
        yield Finding("numba threads", "ok", detail)


def tools() -> Iterator[Finding]:
    """Findings on programs that are useful but not needed."""
    if has_compiler():
        yield Finding("C++ compiler", "ok", "found")
    else:
        fix = install_lines(need for need in NEEDS if need.present is has_compiler)
        yield Finding("C++ compiler", "note", "none: torch.compile needs one on the CPU", fix)
    for tool, use in (("git", "records the commit of each run"), ("nvidia-smi", "part of NVIDIA's driver")):
        path = shutil.which(tool)
        yield Finding(tool, "ok" if path else "note", path or f"not found; {use}")


def write_read_train() -> Iterator[Finding]:
    """Whether `self_check`, in a subprocess, writes and reads a `.beton` and lowers the loss on it."""
    with tempfile.TemporaryDirectory() as folder:
        done = in_new_process(_SELF_CHECK, folder, seconds=_SELF_CHECK_SECONDS)
    if done.problem:
        yield Finding("self-check", "fails", done.problem)
        return
    images, first, last = (done.values[key] for key in ("images", "first", "last"))
    detail = f"{images} images written, read and trained on: loss {first:.3f} -> {last:.3f}"
    yield Finding("self-check", "ok" if last < first else "fails", detail)  # NaN fails


def self_check(folder: Path) -> dict[str, float]:
    """The number of `images`, and the mean loss of the `first` and `last` epoch, of a tiny network trained on them.

    The images are noise of two classes, dark and light, so that the loss falls within a few steps.
    """
    import numpy as np
    import torch

    from fastlsr.config import Data
    from fastlsr.data.loader import Loader
    from fastlsr.data.prepare.writing import Samples, write_beton

    labels = np.arange(256) % 2
    noise = np.random.default_rng(0).integers(0, 128, size=(256, 16, 16, 3))
    images = (noise + 127 * labels[:, None, None, None]).astype(np.uint8)
    beton = folder / "check_train.beton"
    write_beton(Samples(images, labels), beton, dataset="check", split="train", classes=("dark", "light"))
    torch.manual_seed(0)
    loader = Loader(beton, Data(batch_size=32, workers=1), train=True, seed=0, device=torch.device("cpu"))
    losses = _train(loader, epochs=3)
    return {"images": len(images), "first": losses[0], "last": losses[-1]}


def _train(loader: Loader, *, epochs: int) -> list[float]:
    """The mean loss of each epoch."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    means = []
    for epoch in range(epochs):
        losses = []
        for batch in loader.epoch(epoch):
            loss = nn.functional.cross_entropy(model(batch.images.float() / 255), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means


def findings() -> Iterator[Finding]:
    """All findings, each as soon as it is known; the self-check comes last, and only if nothing is missing."""
    complete = True
    for part in (machine, packages, torch_and_cuda, ffcv_extension, jpeg_decoder, threading_layer, tools):
        for finding in part():
            complete = complete and not finding.blocks
            yield finding
    if complete:
        yield from write_read_train()
    else:
        yield Finding("self-check", "note", "not run, since something is missing")


def print_findings(found: Iterable[Finding]) -> list[str]:
    """Prints each finding, and each fix once; returns the names of the findings that block training."""
    blocking, printed = [], set()
    for finding in found:
        print(f"{finding.state:8} {finding.name:14} {finding.detail}", flush=True)
        if finding.fix not in printed:
            print("".join(f"{'':23} {line}\n" for line in finding.fix), end="", flush=True)
        printed.add(finding.fix)
        if finding.blocks:
            blocking.append(finding.name)
    return blocking


def main() -> int:
    """Prints the report; the exit code is 2 if training is not possible."""
    with exit_on_input_error(), interrupts_raised():
        Parser(prog="python -m fastlsr.doctor", description=(__doc__ or "").split(":")[0]).parse_args()
        blocking = print_findings(findings())
        if blocking:
            print(f"\nTraining is not possible yet; fix first: {', '.join(blocking)}.")
            return 2
        print("\nEverything that training needs is there.")
        return 0


if __name__ == "__main__":
    sys.exit(main())
