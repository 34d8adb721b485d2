"""Checkpoints are whole or not there, fall back when damaged, and never run code."""

import copy
import pickle
import threading
import zipfile
from types import SimpleNamespace

import pytest
import torch

from fastlsr.config import Run
from fastlsr.engine import checkpoint, loop
from fastlsr.engine.checkpoint import Writer
from fastlsr.engine.loop import CheckpointsDue
from fastlsr.errors import InputError
from fastlsr.files import replace_file
from fastlsr.runs import RunFolder


def test_the_newest_is_loaded(tmp_path):
    for number in (1, 2):
        checkpoint.save(RunFolder(tmp_path), {"number": number, "weights": torch.full((3,), float(number))})
    state, remark = checkpoint.load_newest(tmp_path)
    assert state["number"] == 2 and torch.equal(state["weights"], torch.full((3,), 2.0)) and remark == ""


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoint.load_newest(tmp_path) == (None, "")


def flip_a_byte_of_a_tensor(path):
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((64,), 2.0).numpy().tobytes())
    content[at + 100] ^= 1
    path.write_bytes(content)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_byte_of_a_tensor, cut_in_half, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, damage):
    for number in (1, 2):
        checkpoint.save(RunFolder(tmp_path), {"number": number, "weights": torch.full((64,), float(number))})
    damage(RunFolder(tmp_path).newest_checkpoint)
    state, remark = checkpoint.load_newest(tmp_path)
    assert state["number"] == 1 and "damaged" in remark and "checkpoint.previous.pt" in remark


def test_a_damaged_newest_set_aside_does_not_push_out_the_good_one_before(tmp_path):
    for number in (1, 2):
        checkpoint.save(RunFolder(tmp_path), {"number": number})
    cut_in_half(RunFolder(tmp_path).newest_checkpoint)
    checkpoint.set_aside(RunFolder(tmp_path))
    checkpoint.save(RunFolder(tmp_path), {"number": 3})
    cut_in_half(RunFolder(tmp_path).newest_checkpoint)
    assert checkpoint.load_newest(tmp_path)[0]["number"] == 1


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_no_flipped_bit_goes_unseen_or_unhandled(tmp_path, bit):
    checkpoint.save(RunFolder(tmp_path), {"weights": torch.arange(16.0)})
    checkpoint.save(RunFolder(tmp_path), {"weights": torch.arange(16.0)})
    content = (RunFolder(tmp_path).newest_checkpoint).read_bytes()
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        (RunFolder(tmp_path).newest_checkpoint).write_bytes(damaged)
        state, _ = checkpoint.load_newest(tmp_path)
        assert torch.equal(state["weights"], torch.arange(16.0))


def test_nothing_but_damaged_checkpoints_is_an_error_not_a_fresh_start(tmp_path):
    for number in (1, 2):
        checkpoint.save(RunFolder(tmp_path), {"number": number})
    for path in (RunFolder(tmp_path).newest_checkpoint, RunFolder(tmp_path).previous_checkpoint):
        cut_in_half(path)
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_newest(tmp_path)


class Intruder:
    def __reduce__(self):
        return open, ("intruder", "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_loading_never_runs_what_a_checkpoint_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(RunFolder(tmp_path), {"number": 1})
    with zipfile.ZipFile(RunFolder(tmp_path).newest_checkpoint, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Intruder()))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_newest(tmp_path)
    assert not (tmp_path / "intruder").exists()


def test_a_kill_while_writing_leaves_the_former_file(tmp_path):
    checkpoint.save(RunFolder(tmp_path), {"number": 1})

    def write_and_die(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(RunFolder(tmp_path).newest_checkpoint, write_and_die)
    assert checkpoint.load_newest(tmp_path)[0]["number"] == 1


def test_what_is_written_is_the_state_at_the_call_whatever_changes_afterwards(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = {"model": network.state_dict(), "rows": [{"epoch": 1}], "position": (1, 0), "none": None}
    expected = copy.deepcopy(state)
    entered, written = threading.Event(), threading.Event()

    def write(kept):
        entered.wait(60)  # until the state was changed
        torch.save(kept, tmp_path / "kept.pt")
        written.set()

    with Writer() as writer:
        writer.write(state, write)
        for tensor in state["model"].values():
            tensor.zero_()
        state["rows"].append({"epoch": 2})
        entered.set()
    assert written.is_set(), "the end waits for what is under way"
    kept = torch.load(tmp_path / "kept.pt", weights_only=True)
    assert kept["rows"] == expected["rows"] and kept["position"] == (1, 0) and kept["none"] is None
    assert kept["model"]._metadata == network.state_dict()._metadata
    for name, tensor in expected["model"].items():
        assert torch.equal(kept["model"][name], tensor)


def test_a_checkpoint_that_cannot_be_written_is_raised_by_the_next_or_at_the_end():
    def fails(state):
        raise OSError("no space left")

    def again(writer):
        writer.write({}, fails)
        writer.write({}, lambda state: None)

    for use in (lambda writer: writer.write({}, fails), again):
        with pytest.raises(OSError, match="no space left"), Writer() as writer:
            use(writer)


def test_an_exception_of_training_hides_that_of_a_checkpoint():
    def train():
        with Writer() as writer:
            writer.write({}, lambda state: state["missing"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()


def test_checkpoints_are_due_by_epochs_and_seconds_and_whenever_they_must_be(monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(loop, "time", clock)
    now = 0.0
    every_third = CheckpointsDue(Run(checkpoint_epochs=3), 4)
    assert [epoch for epoch in range(5, 15) if every_third.after(epoch, now=epoch == 12)] == [7, 10, 12]
    slowly = CheckpointsDue(Run(checkpoint_seconds=10), 0)
    found = []
    for epoch in range(1, 9):
        now = 4.0 * epoch
        found += [epoch] if slowly.after(epoch, now=epoch == 5) else []
    assert found == [3, 5, 8]
