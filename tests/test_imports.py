"""The house's one-way streets (DESIGN par. 6): who imports whom, and where each third-party package may appear."""

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

_BASE = {"", "errors", "files", "cli", "rng"}  # "" is fastlsr/__init__.py itself
_VALUES = _BASE | {"config", "metrics"}
_CORE = _VALUES | {"labels", "data", "models", "engine", "runs"}
_ENTRY_POINTS = {"train", "evaluate", "analyze", "sweep", "teach", "doctor"}
# What each part of fastlsr may import of fastlsr, besides itself. A part that is not named here has no place yet.
ALLOWED = {
    "": set(),
    "errors": {""},
    "files": {"", "errors"},
    "cli": {"", "errors"},
    "rng": {""},
    "metrics": {""},
    "system": _BASE,
    "config": _BASE,
    "runs": _VALUES,
    "trials": _VALUES | {"runs"},
    "labels": _VALUES,
    "data": _VALUES | {"labels"},
    "models": _VALUES | {"labels"},
    "engine": _CORE,
    "analysis": _CORE,
    "report": {"", "errors", "files", "cli", "config", "runs", "trials"},
    **{name: _CORE | {"system", "trials", "analysis", "report"} | _ENTRY_POINTS for name in _ENTRY_POINTS},
}
# The only homes of these packages.
HOMES = {"ffcv": "fastlsr/data/ffcv_parts.py", "wandb": "fastlsr/engine/log.py", "fastargs": "fastlsr/config.py"}

# Import names that are not the distribution's own. tomllib is one only where Python itself does not bring it.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "tomllib": "tomli",
    "yaml": "pyyaml",
}


def imported_names(file: Path, root: Path) -> set[str]:
    """Dotted names of all that a file imports, anywhere in it: "os", "fastlsr.data.loader.Batch"."""
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
    name = file.relative_to(root / "fastlsr").with_suffix("").parts[0]
    return "" if name == "__init__" else name


def part_of_name(name: str) -> str:
    """The part of fastlsr that a dotted name lies in; a name of the package itself, as __version__, is in ""."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else ""


def violations(root: Path) -> list[str]:
    """Each import under root/fastlsr and root/data_prep that goes against the rules, in words."""
    found = []
    for file in sources(root, "fastlsr", "data_prep"):
        where = file.relative_to(root).as_posix()
        names = imported_names(file, root)
        if where.startswith("fastlsr/"):
            found += _against_the_traffic(where, part_of_file(file, root), names)
        found += [f"{where} imports {name}" for name in sorted(names) if not _at_home(name, where)]
    return found


def _against_the_traffic(where: str, part: str, names: set[str]) -> list[str]:
    if part not in ALLOWED:
        return [f"{where} has no place in the order of imports"]
    ours = {part_of_name(name) for name in names if name.split(".")[0] == "fastlsr"}
    return [f"{where} imports fastlsr.{other}" for other in sorted(ours - ALLOWED[part] - {part})]


def _at_home(name: str, where: str) -> bool:
    home = HOMES.get(name.split(".")[0])
    return home is None or where == home or (home.endswith("/") and where.startswith(home))


def third_party(root: Path, *folders: str) -> set[str]:
    """The distributions, by their normalised names, that files under the folders import."""
    local = {"fastlsr", "data_prep", "tests", "benchmarks"}
    for folder in folders:
        local |= {file.stem for file in sources(root, folder)} | {file.parent.name for file in sources(root, folder)}
    files = sources(root, *folders)
    tops = {name.split(".")[0] for file in files for name in imported_names(file, root)}
    return {_normal(DISTRIBUTIONS.get(top, top)) for top in tops - local - set(sys.stdlib_module_names)}


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared(pyproject: Path, *extras: str) -> set[str]:
    """The normalised names of the distributions that pyproject.toml requires, with those of the extras."""
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
        ("fastlsr/engine/logs.py", "import wandb"),
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
        ("fastlsr/sweep.py", "from fastlsr.train import main"),
        ("fastlsr/engine/log.py", "import wandb\nfrom fastlsr.data import loader"),
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
    path.parent.mkdir(parents=True)
    path.write_text(text + "\n", encoding="utf-8")


def test_pyproject_declares_every_package_that_is_imported():
    assert third_party(ROOT, "fastlsr", "data_prep") - declared(ROOT / "pyproject.toml") == set()


def test_the_test_extra_declares_every_further_package_that_tests_and_benchmarks_import():
    rivals = {"nvidia", "liger-kernel"}  # DALI and Liger: benchmarks measure them where they are installed
    assert third_party(ROOT, "tests", "benchmarks") - declared(ROOT / "pyproject.toml", "test") <= rivals


def test_the_scan_sees_an_undeclared_package(tmp_path):
    lines = "import os\nimport fastlsr\ndef late():\n    from PIL import Image\n    import not_declared.deep"
    _write(tmp_path, "fastlsr/x.py", lines)
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["Pillow>=10"]\n', encoding="utf-8")
    assert third_party(tmp_path, "fastlsr") - declared(tmp_path / "pyproject.toml") == {"not-declared"}


def test_every_declared_package_has_a_version_that_was_tried():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normal(line.split("==")[0]) for line in lines if not line.startswith("#")}
    assert declared(ROOT / "pyproject.toml", "test") - pinned == set()


@pytest.mark.parametrize(
    "command", ["fastlsr.train", "fastlsr.evaluate", "fastlsr.sweep", "fastlsr.teach", "data_prep.write_ffcv"]
)
def test_a_command_reads_its_options_before_it_loads_what_takes_seconds(command):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {command}; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    slow = {"ffcv", "numba", "scipy.stats", "sklearn", "timm", "torch", "torchmetrics", "torchvision", "wandb"}
    assert slow & set(said.split()) == set()
