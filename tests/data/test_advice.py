"""Advice follows from facts: what is already so is not advised."""

from dataclasses import replace

import pytest

from fastlsr.config import Data
from fastlsr.data.advice import remedies
from fastlsr.data.manifest import read_manifest

_ALL = {"resolution": 224, "workers": 4, "cores": 4, "memory_bytes": 10**10, "paired": False}


@pytest.fixture(scope="module")
def photographs(digits_dir):
    """The manifest of 20,000 JPEGs of at most 300 x 224 pixels: 1 GB as stored, 4 GB as raw pixels."""
    some = read_manifest(digits_dir / "digits_train.beton")
    return replace(some, count=20_000, heights=(200, 224), widths=(200, 300), bytes=10**9, options={"mode": "jpg"})


@pytest.mark.parametrize(
    ("data", "facts", "named"),
    [
        ({}, {}, ["--write-mode raw"]),
        ({}, {"workers": 1}, ["data.workers=4", "--write-mode raw"]),
        ({}, {"memory_bytes": 5 * 10**9}, ["a smaller data.resolution"]),
        ({}, {"memory_bytes": 9 * 10**8}, ["data.os_cache=false data.order=quasi_random"]),
        ({}, {"memory_bytes": 9 * 10**8, "paired": True}, ["a smaller data.resolution"]),
        ({}, {"resolution": 128}, ["--max-resolution (300 pixels are stored, 128 used)", "--write-mode raw"]),
        ({"os_cache": False}, {}, ["data.os_cache=true", "--write-mode raw"]),
        ({"os_cache": False}, {"memory_bytes": 10**9}, ["data.order=quasi_random"]),
        ({"os_cache": False, "order": "quasi_random"}, {"memory_bytes": 10**9}, ["a smaller data.resolution"]),
    ],
)
def test_what_is_advised_follows_from_file_options_and_machine(photographs, data, facts, named):
    lines = remedies(photographs, Data(**data), **_ALL | facts)
    assert len(lines) == len(named)
    assert all(name in line for name, line in zip(named, lines, strict=True))


def test_raw_pixels_are_not_advised_to_be_written_raw(photographs):
    (line,) = remedies(replace(photographs, options={"mode": "raw"}), Data(), **_ALL)
    assert "--write-mode" not in line
