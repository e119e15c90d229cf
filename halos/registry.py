"""Registries of what a user may add to by a plugin: losses, forward passes, views, sources, verifiers."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from halos.errors import HalosError

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known name, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names) or 'none'}"


class Registry(Generic[T]):
    """A mapping from names to entries, filled by a decorator: `@LOSSES.register("kto")`.

    Args:
        word: the noun for one entry in messages, for example "loss".
    """

    def __init__(self, word: str) -> None:
        self.word = word
        self._entries: dict[str, T] = {}
        self._plugins: dict[str, Path] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers an entry.

        Raises:
            HalosError: another entry has this name.
        """

        def add(entry: T) -> T:
            known = self._entries.get(name)
            if known is not None and _origin(known) != _origin(entry):
                raise HalosError(f"a {self.word} called {name!r} exists already; give yours another name")
            self._entries[name] = entry
            if _loading:
                self._plugins[name] = _loading[-1]
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        while name not in self._entries and _pending:  # a plugin may read what another one registers
            _load(_pending.pop(0))
        if name not in self._entries:
            raise HalosError(f"unknown {self.word} {name!r}{suggest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def values(self) -> Iterator[T]:
        """All entries, in the order in which they were registered."""
        return iter(self._entries.values())

    def plugin(self, name: str) -> Path | None:
        """The plugin file that registered `name`; None for an entry of the package itself."""
        return self._plugins.get(name)


def _origin(entry: Any) -> tuple[str, str]:
    """Module and name of an entry's definition (of an object, of the function that it is made of as `definition`). A
    module that runs twice registers entries of the same origin."""
    definition = getattr(entry, "definition", entry)
    return definition.__module__, definition.__qualname__


_loading: list[Path] = []
_loaded: set[Path] = set()
_pending: list[Path] = []
"""Files of the plugins that are being loaded, whose turn has not come."""


def load_plugins(files: Iterable[str | Path]) -> None:
    """Run each Python file once, so that its decorators register what it defines.

    Raises:
        HalosError: a file is missing or fails to run.
    """
    _pending[:] = map(Path, files)
    try:
        while _pending:
            _load(_pending.pop(0))
    finally:
        _pending.clear()


def _load(path: Path) -> None:
    if path.resolve() in _loaded:
        return
    if not path.is_file():
        raise HalosError(f"plugins: there is no file {path}; write it or take it out of the list")
    spec = importlib.util.spec_from_file_location(f"halos_plugin_{len(_loaded) + len(_loading)}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by name
    _loading.append(path)
    try:
        spec.loader.exec_module(module)
    except HalosError:
        raise
    except Exception as error:
        raise HalosError(f"plugins: {path} fails when it is read: {type(error).__name__}: {error}") from error
    finally:
        _loading.pop()
    _loaded.add(path.resolve())


def plugin_slice(*files: Path | None) -> dict[str, str]:
    """{file: sha256 of its text} of plugins; entries that are None are left out.

    It is part of the config of what the plugins make, so that editing a plugin reruns that alone.
    """
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file is not None}


LOSSES: Registry[type[Any]] = Registry("loss")
"""name -> frozen dataclass of hyperparameters (halos.losses.Loss)."""
FORWARDS: Registry[type[Any]] = Registry("forward pass")
"""name -> dataclass of options (halos.forward.own.Forward)."""
SOURCES: Registry[Callable[..., Any]] = Registry("source")
"""name -> function(split, **options) that yields halos.data.feedback.Feedback."""
VERIFIERS: Registry[Callable[[list[dict[str, str]], str], dict[str, float]]] = Registry("verifier")
"""name -> function(prompt turns, response) -> {criterion: score between 0 and 1}."""
