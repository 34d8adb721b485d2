"""Kept logits are read as they were written, and nothing else is taken for them."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fastlsr.data.loader import Batch
from fastlsr.engine.evaluation import CollectedLogits
from fastlsr.errors import InputError
from fastlsr.logits import EvaluationLogits, read_logits

KEPT = EvaluationLogits(np.eye(3, dtype=np.float16)[:2], np.array([0, 2]), np.array([5, 7]), epoch=4, data="ab")


def test_a_file_holds_what_was_written_in_the_same_bytes(tmp_path):
    one, other = tmp_path / "logits" / "last.safetensors", tmp_path / "other"
    KEPT.write(one)
    KEPT.write(other)
    read = read_logits(one)
    assert (read.epoch, read.data) == (4, "ab")
    for name in ("logits", "labels", "index"):
        np.testing.assert_array_equal(getattr(read, name), getattr(KEPT, name))
        assert getattr(read, name).dtype == getattr(KEPT, name).dtype
    assert one.read_bytes() == other.read_bytes() and [path.name for path in one.parent.iterdir()] == [one.name]


def test_batches_are_collected_though_their_memory_is_used_again():
    collected, labels, index = CollectedLogits(), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    for start in (0, 2):
        labels.fill_(start)
        index.copy_(torch.arange(start, start + 2))
        collected.add(Batch(torch.empty(0), labels, index), torch.tensor([[1.5, -1e6], [3e38, 0.0]]) + start)
    kept = collected.on_host(epoch=1, data="ab")
    assert kept.labels.tolist() == [0, 0, 2, 2] and kept.index.tolist() == [0, 1, 2, 3]
    assert kept.logits.dtype == np.float16 and np.isfinite(kept.logits).all(), "out of float16's range is its largest"
    assert kept.logits[:, 0].tolist() == [1.5, 65504, 3.5, 65504]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: save_file({"soft_labels": np.eye(3)}, path, {"evaluation": "{}"}),
        lambda path: EvaluationLogits(KEPT.logits, KEPT.labels + 1, KEPT.index, 1, "").write(path),
        lambda path: EvaluationLogits(np.full_like(KEPT.logits, np.nan), KEPT.labels, KEPT.index, 1, "").write(path),
        lambda path: EvaluationLogits(KEPT.logits, KEPT.labels[:1], KEPT.index, 1, "").write(path),
        lambda path: EvaluationLogits(KEPT.logits.astype(np.float32), KEPT.labels, KEPT.index, 1, "").write(path),
    ],
    ids=["cut", "empty", "absent", "soft labels", "label out of range", "not finite", "too few labels", "float32"],
)
def test_what_is_no_file_of_logits_is_one_line(tmp_path, damage):
    path = tmp_path / "last.safetensors"
    KEPT.write(path)
    damage(path)
    with pytest.raises(InputError, match="last.safetensors") as error:
        read_logits(path)
    assert "\n" not in str(error.value)
