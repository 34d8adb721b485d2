"""How commands end: bad options, readers that have gone, and Ctrl-C at any time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastlsr.cli import exit_on_input_error

ROOT = Path(__file__).parents[1]
COMMANDS = [name for name in ("train", "evaluate", "teach", "sweep", "analyze", "doctor", "system")
            if (ROOT / "fastlsr" / f"{name}.py").exists() or (ROOT / "fastlsr" / name).exists()]  # fmt: skip
INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
_STREAMS = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def run(*words, modules: Path | None = None, under: tuple[str, ...] = (), **options) -> subprocess.CompletedProcess:
    """`python -m fastlsr...`, after the words `under`; the folder `modules` is searched before anything else."""
    path = os.pathsep.join(filter(None, [modules and str(modules), str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run([*under, sys.executable, "-m", *words], text=True, timeout=120, cwd=ROOT,
                          env=os.environ | {"PYTHONPATH": path}, **(_STREAMS | options))  # fmt: skip


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
    words = [
        "--data.dataset=digits",
        f"--data.dir={digits_dir}",
        "--data.batch_size=512",
        "--model.name=resnet8",
        "--optim.warmup_epochs=0",
        "--train.device=cpu",
        "--train.compile=off",
        "--train.precision=fp32",
        "--log.wandb=disabled",
        f"--run.dir={tmp_path}",
        "--train.epochs=5000",
    ]  # their lines do not fit into the pipe, so it cannot end before the reader does
    command = [sys.executable, "-m", "fastlsr.train", *words]
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


@pytest.mark.parametrize("name", ["train", "sweep"])
def test_an_interrupt_while_a_command_exits_prints_no_traceback(tmp_path, name):
    done = run(f"fastlsr.{name}", "--help", modules=interrupt_at_exit(tmp_path))
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_command_that_a_script_starts_in_the_background_ignores_interrupts(tmp_path):
    script = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")  # as sh does for `command &`
    done = run("fastlsr.train", "--help", modules=interrupt_at_exit(tmp_path), under=script)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_while_a_command_works_is_one_word_and_exit_code_130(tmp_path):
    (tmp_path / "torch").mkdir()  # the doctor imports it in a subprocess
    (tmp_path / "torch" / "__init__.py").write_text(INTERRUPT.replace("getpid", "getppid"))
    done = run("fastlsr.doctor", modules=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_the_handling_of_interrupts_is_put_back():
    former = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with exit_on_input_error():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, former)
