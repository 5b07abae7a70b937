"""Reads the events of tasks.

The items of a chunk that are no tasks of their own have the chunk's events, under their own ids.  SQL finds the events
of chunks, and only as many as are asked for become events of items: a map may have millions of items.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from ..core.messages import ReadHistory
from ..core.messages.tables import EventRow
from .inserts import Row
from .rows import asked, decode_indexes

_KEYS = (
    "WITH asked (id, chunk) AS (SELECT a.value, (SELECT c.id FROM tasks AS c INDEXED BY tasks_with_items "
    "WHERE c.items > 0 AND c.id < a.value ORDER BY c.id DESC LIMIT 1) FROM json_each(?) AS a) "
    "SELECT t.id FROM asked AS a CROSS JOIN tasks AS t ON t.id = a.id WHERE NOT t.items UNION "
    "SELECT c.id FROM asked AS a CROSS JOIN tasks AS c ON c.id = a.chunk WHERE a.id <= c.id + c.items "
    "AND NOT EXISTS (SELECT 1 FROM separate_items AS x WHERE x.chunk = c.id AND x.part = a.id - c.id - 1)"
)
"""Ids of tasks -> the ids under which their events are kept: that of its chunk for an item that is no task."""


def _events(among: str) -> str:
    """Return the SELECT of events.  among: a condition of the column `task` that each of the tables is read with."""
    return (
        "WITH events (at_s, task, what, engine_id, more) AS ("
        f"SELECT submitted_s, id AS task, 'accepted', -1, '' FROM tasks WHERE {among.replace('task', 'id')} UNION ALL "
        "SELECT started_s, task, 'started', engine_id, 'attempt ' || number FROM attempts "
        f"WHERE engine_id >= 0 AND {among} UNION ALL "
        "SELECT ended_s, task, iif(outcome = '', 'succeeded', outcome), engine_id, ifnull(etype || ': ' || value, '') "
        f"FROM attempts WHERE {among} UNION ALL "
        "SELECT at_s, task, 'priority ' || before || ' → ' || priority, -1, '' "
        f"FROM priority_changes WHERE {among} UNION ALL "
        "SELECT started_s, task, 'started', engine_id, 'attempt ' || attempts FROM finals "
        f"WHERE engine_id >= 0 AND {among} UNION ALL "
        "SELECT completed_s, task, iif(reason = '', 'succeeded', 'failed: ' || reason), engine_id, "
        f"ifnull(etype || ': ' || value, '') FROM finals WHERE {among}) "
        "SELECT e.at_s, e.task, t.name, e.what, e.engine_id, e.more, t.items, "
        "iif(t.items, (SELECT json_group_array(x.part) FROM separate_items AS x WHERE x.chunk = t.id), NULL) "
        "FROM events AS e CROSS JOIN tasks AS t ON t.id = e.task "
        "WHERE (?2 IS NULL OR t.name = ?2) AND (?3 IS NULL OR instr(lower(e.what), lower(?3))) AND e.at_s >= ?4 "
        "AND (NOT t.items OR t.items > (SELECT count(*) FROM separate_items AS x WHERE x.chunk = t.id)) "
        "AND (?6 IS NULL OR (e.at_s, e.task, e.what) <= (?6, ?7, ?8)) "
        "ORDER BY e.at_s DESC, e.task DESC, e.what DESC LIMIT ?5"
    )


_EVENTS_OF_ALL = _events("?1 IS NULL")
_EVENTS_OF_SOME = _events("task IN (SELECT value FROM json_each(?1))")


def read_events(select: Callable[[str, Row], Iterable[Row]], question: ReadHistory, count: int) -> list[EventRow]:
    """Return the last `count` events that match, in order of time.  select: runs a SELECT with its parameters."""
    wanted = None if question.ids is None else frozenset(question.ids)
    keys = None if wanted is None else asked(row[0] for row in select(_KEYS, (asked(wanted),)))
    before = _row_of(select, question.before) if question.before is not None else (None, None, None)
    found: list[EventRow] = []
    # Each row is at least one event, so the last rows have the last events.  The row at which the page before ended may
    # have none that is left.
    rows = select(
        _EVENTS_OF_ALL if keys is None else _EVENTS_OF_SOME,
        (keys, question.name, question.what, question.since_s, count + 1, *before),
    )
    for at_s, task, name, what, engine_id, more, items, separate in rows:
        left = count - len(found)
        if left <= 0:
            break
        ids: Iterable[int] = _silent(task, items, separate, wanted) if items else (task,)
        if question.before is not None and (at_s, task, what) == before:
            ids = (id for id in ids if id < question.before[1])
        found += [(at_s, id, name, what, engine_id, more) for id in islice(ids, left)]
    return found[::-1]


def _row_of(select: Callable[[str, Row], Iterable[Row]], event: tuple[float, int, str]) -> tuple[float, int, str]:
    """Return (time, task, what) of the row that an event was made of: an item's is its chunk's."""
    at_s, task, what = event
    return at_s, next((row[0] for row in select(_KEYS, (asked([task]),))), task), what


def _silent(chunk: int, items: int, separate: str, wanted: Container[int] | None) -> Iterator[int]:
    """Yield the ids of a chunk's items that are no tasks of their own, the last first.  wanted: only of these."""
    gone = frozenset(decode_indexes(separate))
    for index in range(items - 1, -1, -1):
        id = chunk + 1 + index
        if index not in gone and (wanted is None or id in wanted):
            yield id
