"""The records of ``rc.db_query``: of the farm's tasks, and of the last commands of this process."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ipytaskfarm.client.tables import TaskStatus

Record = dict[str, Any]


def records_of(
    rows: Iterable[TaskStatus], commands: Mapping[str, Mapping[str, Any]], uuid_of: Callable[[int], str]
) -> list[Record]:
    """Return the records in order of submission.

    Args:
        rows: the farm's tasks.
        commands: message id -> metadata of commands.
        uuid_of: names the incarnation of an engine.
    """
    found = [_of_task(row, uuid_of) for row in rows]
    found += [_of_command(metadata) for metadata in commands.values()]
    return sorted(found, key=lambda record: record["submitted"])


def _of_task(row: TaskStatus, uuid_of: Callable[[int], str]) -> Record:
    return {
        "msg_id": str(row.id),
        "queue": "task",
        "submitted": row.submitted_at,
        "started": row.started_at,
        "completed": row.completed_at,
        "engine_id": row.engineid,
        "engine_uuid": uuid_of(row.engineid) if row.engineid is not None else None,
        "status": row.state,
        "label": row.name or "",
    }


def _of_command(metadata: Mapping[str, Any]) -> Record:
    names = ("msg_id", "submitted", "started", "completed", "engine_id", "engine_uuid", "status")
    return {name: metadata[name] for name in names} | {"queue": "mux", "label": metadata["label"] or ""}


_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$lt": lambda value, limit: value is not None and value < limit,
    "$lte": lambda value, limit: value is not None and value <= limit,
    "$gt": lambda value, limit: value is not None and value > limit,
    "$gte": lambda value, limit: value is not None and value >= limit,
    "$in": lambda value, values: value in values,
    "$nin": lambda value, values: value not in values,
    "$mod": lambda value, of: value is not None and value % of[0] == of[1],
    "$exists": lambda value, wanted: (value is not None) == wanted,
}


def matching(records: Iterable[Record], query: Mapping[str, Any]) -> list[Record]:
    """Return the records that meet all conditions of a query.  Raises ValueError for an unknown condition."""
    return [record for record in records if all(_meets(record.get(name), wanted) for name, wanted in query.items())]


def _meets(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Mapping):
        return bool(value == wanted)
    for name in wanted:
        if name not in _CONDITIONS:
            raise ValueError(f"a query has no condition {name!r}: {', '.join(_CONDITIONS)}")
    return all(_CONDITIONS[name](value, argument) for name, argument in wanted.items())
