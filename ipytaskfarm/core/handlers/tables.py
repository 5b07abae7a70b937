"""Questions that change nothing: counts, tables of tasks, engines and nodes, the state of the farm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from ..messages import FarmStatus, ListEngines, ListTasks, QueueStatus, Refusal
from ..messages.tables import EngineRow, EngineTable, FarmState, QueueStatusReply, TaskRow, TaskRows
from ..scheduler.admission import Closed, gate_for, overload
from ..scheduler.agent_entry import AgentEntry
from ..scheduler.clock import Now
from ..scheduler.decision import Decision, LoadTable
from ..scheduler.entries import EngineEntry, EngineState, TaskClass, TaskEntry
from ..scheduler.state import SchedulerState
from ..scheduler.task import Assigned, Queued
from ..states import ABORTS, FINAL, RUNNING, State, Waiting
from .nodes import DRAINED

CLASSES_LOOKED_AT = 4096
"""The number of classes that are examined, since there may be as many classes as tasks."""
_SHOWN = (State.SCHEDULED, State.PENDING, State.SUCCEEDED, State.FAILED)


def on_queue_status(farm: SchedulerState, session: str, n: int, question: QueueStatus, now: Now, out: Decision) -> None:
    """Answer how many tasks are in each state.  Every uncleared id is in exactly one of the four states."""
    counts = {state.value: farm.tasks.counts[state] for state in _SHOWN}
    ids: dict[str, list[int]] | None = None
    if question.verbose:
        ids = {state.value: [] for state in _SHOWN}
        for task_id, task in farm.tasks.unfinished.items():
            ids[task.state].append(task_id)
        for task_id, reason in farm.tasks.finals.items():
            ids[State.FAILED if reason else State.SUCCEEDED].append(task_id)
        for found in ids.values():
            found.sort()
    out.answer(session, n, QueueStatusReply(counts, ids))


_GROUPS: dict[str | None, frozenset[State]] = {
    None: frozenset(State),
    "unfinished": frozenset({State.SCHEDULED, State.PENDING}),
    "finished": FINAL,
    **{state.value: frozenset({state}) for state in State},
    RUNNING: frozenset({State.PENDING}),
    "aborted": frozenset({State.FAILED}),
}


def on_tasks(farm: SchedulerState, session: str, n: int, question: ListTasks, now: Now, out: Decision) -> None:
    """Answer with a table of tasks: the unfinished ones from memory, the ended ones from the store."""
    states = _GROUPS.get(question.state)
    if states is None:
        names = sorted(name for name in _GROUPS if name)
        text = f"there is no task state {question.state!r}: expected one of {names}"
        out.answer(session, n, Refusal("ValueError", text))
        return
    ids = list(dict.fromkeys(question.ids)) if question.ids is not None else None
    alive = (
        farm.tasks.unfinished.values()
        if ids is None
        else [farm.tasks.unfinished[i] for i in ids if i in farm.tasks.unfinished]
    )
    found = [t for t in alive if t.state in states and (question.name is None or name_of(t) == question.name)]
    final_ids = farm.tasks.finals if ids is None else [i for i in ids if i in farm.tasks.finals]
    finals = farm.tasks.finals
    wanted = [i for i in final_ids if (State.FAILED if finals[i] else State.SUCCEEDED) in states]
    if question.state == "aborted":
        wanted = [i for i in wanted if finals[i] in ABORTS]
    omitted = 0
    order: list[int] = []
    if question.last > 0 and len(found) + len(wanted) > question.last:
        matching = {*(t.id for t in found), *wanted}
        # If fifty of a million rows are wanted, the others are not made. Names of ended tasks are only in the store.
        count = question.last if question.name is None else len(matching)
        order = farm.tasks.order.latest(count, farm.tasks.is_known, matching.__contains__)
        latest = set(order)
        omitted = len(matching) - len(latest)
        found = [t for t in found if t.id in latest]
        wanted = [i for i in wanted if i in latest]
    rows = [task_row(farm, task) for task in found]
    unknown = [i for i in ids or () if not farm.tasks.is_known(i)]
    for task_id in [i for i in ids or () if i in farm.tasks.refusals]:
        rows.append(TaskRow(task_id, State.FAILED, "refused", None, None, 0, 0.0))
    if wanted:
        out.loads.append(LoadTable(session, n, wanted, rows, unknown, question.name, question.last, omitted, order))
    else:
        out.answer(session, n, last_rows(rows, unknown, question.last, omitted, order))


def last_rows(rows: list[TaskRow], unknown: list[int], last: int, omitted: int, order: Sequence[int]) -> TaskRows:
    """Return a table of the latest of these rows, in order of their ids.

    Args:
        last: the largest number of rows; 0 for all.
        order: the ids by acceptance, the latest first; needed if there are more rows than `last`.
    """
    kept = rows
    if 0 < last < len(rows):
        place = {task_id: number for number, task_id in enumerate(order)}
        kept = sorted(rows, key=lambda row: place.get(row.id, len(place)))[:last]
    return TaskRows(sorted(kept, key=lambda row: row.id), unknown, omitted + len(rows) - len(kept))


def name_of(task: TaskEntry) -> str | None:
    """Return the name that the user gave the task."""
    return task.rules.name if task.rules else None


def task_row(farm: SchedulerState, task: TaskEntry) -> TaskRow:
    """Return the row of one unfinished task."""
    place = task.place
    engine = farm.engines.by_name.get(place.engine) if type(place) is Assigned else None
    began = place.wall_s if type(place) is Assigned else None
    return TaskRow(
        task.id,
        task.state,
        reason_of(farm, task),
        name_of(task),
        engine.id if engine else None,
        task.attempt,
        task.submitted_s,
        began,
    )


def reason_of(farm: SchedulerState, task: TaskEntry) -> str:
    """Return a short reason for the place of an unfinished task."""
    place = task.place
    if type(place) is Assigned:
        if place.since_s is None:
            return Waiting.SENT_AHEAD
        engine = farm.engines.by_name.get(place.engine)
        if task.environment is not None and engine is not None and not engine.set_up:
            return "preparing its environment"
        assigned = engine.assigned.get((task.id, place.attempt)) if engine is not None else None
        if assigned is not None and assigned.nested_wait is not None:
            return "waiting for its children"
        return (
            "running, longer than warn_after" if task.trial_state is not None and task.trial_state.late else "running"
        )
    if farm.lifecycle.held:
        return Waiting.PAUSED
    if task.task_class is not None and task.task_class.restricted and not task.task_class.eligible:
        return Waiting.NO_ENGINE
    if task.task_class is not None and task.task_class.gated and (closed := _closed(farm, task.task_class)) is not None:
        return Waiting.RESOURCES if closed.for_room else Waiting.LIMIT
    return place.why if type(place) is Queued else Waiting.QUEUED


def _closed(farm: SchedulerState, task_class: TaskClass) -> Closed | None:
    """Return the reason why no node lets a class start now; None if one does."""
    closed = None
    for agent in {engine.agent: None for engine in task_class.eligible}:
        owner = farm.agents.by_session.get(agent)
        closed = gate_for(farm, owner, task_class.key) if owner is not None else None
        if closed is None:
            return None
    return closed


# -- engines and the farm


def waiting_work_s(farm: SchedulerState) -> float | None:
    """Return how long one engine would take for the waiting tasks, as far as measured; None if nothing was measured."""
    known_s, known = 0.0, 0
    for task_class in islice(farm.queues.classes.values(), CLASSES_LOOKED_AT):
        if task_class.durations.measured:
            known_s += task_class.size * task_class.durations.mean_s
            known += task_class.size
    return known_s * farm.queues.size / known if known else 0.0 if not farm.queues.size else None


def engine_row(farm: SchedulerState, engine: EngineEntry) -> EngineRow:
    """Return the row of one engine."""
    oldest = engine.oldest()
    state = engine.state
    if state == EngineState.UP:
        state = "stopping" if engine.retiring else "busy" if oldest else "idle"
    return EngineRow(
        engine.id,
        engine.name,
        engine.node,
        engine.pid,
        state,
        oldest[0] if oldest else None,
        max(0, len(engine.assigned) - 1),
        engine.started_s,
        engine.facts,
        engine.connection_file,
        engine.preparation(farm.mono_s) or ("its names are saved: it is recycled" if engine.saving else engine.note),
        engine.environment.name if engine.environment is not None else "",
    )


def _engine_rows(farm: SchedulerState) -> list[EngineRow]:
    return [engine_row(farm, engine) for engine in farm.engines.in_order()]


def on_engines(farm: SchedulerState, session: str, n: int, question: ListEngines, now: Now, out: Decision) -> None:
    """Answer with all engines, by id."""
    out.answer(session, n, EngineTable(_engine_rows(farm)))


def _agent_row(farm: SchedulerState, agent: AgentEntry) -> dict[str, Any]:
    """Return the row of one node, as `tc.snapshot` and ``ipytaskfarm status`` show it.

    Memory and disk are in bytes."""
    state = agent.state
    guard = overload(farm, agent)
    return {
        "node": agent.node,
        "name": agent.name,
        "brings": agent.brings,
        "time_left": None if agent.ends_s is None else max(0.0, agent.ends_s - farm.mono_s),
        "idle": _idle_s(farm, agent),
        "pid": agent.pid,
        "engines": len(agent.engines),
        "starting": len(agent.starting),
        "slots": agent.slots,
        "state": _state_of(agent),
        "platform": agent.platform,
        "python": agent.python,
        "cores": agent.cores,
        "load": state.load if state is not None else None,
        "memory": agent.memory_bytes,
        "free_memory": state.free_memory if state is not None else None,
        "free_disk": state.free_disk if state is not None else None,
        "fetched_blobs": state.fetched_blobs if state is not None else 0,
        "fetched_bytes": state.fetched_bytes if state is not None else 0,
        "priority": agent.priority,
        "capacity": dict(agent.capacity),
        "used": dict(agent.used),
        "environments": {str(e.id): e.environment.name for e in agent.engines.values() if e.environment is not None},
        "guard": guard,
        "clock_ahead": agent.clock_ahead_s,
    }


def _idle_s(farm: SchedulerState, agent: AgentEntry) -> float | None:
    """Return for how many seconds all engines of an agent have been idle; None if one is not, or not all are up."""
    engines = list(agent.engines.values())
    if agent.starting or not engines or not all(e.idle_s and e.state == EngineState.UP for e in engines):
        return None
    return farm.mono_s - max(engine.idle_s for engine in engines)


def _state_of(agent: AgentEntry) -> str:
    if agent.leaving:
        return "leaving"
    if agent.excluded:
        return "drained" if agent.excluded == DRAINED else "set aside"
    return "up" if agent.present and agent.reachable else "unreachable"


def on_farm_status(farm: SchedulerState, session: str, n: int, question: FarmStatus, now: Now, out: Decision) -> None:
    """Answer with the state of the whole farm.

    The controller's loop adds its own values: pid, size of the store, time of its start.
    """
    agents = [_agent_row(farm, agent) for agent in farm.agents.by_session.values()]
    state = FarmState(
        farm.name,
        farm.incarnation,
        farm.epoch,
        0,
        0.0,
        farm.lifecycle.wanted
        + sum(agent.brings or 0 for agent in farm.agents.by_session.values() if not agent.leaving),
        farm.lifecycle.held,
        farm.lifecycle.stopping,
        {state.value: farm.tasks.counts[state] for state in _SHOWN},
        _engine_rows(farm),
        agents,
        sum(1 for c in farm.clients.by_session.values() if c.connected),
        0,
        list(farm.diagnostics.losses),
        waiting=farm.queues.size,
        waiting_s=waiting_work_s(farm),
    )
    out.answer(session, n, state)
