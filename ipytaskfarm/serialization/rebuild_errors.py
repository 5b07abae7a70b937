"""The functions that our pickles call to rebuild exceptions.

The names and signatures here are part of what is stored and sent, like those of `rebuild`.
"""

from __future__ import annotations

import contextlib
from typing import Any


def fill_exception(error: Any, state: dict[str, Any] | None) -> None:
    """Set the exception's state, even if its class overrides the setting of attributes."""
    if state:
        object.__getattribute__(error, "__dict__").update(state)


def new_padded(before: int, middle: Any, after: int) -> Any:
    """Return bytes or text of which only the middle was sent."""
    blank = b"?" if isinstance(middle, bytes) else "?"
    return blank * before + middle + blank * after


def new_exception_in_parts(cls: Any, args: tuple[Any, ...], fields: dict[str, Any], state: dict[str, Any]) -> Any:
    """Return an exception without running its own code, which does not expect remarks in place of values.

    Args:
        cls: the class of the exception.
        args: the `args` of the exception.
        fields: the attributes of builtin exceptions and of slots.
        state: the content of its ``__dict__``.
    """
    made = next(base for base in cls.__mro__ if base.__module__ == "builtins").__new__
    try:
        error = made(cls, *args)
    except Exception:  # OSError and groups check their arguments
        error = made(cls)
    error.args = args
    for name, value in fields.items():
        if value is None and _is_set(error, name):  # leave it: an OSError with a file name None would print it
            continue
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            BaseException.__setattr__(error, name, value)
    object.__getattribute__(error, "__dict__").update(state)
    return error


def _is_set(error: Any, name: str) -> bool:
    """Return whether a field has a value; a slot has none before the first assignment."""
    try:
        BaseException.__getattribute__(error, name)
    except AttributeError:
        return False
    return True


def new_exception_group(cls: Any, message: str, members: list[Any], state: dict[str, Any]) -> Any:
    """Return an exception group without calling its own ``__new__`` and ``__init__``."""
    error = BaseExceptionGroup.__new__(cls, message, members)
    object.__getattribute__(error, "__dict__").update(state)
    return error
