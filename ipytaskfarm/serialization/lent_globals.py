"""Globals that the methods of a class share with the function that runs.

In a program the methods of a class and a function that uses it see one list, ``results``. An engine has the class from
the pack that brought it first, and each later function brings a list of its own. So that both see the same one, the
methods use that of the function for as long as this is the last that was called; then they have their own again.

Only what a call may change inside is lent. Numbers and texts are equal in both: another one makes another class.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from .code_objects import functions_in
from .function_globals import Names

_NOT_LENT = (
    bool, int, float, complex, str, bytes, type(None), type, types.ModuleType, types.FunctionType,
    types.BuiltinFunctionType,
)  # fmt: skip

_borrowers: weakref.WeakSet[Any] = weakref.WeakSet()
"""The classes that came by value and whose methods use globals, until they are freed."""
_changes = [0]
"""The number of classes that have come so far."""
_lent: list[tuple[Names, dict[str, Any]]] = []
"""What is lent at present: the globals of a class, and the values there that belong to a function."""


def note_borrower(cls: type) -> None:
    """Let the methods of a class that came by value use the globals of the functions that are called."""
    if cls not in _borrowers and any(True for _ in _names_of(cls)):
        _borrowers.add(cls)
        _changes[0] += 1


def _names_of(cls: type) -> Iterable[Names]:
    """Yield the globals of the methods of a class."""
    for value in list(vars(cls).values()):
        for function in functions_in(value):
            names = function.__globals__.get("__builtins__")
            if isinstance(names, Names):
                yield names


class Lender:
    """Lends the globals of a function to the classes on this engine, before each call."""

    __slots__ = ("_changes", "_loans", "_names")

    def __init__(self, names: Sequence[Names]) -> None:
        self._names = names
        self._loans: list[tuple[weakref.ref[Names], dict[str, Any]]] = []
        self._changes = 0

    def __call__(self) -> None:
        """Take back what the function before has lent, and lend what this one has."""
        if _lent:
            give_back()
        if self._changes != _changes[0]:
            self._changes, self._loans = _changes[0], self._find()
        for reference, values in self._loans:
            names = reference()
            if names is not None:
                lent = {
                    name: value
                    for name, value in values.items()
                    if name not in names.taken and name not in names.by_setup
                }
                names.globals.update(lent)
                _lent.append((names, lent))

    def _find(self) -> list[tuple[weakref.ref[Names], dict[str, Any]]]:
        own = {id(each) for each in self._names}
        found = {id(names): names for cls in list(_borrowers) for names in _names_of(cls) if id(names) not in own}
        loans = [(weakref.ref(names), _common(mine, names)) for names in found.values() for mine in self._names]
        return [(names, values) for names, values in loans if values]


def _common(mine: Names, other: Names) -> dict[str, Any]:
    """Return the values of a function that the methods of a class of the same module have, too."""
    if mine.packed["__name__"] != other.packed["__name__"]:
        return {}
    return {
        name: value
        for name, value in mine.packed.items()
        if name in other.packed
        and not isinstance(value, _NOT_LENT)
        and not isinstance(other.packed[name], _NOT_LENT)
        and not (name.startswith("__") and name.endswith("__"))
    }


def give_back() -> None:
    """Let the methods of classes use their own globals again."""
    for names, values in _lent:
        for name, value in values.items():
            if names.globals.get(name) is value and name not in names.taken:
                names.globals[name] = names.packed[name]
    _lent.clear()
