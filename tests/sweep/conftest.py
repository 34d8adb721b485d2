"""Sweep files over the trainer."""

import pytest
import yaml


@pytest.fixture
def sweep_file(tmp_path):
    """parameters, further words of the command, further top-level keys -> the path of a sweep file over the trainer."""

    def write(parameters, words=(), **keys):
        path = tmp_path / "trials.yaml"
        command = ["${env}", "python", "-m", "fastlsr.train", *words, "${args}"]
        path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters} | keys))
        return path

    return write
