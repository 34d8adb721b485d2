"""What importing the package sets for torch, and that the files beside it say what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fastlsr
from fastlsr.system import NEEDS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "{tmp}"}, "{tmp}/.cache/fastlsr/inductor"),
        ({"HOME": "/nonexistent", "XDG_CACHE_HOME": "{tmp}"}, "{tmp}/fastlsr/inductor"),
        ({"HOME": "{tmp}", "TORCHINDUCTOR_CACHE_DIR": "{tmp}/own"}, "{tmp}/own"),
        ({"HOME": "/nonexistent"}, "None"),
    ],
    ids=["home", "XDG", "set by the user", "no home"],
)
def test_compiled_code_outlives_a_reboot_where_there_is_a_folder_for_it(tmp_path, variables, expected):
    own = {name: value.format(tmp=tmp_path) for name, value in variables.items()}
    inherited = {name: value for name, value in os.environ.items() if name not in
                 ("HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")}  # fmt: skip
    code = "import os, fastlsr; print(os.environ.get('TORCHINDUCTOR_CACHE_DIR'))"
    done = subprocess.run([sys.executable, "-c", code], env=inherited | own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected.format(tmp=tmp_path)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == fastlsr.__version__ and len(citation["references"]) == 2


def test_the_conda_environment_has_what_building_needs():
    *packages, of_pip = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert {name for need in NEEDS for name in need.conda.split()} <= set(packages)
    assert of_pip == {"pip": ["--constraint constraints.txt", "--editable .[test]"]}
