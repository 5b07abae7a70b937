"""Finds the place of a task in its map."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..core.saves import MapPlace
from .inserts import Row
from .rows import read_spec

_TASK = "SELECT job, part_of, part, json_extract(rules, '$.retry_of') FROM tasks WHERE id = ?"
_NO_RETRY = "(ifnull(instr(m.rules, '\"retry_of\"'), 0) = 0 OR json_extract(m.rules, '$.retry_of') IS NULL)"
_BEFORE = (
    "SELECT j.spec, sum(max(m.items, 1)), "
    "ifnull(sum(max(m.items, 1)) FILTER (WHERE (m.queue_seq, m.id) < (o.queue_seq, o.id)), 0) "
    "FROM tasks AS o CROSS JOIN jobs AS j ON j.id = o.job CROSS JOIN tasks AS m ON m.job = o.job "
    f"WHERE o.id = ? AND m.part_of IS NULL AND {_NO_RETRY} GROUP BY j.id"
)
"""The job of a chunk, or of a task that is an item; the items of the job, and those that were submitted before."""


def place_in_map(
    select: Callable[[str, Row], Iterable[Row]], task: int, chunk_of: Callable[[int], int | None]
) -> MapPlace | None:
    """Return the place of a task in its map; of a retry, that of the item.  None: it is no item, or was cleared.

    Args:
        select: runs a SELECT with its parameters.
        chunk_of: see `storage.store.Store.chunk_of`.
    """
    first = task
    while True:
        found = next(iter(select(_TASK, (first,))), None)
        if found is None:  # an item without a row of its own
            member = chunk_of(first)
            index = None if member is None else first - member - 1
            break
        job, member, index, retry_of = found
        if job is None:
            return None
        if retry_of is None:
            member, index = (first, 0) if member is None else (member, index)
            break
        first = retry_of
    row = None if member is None else next(iter(select(_BEFORE, (member,))), None)
    if row is None or index is None:
        return None
    spec = read_spec(row[0])
    total = row[1] if spec.total else None
    return MapPlace(row[2] + index, total, spec.name, None if first == task else first) if spec.is_map else None
