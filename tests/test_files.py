"""Files are replaced whole or not at all, what killed processes left is removed, and a folder has one owner."""

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from fastlsr.errors import InputError
from fastlsr.files import is_in_use, remove_leftovers, replace_file, replace_text, sole_use

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from fastlsr.files import replace_file

def write(temporary):
    temporary.write_text("half of it")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), write)
"""


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path):
    target = tmp_path / "a.txt"
    replace_text(target, "one")
    replace_text(target, "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and target.read_text() == "two"


def test_the_former_file_is_kept_where_asked(tmp_path):
    target, kept = tmp_path / "a.txt", tmp_path / "former.txt"
    for text in ("one", "two"):
        replace_file(target, lambda temporary, text=text: temporary.write_text(text), keep=kept)
    assert (target.read_text(), kept.read_text()) == ("two", "one")


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("former")

    def fail(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        replace_file(target, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and target.read_text() == "former"


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    target = folder / "checkpoint.pt"
    target.write_text("former")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, target], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(folder.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert list(folder.iterdir()) == [target] and target.read_text() == "former"


def test_what_a_running_process_writes_and_what_is_no_leftover_stays(tmp_path):
    for name in (f".a.pt.{os.getpid()}.partial", ".a.pt.1.partial", ".a.pt.partial", ".a.pt.x.partial", "a.partial",
                 f".a.pt.{'9' * 30}.partial"):  # fmt: skip
        (tmp_path / name).touch()
    before = set(tmp_path.iterdir())
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == before


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    folder = tmp_path / "new" / "folder"
    with sole_use(folder, "busy"), pytest.raises(InputError, match="busy"), sole_use(folder, "busy"):
        pass
    with sole_use(folder, "busy"):
        pass


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/folder cannot be written"), sole_use(tmp_path / "file" / "folder", ""):
        pass


def test_a_look_at_a_folder_tells_whether_it_is_in_use(tmp_path):
    assert not is_in_use(tmp_path) and not is_in_use(tmp_path / "absent")
    with sole_use(tmp_path, "busy"):
        assert is_in_use(tmp_path)
    assert not is_in_use(tmp_path)


def test_a_look_that_falls_on_the_moment_a_run_starts_does_not_stop_it(tmp_path):
    look = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    begun = threading.Event()
    looking = threading.Thread(target=lambda: (begun.wait(), os.close(look)))
    looking.start()
    begun.set()
    with sole_use(tmp_path, "busy"):
        pass
    looking.join()
