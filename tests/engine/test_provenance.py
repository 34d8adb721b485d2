"""What a run notes of the code: a commit only of the program's own repository, and how pip installed it."""

import json
import subprocess

import pytest

from fastlsr.engine.provenance import git_state, installation


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


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """(file name -> text) -> a folder that Python finds first, in which pip recorded fastlsr 9.9 with these files."""

    def record(**files):
        folder = tmp_path / "site-packages"
        for name, text in {"METADATA": "Name: fastlsr\nVersion: 9.9\n", **files}.items():
            (folder / "fastlsr-9.9.dist-info").mkdir(parents=True, exist_ok=True)
            (folder / "fastlsr-9.9.dist-info" / name.replace("_url", "_url.json")).write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return record


def test_a_wheel_has_its_version_and_where_pip_took_it_from(site_packages):
    origin = {"url": "file:///dist/fastlsr-9.9.whl", "archive_info": {"hash": "sha256=0"}}
    folder = site_packages(RECORD="", direct_url=json.dumps(origin))
    assert installation(folder / "fastlsr") == {"version": "9.9", "direct_url": origin}


def test_a_wheel_of_an_index_has_its_version_alone(site_packages):
    assert installation(site_packages(RECORD="") / "fastlsr") == {"version": "9.9", "direct_url": None}


def test_an_editable_installation_is_that_of_its_clone(site_packages, tmp_path):
    clone = tmp_path / "my clone"
    folder = site_packages(RECORD="", direct_url=json.dumps({"url": clone.as_uri(), "dir_info": {"editable": True}}))
    assert installation(clone / "fastlsr")["version"] == "9.9"
    assert installation(folder / "fastlsr") is None


def test_another_copy_than_the_one_that_runs_is_not_what_pip_installed(site_packages, tmp_path):
    site_packages(RECORD="")
    assert installation(tmp_path / "clone/fastlsr") is None


def test_what_a_build_leaves_beside_a_clone_is_no_installation(site_packages):
    assert installation(site_packages() / "fastlsr") is None
