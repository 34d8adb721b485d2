"""Code of the user's own: files of Python, or installed packages, that register methods, networks, metrics and more.

A plugin is loaded by `--plugin FILE.py` or `--plugin NAME`, the name of an entry point in the group `fastlsr.plugins`.
A run keeps the digest of each, and is opened with no other code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from fastlsr.errors import InputError

GROUP = "fastlsr.plugins"
Value = TypeVar("Value")
_loaded: dict[str, str] = {}  # digest to name
_one_at_a_time = threading.RLock()


class Plugin(NamedTuple):
    """A plugin of a run.

    Attributes:
        name: its file, with all its folders, or its entry point.
        digest: sha256, in hexadecimal, of the file; of a package that of all its files.
    """

    name: str
    digest: str


def load_plugins(names: Sequence[str], recorded: Iterable[Plugin] = ()) -> tuple[Plugin, ...]:
    """Loads plugins, each once a process: those that a run has recorded, and then further ones.

    Args:
        names: files or entry points. One that equals a recorded plugin is loaded in its place: it may have moved.
        recorded: of a run.

    Raises:
        InputError: if one is not there or fails, or is not what was recorded.
    """
    given = {plugin.digest: plugin for plugin in map(_found, names)}
    with _one_at_a_time:
        plugins = [given[each.digest] if each.digest in given else _unchanged(each) for each in recorded]
        plugins += [plugin for plugin in given.values() if plugin not in plugins]
        for plugin in plugins:
            if plugin.digest not in _loaded:
                _run(plugin)
                _loaded[plugin.digest] = plugin.name
    return tuple(plugins)


def load_named(words: Sequence[str] | None) -> list[str]:
    """Loads the plugins that a command line names, before its other words are read; returns the other words.

    Args:
        words: None for those that this process was started with.

    Raises:
        InputError: as `load_plugins`.
    """
    others, names, rest = list[str](), list[str](), iter(sys.argv[1:] if words is None else words)
    for word in rest:
        option, equals, name = word.partition("=")
        if option != "--plugin":
            others.append(word)
        elif name := name if equals else next(rest, ""):
            names.append(name)
        else:
            raise InputError("--plugin needs a value: --plugin=FILE.py")
    load_plugins(named_plugins(names)[0])
    return others


def register(registry: MutableMapping[str, Value], what: str, name: str, value: Value) -> None:
    """Enters a plugin's or our own `value` into a registry.

    Args:
        what: it is, as "method".

    Raises:
        InputError: if the name is taken: a run's numbers would depend on which came first.
    """
    if name in registry:
        raise InputError(f"there is a {what} {name} already; take another name")
    registry[name] = value


def _found(name: str) -> Plugin:
    return Plugin(os.path.abspath(name) if _is_file(name) else name, _digest(name))


def _unchanged(plugin: Plugin) -> Plugin:
    """The recorded plugin, which is as it was, or was loaded before from wherever the user named it.

    Raises:
        InputError: if it is not.
    """
    if plugin.digest in _loaded:
        return Plugin(_loaded[plugin.digest], plugin.digest)
    try:
        digest = _digest(plugin.name)
    except InputError as error:
        raise InputError(f"{error}; --plugin names it where it has moved") from None
    if digest != plugin.digest:
        raise InputError(
            f"plugin {plugin.name} has changed since the run began (its digest differs); --plugin names the former "
            "one, of which the run's folder keeps a copy in plugins/"
        )
    return plugin


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name


def _digest(name: str) -> str:
    """The digest of a plugin's files.

    Raises:
        InputError: if it is not there.
    """
    if not _is_file(name):
        spec = importlib.util.find_spec(_entry_point(name).module)
        folders = spec.submodule_search_locations if spec else None
        files = sorted(path for folder in folders for path in Path(folder).rglob("*.py")) if folders else []
        if not files and spec and spec.origin:
            files = [Path(spec.origin)]
    else:
        files = [Path(name)]
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(file.read_bytes())
    except OSError as error:
        raise InputError(f"plugin {name} cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _entry_point(name: str) -> importlib.metadata.EntryPoint:
    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if name not in points and Path(f"{name}.py").exists():
        raise InputError(f"plugin {name}: no such installed plugin; did you mean {name}.py?")
    if name not in points:
        installed = f"installed are {', '.join(points)}" if points else "a file ends in .py"
        raise InputError(f"plugin {name}: no such file or installed plugin; {installed}")
    return points[name]


def _run(plugin: Plugin) -> None:
    """Imports a plugin, which registers what it has.

    Raises:
        InputError: if that fails; names the line.
    """
    try:
        if _is_file(plugin.name):
            _import_file(Path(plugin.name), f"fastlsr_plugin_{Path(plugin.name).stem}_{plugin.digest[:8]}")
        else:
            importlib.import_module(_entry_point(plugin.name).module)
    except Exception as error:
        raise InputError(f"plugin {plugin.name}{failure(error, plugin.name)}") from error


def failure(error: Exception, file: str) -> str:
    """The end of an error line: the last line of a plugin's `file` that the error went through, and the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f", line {lines[-1]}" if lines else ""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{where}: {kind}{' '.join(str(error).split())}"


def _import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and pickle expect
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def named_plugins(given: Any) -> tuple[list[str], list[Plugin]]:
    """(names, recorded): what `plugin` holds in a YAML file, a run's options or on the command line.

    A text of names with commas between them, or a list of names and of {name, digest}.

    Raises:
        InputError: for anything else.
    """
    names: list[str] = []
    recorded: list[Plugin] = []
    for each in [given] if isinstance(given, str) else given if isinstance(given, list | tuple) else [None]:
        if isinstance(each, str):
            names += [name.strip() for name in each.split(",") if name.strip()]
        elif isinstance(each, dict) and each.keys() == {"name", "digest"} and all(map(_is_text, each.values())):
            recorded.append(Plugin(**each))
        else:
            raise InputError(f"plugin={given}: expected the names of files or of installed plugins")
    return names, recorded


def _is_text(value: object) -> bool:
    return isinstance(value, str)
