"""What a pickle of ours calls to build exceptions again.

The names and signatures here are part of what is stored and sent, as those of `rebuild` are.
"""

from __future__ import annotations

import contextlib
from typing import Any


def fill_exception(error: Any, state: dict[str, Any] | None) -> None:
    """Give it its state, whatever its class makes of setting attributes."""
    if state:
        object.__getattribute__(error, "__dict__").update(state)


def new_padded(before: int, middle: Any, after: int) -> Any:
    """Return bytes or text of which only the middle was sent."""
    blank = b"?" if isinstance(middle, bytes) else "?"
    return blank * before + middle + blank * after


def new_exception_in_parts(cls: Any, args: tuple[Any, ...], fields: dict[str, Any], state: dict[str, Any]) -> Any:
    """Return an exception without running its own code: some of its parts may be remarks, which its code does not
    expect.

    Args:
        cls: its class.
        args: its `args`.
        fields: attributes of builtin exceptions and of slots.
        state: what stands in its ``__dict__``.
    """
    made = next(base for base in cls.__mro__ if base.__module__ == "builtins").__new__
    try:
        error = made(cls, *args)
    except Exception:  # OSError and groups look at what they are given
        error = made(cls)
    error.args = args
    for name, value in fields.items():
        if value is None:  # as it is; set, an OSError would speak of a file None
            continue
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            BaseException.__setattr__(error, name, value)
    object.__getattribute__(error, "__dict__").update(state)
    return error


def new_exception_group(cls: Any, message: str, members: list[Any], state: dict[str, Any]) -> Any:
    """Return a group of exceptions; its own ``__new__`` and ``__init__`` are not called."""
    error = BaseExceptionGroup.__new__(cls, message, members)
    object.__getattribute__(error, "__dict__").update(state)
    return error
