"""The records of ``rc.db_query``: of the farm's tasks, and of the last commands of this process."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ipytaskfarm.adapters.ipyparallel.messages import Messages
from ipytaskfarm.client.tables import TaskStatus

Record = dict[str, Any]


_OF_CALLS: Record = {
    "received": None, "execute_input": None, "execute_result": None, "error": None, "stdout": "", "stderr": "",
}  # fmt: skip
"""Entries that only the process has which made the call, and their values for the calls of others."""


def records_of(
    rows: Iterable[TaskStatus],
    calls: Messages,
    uuid_of: Callable[[int], str],
) -> list[Record]:
    """Return the records in order of submission.

    Args:
        rows: the farm's tasks.
        calls: the calls of this process.
        uuid_of: names the incarnation of an engine.
    """
    found = [_of_task(row, uuid_of) for row in rows]
    found += [_of_command(metadata) for metadata in calls.records.values()]
    for record in found:
        _complete(record, calls.known_of(record["msg_id"]))
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
        "label": row.name or None,
    }


def _of_command(metadata: Mapping[str, Any]) -> Record:
    names = ("msg_id", "submitted", "started", "completed", "engine_id", "engine_uuid", "status")
    return {name: metadata[name] for name in names} | {"queue": "mux", "label": metadata["label"]}


def _complete(record: Record, own: Mapping[str, Any]) -> None:
    """Add the other entries that ipyparallel's records have."""
    record |= {name: own.get(name, value) for name, value in _OF_CALLS.items()}
    msg_id, ended = record["msg_id"], record["completed"]
    kind = "apply" if record["queue"] == "task" else "execute"
    header = {"msg_id": msg_id, "msg_type": f"{kind}_request", "date": record["submitted"]}
    record |= {"header": header, "metadata": {"label": record["label"]}, "content": {}, "resubmitted": None}
    status = None if ended is None else "error" if record["status"] in ("failed", "error", "aborted") else "ok"
    result = {"engine": record["engine_uuid"], "started": record["started"], "status": status}
    record["result_metadata"] = result if status else None
    record["result_header"] = {"msg_type": f"{kind}_reply", "date": ended} if status else None
    record["result_content"] = {"status": status} if status else None
    record["received"] = record["received"] or ended


def status_of_engines(
    queues: Iterable[tuple[int, Mapping[str, Any]]], records: Iterable[Record], verbose: bool
) -> dict[Any, Any]:
    """Return for each engine its commands in ``queue``, what it has ``completed``, and its ``tasks``.

    Args:
        queues: (engine id, what it runs and what waits there, as texts).
        records: as of `records_of`.
        verbose: lists in place of their lengths.
    """
    completed: dict[int | None, list[str]] = {}
    for record in records:
        if record["completed"] is not None:
            completed.setdefault(record["engine_id"], []).append(record["msg_id"])
    found: dict[Any, Any] = {}
    for engine, status in queues:
        running = [status["pending"]] if status["pending"] else []
        tasks = [text.removeprefix("task ") for text in running if text.startswith("task ")]
        queue = [*(text for text in running if not text.startswith("task ")), *status["queue"]]
        lists = {"queue": queue, "completed": completed.get(engine, []), "tasks": tasks}
        found[engine] = lists if verbose else {name: len(entries) for name, entries in lists.items()}
    return found


_CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$lt": lambda value, limit: value is not None and value < limit,
    "$lte": lambda value, limit: value is not None and value <= limit,
    "$gt": lambda value, limit: value is not None and value > limit,
    "$gte": lambda value, limit: value is not None and value >= limit,
    "$in": lambda value, values: value in values,
    "$nin": lambda value, values: value not in values,
    "$all": lambda value, values: all(value in each for each in values),
    "$mod": lambda value, of: value is not None and value % of[0] == of[1],
    "$exists": lambda value, wanted: (value is not None) == wanted,
    "$glob": lambda value, pattern: value is not None and fnmatch.fnmatch(value, pattern),
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
