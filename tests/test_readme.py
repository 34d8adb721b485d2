"""README's example of a method works as it stands there."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastlsr import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("### A method of your own\n")[2].partition("\n## ")[0]


TWO_EPOCHS = ["--cfg", "configs/quickstart.yaml", "--train.epochs=2", "--method.stages=2", "--method.smoothing=0.3",
              "--log.wandb=disabled"]  # fmt: skip


@pytest.fixture(scope="module")
def example(digits_dir, tmp_path_factory):
    """(said, promised, folder): what the section's command printed, what README says it does, and a run's folder.

    Both were run in a copy of the package whose methods.py has the example at its end, and nothing else changed.
    """
    (code,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    ((command, promised),) = re.findall(r"```\n\$ python -m fastlsr.train (.*?)\n(.*?)```", SECTION, re.DOTALL)
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "fastlsr", checkout / "fastlsr")  # with __pycache__: compiling the kernels takes a while
    (checkout / "configs").symlink_to(ROOT / "configs")
    with (checkout / "fastlsr/labels/methods.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{code}")
    data = f"--data.dir={digits_dir}"
    dry, real = [*shlex.split(command), data], [*TWO_EPOCHS, data, "--method.name=anneal", "--run.name=anneal"]
    both = f"import sys; from fastlsr.train import main; sys.exit(main({dry}) or main({real}))"  # torch starts once
    done = subprocess.run([sys.executable, "-c", both], cwd=checkout, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, promised, checkout / "runs/anneal"


def test_the_example_prints_what_readme_says(example):
    said, promised, _ = example
    assert promised in said


def test_the_example_of_two_stages_trains_as_tsla(example, digits_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [f"--data.dir={digits_dir}", f"--run.dir={tmp_path}", "--method.name=tsla", "--run.name=tsla"]
    assert train.main([*TWO_EPOCHS, *words]) == 0
    one, other = (
        [json.loads(line)["train/loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (example[2], tmp_path / "tsla")
    )
    assert one == other and len(one) == 2
