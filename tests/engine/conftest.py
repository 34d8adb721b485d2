"""Processes that stand for the ranks of one run."""

import pytest
import torch
from rank_processes import rank_processes


@pytest.fixture(scope="session")
def on_ranks():
    """The function of `rank_processes`."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    with rank_processes() as call:
        yield call
