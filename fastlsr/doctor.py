"""`python -m fastlsr.doctor`: whether this machine can train, what is missing, and how to install it.

It has to work where hardly anything is installed, so nothing but the standard library is imported here. What may
crash or hang (FFCV's extension, torch, numba) is asked in processes of its own, each under a time limit.
"""

import argparse
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastlsr.system import NEEDS, has_compiler, install_lines, missing_needs

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
# All packages at once: torch and torchvision, for one, have to be of the same build.
_INSTALL = ("make setup, or in an environment of your own, from fastlsr's folder:", f"{_PIP} -c constraints.txt -e .")


@dataclass(frozen=True)
class Finding:
    """One line of the report, and the lines that say how to mend it.

    state: "ok", "note" (training is possible without it), "missing" or "fails" (training is not possible).
    """

    name: str
    state: str
    detail: str
    mend: tuple[str, ...] = ()

    @property
    def blocks(self) -> bool:
        """True if training is not possible without a mend."""
        return self.state in ("missing", "fails")


@dataclass(frozen=True)
class Answer:
    """What a probe printed, or why it did not: `problem` is "" where all went well."""

    values: dict
    problem: str = ""


def probe(code: str, *arguments: str, seconds: float) -> Answer:
    """The JSON object that `code` prints last, run by this interpreter in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Answer({}, f"no answer within {seconds:g} s")
    if done.returncode < 0:
        return Answer({}, f"crashed with {signal.Signals(-done.returncode).name}")
    if done.returncode > 0:
        return Answer({}, _last_line(done.stderr) or f"exit code {done.returncode}")
    try:
        return Answer(json.loads(_last_line(done.stdout)))
    except ValueError:
        return Answer({}, f"answered {_last_line(done.stdout)!r}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def machine() -> Iterator[Finding]:
    """Python, platform and cores."""
    fit = (3, 10) <= sys.version_info[:2] <= (3, 12)
    mend = () if fit else ("make setup PYTHON=/path/to/python3.12", "conda: conda create -n fastlsr python=3.12")
    yield Finding("python", "ok" if fit else "missing", f"{platform.python_version()} ({sys.executable})", mend)
    yield Finding("platform", "ok", platform.platform())
    yield Finding("cores", "ok", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")


def packages() -> Iterator[Finding]:
    """Every package that pyproject.toml declares, with the version that is installed."""
    try:
        requirements = importlib.metadata.requires("fastlsr") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("fastlsr", "missing", "not installed for this Python", _INSTALL)
        return
    yield Finding("fastlsr", "ok", importlib.metadata.version("fastlsr"))
    yield from (package(requirement) for requirement in requirements if "extra ==" not in requirement)


def package(requirement: str) -> Finding:
    """Whether a distribution is installed, and new enough, for a requirement such as "torch>=2.11"."""
    # The metadata and not the module: ffcv.__version__ lies.
    name, least = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?", requirement.replace(" ", "")).groups()
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", _INSTALL)
    if least and _release(version) < _release(least):
        return Finding(name, "missing", f"{version} is too old, {requirement} is needed", _INSTALL)
    return Finding(name, "ok", version)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", version)[0].split("."))


def torch_and_cuda() -> Iterator[Finding]:
    """Whether torch and torchvision load together, and the CUDA devices they see."""
    answer = probe(_TORCH, seconds=_PROBE_SECONDS)
    if answer.problem:
        yield Finding("import torch", "fails", answer.problem, _INSTALL)
        return
    yield Finding("import torch", "ok", f"with torchvision; CUDA build {answer.values['build'] or 'none, CPU only'}")
    devices = answer.values["devices"]
    yield Finding("CUDA devices", "ok" if devices else "note", "; ".join(devices) or _why_no_device())


def _why_no_device() -> str:
    if shutil.which("nvidia-smi"):
        return "none that torch can use, though there is an nvidia-smi: is the driver new enough for this torch?"
    return "none; training runs on the CPU"


def ffcv_extension() -> Iterator[Finding]:
    """Whether FFCV and its compiled half load; where not, how to build it."""
    answer = probe(_FFCV, seconds=_PROBE_SECONDS)
    if answer.problem:
        yield Finding("import ffcv", "fails", answer.problem, ffcv_mend())
    else:
        yield Finding("import ffcv", "ok", answer.values["file"])


def jpeg_decoder() -> Iterator[Finding]:
    """Whether our own compiled part is there and loads; where not, how to build it."""
    extension = importlib.util.find_spec("fastlsr.data._jpeg_window")
    problem = "" if extension else "not built"
    try:
        ctypes.CDLL(extension and extension.origin)
    except OSError as error:
        problem = str(error)
    if problem:
        needs = install_lines(missing_needs() or NEEDS)
        mend = ("it is built on your machine, from these system packages:", *needs, *_INSTALL)
        yield Finding("JPEG decoder", "fails", problem, mend)
    else:
        yield Finding("JPEG decoder", "ok", extension.origin)


def ffcv_mend() -> tuple[str, ...]:
    """How to get FFCV built: the system packages that are missing, or all where none is, then pip."""
    return (
        "its C++ half is built on your machine, from these system packages:",
        *install_lines(missing_needs() or NEEDS),
        # Not from the cache: a wheel that was built against another OpenCV is just what may not load.
        f"then:  {_PIP} --force-reinstall --no-deps --no-cache-dir ffcv",
    )


def threading_layer() -> Iterator[Finding]:
    """The threading layer that numba picks, and what it means for two loaders at once."""
    answer = probe(_THREADS, seconds=_PROBE_SECONDS)
    if answer.problem:
        yield Finding("numba threads", "fails", answer.problem, _INSTALL)
        return
    layer = answer.values["layer"]
    detail = f"{layer}, {answer.values['threads']} threads"
    if layer == "workqueue":
        mend = ("apt:   sudo apt-get install -y libgomp1", "dnf:   sudo dnf install -y libgomp",
                "conda: conda install -y -c conda-forge tbb")  # fmt: skip
        yield Finding("numba threads", "note", f"{detail}; two loaders cannot be read at once", mend)
    else:
        yield Finding("numba threads", "ok", detail)


def tools() -> Iterator[Finding]:
    """What is useful and not needed."""
    if has_compiler():
        yield Finding("C++ compiler", "ok", "found")
    else:
        mend = install_lines(need for need in NEEDS if need.present is has_compiler)
        yield Finding("C++ compiler", "note", "none: torch.compile needs one on the CPU", mend)
    for tool, use in (("git", "notes the commit of each run"), ("nvidia-smi", "comes with NVIDIA's driver")):
        path = shutil.which(tool)
        yield Finding(tool, "ok" if path else "note", path or f"not found; {use}")


def write_read_train() -> Iterator[Finding]:
    """The self-check in a process of its own: a `.beton` is written, read, and learnt from."""
    with tempfile.TemporaryDirectory() as folder:
        answer = probe(_SELF_CHECK, folder, seconds=_SELF_CHECK_SECONDS)
    if answer.problem:
        yield Finding("self-check", "fails", answer.problem)
        return
    images, first, last = (answer.values[key] for key in ("images", "first", "last"))
    detail = f"{images} images written, read and trained on: loss {first:.3f} -> {last:.3f}"
    yield Finding("self-check", "ok" if last < first else "fails", detail)  # NaN fails, too


def self_check(folder: Path) -> dict:
    """Images (how many), first and last (mean loss of an epoch), from training a tiny network on generated images.

    Two classes, dark and light noise, so that a few steps are enough to see the loss fall.
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


def _train(loader, *, epochs: int) -> list[float]:
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
    """All findings, each as soon as it is known; the self-check last, and only where what it needs is there."""
    complete = True
    for part in (machine, packages, torch_and_cuda, ffcv_extension, jpeg_decoder, threading_layer, tools):
        for finding in part():
            complete = complete and not finding.blocks
            yield finding
    if complete:
        yield from write_read_train()
    else:
        yield Finding("self-check", "note", "not run, since something is missing")


def report(found: Iterator[Finding]) -> list[str]:
    """The names of what blocks training, after each finding was printed with its mend, a mend only once."""
    blocking, said = [], set()
    for finding in found:
        print(f"{finding.state:8} {finding.name:14} {finding.detail}", flush=True)
        if finding.mend not in said:
            print("".join(f"{'':23} {line}\n" for line in finding.mend), end="", flush=True)
        said.add(finding.mend)
        if finding.blocks:
            blocking.append(finding.name)
    return blocking


def main() -> None:
    argparse.ArgumentParser(prog="python -m fastlsr.doctor", description=__doc__.splitlines()[0]).parse_args()
    blocking = report(findings())
    if blocking:
        print(f"\nTraining is not possible yet; mend first: {', '.join(blocking)}.")
        sys.exit(2)
    print("\nEverything that training needs is there.")


if __name__ == "__main__":
    main()
