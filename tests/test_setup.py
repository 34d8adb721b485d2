"""What scripts/setup.sh decides before it installs anything, in a small copy of the checkout with a bare PATH."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "cat", "dirname", "env", "id", "rm", "sha256sum", "sh")
DECIDING = ("pyproject.toml", "constraints.txt", "fastlsr/data/jpeg_window.c")
COPIED = ("scripts/setup.sh", *(f"fastlsr/{name}.py" for name in ("__init__", "cli", "errors", "system")), *DECIDING)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with the files that setup.sh reads, and bin/ with the only commands that it finds."""
    for name in COPIED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def command(checkout: Path, name: str, script: str) -> None:
    """Puts a shell script of that name on the PATH."""
    path = checkout / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def this_python(checkout: Path, name: str = "python3") -> None:
    (checkout / "bin" / name).symlink_to(os.path.realpath(sys.executable))


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [checkout / "scripts" / "setup.sh"],
        env={"PATH": str(checkout / "bin"), **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def error_of(done: subprocess.CompletedProcess) -> str:
    """The message of a set-up that ended with exit code 2."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: " in done.stderr
    return done.stderr


@pytest.mark.parametrize("version", ["3.9", "3.15", "2.7"])
def test_an_unsuitable_python_is_an_error_of_one_line(checkout, version):
    command(checkout, "python3", f"echo {version}")
    message = error_of(setup(checkout))
    assert version in message and message.count("\n") == 1
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("script", [None, "exit 127"])
def test_a_python_that_is_not_there_or_does_not_run_is_an_error_of_one_line(checkout, script):
    if script:
        command(checkout, "chosen", script)
    message = error_of(setup(checkout, PYTHON="chosen"))
    assert "chosen is not there or does not run" in message and message.count("\n") == 1


def test_a_shim_that_does_not_run_is_passed_over(checkout):
    command(checkout, "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    this_python(checkout)
    assert "system packages are missing" in error_of(setup(checkout))


def test_without_apt_the_missing_packages_are_named_for_apt_dnf_and_conda(checkout):
    this_python(checkout)
    message = error_of(setup(checkout))
    assert "apt-get install" in message and "libopencv-dev libturbojpeg0-dev libjpeg-dev g++" in message
    assert "dnf install" in message and "opencv-devel" in message
    assert "conda-forge" in message and "libjpeg-turbo" in message
    assert not (checkout / ".venv").exists()


def test_without_root_and_without_sudo_apt_is_not_tried(checkout):
    this_python(checkout)
    command(checkout, "id", "echo 1000")
    command(checkout, "apt-get", 'echo "$@" >> calls')
    message = error_of(setup(checkout))
    assert "libopencv-dev" in message and "installing" not in message
    assert not (checkout / "calls").exists()


@pytest.mark.parametrize("user", ["0", "1000"])
def test_apt_updates_once_and_installs_only_what_is_missing(checkout, user):
    this_python(checkout)
    command(checkout, "id", f"echo {user}")
    command(checkout, "sudo", '[ "$1" != -n ] || shift; echo sudo >> calls; exec "$@"')
    command(checkout, "apt-get", 'echo "$@" >> calls')
    command(checkout, "g++", "exit 0")
    error_of(setup(checkout))
    calls = (checkout / "calls").read_text().splitlines()
    assert calls.count("sudo") == (0 if user == "0" else 2)
    update, install = (call for call in calls if call != "sudo")
    assert update.startswith("update")
    assert "--no-install-recommends" in install and "libopencv-dev" in install and "g++" not in install


def made_elsewhere(checkout: Path, folder: str) -> None:
    """A .venv of packages for building, which `activate` finds in `folder`, and a Python that can make another."""
    for tool in ("mkdir", "touch"):
        (checkout / "bin" / tool).symlink_to(shutil.which(tool))
    script = f"""case "$*" in
        *version_info*) echo 3.12 ;;
        *_base_executable*) echo "{checkout}/bin/python3.12" ;;
        *fastlsr.system*) exit 0 ;;
        "-m venv --clear .venv") echo "$@" >> calls; mkdir -p .venv/bin ;;
        *" install "*) echo "$@" >> calls; exit 1 ;;
        "- torch"*) exec {sys.executable} "$@" ;;
    esac"""
    command(checkout, "python3.12", script)
    (checkout / ".venv/bin").mkdir(parents=True)
    shutil.copy(checkout / "bin/python3.12", checkout / ".venv/bin/python")
    (checkout / ".venv/bin/activate").write_text(f"VIRTUAL_ENV={folder}\nexport VIRTUAL_ENV\n", encoding="utf-8")


def calls_of(checkout: Path) -> list[str]:
    """What was called to make .venv and to install into it, by a set-up whose pip fails."""
    (checkout / "calls").unlink(missing_ok=True)
    assert "pip could not install" in error_of(setup(checkout))
    return (checkout / "calls").read_text().splitlines()


def test_a_venv_that_was_copied_from_another_folder_is_made_anew(checkout):
    made_elsewhere(checkout, "/old/.venv")
    assert calls_of(checkout)[0] == "-m venv --clear .venv"


def test_a_venv_that_was_made_here_is_kept(checkout):
    made_elsewhere(checkout, f"{checkout.resolve()}/.venv")
    assert [call for call in calls_of(checkout) if "venv" in call.split()] == []


def test_without_cuda_the_pinned_versions_are_taken_as_cpu_builds_and_the_choice_stays(checkout):
    made_elsewhere(checkout, f"{checkout.resolve()}/.venv")
    message = error_of(setup(checkout, CPU="1"))
    assert "no torch without CUDA" in message and "PIP_EXTRA_INDEX_URL" in message
    made, installed = (checkout / "calls").read_text().splitlines()
    assert made == "-m venv --clear .venv"
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:5] == "torch"]
    here = {pin.name: pin.specifier for pin in pins if not pin.marker or pin.marker.evaluate()}
    assert installed.endswith(f"torch{here['torch']}+cpu torchvision{here['torchvision']}+cpu")
    (checkout / "calls").unlink()
    assert "no torch without CUDA" in error_of(setup(checkout))
    assert [call for call in (checkout / "calls").read_text().splitlines() if "--clear" in call] == []
    (checkout / "calls").unlink()
    assert "pip could not install" in error_of(setup(checkout, CPU="0"))
    assert "+cpu" not in (checkout / "calls").read_text()


def test_an_apt_that_fails_ends_in_the_same_message(checkout):
    this_python(checkout)
    command(checkout, "id", "echo 0")
    command(checkout, "apt-get", "exit 100")
    assert "dnf install" in error_of(setup(checkout))


def test_a_set_up_checkout_is_left_alone_until_its_requirements_change(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    key = f"{checkout.resolve()}\nCPU=0\n" + "".join((checkout / name).read_text() for name in DECIDING)
    stamp = checkout / ".venv" / "fastlsr-setup.sha256"
    stamp.write_text(hashlib.sha256(key.encode()).hexdigest() + "  -\n", encoding="utf-8")
    error_of(setup(checkout))  # the decoder is not built
    (checkout / "fastlsr" / "data" / "_jpeg_window.so").touch()
    done = setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open(checkout / "constraints.txt", "a", encoding="utf-8") as file:
        file.write("six==1.16.0\n")
    error_of(setup(checkout))
