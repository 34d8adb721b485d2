"""What importing the package sets in the environment for torch, unless the user has set it."""

import os
import subprocess
import sys

import pytest


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
