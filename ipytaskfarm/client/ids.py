"""Ids and durations as users give them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from operator import index
from typing import Any, TypeAlias

Ids: TypeAlias = Any
"""An id, a future, or any sequence of them."""
Timeout: TypeAlias = float | timedelta | None


def seconds(timeout: Timeout) -> float | None:
    """A public duration in seconds."""
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


def task_id(value: object) -> int:
    """An id as an int; TypeError for what is none (a numpy integer or a future is one, True is not)."""
    if isinstance(value, bool):
        raise TypeError(f"an integer task id expected: {value!r}")
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"an integer task id expected: {value!r}") from None


def id_list(ids: Ids) -> list[int]:
    """One id or several, as a list."""
    if isinstance(ids, Iterable) and not isinstance(ids, (str, bytes)):
        return [i if i.__class__ is int else task_id(i) for i in ids]
    return [task_id(ids)]
