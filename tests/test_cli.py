"""How commands end: bad options, readers that have gone, and Ctrl-C at any time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastlsr import cli
from fastlsr.__main__ import COMMANDS as LISTED
from fastlsr.__main__ import main
from fastlsr.cli import Parser, exit_on_input_error, interrupts_raised, read_arguments
from fastlsr.errors import InputError

ROOT = Path(__file__).parents[1]
COMMANDS = [*LISTED, "system"]
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
def test_a_command_s_short_help_is_its_long_one_and_loads_nothing_that_takes_seconds(name):
    listed = "import sys; sys.modules.update(dict.fromkeys(('numba', 'scipy', 'torch', 'wandb')))"
    command = (
        f"{listed}; sys.argv[1:] = ['{{}}']; import runpy; runpy.run_module('fastlsr.{name}', run_name='__main__')"
    )
    short, long = (
        subprocess.run([sys.executable, "-c", command.format(word)], capture_output=True, text=True, cwd=ROOT)
        for word in ("-h", "--help")
    )
    assert (short.returncode, short.stderr) == (0, "") and short.stdout == long.stdout != ""


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_without_a_command_they_are_listed(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastlsr", *words])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(LISTED)
    assert max(map(len, lines[2:])) <= 80


def test_every_listed_command_is_there():
    there = {name for name in LISTED if (ROOT / f"fastlsr/{name}.py").exists() or (ROOT / f"fastlsr/{name}").exists()}
    assert set(LISTED) - there == set()


def test_an_unknown_command_is_one_line_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastlsr", "tarin"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert (exit_.value.code, capsys.readouterr().err) == (2, "error: tarin: no such command; did you mean train?\n")


def test_the_console_script_is_python_m_but_for_the_spelling_of_commands(tmp_path):
    """Its exit code, its lines, and what a run notes as its command."""
    (tmp_path / "fastlsr").write_text("import sys\nfrom fastlsr.__main__ import main\nsys.exit(main())\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script, module = (
        subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=environment)
        for words in ([str(tmp_path / "fastlsr"), "evaluate"], ["-m", "fastlsr.evaluate"])
    )
    assert (script.returncode, script.stdout) == (module.returncode, module.stdout) == (2, "")
    assert script.stderr == module.stderr.replace("python -m fastlsr.evaluate", "fastlsr evaluate") != module.stderr


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        ("/venv/bin/python3 /venv/bin/fastlsr train --cfg x", "fastlsr train --cfg x"),
        ("/venv/bin/python3 -m fastlsr.train --cfg x", "python3 -m fastlsr.train --cfg x"),
        ("/venv/bin/python3 -u -m fastlsr.train", "python3 -u -m fastlsr.train"),
    ],
)
def test_a_command_is_noted_as_it_is_typed(words, typed, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", words.split())
    assert cli.typed_command() == typed.split()


def flags_read(*words: str) -> tuple[set[str], bool]:
    """The flags that a command of options and an argument parser find in the words."""
    parser = Parser()
    parser.add_argument("--dry-run", action="store_true")
    return read_arguments(words, flags=("dry-run", "help"))[2], parser.parse_args(words).dry_run


@pytest.mark.parametrize("word", ["--dry-run", "--dry-run=true", "--dry-run=True"])
def test_a_flag_may_be_given_as_true(word):
    assert flags_read(word) == ({"dry-run"}, True)


@pytest.mark.parametrize("word", ["--dry-run=false", "--dry-run=False"])
def test_a_flag_given_as_false_is_not_set(word):
    assert flags_read(word) == (set(), False)


def test_a_flag_takes_no_other_value():
    for read in (lambda word: read_arguments([word], flags=("dry-run",)), lambda word: flags_read(word)):
        with pytest.raises(InputError, match="--dry-run=maybe: expected true or false"):
            read("--dry-run=maybe")


@pytest.mark.parametrize("words", [["--config", "a.yaml"], ["--config=a.yaml"], ["--config-file=a.yaml"]])
def test_the_usual_name_of_cfg_leads_to_it(words):
    with pytest.raises(InputError, match="is spelled --cfg"):
        read_arguments(words)


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
        "fastlsr.train", "--data.dataset=digits", f"--data.dir={digits_dir}", "--optim.schedule=constant",
        modules=tmp_path,
    )  # fmt: skip
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
