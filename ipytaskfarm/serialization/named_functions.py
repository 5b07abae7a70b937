"""Functions of a script or notebook that come back from an engine: the program gets its own ones, not copies.

A function of ``__main__`` travels by value, since no engine can import it. In the program it has a name, and what
comes back under this name with the same code is that function, as it is after `pickle` and for functions of modules: it
compares equal, is the same key of a dict, can be pickled, and sees the program's globals. What a decorator has wrapped
is found below its wrapper.

The client says in the pack how it has found the function (`state_of_name`); the engine, where the name means
nothing, keeps that (`note_place`) and says it again when the function goes back.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

from .function_parts import function_of

_WRAPPERS_MAX = 10
_places: weakref.WeakKeyDictionary[types.FunctionType, tuple[str, int]] = weakref.WeakKeyDictionary()
"""Function that came by value -> its name and place in the program that it came from, see `place_here`."""
_keeps = [False]


def under_name(module_name: Any, qualname: Any) -> Iterator[Any]:
    """Yield what a module has under a qualified name, and then what that wraps, and so on."""
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        return
    found: Any = sys.modules.get(module_name)
    for name in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)  # a module's own __getattr__ may do anything
    found = function_of(found)
    for _ in range(_WRAPPERS_MAX):
        if found is None:
            return
        yield found
        attributes = getattr(found, "__dict__", None)
        found = attributes.get("__wrapped__") if type(attributes) is dict else None


def name_of(function: Any) -> Any:
    """Return the qualified name of a function; of a lambda the variable of its module that holds it."""
    qualname = getattr(function, "__qualname__", None)
    if qualname != "<lambda>":
        return qualname
    names = vars(sys.modules.get(function.__module__, object)).items()
    return next((name for name, value in list(names) if value is function), None)


def place_here(function: Any) -> tuple[str, int] | None:
    """Return the name under which this program has a function, and the number of wrappers around it; None if it is not
    found under its name.
    """
    name = name_of(function)
    found = under_name(getattr(function, "__module__", None), name)
    return next(((name, place) for place, each in enumerate(found) if each is function), None)


def keep_places() -> None:
    """Keep the places of functions that come by value, as an engine does. Its own names say nothing about them."""
    _keeps[0] = True


def note_place(function: types.FunctionType, state: dict[str, Any]) -> None:
    """Keep the place of a function that came by value."""
    if _keeps[0] and "place" in state:
        _places[function] = state["place"]


def state_of_name(function: types.FunctionType) -> dict[str, Any]:
    """Return the part of a function's state by which it is found again in the program; {} if it has no name there."""
    place = _places.get(function) if _keeps[0] else place_here(function)
    return {} if place is None else {"place": place}


def own_function(code: types.CodeType, state: dict[str, Any]) -> types.FunctionType | None:
    """Return the program's function that has come back; None if the program has another one there."""
    if "place" not in state:
        return None
    name, place = state["place"]
    for each in list(under_name(state["module"], name))[place : place + 1]:
        if type(each) is types.FunctionType and each.__code__ == code:
            return each
    return None


def own_cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Return the program's `functools.lru_cache` around one of its functions, with what it has cached; None if there is
    none.
    """
    if type(function) is not types.FunctionType:
        return None
    for each in under_name(function.__module__, function.__qualname__):
        if getattr(each, "__wrapped__", None) is function and hasattr(each, "cache_parameters"):
            return each if each.cache_parameters() == {"maxsize": maxsize, "typed": typed} else None
    return None
