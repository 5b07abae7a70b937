"""Ids and durations as users give them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from operator import index
from typing import Any, TypeAlias

from ..core.arguments import INT_MAX, INT_MIN, check_timeout
from ..core.text import shown

Ids: TypeAlias = Any
"""An id, a future, or any sequence of them."""
Timeout: TypeAlias = float | timedelta | None


def seconds(timeout: Timeout, what: str = "timeout") -> float | None:
    """Return a public duration in seconds; None: for ever."""
    return None if timeout is None else check_timeout(what, timeout)


def task_id(value: object) -> int:
    """Return an id as an int; TypeError for what is none (a numpy integer or a future is one, True is not)."""
    if isinstance(value, bool):
        raise TypeError(f"an integer task id expected: {value!r}")
    try:
        found = index(value)  # type: ignore[arg-type]
    except Exception:  # it may have an __index__ of its own
        raise TypeError(f"an integer task id expected: {shown(value)}") from None
    if not INT_MIN <= found <= INT_MAX:
        raise _never_issued(found)
    return found


def id_list(ids: Ids) -> list[int]:
    """Return one id or several, as a list."""
    if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)):
        found = [i if i.__class__ is int else task_id(i) for i in ids]
        if found and not (min(found) >= INT_MIN and max(found) <= INT_MAX):
            raise _never_issued(max(found, key=abs))
        return found
    return [task_id(ids)]


def _never_issued(value: int) -> IndexError:
    return IndexError(f"task ID not registered: a number of {value.bit_length()} bits (never issued)")
