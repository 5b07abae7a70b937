"""Tells what of installed modules this session has replaced, which tasks find as it was installed: patches and mocks.

A function that would send a request where the program has put a mock must not do so without a word.
"""

from __future__ import annotations

import builtins
import functools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from .global_names import mentioned
from .module_origin import Travel, travel
from .outside_inputs import dotted_names, full_name


def patches(reached: Iterable[types.FunctionType]) -> Iterator[tuple[str, str]]:
    """Yield (name, sentence) for what these functions use of installed modules, and the session has replaced."""
    for function in reached:
        for name in _replaced(function):
            where = "Python" if name.startswith("builtins.") else name.partition(".")[0]
            yield (
                name,
                f"{function.__qualname__.rpartition('<locals>.')[2]} uses {name.removeprefix('builtins.')}, which this "
                f"session has replaced: tasks use that of {where}. Replace it in the function, or for all with "
                "mec.execute(…)",
            )


def _replaced(function: types.FunctionType) -> Iterator[str]:
    here = function.__globals__
    for name in mentioned(function.__code__) - here.keys():
        if name in vars(builtins) and _is_of_session(vars(builtins)[name]):
            yield f"builtins.{name}"
    for name in _looked_up(function.__code__):
        if name[0] == _GLOBAL:
            root, _, rest = name[1:].partition(".")
            owner = here.get(root)
            if not isinstance(owner, types.ModuleType | type):
                continue
            name = f"{full_name(owner)}.{rest}"
        found = _replaced_in(name)
        if found:
            yield found


_GLOBAL = "\0"


@functools.lru_cache(4096)
def _looked_up(code: types.CodeType) -> tuple[str, ...]:
    """Return the dotted names that a code looks up; those that begin with a global have a mark before them."""
    names = {name for name, _ in dotted_names(code, lambda name: f"{_GLOBAL}{name}")}
    return tuple(sorted(name for name in names if "." in name))


def _replaced_in(name: str) -> str:
    """Return the part of a dotted name that the session has replaced: an attribute of a module, or of a class there."""
    owner: Any = None
    whole = ""
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        if owner is None or type(owner) is types.ModuleType:
            module = sys.modules.get(whole)
            if module is not None:
                if travel(whole) is not Travel.REFERENCE:
                    return ""
                owner = module
                continue
        if owner is None:
            return ""
        value = vars(owner).get(part)
        if _is_of_session(value):
            return whole
        if not isinstance(value, type):
            return ""
        owner = value
    return ""


def _is_of_session(value: Any) -> bool:
    """Return whether a value was made by the program's own code, or is a mock."""
    kind = type(value)
    if kind is types.FunctionType:
        return _is_own(value.__globals__.get("__name__"))  # `wraps` copies the name of a module
    if kind is types.MethodType:
        return _is_of_session(value.__func__)
    if kind is functools.partial:
        return _is_of_session(value.func)
    if isinstance(value, type):
        return _is_own(value.__module__)
    return _is_own(kind.__module__) or any(cls.__module__ == "unittest.mock" for cls in kind.__mro__)


def _is_own(module: object) -> bool:
    """Return whether a module of this name is the program's own; those of Cython's types have no files."""
    return module == "__main__" or (isinstance(module, str) and travel(module) is Travel.SOURCE)
