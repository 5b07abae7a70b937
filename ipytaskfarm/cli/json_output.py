"""The output of ``--json``: plain values under stable names.

The names are those of Python's objects (`TaskStatus`, `tc.jobs`, `tc.history`). Moments are ISO 8601 with the time
zone, durations are seconds, sizes are bytes, and unknown values are null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ipytaskfarm.core.messages import CacheTable
from ipytaskfarm.core.messages.tables import EngineRow, EventRow, FarmState, JobRow, TaskRow
from ipytaskfarm.core.states import state_counts, state_word
from ipytaskfarm.core.text import error_line
from ipytaskfarm.display.farm_tables import job_state
from ipytaskfarm.display.text import local_time

if TYPE_CHECKING:  # few commands look at groups
    from ipytaskfarm.deployment.agent_groups import AgentGroup


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(msgspec.to_builtins(value), indent=2, default=repr))


def moment(at_s: float | None) -> str | None:
    """Return a moment as text like ``2026-11-21T10:00:00.000000+01:00``."""
    return None if at_s is None else local_time(at_s).isoformat(timespec="microseconds")


def group_shape(group: AgentGroup) -> dict[str, Any]:
    """Return a group of ``ipytaskfarm agents``."""
    return {
        "group": group.name,
        "launcher": group.agents.launcher,
        "agents": list(group.names),
        "engines": group.agents.engines,
        "options": dict(group.agents.options),
        "submitted_at": moment(group.submitted_s),
    }


def task_shape(row: TaskRow) -> dict[str, Any]:
    """Return a line of ``ipytaskfarm tasks``."""
    return {
        "id": row.id,
        "state": state_word(row.state),
        "reason": row.reason,
        "name": row.name,
        "engineid": row.engine_id,
        "attempts": row.attempts,
        "submitted_at": moment(row.submitted_s),
        "started_at": moment(row.started_s),
        "completed_at": moment(row.completed_s),
        "duration": row.run_s,
        "error": "" if row.failure is None else error_line(row.failure.etype, row.failure.value),
        "priority": row.priority,
    }


def engine_shape(row: EngineRow) -> dict[str, Any]:
    """Return a line of ``ipytaskfarm engines list``."""
    shape = msgspec.structs.asdict(row)
    shape["started_at"] = moment(shape.pop("started_s"))
    return shape


def farm_shape(state: FarmState) -> dict[str, Any]:
    """Return the document of ``ipytaskfarm status``."""
    shape = msgspec.structs.asdict(state)
    shape["started_at"] = moment(shape.pop("started_s"))
    shape["counts"] = state_counts(state.counts)
    shape["waiting_time"] = shape.pop("waiting_s")
    shape["engines"] = [engine_shape(row) for row in state.engines]
    return shape


def job_shape(row: JobRow, failed: Mapping[str, int]) -> dict[str, Any]:
    """Return a line of ``ipytaskfarm jobs``."""
    return {
        "name": row.name,
        "id": row.id,
        "tasks": row.total,
        "unfinished": row.unfinished,
        "state": job_state(row),
        "opened": moment(row.opened_s or None),
        "priority": row.priority,
        "failed": failed.get(row.id),
    }


def cache_shape(table: CacheTable) -> dict[str, Any]:
    """Return the document of ``ipytaskfarm cache``: the sizes of ``tc.cache.size``, and the listed entries."""
    return {
        "entries": table.count,
        "bytes": table.size_bytes,
        "limit": table.limit_bytes,
        "hits": table.hits,
        "saved": table.saved_s,
        "notes": table.notes,
        "listed": [
            {
                "key": entry.key,
                "function": entry.function,
                "arguments": [{"name": name, "value": value} for name, value in entry.arguments],
                "task": entry.task,
                "computed_at": moment(entry.made_s),
                "duration": entry.run_s,
                "used_at": moment(entry.used_s),
                "hits": entry.hits,
                "bytes": entry.size_bytes,
            }
            for entry in table.rows
        ],
    }


def event_shape(row: EventRow) -> dict[str, Any]:
    """Return a line of ``ipytaskfarm history``."""
    at_s, task, name, what, engine, more = row
    return {
        "at": moment(at_s),
        "task": task,
        "name": name,
        "what": what,
        "engine": engine if engine >= 0 else None,
        "more": more,
    }
