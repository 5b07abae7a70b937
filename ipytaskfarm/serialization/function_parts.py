"""What a function has beside its code and its globals: the values of its closure and of its defaults."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

ABSENT = object()
"""What `cell_content` returns for an empty cell."""


def cell_content(cell: types.CellType) -> Any:
    """Return what is in a cell; `ABSENT` if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return ABSENT


def cell_state(cell: types.CellType) -> tuple[Any, ...]:
    """Return what is in a cell as a tuple of one; () if it is empty."""
    value = cell_content(cell)
    return () if value is ABSENT else (value,)


def closure_of(function: types.FunctionType) -> Sequence[tuple[str, Any]]:
    """Return name and value of each closure variable that has a value."""
    cells = function.__closure__
    if cells is None:
        return ()
    named = zip(function.__code__.co_freevars, map(cell_content, cells), strict=False)
    return [(name, value) for name, value in named if value is not ABSENT]


def defaults_of(function: types.FunctionType) -> Sequence[tuple[str, Any]]:
    """Return name and default of each parameter that has one."""
    values, by_keyword = function.__defaults__ or (), function.__kwdefaults__ or {}
    if not (values or by_keyword):
        return ()
    code = function.__code__
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return [*zip(names, values, strict=True), *by_keyword.items()]


def function_of(member: Any) -> Any:
    """Return the function that a method, a property or a wrapper in a class has; any other member as it is.

    Others are not asked for attributes: a proxy may raise what it likes.
    """
    kind = type(member)
    if issubclass(kind, types.MethodType | staticmethod | classmethod):
        return member.__func__
    return member.fget if issubclass(kind, property) else member
