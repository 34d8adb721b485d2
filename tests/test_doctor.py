"""The doctor reports what is wrong, and how to fix it, without failing itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastlsr import doctor, system

ROOT = Path(__file__).parents[1]


def run_doctor(hiding: Path) -> subprocess.CompletedProcess:
    """The doctor in a subprocess that finds the packages in the folder `hiding` before the installed ones."""
    environment = {**os.environ, "PYTHONPATH": str(hiding)}
    command = [sys.executable, "-m", "fastlsr.doctor"]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


def hide(folder: Path, package: str, line: str) -> None:
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text(line + "\n", encoding="utf-8")


def test_ffcv_whose_extension_does_not_load_is_named_with_its_packages_and_exit_code_2(tmp_path):
    hide(tmp_path, "ffcv", "raise ImportError('libopencv_core.so.406: cannot open shared object file')")
    hide(tmp_path, "torch", "raise ImportError('no torch here')")
    done = run_doctor(hiding=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ImportError: libopencv_core.so.406: cannot open shared object file" in done.stdout
    for package in ("libopencv-dev", "libturbojpeg0-dev", "opencv-devel", "turbojpeg-devel", "libjpeg-turbo"):
        assert package in done.stdout
    assert "ImportError: no torch here" in done.stdout
    assert "self-check" in done.stdout and "Traceback" not in done.stdout + done.stderr


def test_the_self_check_learns_from_a_file_that_it_wrote(tmp_path):
    (finding,) = doctor.write_read_train()
    assert finding.state == "ok", finding.detail


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("while True: pass", "not done after 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import no_such_package_here", "ModuleNotFoundError: No module named 'no_such_package_here'"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("print('no JSON')", "printed 'no JSON'"),
        ("pass", "printed ''"),
    ],
)
def test_a_probe_reports_what_would_otherwise_take_the_doctor_down(code, problem):
    assert doctor.in_new_process(code, seconds=1 if "while" in code else 60).problem == problem


def test_a_probe_returns_the_last_line_printed():
    found = doctor.in_new_process("import sys; print('noise'); print('{\"a\": \"%s\"}' % sys.argv[1])", "b", seconds=60)
    assert found == doctor.Probe({"a": "b"})


def test_a_package_that_is_too_old_blocks_and_one_that_is_new_enough_does_not(monkeypatch):
    assert doctor.package("pytest>=9999").blocks
    assert not doctor.package("pytest>=1.0").blocks
    assert doctor.package("no-such-distribution-here").state == "missing"
    monkeypatch.setitem(doctor._SAME_MODULE, "no-such-distribution-here", "torch")
    assert doctor.package("no-such-distribution-here>=2.11").name == "torch"
    assert doctor.package("no-such-distribution-here>=999").state == "missing"


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.11.0+cu128", (2, 11, 0)), ("1.0rc1", (1, 0)), ("2.0.post1", (2, 0)), ("3", (3,))]
)
def test_versions_are_compared_by_their_leading_numbers(version, numbers):
    assert doctor._release(version) == numbers


def test_a_fix_is_printed_once(capsys):
    fix = ("apt: this",)
    doctor.print_findings([doctor.Finding("a", "missing", "", fix), doctor.Finding("b", "missing", "", fix)])
    assert capsys.readouterr().out.count("apt: this") == 1


def test_only_what_is_missing_or_fails_blocks_training(capsys):
    found = (doctor.Finding(state, state, "") for state in ("ok", "note", "missing", "fails"))
    assert doctor.print_findings(found) == ["missing", "fails"]
    assert "note" in capsys.readouterr().out


def test_every_need_names_a_debian_package_and_every_line_its_manager():
    apt, dnf, conda = system.install_lines(system.NEEDS)
    assert all(need.apt and need.apt in apt for need in system.NEEDS)
    assert "dnf install" in dnf and "conda-forge" in conda
