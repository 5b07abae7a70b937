"""The globals of functions that travel by value, and which of an engine's names count before them.

A function that travels by value is built over a dict of its own, shared by all functions of one pickle that shared
their globals where they came from.  It holds the globals that could be found there; every other name is looked up in
the engine's user namespace at the moment it is used, builtins last.  CPython asks a ``__builtins__`` that is a dict
*subclass* by ordinary item access, so `Names.__missing__` can answer for the namespace.  That is ten times slower than
a plain lookup (0.4 us), so names known beforehand are copied in: see `Names.settle` and `rebuild.bind`.

A name that was placed on the engine by hand (`placed`) counts before what a function brings.  Globals that each call
starts afresh get such names with it (`Names.reset`).  From all others the name is taken away when it is placed
(`Names.hide`), so that it is looked up in the namespace.
"""

from __future__ import annotations

import builtins
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

_BUILTINS = builtins.__dict__
BUILTINS_AT_HOME = frozenset(
    name
    for name in dir(builtins)
    if not name.startswith("_")
    and name not in {"id", "copyright", "credits", "display", "exit", "get_ipython", "help", "license", "quit"}
)
"""A by-value function looks a name up on the engine if it was no global at home.  One of these was the builtin then,
and stays it, whatever tasks have put into the engine's namespace.  Not ``id``, which on an engine is its number, and
not what IPython and ``site`` add."""
_ABSENT = object()
_NONE: frozenset[str] = frozenset()
_REMEMBERED_MIN = 256

Tell = Callable[[Iterable[FunctionType], str, Any, Any], None]
"""(functions, name, what they brought, what the engine has): called when the functions use the engine's value."""


class PlacedNames:
    """The names that were placed by hand in this engine's namespace; in a client there are none."""

    def __init__(self) -> None:
        self.namespace: Mapping[str, Any] | None = None
        """The engine's user namespace; None: this is no engine."""
        self.by: dict[str, str] = {}
        """Name -> how it was placed, such as "push"."""
        self.generation = 0
        """Counts the changes of `by`."""
        self.tell: Tell = _tell_nobody

    def add(self, names: Iterable[str], by: str) -> None:
        """Note that these names were placed in this way."""
        added = dict.fromkeys(names, by)
        if added:
            new = not added.keys() <= self.by.keys()
            self.by.update(added)
            if new:
                self._changed()

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget all other names."""
        wanted = set(names)
        if not self.by.keys() <= wanted:
            self.by = {name: by for name, by in self.by.items() if name in wanted}
            self._changed()

    def _changed(self) -> None:
        self.generation += 1
        for names in _living():
            names.hide()


def _tell_nobody(functions: Iterable[FunctionType], name: str, brought: Any, found: Any) -> None:
    """Outside engines nothing is placed."""


placed = PlacedNames()


class Names(dict[str, Any]):
    """Globals of by-value functions, and the ``__builtins__`` that goes with them (this dict itself)."""

    __slots__ = (
        "__weakref__", "assigned", "functions", "globals", "namespace", "packed", "taken", "told", "wanted",
    )  # fmt: skip

    def __init__(self, module_name: str, namespace: Mapping[str, Any]) -> None:
        # IMPORT_NAME and LOAD_BUILD_CLASS of some Python versions look here without asking __missing__.
        super().__init__(__import__=_BUILTINS["__import__"], __build_class__=_BUILTINS["__build_class__"])
        self.namespace = namespace
        self.assigned = False
        """Some function over them may assign to a global."""
        self.packed: dict[str, Any] = {"__name__": module_name, "__builtins__": self}
        self.globals = dict(self.packed)
        self.wanted: set[str] = set()
        self.functions: list[FunctionType] = []
        """The functions over them, for what is told of them."""
        self.taken = _NONE
        """Names of theirs that were placed by hand on the engine."""
        self.told: dict[str, int] | None = None
        """Name -> identity of the engine's value that was compared with the function's own."""

    def __missing__(self, name: str) -> Any:
        if name in self.taken:
            if name in self.namespace:
                return self._engines(name)
            if name in self.packed:
                return self.packed[name]
        # It was no global where the function came from: there it was the builtin, if there is one of that name.
        if name in BUILTINS_AT_HOME and name in _BUILTINS:
            return _BUILTINS[name]
        try:
            return self.namespace[name]
        except KeyError:
            return _BUILTINS[name]

    def add(self, used: dict[str, Any], wanted: tuple[str, ...], function: FunctionType | None = None) -> None:
        """Globals that a function brings, and those it will look for."""
        self.packed.update(used)
        self.globals.update(used)
        self.wanted.update(wanted)
        if function is not None:
            self.functions.append(function)

    def settle(self) -> None:
        """Copy in the builtins that the namespace does not hide now, so that they are found at full speed."""
        for name in self.wanted:
            if name not in self.globals and name in _BUILTINS and not self._hidden(name):
                self.globals[name] = _BUILTINS[name]
        if placed.by:
            self.hide()

    def _hidden(self, name: str) -> bool:
        """Return whether the namespace's value is to be found, and not the builtin."""
        return name in self.namespace and name not in BUILTINS_AT_HOME

    def hide(self) -> None:
        """Have names that were placed by hand looked up in the namespace, at each use."""
        before = self.taken
        self.look_for_placed()
        for name in before - self.taken:
            if name in self.packed:
                self.globals.setdefault(name, self.packed[name])
        for name in self.taken:
            self.globals.pop(name, None)

    def look_for_placed(self) -> None:
        """Find which of their names are placed by hand now."""
        self.taken = frozenset(
            name
            for name in placed.by
            if (name in self.packed or (name in self.wanted and name in BUILTINS_AT_HOME))
            and not (name.startswith("__") and name.endswith("__"))
        )

    def reset(self) -> None:
        """Undo what the last call assigned, and look the wanted names up afresh (`bind` made them disjoint).

        The dict stays the same and so do its keys as a rule: the interpreter's inline caches stay valid.
        """
        here = self.globals
        here.update(self.packed)
        namespace = self.namespace
        found = len(self.packed)
        for name in self.wanted:
            if name in namespace and not (name in BUILTINS_AT_HOME and name in _BUILTINS):
                here[name] = namespace[name]
                found += 1
            elif name in _BUILTINS:
                here[name] = _BUILTINS[name]
                found += 1
            else:
                here.pop(name, None)
        if len(here) != found:
            for name in here.keys() - self.packed.keys() - self.wanted:
                del here[name]
        if self.taken:
            here.update((name, self._engines(name)) for name in self.taken if name in namespace)

    def _engines(self, name: str) -> Any:
        """Return the engine's value; that it counts is told."""
        value = self.namespace[name]
        if self.told is None:
            self.told = {}
        if self.told.get(name) != id(value):
            self.told[name] = id(value)
            brought = self.packed[name] if name in self.packed else _BUILTINS[name]
            if brought is not value:
                placed.tell(self.functions, name, brought, value)
        return value

    def taken_values(self, for_child: bool) -> dict[str, Any]:
        """Return the values of the names in `taken` that go with a function that is packed here.

        Args:
            for_child: it goes to a child process, which does not have the engine's namespace.
        """
        values = {name: self.packed[name] for name in self.taken if name in self.packed}
        namespace = self.namespace
        if for_child:
            return values | {name: namespace[name] for name in self.taken if name in namespace}
        # What a call has assigned goes on as it is.
        here = self.globals
        return {
            name: here[name] if name in here and here[name] is not namespace.get(name, _ABSENT) else value
            for name, value in values.items()
        }


_remembered: list[weakref.ref[Names]] = []
_limit = [_REMEMBERED_MIN]


def remember(names: Names) -> None:
    """Tell these globals of names that are placed later."""
    _remembered.append(weakref.ref(names))
    if len(_remembered) > _limit[0]:
        _limit[0] = max(_REMEMBERED_MIN, 2 * len(_living()))


def _living() -> list[Names]:
    living = [names for reference in _remembered if (names := reference()) is not None]
    _remembered[:] = map(weakref.ref, living)
    return living
