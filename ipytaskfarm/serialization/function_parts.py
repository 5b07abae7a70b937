"""What a function has beside its code and its globals: the values of its closure and of its defaults."""

from __future__ import annotations

import types
from collections.abc import Iterator
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


def closure_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each closure variable that has a value."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        value = cell_content(cell)
        if value is not ABSENT:
            yield name, value


def defaults_of(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield name and default of each parameter that has one."""
    code, values = function.__code__, function.__defaults__ or ()
    yield from zip(code.co_varnames[code.co_argcount - len(values) : code.co_argcount], values, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


def function_of(member: Any) -> Any:
    """Return the function that a method, a property or a wrapper in a class has; any other member as it is.

    Others are not asked for attributes: a proxy may raise what it likes.
    """
    kind = type(member)
    if issubclass(kind, types.MethodType | staticmethod | classmethod):
        return member.__func__
    return member.fget if issubclass(kind, property) else member
