"""Warns of functions whose results depend on state of this session that tasks share in a plain run, but not on a farm.

- A random generator in a global or a default, or in the one object whose method a map calls, is copied to each engine
  in its present state: tasks on several engines draw the same numbers.
- Objects that the function changes (`kept_changes`) are copied to each engine.
- The decimal context, numpy's error handling, other libraries' settings and variables (`session_settings`) of this
  process: tasks begin with the defaults.

All of these give other numbers than a plain run, without an error.
"""

from __future__ import annotations

import functools
import threading
import types
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from ..system.user_code import depth_of_user, tell_user
from .function_parts import closure_of, defaults_of
from .kept_changes import (
    change_of_owner,
    changed_by_methods,
    changes_of,
    is_random_generator,
    may_change,
    may_store,
    sets_attributes,
)
from .module_origin import Travel, travel
from .session_reads import readings
from .session_settings import changed_numbers, changed_settings, changed_variables

_WARNED_MAX = 1000
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), list, tuple, dict, set))
_warned: set[tuple[str, str]] = set()


class _Noted(threading.local):
    """What was noted of the function that this thread packs."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []
        """(function, what is wrong)."""
        self.changes: list[tuple[str, str]] = []
        """The same of what the function changes, and of what else is told by a note."""
        self.changing = False
        """Whether a function in it changes what it brings."""


_noted = _Noted()


def begin() -> None:
    """Forget what was noted of an earlier function: call it before one is packed."""
    _noted.texts.clear()
    _noted.changes.clear()
    _noted.changing = False


def look(function: types.FunctionType, used: dict[str, Any]) -> None:
    """Note what of a function that travels by value depends on this session's state.

    used: the globals that it uses."""
    name = function.__qualname__.rpartition("<locals>.")[2]
    for path, value in (*used.items(), *defaults_of(function)):
        _look_at(name, path, value)
        _noted.texts.extend(changed_numbers(function, value))
        if type(value) not in _PLAIN:
            _noted.texts.extend(changed_settings(value))
    _noted.texts.extend(changed_variables(function))
    if any(_is_kept(value, function.__code__) for _, value in (*used.items(), *defaults_of(function))):
        _noted.changing = True
    changes = changes_of(function.__code__)
    if changes:
        for path, value in (*used.items(), *closure_of(function), *defaults_of(function)):
            if path in changes and may_change(value, changes[path], function.__qualname__):
                if "." in name:  # what methods of a class write is mostly the class's own
                    _noted.changing = True
                else:
                    _note_change(name, path, changes[path])
    for path, value in (*used.items(), *closure_of(function)):
        if "." not in name and not may_change(value, changes.get(path, ""), function.__qualname__):
            how = changed_by_methods(value, path, function.__code__)
            if how:
                _note_change(name, path, how)


def look_through(function: Any, *, is_known: bool = False) -> None:
    """Note what a function reads of this session, with all functions of the user that it reaches.

    is_known: it was not packed now, so that `look` has not been called.
    """
    for found in readings(function, is_known=is_known):
        if not found.is_note:
            _noted.texts.append((found.key, found.text))
        elif _is_news((found.key, "")):  # of one function it is told for all
            _noted.changes.append((found.key, found.text))


def note_members(function: str, named: Iterable[str]) -> None:
    """Note that a function takes objects that cannot be pickled from modules, as these are on the engine."""
    for place in named:
        text = (
            f"{function} uses {place}, which cannot be pickled: each engine has its own, as the import of its module "
        )
        _noted.changes.append((place, f"{text}makes it"))


def end(*, of_setup: bool = False) -> bool:
    """Warn of what was noted since `begin`, once of each.  Return whether calls of the function change its values.

    Changes are told by a line on standard error: a function may make them for itself, and a program that takes
    warnings for errors goes on.

    of_setup: the function prepares engines: what it changes there is for later tasks.
    """
    for found in _noted.texts:
        if _is_news(found):
            warnings.warn(found[1], stacklevel=depth_of_user())
    for found in () if of_setup else _noted.changes:
        if _is_news(found):
            tell_user(found[1])
    _noted.texts.clear()
    _noted.changes.clear()
    return _noted.changing


def _is_news(found: tuple[str, str]) -> bool:
    if found in _warned or len(_warned) >= _WARNED_MAX:
        return False
    _warned.add(found)
    return True


def warn_of_one_for_all(function: object) -> None:
    """Warn of generators that all calls of a map share, though they belong to this one function object.

    Of several partials, bound methods or closures each may well have a generator of its own.
    """
    begin()
    name = str(getattr(function, "__qualname__", type(function).__name__))
    for path, value in _parts(function):
        if is_random_generator(value):
            _look_at(name, path, value)
    method = getattr(function, "__func__", None)
    if isinstance(method, types.FunctionType) and not isinstance(function.__self__, type):  # type: ignore[attr-defined]
        how = change_of_owner(method.__code__)
        of_program = travel(method.__module__) is not Travel.REFERENCE
        if how and of_program and not _is_in_manager(function.__self__, how):  # type: ignore[attr-defined]
            _note_change(name, how.partition(".")[0], how)
    end()


def _is_in_manager(owner: object, how: str) -> bool:
    """Return whether ``self.results.append(…)`` changes what a `multiprocessing.Manager` shares with all engines."""
    for name in how.partition("(")[0].split(".")[1:-1]:
        owner = getattr(owner, "__dict__", {}).get(name)
    return any(base.__module__ == "multiprocessing.managers" for base in type(owner).__mro__)


def _is_kept(value: Any, code: types.CodeType) -> bool:
    """Return whether a value may keep what calls of this session have done: no other session is to see that."""
    kind: Any = type(value)
    if kind in _FIXED:
        return False
    if kind in _COLLECTIONS:
        return may_store(code)
    if kind is types.FunctionType:
        return sets_attributes(code)
    return _keeps(kind) or is_random_generator(value)


_FIXED = frozenset((bool, int, float, complex, str, bytes, tuple, type(None), type, types.ModuleType))
_COLLECTIONS = frozenset((list, dict, set, bytearray))


@functools.lru_cache(1024)
def _keeps(kind: Any) -> bool:
    """Return whether instances of a class may keep something: those of the user, iterators, caches and containers."""
    if kind is functools._lru_cache_wrapper or issubclass(kind, list | dict | set | deque | Iterator):
        return True
    return not issubclass(kind, type) and travel(kind.__module__) is not Travel.REFERENCE


def _note_change(function: str, path: str, how: str) -> None:
    _noted.changing = True
    if how.startswith("next(") or how.endswith("()"):
        text = (
            f"{function} takes from {path} ({how}), of which each engine has a copy: tasks on several engines get the "
        )
        text += "same values. Pass the values as arguments"
    else:
        text = (
            f"{function} changes {path} ({how}), of which each engine has a copy: this session's stays as it is, and "
        )
        text += "calls do not see what those on other engines did. Return the values, and put them together here"
    _noted.changes.append((f"{function}.{path}", text))


def _parts(function: object) -> Iterable[tuple[str, Any]]:
    """Return the names and values that a closure, partial, bound method or callable object keeps for itself."""
    if isinstance(function, functools.partial):
        return [
            *((f"argument {place}", value) for place, value in enumerate(function.args)),
            *function.keywords.items(),
        ]
    if isinstance(function, types.FunctionType):
        return closure_of(function)
    owner = function.__self__ if isinstance(function, types.MethodType) else function
    if isinstance(owner, type | types.ModuleType | types.BuiltinFunctionType):
        return ()
    try:
        return list(vars(owner).items())
    except TypeError:
        return ()


def _look_at(function: str, path: str, value: Any) -> None:
    if is_random_generator(value):
        remedy = f"{path}.spawn(n)[i]" if hasattr(value, "spawn") else "a seed for each"
        text = f"{function} draws from {path}, which is copied to each engine in its present state: tasks on several "
        text += f"engines get the same random numbers. Give each task its own as an argument, such as {remedy}"
        _noted.texts.append((f"{function}.{path}", text))
