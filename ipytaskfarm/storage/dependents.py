"""Which tasks of the store use the results of others, directly or indirectly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .rows import decode_needs


def with_dependents(ids: Iterable[int], edges: Iterable[Any]) -> list[int]:
    """Return these tasks and all that use their results, directly or indirectly.  edges: the rows of `rows.EDGES`."""
    users: dict[int, list[int]] = {}
    for task, needs in edges:
        for other in decode_needs(needs).after:
            users.setdefault(other, []).append(task)
    found = dict.fromkeys(ids)
    waiting = list(found)
    while waiting:
        fresh = [task for task in users.get(waiting.pop(), ()) if task not in found]
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(found)
