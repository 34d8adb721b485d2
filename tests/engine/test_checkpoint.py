"""Checkpoints are whole or not there, fall back when damaged, and never run code."""

import pickle
import zipfile

import pytest
import torch

from fastlsr.engine import checkpoint
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
