"""Globals that functions in the engine's namespace assign: the namespace gets them.

In IPython 0.10 a pushed function ran in the engine's namespace, so ``global model; model = load()`` prepared the engine
for later commands, and ``global n; n += 1`` counted in the engine's ``n``. Here a function brings globals of its own
(`serialization.function_globals`). What it has assigned goes to the namespace after each statement of a cell, and at
the end of each command and task. A command places the name by hand, as if it had assigned the name itself. A task
changes names that were placed by hand, and no others.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..serialization.function_globals import BY_CALL, Names, living, placed
from ..serialization.global_names import stored_globals
from ..serialization.modules import take_placed_names
from . import user_namespace

_ABSENT = object()


class WrittenGlobals:
    """Watches the globals of functions that stay in the namespace, if the functions assign to globals."""

    def __init__(self) -> None:
        self._watched: list[tuple[weakref.ref[Names], frozenset[str]]] = []
        self._by_hand = False
        self._before: dict[tuple[int, str], Any] = {}
        """The globals of `_watched` when the command began: (identity of the globals, name) -> value."""

    def watch(self, found: Iterable[Names]) -> None:
        """Watch the globals of functions that were unpacked into the namespace."""
        new = [(weakref.ref(each), stores) for each in found if each.assigned and (stores := _stores(each))]
        if new:
            self._watched = [known for known in self._watched if known[0]() is not None] + new

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the globals of all functions that the block brings into the namespace."""
        before = {id(each) for each in living()}
        yield
        self.watch(each for each in living() if id(each) not in before)

    @contextmanager
    def by_hand(self) -> Iterator[None]:
        """Run a command: what functions assign meanwhile is placed by hand."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Begin a command."""
        self.take()
        self._by_hand = True
        # What tasks have assigned was not placed by hand.
        self._before = {
            (id(names), name): names.globals.get(name, _ABSENT)
            for reference, stores in self._watched
            if (names := reference()) is not None
            for name in stores
        }

    def end(self) -> None:
        """End a command."""
        self.take()
        self._by_hand = False
        self._before = {}

    def take(self) -> None:
        """Move what functions have assigned into the namespace."""
        for reference, stores in self._watched:
            names = reference()
            if names is not None:
                self._take(names, stores)

    def _take(self, names: Names, stores: frozenset[str]) -> None:
        here = names.globals
        values = {}
        for name in stores:
            value = here.get(name, _ABSENT)
            if value is _ABSENT or (name not in names.taken and value is names.packed.get(name, _ABSENT)):
                continue
            if name in placed.by or (self._by_hand and value is not self._before.get((id(names), name), _ABSENT)):
                values[name] = value
                del here[name]  # from now on it is looked up in the namespace
            elif name in names.taken:  # the task that runs has bound it, see `task_names`
                user_namespace()[name] = here.pop(name)
        if values:
            place_by_call(values, next(each.__qualname__ for each in names.functions if _assigns(each, values)))


def _assigns(function: types.FunctionType, names: Iterable[str]) -> bool:
    return not _stored(function.__code__).isdisjoint(names)


@functools.lru_cache(4096)
def _stored(code: types.CodeType) -> frozenset[str]:
    return frozenset(stored_globals(code))


def _stores(names: Names) -> frozenset[str]:
    """Return the globals that functions with these globals may assign."""
    return frozenset[str]().union(*(_stored(each.__code__) for each in names.functions))


written_globals = WrittenGlobals()


def place_by_call(values: dict[str, Any], function: str) -> None:
    """Bind names that a function has assigned, with the precedence of pushed names over what functions bring.

    function: its qualified name.
    """
    user_namespace().update(values)
    placed.add(values, BY_CALL + function)
    take_placed_names()
