"""The tables of a farm: tasks, engines, nodes, jobs and events, with the same columns in all interfaces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.messages.tables import EngineRow, EventRow, FarmState, FrozenRow, JobRow, TaskRow
from ..core.messages.task_types import FailureSummary
from ..core.requirements import amount
from ..core.states import STATE_WORDS, State, state_word
from ..core.text import error_line
from .tables import Column, Table
from .text import ago, counts_text, ending, number, size, span, summary, when

PAGE = 100
"""Number of rows that are shown of a longer table."""

MOMENT = len("2026-11-28 10:00:00")
"""Characters of a date and time, which must not be cut."""

_TASKS = (
    Column("id"),
    Column("state"),
    Column("reason", 3),
    Column("name", 2),
    Column("engine", 4),
    Column("attempts", 6),
    Column("priority", 2),
    Column("submitted", 7, least=MOMENT),
    Column("duration", 5, right=True),
    Column("error", 1, least=28, cut=summary),
)
_ENGINES = (
    Column("engine"),
    Column("state"),
    Column("task", 1),
    Column("sent ahead", 5),
    Column("node", 3),
    Column("pid", 4),
    Column("up", 6, right=True),
    Column("environment", 2),
    Column("note", 1),
)
_FROZEN = (
    Column("task"),
    Column("attempt", 4),
    Column("error", least=28, cut=summary),
    Column("place", 3, cut=ending),
    Column("state", 2),
    Column("until"),
    Column("node", 1),
    Column("pid", 5),
)
_NODES = (
    Column("node"),
    Column("state"),
    Column("engines"),
    Column("slots", 5),
    Column("cores", 1),
    Column("load", 2, right=True),
    Column("memory", 4, right=True),
    Column("free", 1, right=True),
    Column("disk free", 3, right=True),
    Column("reserved", 1),
    Column("environments", 6),
)
_JOBS = (
    Column("job"),
    Column("id", 3),
    Column("tasks"),
    Column("unfinished"),
    Column("failed", 1),
    Column("state"),
    Column("priority", 4),
    Column("opened", 2, least=MOMENT),
)
_EVENTS = (
    Column("when", least=MOMENT),
    Column("task"),
    Column("name", 3),
    Column("what", least=16),
    Column("engine", 1),
    Column("details", 1, least=24, cut=summary),
)
_GOOD_EVENTS = frozenset({"accepted", "started", "succeeded", "deferred"})
"""Every other event is a failure of a task or of an attempt."""


def task_table(
    rows: Sequence[TaskRow],
    *,
    omitted: int = 0,
    page: int | None = None,
    more: str = "",
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of tasks, in the order given.

    Args:
        rows: the tasks, the newest last.
        omitted: the number of older tasks that match too; -1: not known.
        page: show at most this number of rows, the last ones; None: all.
        more: tells users how to list the others.
        notes: further lines above the table.
    """
    shown = rows if page is None else rows[-page:]
    return Table(
        _TASKS,
        [_task_cells(row) for row in shown],
        failed=[position for position, row in enumerate(shown) if row.state == State.FAILED],
        above=[*_heading("task", rows, len(shown), omitted, more), *notes],
        nothing="no tasks",
    )


def _heading(thing: str, rows: Sequence[TaskRow], shown: int, omitted: int, more: str) -> list[str]:
    if len(rows) < 2 and not omitted:
        return []
    counts = Counter(state_word(row.state) for row in rows)
    states = counts_text({word: counts[word] for word in STATE_WORDS})
    of = f" of {len(rows) + omitted:,}" if omitted > 0 else " of more" if omitted else ""
    lines = [f"{len(rows):,}{of} {thing}s, the newest last: {states}"]
    left_out = len(rows) - shown + max(0, omitted)
    if omitted < 0:
        lines.append(f"older {thing}s were not counted{f': {more}' if more else ''}")
    elif left_out:
        lines.append(f"{number(left_out, f'older {thing}')} not shown{f': {more}' if more else ''}")
    return lines


def _task_cells(row: TaskRow) -> tuple[object, ...]:
    state = state_word(row.state)
    reason = "" if row.reason == state else row.reason
    engine = None if row.engine_id is None or row.engine_id < 0 else row.engine_id  # it has ended without a run
    return (
        row.id, state, reason, row.name, engine, row.attempts, row.priority or "", when(row.submitted_s),
        span(row.run_s or None), error_text(row.failure),
    )  # fmt: skip


def error_text(failure: FailureSummary | None) -> str:
    """Return the type and the text of a task's error."""
    return "" if failure is None else error_line(failure.etype, failure.value)


def engine_table(rows: Sequence[EngineRow], at_s: float | None = None) -> Table:
    """Return a table of engines, by id.  at_s: when (wall clock) they were as the rows say; None: now."""
    cells = [
        (e.id, e.state, _running(e), e.ahead or "", e.node, e.pid, ago(e.started_s, at_s), e.environment, e.note)
        for e in rows
    ]
    return Table(_ENGINES, cells, nothing="no engines")


def frozen_table(rows: Sequence[FrozenRow]) -> Table:
    """Return a table of frozen engines, by the tasks that failed on them."""
    cells = [
        (
            row.task,
            row.attempt,
            row.error,
            row.place,
            row.state,
            when(row.ends_s)[-len("10:00:00") :],
            row.node,
            row.pid,
        )
        for row in rows
    ]
    return Table(_FROZEN, cells, nothing="no frozen engines")


def _running(row: EngineRow) -> object:
    return f"{row.coroutines:,} coroutines" if row.coroutines > 1 else row.task


def node_table(agents: Sequence[dict[str, Any]]) -> Table:
    """Return a table of nodes: their resources, their state, and what is reserved on them.  agents: see `FarmState`."""
    cells = [
        (
            a["node"],
            a["guard"] or a["state"],
            a["engines"],
            a["slots"],
            a["cores"],
            "" if a["load"] is None else f"{a['load']:.0%}",
            size(a["memory"]),
            size(a["free_memory"]),
            size(a["free_disk"]),
            ", ".join(amount(name, value) for name, value in a["used"].items()),
            ", ".join(f"{i}: {name}" for i, name in sorted((int(i), name) for i, name in a["environments"].items())),
        )
        for a in agents
    ]
    return Table(_NODES, cells, nothing="no nodes")


def job_table(rows: Sequence[JobRow], failed: Mapping[str, int]) -> Table:
    """Return a table of jobs, the newest last.  failed: job -> failed tasks, of the jobs of which they are known."""
    cells = [
        (
            row.name,
            row.id,
            row.total,
            row.unfinished,
            failed.get(row.id) or "",
            job_state(row),
            (row.unfinished and row.priority) or "",
            when(row.opened_s or None),
        )
        for row in rows
    ]
    above = [f"{number(len(rows), 'job')}, the newest last"] if len(rows) > 1 else []
    marked = [place for place, row in enumerate(rows) if failed.get(row.id)]
    return Table(_JOBS, cells, failed=marked, above=above, nothing="no jobs")


def _is_good(event: str) -> bool:
    return event in _GOOD_EVENTS or event.startswith("priority ")


def event_table(rows: Sequence[EventRow], *, page: int | None = None, above: Sequence[str] = ()) -> Table:
    """Return a table of events in the order of time.  page: at most this number of rows, the last ones; None: all."""
    shown = rows if page is None else rows[-page:]
    cells = [
        (when(at_s), task, name, what, engine if engine >= 0 else "", more)
        for at_s, task, name, what, engine, more in shown
    ]
    failed = [place for place, (*_, what, _, _) in enumerate(shown) if not _is_good(what)]
    return Table(_EVENTS, cells, failed=failed, above=above, nothing="nothing happened")


UP = ("idle", "busy")
"""The states of an engine that can be given work."""


def job_state(row: JobRow) -> str:
    """Return running, paused or ended, and after a colon why the job is aborted, if it is."""
    over = row.unfinished == 0 and row.arrived >= row.total
    state = "ended" if over else "paused" if row.paused else "running"
    return f"{state}: {row.failed}" if row.failed else state


def ready_engines(state: FarmState) -> int:
    """Return how many engines can be given work."""
    return sum(row.state in UP for row in state.engines)


def changes(before: FarmState | None, after: FarmState) -> list[str]:
    """Return one line for each engine that came, ended or was lost between two states of the farm."""
    old = {row.engine: row for row in before.engines} if before is not None else {}
    new = {row.engine: row for row in after.engines}
    lines = _appended(before.losses if before is not None else [], after.losses)
    lost = " ".join(lines)
    for engine, row in old.items():
        if engine not in new and f"engine {row.id} " not in lost:
            lines.append(f"engine {row.id} ended (pid {row.pid})")
    for engine, row in new.items():
        was = old.get(engine)
        if row.state in UP and (was is None or was.state not in UP):
            lines.append(f"engine {row.id} is ready (pid {row.pid} on {row.node})")
        if row.note and (was is None or was.note != row.note):
            lines.append(f"engine {row.id}: {row.note}")
    return lines


def _appended(before: list[str], after: list[str]) -> list[str]:
    """Return what is new in a list that grows at its end and loses its beginning."""
    for length in range(min(len(before), len(after)), 0, -1):
        if before[-length:] == after[:length]:
            return after[length:]
    return list(after)
