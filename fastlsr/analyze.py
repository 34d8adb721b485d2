"""Analyses trained runs: python -m fastlsr.analyze KIND [RUN ...] [--OPTION=VALUE ...] [--out=DIR] [--data.dir=DIR].

A RUN is a run's folder, a folder of them, or one checkpoint that a run kept (`run.keep`). What is found is printed and
written to DIR/KIND.txt and .json, with a picture in DIR/KIND.svg and .png. DIR is the run's own folder `analysis`, also
for several of its checkpoints, or ./analysis for several runs or none. Runs that log to W&B get both there, too.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import itertools
import json
import pkgutil
import shlex
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlsr import analysis
from fastlsr.cli import exit_on_input_error, print_help, read_arguments, wants_help
from fastlsr.config import PLACES, check_places
from fastlsr.data.splits import naming_data_dir
from fastlsr.errors import InputError, unknown
from fastlsr.files import check_can_be_written
from fastlsr.plugins import load_named
from fastlsr.runs import RunFolder, has_begun, runs_below

if TYPE_CHECKING:
    from fastlsr.engine.trained import TrainedRun

_READ: dict[str, Callable[[str], Any]] = {
    "int": int, "float": float, "bool": lambda text: {"true": True, "false": False}[text.lower()], "str": str
}  # fmt: skip
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def kinds() -> list[str]:
    """The names of the analyses."""
    return sorted({*analysis.OWN_KINDS, *(module.name for module in pkgutil.iter_modules(analysis.__path__))})


def main(arguments: list[str] | None = None) -> int:
    """Prints and writes what an analysis finds; returns the exit code."""
    with exit_on_input_error():
        typed = sys.argv[1:] if arguments is None else arguments
        words = load_named(typed)
        if wants_help(words):
            print_help(_help(words[0]) if words[0] in kinds() else f"{__doc__}\n{_overview()}")
            return 0
        if not words or words[0].startswith("-"):
            raise InputError(f"usage: python -m fastlsr.analyze KIND [RUN ...]; kinds: {', '.join(kinds())}")
        if words[0] not in kinds():
            raise InputError(unknown("kind of analysis", words[0], kinds()))
        given, options, places = _arguments(words[1:])
        run_analysis(words[0], given, options, places, typed)
    return 0


def _overview() -> str:
    """A line for each kind, from the first of its docstring; imports none of them."""
    return "Kinds, each with a --help of its own:\n" + "\n".join(f"  {kind:18} {_sentence(kind)}" for kind in kinds())


def _sentence(kind: str) -> str:
    """What an analysis shows, the first line of its docstring."""
    own = analysis.OWN_KINDS.get(kind)
    said = (inspect.getdoc(own) or kind) if own else (ast.get_docstring(_source(kind)) or "")
    return said.splitlines()[0].split(": python -m")[0].rstrip(".") + "."


def _source(kind: str) -> ast.Module:
    """The syntax tree of an analysis, which is read at once where importing it takes seconds."""
    spec = importlib.util.find_spec(f"fastlsr.analysis.{kind}")
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _help(kind: str) -> str:
    """What an analysis shows, its options with their defaults, and what they mean."""
    module = _source_of_own(kind) if kind in analysis.OWN_KINDS else _source(kind)
    analyze = next(each for each in module.body if isinstance(each, ast.FunctionDef) and each.name in ("analyze", kind))
    options = zip(analyze.args.kwonlyargs, analyze.args.kw_defaults, strict=True)
    lines = [f"  --{each.arg}" + (f"={ast.literal_eval(default)}" if default else "") for each, default in options]
    texts = [ast.get_docstring(module), ast.get_docstring(analyze), "Options:" if lines else "", "\n".join(lines)]
    return "\n\n".join(filter(None, texts))


def _source_of_own(kind: str) -> ast.Module:
    """The syntax tree of a plugin's analysis alone."""
    return ast.parse(textwrap.dedent(inspect.getsource(analysis.OWN_KINDS[kind])))


def _function(kind: str) -> Callable[..., analysis.Finding]:
    """The function of a kind; imports its module."""
    return analysis.OWN_KINDS.get(kind) or importlib.import_module(f"fastlsr.analysis.{kind}").analyze


def run_analysis(
    kind: str, given: Sequence[Path], options: dict[str, str], places: Mapping[str, str], typed: Sequence[str]
) -> None:
    """Runs one analysis, prints what it finds and writes its files.

    Args:
        given: runs and folders of runs.
        options: of the analysis, and `out`, as they were typed.
        places: `section.key` to value of `config.PLACES`.
        typed: the words of the command line, for the record.

    Raises:
        InputError: for runs or options that do not fit; nothing is written then.
    """
    out, paths = options.pop("out", ""), _with_weights([path for each in given for path in _runs_in(each)])
    # Imported after the arguments were looked at: it takes seconds.
    from fastlsr.engine.trained import open_run
    from fastlsr.logs.wandb_log import log_finding

    analyze = _function(kind)
    first, *_ = [*inspect.signature(analyze).parameters, ""]
    _check_runs(kind, first, paths)
    chosen = _read_options(kind, options, analyze)
    runs = [open_run(path, places) for path in paths]
    for run, path in zip(runs, paths, strict=True):
        if path.is_dir() and run.at_epoch:
            print(f"note: {path} is not finished, {run.position.epochs} of {run.plan.epochs} epochs", file=sys.stderr)
        if run.config.data.selects_on_val:
            print(f"note: of {path} `test` is its validation split; --data.val=test takes the other", file=sys.stderr)
    of_runs = {run.folder.path for run in runs}
    folder = Path(out) if out else of_runs.pop() / "analysis" if len(of_runs) == 1 else Path("analysis")
    check_can_be_written(folder)  # before what may take hours
    with naming_data_dir():
        finding = analyze(*([runs] if first == "runs" else runs), **chosen)
    print(finding.text)
    about = _sentence(kind) + (f" {_of_runs(runs)}" if runs else "")
    files = write(finding, folder / kind, shlex.join(["python", "-m", "fastlsr.analyze", *typed]), about)
    print(f"written: {', '.join(map(str, files))}")
    for run in runs:
        if run_id := run.state.get("wandb_id"):
            log_finding(run.folder, run.config, run_id, kind, files)


def _arguments(words: Sequence[str]) -> tuple[list[Path], dict[str, str], dict[str, str]]:
    """(runs and folders of them, options, places) of a command line."""
    given, of_options, rest = list[Path](), list[str](), iter(words)
    for word in rest:
        if word.startswith("-"):
            of_options += [word, *([] if "=" in word else itertools.islice(rest, 1))]
        else:
            given.append(Path(word))
    path_of_config, options, _ = read_arguments(of_options)
    if path_of_config:
        raise InputError("--cfg is no option here: a run has its own")
    places = {key: options.pop(key) for key in list(options) if "." in key}
    check_places(places)
    return given, options, places


def _runs_in(path: Path) -> list[Path]:
    """The run, or the runs of a folder; what else lies there is none of theirs."""
    return [each for each in runs_below(path) if each == path or has_begun(each)]


def _with_weights(paths: list[Path]) -> list[Path]:
    """Those of several paths that may be opened; the others are reported. If there are none, all of them."""
    checkpoints = (RunFolder(path).newest_checkpoint for path in paths)
    opened = [path for path, newest in zip(paths, checkpoints, strict=True) if path.is_file() or newest.exists()]
    for path in paths if opened else ():
        if path not in opened:
            print(f"note: {path} holds no checkpoint, and is left out", file=sys.stderr)
    return opened or paths


def _check_runs(kind: str, first: str, paths: Sequence[Path]) -> None:
    if first == "run" and len(paths) != 1:
        raise InputError(f"{kind} takes one run, and {len(paths)} are given")
    if first == "runs" and not paths:
        raise InputError(f"{kind} takes one or more runs: python -m fastlsr.analyze {kind} runs/NAME ...")
    if first not in ("run", "runs") and paths:
        raise InputError(f"{kind} takes no run; {paths[0]} is one")


def _read_options(kind: str, options: Mapping[str, str], analyze: Callable[..., Any]) -> dict[str, Any]:
    """Each option as the analysis annotates it."""
    annotated = typing.get_type_hints(analyze)
    known = [each for each in inspect.signature(analyze).parameters.values() if each.kind == each.KEYWORD_ONLY]
    for name in options:
        if name not in [option.name for option in known]:
            names = [f"--{key}" for key in (*(option.name for option in known), "out", *PLACES)]
            raise InputError(unknown(f"option of {kind}", f"--{name}", names))
    missing = [o.name for o in known if o.default is o.empty and o.name not in options]
    if missing:
        raise InputError(f"{kind} needs {', '.join(f'--{name}=VALUE' for name in missing)}")
    return {name: _value(name, text, annotated[name].__name__) for name, text in options.items()}


def _value(name: str, text: str, type_: str) -> Any:
    try:
        return _READ[type_](text)
    except (ValueError, KeyError):
        raise InputError(f"--{name}={text}: expected {_KINDS[type_]}") from None


def _of_runs(runs: Sequence[TrainedRun]) -> str:
    """As "24 runs of trees_people, resnet8."."""
    count = len({run.folder.path.resolve() for run in runs})
    names = dict.fromkeys(f"{run.config.data.dataset}, {run.config.model.name}" for run in runs)
    checkpoints = f"{len(runs)} checkpoints of " if len(runs) > count else ""
    return f"{checkpoints}{count} run{'s' * (count > 1)} of {'; '.join(names)}."


def write(finding: analysis.Finding, stem: Path, command: str, about: str) -> list[Path]:
    """Writes what was found as STEM.json, .txt, .svg and .png; returns the files.

    Args:
        command: that found it, for the text and the numbers.
        about: a sentence or two on what is shown, and of which runs; likewise.

    Raises:
        InputError: if a file cannot be written.
    """
    from fastlsr.drawing import save_figure
    from fastlsr.files import replace_text

    numbers, text = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.txt")
    try:
        numbers.parent.mkdir(parents=True, exist_ok=True)
        content = {"about": about, "command": command} | finding.numbers
        replace_text(numbers, json.dumps(content, indent=1) + "\n")
        replace_text(text, f"{about}\n$ {command}\n\n{finding.text}\n")
        return [numbers, text, *(save_figure(finding.picture, stem) if finding.picture else [])]
    except OSError as error:
        raise InputError(f"{numbers} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main())
