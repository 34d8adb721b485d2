"""Importing what is used of FFCV costs no compilation and changes no setting."""

import json
import subprocess
import sys

_IMPORT = """
import json, numba, torch
from numba.core import event
torch.set_num_threads(3)
with event.install_recorder("numba:compile") as compiled:
    import fastlsr.data.loader
print(json.dumps([len(compiled.buffer), torch.get_num_threads(), bool(numba.config.DISABLE_JIT)]))
"""


def test_importing_the_loader_compiles_nothing_and_leaves_numba_and_torch_as_they_were():
    printed = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [0, 3, False]
