"""Which part of fastlsr may import which, and where each third-party package may be imported."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]

_BASE = {
    "",
    "errors",
    "files",
    "cli",
    "rng",
    "plugins",
    "shipped",
    "terminal",
    "cores",
}  # "" is fastlsr/__init__.py itself
_VALUES = _BASE | {"config", "metrics", "ranks"}
_CORE = _VALUES | {"labels", "data", "models", "engine", "inference", "runs", "logits"}
_ENTRY_POINTS = {
    "train",
    "evaluate",
    "analyze",
    "sweep",
    "teach",
    "write",
    "export",
    "doctor",
    "labels/__main__",
    "__main__",
}
# What each part of fastlsr may import of fastlsr, besides itself. A new part needs a line here.
ALLOWED = {
    "": set(),
    "errors": {""},
    "files": {"", "errors"},
    "cli": {"", "errors"},
    "rng": {""},
    "cores": set(),
    "terminal": {""},
    "shipped": {"", "errors"},
    "ranks": {"", "errors"},
    "plugins": {"", "errors", "cli"},
    "metrics": _BASE,
    "system": _BASE,
    "config": _BASE,
    "logits": _VALUES,
    "runs": _VALUES,
    "trials": _VALUES | {"runs", "labels"},
    "labels": _VALUES,
    "data": _VALUES | {"labels"},
    "models": _VALUES | {"labels", "runs"},
    "scores": _VALUES | {"logits"},
    "drawing": _BASE,
    "logs": _VALUES | {"runs", "drawing"},
    "engine": _CORE - {"inference"} | {"logs", "drawing"},
    "inference": _CORE,
    "analysis": _CORE | {"trials", "scores", "drawing"},
    "report": _VALUES | {"runs", "logits", "trials", "labels", "scores", "drawing"},
    **{
        name: _CORE | {"system", "logs", "trials", "scores", "drawing", "analysis", "report"} | _ENTRY_POINTS
        for name in _ENTRY_POINTS
    },
}
# The only homes of these packages.
HOMES = {
    "ffcv": "fastlsr/data/ffcv_parts.py",
    "wandb": "fastlsr/logs/wandb_log.py",
    "tensorboard": "fastlsr/logs/tensorboard_log.py",
    "torch.utils.tensorboard": "fastlsr/logs/tensorboard_log.py",
    "fastargs": "fastlsr/config.py",
}

# Import names that differ from the distribution's. tomllib is part of Python from 3.11 on.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "markdown_it": "markdown-it-py",
    "sklearn": "scikit-learn",
    "tomllib": "tomli",
    "yaml": "pyyaml",
}


def imported_names(file: Path, root: Path) -> set[str]:
    """Dotted names of everything that a file imports, also inside functions: "os", "fastlsr.data.loader.Batch"."""
    package = file.relative_to(root).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def sources(root: Path, *folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((root / folder).rglob("*.py"))]


def part_of_file(file: Path, root: Path) -> str:
    """The part of fastlsr that a file is of; the command of a room is an entry point, and not of the room itself."""
    path = file.relative_to(root / "fastlsr").with_suffix("")
    if path.as_posix() in ALLOWED:
        return path.as_posix()
    return "" if path.parts[0] == "__init__" else path.parts[0]


def part_of_name(name: str) -> str:
    """The part of fastlsr that a dotted name belongs to; "" for the package's own, such as __version__."""
    parts = name.split(".")
    if "/".join(parts[1:3]) in ALLOWED:
        return "/".join(parts[1:3])
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else ""


def violations(root: Path) -> list[str]:
    """A line for each import under root/fastlsr and root/data_prep that breaks the rules."""
    found = []
    for file in sources(root, "fastlsr", "data_prep"):
        where = file.relative_to(root).as_posix()
        names = imported_names(file, root)
        if where.startswith("fastlsr/"):
            found += _not_allowed(where, part_of_file(file, root), names)
        found += [f"{where} imports {name}" for name in sorted(names) if not _at_home(name, where)]
    return found


def _not_allowed(where: str, part: str, names: set[str]) -> list[str]:
    if part not in ALLOWED:
        return [f"{where} is not in ALLOWED"]
    ours = {part_of_name(name) for name in names if name.split(".")[0] == "fastlsr"}
    return [f"{where} imports fastlsr.{other}" for other in sorted(ours - ALLOWED[part] - {part})]


def _at_home(name: str, where: str) -> bool:
    homes = [home for package, home in HOMES.items() if f"{name}.".startswith(f"{package}.")]
    return not homes or where in homes


def third_party(root: Path, *folders: str) -> set[str]:
    """The normalised names of the distributions that files under the folders import."""
    local = {"fastlsr", "data_prep", "tests", "benchmarks"}
    for folder in folders:
        local |= {file.stem for file in sources(root, folder)} | {file.parent.name for file in sources(root, folder)}
    files = sources(root, *folders)
    tops = {name.split(".")[0] for file in files for name in imported_names(file, root)}
    return {_normal(DISTRIBUTIONS.get(top, top)) for top in tops - local - set(sys.stdlib_module_names)}


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared(pyproject: Path, *extras: str) -> set[str]:
    """The normalised names of the distributions that pyproject.toml requires, including the extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return {_normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def test_imports_run_one_way_and_each_package_stays_in_its_home():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("fastlsr/data/loader.py", "from fastlsr.engine import step"),
        ("fastlsr/data/loader.py", "from fastlsr import engine"),
        ("fastlsr/data/loader.py", "from ..engine import step"),
        ("fastlsr/data/loader.py", "def late():\n    import fastlsr.engine.step"),
        ("fastlsr/models/registry.py", "from fastlsr.data.loader import Loader"),
        ("fastlsr/labels/methods.py", "from fastlsr.data.loader import Batch"),
        ("fastlsr/data/loader.py", "from fastlsr.labels.__main__ import main"),
        ("fastlsr/config.py", "from fastlsr.labels import methods"),
        ("fastlsr/errors.py", "import fastlsr.config"),
        ("fastlsr/__init__.py", "from fastlsr.engine import step"),
        ("fastlsr/engine/step.py", "from fastlsr.train import main"),
        ("fastlsr/engine/loop.py", "from fastlsr.report import table"),
        ("fastlsr/report/table.py", "from fastlsr.engine import trained"),
        ("fastlsr/engine/loop.py", "from fastlsr.train import main"),
        ("fastlsr/runs.py", "from fastlsr.trials import Trial"),
        ("fastlsr/attic.py", "import os"),
        ("fastlsr/engine/step.py", "import ffcv"),
        ("fastlsr/data/loader.py", "from ffcv.loader import Loader"),
        ("data_prep/write.py", "from ffcv.writer import DatasetWriter"),
        ("fastlsr/train.py", "import wandb"),
        ("fastlsr/logs/run_log.py", "import wandb"),
        ("fastlsr/logs/run_log.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("fastlsr/logs/wandb_log.py", "from torch.utils import tensorboard"),
        ("fastlsr/train.py", "from fastargs import Param"),
    ],
)
def test_the_guard_sees_a_forbidden_import(tmp_path, file, line):
    _write(tmp_path, file, line)
    (complaint,) = violations(tmp_path)
    assert file in complaint


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("fastlsr/train.py", "from fastlsr.engine.step import train_step\nfrom fastlsr import config, errors"),
        ("fastlsr/labels/__main__.py", "from fastlsr.data.imported_labels import import_labels"),
        ("fastlsr/sweep.py", "from fastlsr.train import main"),
        ("fastlsr/logs/wandb_log.py", "import wandb\nfrom fastlsr.runs import Row"),
        ("fastlsr/logs/tensorboard_log.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("fastlsr/logs/run_log.py", "import torch.utils.tensorboard_like"),
        ("fastlsr/data/loader.py", "import fastlsr\nfrom . import order\nfrom fastlsr.config import Data"),
        ("fastlsr/data/deep/jpeg.py", "from ..order import epoch_order"),
        ("fastlsr/data/ffcv_parts.py", "from ffcv.reader import Reader"),
    ],
)
def test_the_guard_lets_a_proper_import_pass(tmp_path, file, line):
    _write(tmp_path, file, line)
    assert violations(tmp_path) == []


def _write(root: Path, file: str, text: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def test_pyproject_declares_every_package_that_is_imported():
    assert third_party(ROOT, "fastlsr", "data_prep") - declared(ROOT / "pyproject.toml") == set()


def test_the_test_extra_declares_every_further_package_that_tests_and_benchmarks_import():
    rivals = {"nvidia", "liger-kernel"}  # DALI and Liger: benchmarks measure them where they are installed
    of_torch = {"triton"}  # where it is built for CUDA
    assert third_party(ROOT, "tests", "benchmarks") - declared(ROOT / "pyproject.toml", "test") <= rivals | of_torch


def test_the_scan_sees_an_undeclared_package(tmp_path):
    lines = "import os\nimport fastlsr\ndef late():\n    from PIL import Image\n    import not_declared.deep"
    _write(tmp_path, "fastlsr/x.py", lines)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["Pillow>=10"]\n', encoding="utf-8")
    assert third_party(tmp_path, "fastlsr") - declared(tmp_path / "pyproject.toml") == {"not-declared"}


def test_every_declared_package_has_a_version_that_was_tried():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(line.split("==")[0]) for line in lines if not line.startswith("#")}
    assert declared(ROOT / "pyproject.toml", "test") - pinned == set()


def modules_of(root: Path, *names: str) -> list[str]:
    """The dotted names of those modules, and of all modules of those packages, that exist under root."""
    files = [file for name in names for file in (root / f"{name}.py", *sources(root, name)) if file.is_file()]
    return [".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files]


_COMMAND_FILES = ("train", "evaluate", "analyze", "teach", "write", "export", "doctor", "system", "sweep/__main__",
                  "labels/__main__", "__main__")  # fmt: skip
COMMANDS = modules_of(ROOT, *(f"fastlsr/{name}" for name in _COMMAND_FILES), "data_prep")
OF_FINISHED_RUNS = modules_of(ROOT, "fastlsr/metrics", "fastlsr/runs", "fastlsr/trials", "fastlsr/report")


@pytest.mark.parametrize("module", [*COMMANDS, *OF_FINISHED_RUNS])
def test_a_command_and_what_reads_finished_runs_load_nothing_that_takes_seconds(module):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"ffcv", "numba", "scipy.stats", "sklearn", "timm", "torch", "torchmetrics", "torchvision", "wandb"}
    assert slow & set(done.stdout.split()) == set()


def test_the_modules_to_check_are_found(tmp_path):
    _write(tmp_path, "fastlsr/report/__init__.py", "")
    _write(tmp_path, "fastlsr/report/deep/page.py", "")
    (tmp_path / "fastlsr" / "runs.py").touch()
    found = modules_of(tmp_path, "fastlsr/runs", "fastlsr/trials", "fastlsr/report")
    assert found == ["fastlsr.runs", "fastlsr.report", "fastlsr.report.deep.page"]
    assert {"fastlsr.train", "fastlsr.sweep.__main__", "data_prep.write_ffcv"} <= set(COMMANDS)
