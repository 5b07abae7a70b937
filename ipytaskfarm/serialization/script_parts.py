"""Warns of functions, classes and instances of the script that its by-value modules hold.

``@plugins.register("mine")`` in a script, a subclass of a class that keeps its subclasses, ``area.register`` of a
`functools.singledispatch` function, ``Model.run = faster``: the modules get parts of the script.  Tasks run the source
of the modules, and nobody runs the script there.  So `plugins.known["mine"]` would fail, or a default would be taken
without a word.
"""

from __future__ import annotations

import abc
import functools
import sys
import types
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from ..core.text import shown
from ..system.user_code import depth_of_user
from .assigned_globals import told
from .module_origin import Travel, travel

_ITEMS_MAX = 1000
_LEVELS = 2
"""How deep containers are looked through, as in ``handlers["event"].append(function)``."""
_LEAVES = frozenset((
    bool, int, float, complex, str, bytes, type(None), types.ModuleType, types.BuiltinFunctionType, types.CodeType,
))  # fmt: skip
_CONTAINERS = (dict, types.MappingProxyType, list, tuple, set, frozenset, deque)
_KEYED = (dict, types.MappingProxyType)
_METHODS = (staticmethod, classmethod, property, functools.partial, types.MethodType)
_get_dump = getattr(__import__("_abc"), "_get_dump", None)


def warn_of_script_parts(modules: Iterable[types.ModuleType]) -> None:
    """Warn of what the modules, which travel by value, have of the script, once of each."""
    for module in modules:
        try:
            parts = list(_parts_of(module))
        except Exception:  # an object of the user may raise anything when it is looked at
            continue
        for path, what in parts:
            if told.add(module.__name__, path):
                warnings.warn(
                    f"{module.__name__}.{path} {what} of this session's __main__, and tasks run the module's source "
                    "without it: define it in a module that the function imports, or pass it as an argument",
                    stacklevel=depth_of_user(),
                )


def _parts_of(module: types.ModuleType) -> Iterator[tuple[str, str]]:
    """Yield where a module has something of the script, and what that is."""
    for name, value in list(vars(module).items()):
        kind = type(value)
        if kind in _LEAVES or name.startswith("__"):
            continue
        if _is_of_script(value):
            yield name, f"is {_named(value)}"
        elif kind is types.FunctionType:
            if value.__module__ == module.__name__ and value.__dict__:
                yield from _inside(name, vars(value).items())
        elif isinstance(value, type):
            if value.__module__ == module.__name__:
                yield from _inside(name, vars(value).items())
                yield from _registered(name, value)
        elif isinstance(value, _CONTAINERS):
            yield from _in_container(name, value, _LEVELS)
        elif travel(kind.__module__) is Travel.SOURCE and isinstance(state := getattr(value, "__dict__", None), dict):
            yield from _inside(name, state.items())


def _inside(owner: str, attributes: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what the attributes of a function, class or instance have of the script."""
    for name, value in list(attributes):
        if type(value) in _LEAVES or name in ("__wrapped__", "__dict__", "__weakref__"):
            continue
        if isinstance(value, functools.singledispatchmethod):
            value, name = value.dispatcher.registry, f"{name}.register"
        if _is_of_script(value):
            yield f"{owner}.{name}", f"is {_named(value)}"
        elif isinstance(value, _CONTAINERS):
            yield from _in_container(f"{owner}.{name}", value, _LEVELS)


def _in_container(path: str, container: Any, levels: int) -> Iterator[tuple[str, str]]:
    """Yield what a container, or one inside it, has of the script."""
    keyed = isinstance(container, _KEYED)
    items = list(islice(container.items(), _ITEMS_MAX)) if keyed else [(None, each) for each in container][:_ITEMS_MAX]
    for key, value in items:
        if _is_of_script(value) or (keyed and _is_of_script(key)):
            yield path, f"has {_named(key)}: {_named(value)}" if keyed else f"has {_named(value)}"
        elif levels > 1 and isinstance(value, _CONTAINERS):
            yield from _in_container(path, value, levels - 1)


def _registered(name: str, cls: type) -> Iterator[tuple[str, str]]:
    """Yield the classes of the script that were registered with an abstract class."""
    if isinstance(cls, abc.ABCMeta) and _get_dump is not None:
        for reference in _get_dump(cls)[0]:
            found = reference()
            if found is not None and _is_of_script(found):
                yield f"{name}.register", f"has {_named(found)}"


def _is_of_script(value: Any) -> bool:
    kind = type(value)
    if kind in _LEAVES:
        return False
    if kind in _METHODS:
        value = next(
            (found for part in ("__func__", "fget", "func") if (found := getattr(value, part, None)) is not None), None
        )
        kind = type(value)
    if kind is types.FunctionType or isinstance(value, type):
        return _is_in_main(value)
    return _is_in_main(kind)


def _is_in_main(value: Any) -> bool:
    """Return whether a function or class is of the script: a module's own code may run under that name too."""
    if value.__module__ != "__main__":
        return False
    main = vars(sys.modules["__main__"])
    if type(value) is types.FunctionType:
        return value.__globals__ is main
    return value.__qualname__.partition(".")[0] in main


def _named(value: Any) -> str:
    name = getattr(value, "__qualname__", None) if isinstance(value, type | types.FunctionType) else None
    return name if isinstance(name, str) else shown(value, 40)
