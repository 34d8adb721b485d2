"""What a run notes of the code: a commit only of the program's own repository, and how pip installed it."""

import subprocess

import pytest

from fastlsr.engine.provenance import git_state


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path):
    """A repository with fastlsr/__init__.py in its one commit."""
    folder = tmp_path / "clone"
    (folder / "fastlsr").mkdir(parents=True)
    (folder / "fastlsr/__init__.py").touch()
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_clone_has_its_commit_and_whether_files_differ(clone):
    assert git_state(clone) == {"commit": git(clone, "rev-parse", "HEAD"), "changed": False}
    (clone / "fastlsr/__init__.py").write_text("1\n", encoding="utf-8")
    assert git_state(clone)["changed"]


def test_a_worktree_is_a_clone(clone, tmp_path):
    git(clone, "worktree", "add", "-q", str(tmp_path / "other"))
    assert git_state(tmp_path / "other")["commit"] == git(clone, "rev-parse", "HEAD")


@pytest.mark.parametrize("tracked", [False, True])
def test_a_repository_that_surrounds_the_package_gives_no_commit(clone, tracked):
    """As that of a paper, which holds its virtual environment, ignored or not."""
    site_packages = clone / ".venv/lib/site-packages"
    (site_packages / "fastlsr").mkdir(parents=True)
    (site_packages / "fastlsr/__init__.py").touch()
    if tracked:
        git(clone, "add", ".")
        git(clone, "commit", "-qm", "second")
    assert git_state(site_packages) is None


def test_a_repository_whose_top_is_there_but_holds_another_program_gives_no_commit(clone):
    git(clone, "rm", "-q", "--cached", "fastlsr/__init__.py")
    git(clone, "commit", "-qm", "second", "--allow-empty")
    assert git_state(clone) is None


def test_a_git_hook_s_variables_do_not_name_another_repository(clone, tmp_path, monkeypatch):
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", str(other))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    state = git_state(clone)
    monkeypatch.undo()
    assert state == {"commit": git(clone, "rev-parse", "HEAD"), "changed": False}


def test_without_a_repository_there_is_no_commit(tmp_path):
    assert git_state(tmp_path) is None
