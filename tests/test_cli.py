"""How commands end: bad options, readers that have gone, and Ctrl-C at any time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastlsr.cli import exit_on_input_error, interrupts_raised

ROOT = Path(__file__).parents[1]
COMMANDS = [name for name in ("train", "evaluate", "teach", "sweep", "analyze", "report", "write", "doctor", "system")
            if (ROOT / "fastlsr" / f"{name}.py").exists() or (ROOT / "fastlsr" / name).exists()]  # fmt: skip
INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
# Whether interrupts are ignored is inherited: a test runner that a script started in the background ignores them.
START = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{})
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def run(*words, modules=None, stdout=subprocess.DEVNULL, interrupts="SIG_DFL") -> subprocess.CompletedProcess:
    """`python -m WORDS`, which finds modules in the folder `modules` before all others."""
    path = os.pathsep.join(str(folder) for folder in (modules, ROOT, os.environ.get("PYTHONPATH")) if folder)
    return subprocess.run(
        [sys.executable, "-I", "-c", START.format(interrupts), "-m", *words], cwd=ROOT, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_option_is_one_line_and_exit_code_2(name):
    done = run(f"fastlsr.{name}", "--no-such-option")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_that_nobody_reads_ends_with_141_and_no_message(name):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(f"fastlsr.{name}", "--help", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_run_whose_reader_goes_away_ends_with_141_and_no_message(digits_dir, tmp_path):
    # The lines of 2,000 epochs do not fit into the pipe, so that the run cannot end before its reader does.
    options = f"data.dataset=digits data.dir={digits_dir} data.batch_size=512 model.name=resnet8 train.epochs=2000"
    options += f" train.device=cpu train.precision=fp32 train.compile=off log.wandb=disabled run.dir={tmp_path}"
    command = [sys.executable, "-m", "fastlsr.train", *(f"--{option}" for option in options.split())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141


def test_another_connection_that_breaks_stays_an_error():
    with pytest.raises(BrokenPipeError), exit_on_input_error():
        raise BrokenPipeError


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_while_a_command_is_imported_ends_it_at_once_and_no_import_can_swallow_it(tmp_path, name):
    for module in ("yaml", "ctypes"):  # each command imports one of them
        (tmp_path / f"{module}.py").write_text(f"try:\n    {INTERRUPT}\nexcept BaseException:\n    raise SystemExit(3)")
    done = run(f"fastlsr.{name}", "--help", modules=tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def interrupt_at_exit(folder: Path) -> Path:
    """The folder, with a module that Python runs first, and which interrupts the process when it is about to end."""
    (folder / "sitecustomize.py").write_text(f"import atexit\n\n@atexit.register\ndef interrupt():\n    {INTERRUPT}")
    return folder


def test_an_interrupt_in_the_imports_of_a_run_ends_it_at_once(digits_dir, tmp_path):
    """torch is imported by the run, after its options were read; C++ code in it aborts on an exception."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"try:\n    {INTERRUPT}\nexcept BaseException:\n    os.abort()")
    done = run(
        "fastlsr.train", "--data.dataset=digits", f"--data.dir={digits_dir}", "--train.epochs=1", modules=tmp_path
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_an_interrupt_while_a_command_exits_prints_no_traceback(tmp_path, name):
    done = run(f"fastlsr.{name}", "--help", modules=interrupt_at_exit(tmp_path))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_command_that_a_script_starts_in_the_background_ignores_interrupts(tmp_path):
    done = run("fastlsr.train", "--help", modules=interrupt_at_exit(tmp_path), interrupts="SIG_IGN")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_while_a_command_works_is_one_word_and_exit_code_130(tmp_path):
    (tmp_path / "torch").mkdir()  # the doctor imports it in a subprocess
    (tmp_path / "torch" / "__init__.py").write_text(INTERRUPT.replace("getpid", "getppid"))
    done = run("fastlsr.doctor", modules=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_the_handling_of_interrupts_is_put_back():
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with interrupts_raised():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, former)
