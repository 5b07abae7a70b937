"""Lets methods of a class that is known already name the lines where they are now.

A class is known by what it is, and its identity lasts: an edit above it in its file makes no other class of it. Its
functions get the code of the newest definition, which differs in file and lines alone, so that errors name these.
"""

from __future__ import annotations

import functools
import types
import zlib
from collections.abc import Iterator
from typing import Any

from ..system.user_code import lasting_name
from .function_parts import closure_of
from .global_names import nested_codes
from .known_classes import travelled

_DEPTH_MAX = 10


def follow_moves(cls: type, attributes: dict[str, Any]) -> None:
    """Give functions of a class that came by value the code of the same attributes in another pack of it."""
    if not travelled(cls):
        return  # it was defined here, and what comes back may be older
    own = vars(cls)
    for name, value in attributes.items():
        for before, now in zip(_functions(own.get(name)), _functions(value), strict=False):
            _follow_move(before, now)


def _functions(value: Any, depth: int = 0) -> Iterator[types.FunctionType]:
    """Yield the functions in an attribute of a class."""
    if depth > _DEPTH_MAX:
        return
    kind = type(value)
    if kind is types.FunctionType:
        yield value
        inner = [vars(value).get("__wrapped__"), *(each for _, each in closure_of(value) if type(each) is kind)]
    elif isinstance(value, staticmethod | classmethod):
        inner = [value.__func__]
    elif isinstance(value, property):
        inner = [value.fget, value.fset, value.fdel]
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        inner = [value.func]
    elif kind is functools._lru_cache_wrapper:
        inner = [value.__wrapped__]
    else:
        return
    for each in inner:
        yield from _functions(each, depth + 1)


def _follow_move(before: types.FunctionType, now: types.FunctionType) -> None:
    old, new = before.__code__, now.__code__
    if _places(old) != _places(new) and old.co_code == new.co_code and old.co_freevars == new.co_freevars:
        before.__code__ = new


def place_of(code: types.CodeType) -> str:
    """Return in which file and at which lines code stands, with the code nested in it."""
    lines = 0
    for _, first, table in _places(code):
        lines = zlib.crc32(table, lines ^ first)
    return f"{lasting_name(code.co_filename)}:{code.co_firstlineno}:{lines}"


def _places(code: types.CodeType) -> list[tuple[str, int, bytes]]:
    return [(each.co_filename, each.co_firstlineno, each.co_linetable) for each in nested_codes(code)]
