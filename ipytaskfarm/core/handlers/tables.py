"""Questions that change nothing: counts, tables of tasks, engines and nodes, the state of the farm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import msgspec

from ..messages import FarmStatus, ListEngines, ListTasks, QueueStatus, Refusal
from ..messages.pages import LOOKED_AT_MAX, ROWS_MAX
from ..messages.tables import EngineRow, EngineTable, FarmState, FrozenRow, QueueStatusReply, TaskRow, TaskRows
from ..scheduler.admission import Closed, gate_for, overload
from ..scheduler.agent_entry import AgentEntry
from ..scheduler.decision import Decision, LoadTable, Now
from ..scheduler.entries import EngineEntry, EngineState, TaskClass, TaskEntry
from ..scheduler.id_pages import states_after
from ..scheduler.kept_engines import KEPT
from ..scheduler.state import SchedulerState
from ..scheduler.task import Assigned, Queued
from ..states import ABORTS, FINAL, RUNNING, State, Waiting
from .held_commands import taking_commands
from .nodes import DRAINED
from .submit import refusing

CLASSES_LOOKED_AT = 4096
"""The number of classes that are examined, since there may be as many classes as tasks."""
SHOWN_STATES = (State.SCHEDULED, State.PENDING, State.SUCCEEDED, State.FAILED)


def on_queue_status(farm: SchedulerState, session: str, n: int, question: QueueStatus, now: Now, out: Decision) -> None:
    """Answer how many tasks are in each state.  Every uncleared id is in exactly one of the four states."""
    counts = {state.value: farm.tasks.counts[state] for state in SHOWN_STATES}
    ids: dict[str, list[int]] | None = None
    end: int | None = None
    if question.verbose:
        ids = {state.value: [] for state in SHOWN_STATES}
        found, end = states_after(farm, question.after)
        for task_id, state in found:
            ids[state].append(task_id)
    out.answer(session, n, QueueStatusReply(counts, ids, end))


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
    tasks = farm.tasks
    ids = list(dict.fromkeys(question.ids)) if question.ids is not None else None
    unknown = [i for i in ids or () if tasks.state_of(i) is None]
    chosen, order, omitted, end = _chosen(farm, question, ids, states)
    rows: list[TaskRow] = []
    items: dict[int, tuple[int, list[int]]] = {}
    wanted: dict[int, None] = {}
    for task_id in chosen:
        holder = tasks.holder(task_id)
        if holder in tasks.unfinished:
            row = task_row(farm, tasks.unfinished[holder])
            rows.append(row if holder == task_id else _item_row(row, task_id, tasks.state_of(task_id)))
        elif holder in tasks.finals:
            wanted[holder] = None
            if holder != task_id:
                items.setdefault(holder, (max(1, tasks.chunks.size(holder)), []))[1].append(task_id)
    for task_id in [i for i in ids or () if i in tasks.refusals]:
        rows.append(TaskRow(task_id, State.FAILED, "refused", None, None, 0, 0.0))
    if wanted:
        out.loads.append(
            LoadTable(
                session, n, [*wanted], rows, unknown, question.name, question.last, omitted, order, items, end,
                question.unretried,
            )
        )  # fmt: skip
    else:
        out.answer(session, n, last_rows(rows, unknown, question.last, omitted, order, end))


def _chosen(
    farm: SchedulerState, question: ListTasks, ids: list[int] | None, states: frozenset[State]
) -> tuple[Iterable[int], list[int], int, int | None]:
    """Choose the rows of a page.

    Returns (their ids, the same ids by acceptance where only the last ones are wanted, the number of rows that are left
    out, where the next page begins).

    The names of ended tasks are only in the store: rows of other names are dropped there."""
    tasks, last, name = farm.tasks, question.last, question.name

    def is_wanted(task_id: int) -> bool:
        if tasks.state_of(task_id) not in states or task_id in tasks.refusals:
            return False
        if question.state == "aborted" and tasks.finals.get(tasks.holder(task_id)) not in ABORTS:
            return False
        task = tasks.unfinished.get(tasks.holder(task_id)) if name is not None else None
        return task is None or name_of(task) == name

    if ids is None and last > 0:
        # The caller may want fifty of a million rows: the others are not examined.
        most = ROWS_MAX if name is not None else min(last, ROWS_MAX)
        order, end = tasks.order.latest(most, tasks.is_known, is_wanted, question.after, LOOKED_AT_MAX)
        if name is None and question.state != "aborted":
            return reversed(order), order, max(0, sum(tasks.counts[state] for state in states) - len(order)), end
        return reversed(order), order, 0 if end is None else -1, end
    if ids is None:
        looked_at, end = states_after(farm, question.after)
        found = [i for i, _ in looked_at if is_wanted(i)]
        if len(found) > ROWS_MAX:
            found, end = found[:ROWS_MAX], found[ROWS_MAX - 1]
        return found, [], 0, end
    found = [i for i in ids if is_wanted(i)]
    if not 0 < last < len(found):
        return found, [], 0, None
    order = tasks.order.latest_first(found)[: last if name is None else len(found)]
    return reversed(order), order, len(found) - len(order), None


def _item_row(chunk: TaskRow, item: int, state: State | None) -> TaskRow:
    """Return the row of a silent item of an unfinished chunk."""
    reason = chunk.reason if state is State.PENDING or chunk.state != State.PENDING else Waiting.SENT_AHEAD
    return msgspec.structs.replace(chunk, id=item, state=str(state), reason=str(reason))


def item_rows(chunk: TaskRow, items: tuple[int, list[int]] | None) -> list[TaskRow]:
    """Return rows for silent items of an ended chunk, each with an equal share of its duration.

    items: (how many silent ones there are, the ids that are wanted).  None: the row is of no chunk, and stays as it is.
    """
    if items is None:
        return [chunk]
    run_s = (chunk.run_s or 0.0) / items[0]
    return [msgspec.structs.replace(chunk, id=item, run_s=run_s) for item in items[1]]


def last_rows(
    rows: list[TaskRow], unknown: list[int], last: int, omitted: int, order: Sequence[int], end: int | None = None
) -> TaskRows:
    """Return a table of the latest of these rows, in order of their ids.

    Args:
        last: the largest number of rows; 0 for all.
        omitted: see `TaskRows`.
        order: the ids by acceptance, the latest first; needed if there are more rows than `last`.
        end: where the next page begins.
    """
    kept = rows
    if 0 < last < len(rows):
        place = {task_id: number for number, task_id in enumerate(order)}
        kept = sorted(rows, key=lambda row: place.get(row.id, len(place)))[:last]
    more = omitted if omitted < 0 else omitted + len(rows) - len(kept)
    return TaskRows(sorted(kept, key=lambda row: row.id), unknown, more, end)


def name_of(task: TaskEntry) -> str | None:
    """Return the name that the user gave the task."""
    return task.rules.name if task.rules else None


def task_row(farm: SchedulerState, task: TaskEntry) -> TaskRow:
    """Return the row of one unfinished task."""
    place = task.place
    engine = farm.engines.by_name.get(place.engine) if type(place) is Assigned else None
    began = place.wall_s if type(place) is Assigned else None
    is_ahead = type(place) is Assigned and place.since_s is None  # its run has a number, and has not begun
    return TaskRow(
        task.id,
        task.state,
        reason_of(farm, task),
        name_of(task),
        engine.id if engine else None,
        task.attempt - is_ahead,
        task.submitted_s,
        began,
        priority=task.rules.priority if task.rules is not None else 0,
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
            "running, longer than warn_after"
            if task.past.trial_state is not None and task.past.trial_state.late
            else "running"
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


def engine_state(engine: EngineEntry) -> str:
    """Return the word for what an engine does, see `EngineRow.state`."""
    if engine.state != EngineState.UP:
        return engine.state
    return "stopping" if engine.retiring else "busy" if engine.oldest() else "idle"


def _note_on(engine: EngineEntry) -> str:
    if engine.saving:
        return "its names are saved: it is recycled"
    return KEPT if engine.kept else engine.note


def engine_row(farm: SchedulerState, engine: EngineEntry) -> EngineRow:
    oldest = engine.oldest()
    state = engine_state(engine)
    return EngineRow(
        engine.id,
        engine.name,
        engine.node,
        engine.pid,
        state,
        oldest[0] if oldest else None,
        len(engine.runs_ahead()),
        engine.started_s,
        engine.facts,
        engine.connection_file,
        engine.preparation(farm.mono_s) or _note_on(engine),
        engine.environment.name if engine.environment is not None else "",
        engine.concurrent,
    )


def _engine_rows(farm: SchedulerState) -> list[EngineRow]:
    return [engine_row(farm, engine) for engine in farm.engines.in_order()]


def frozen_rows(farm: SchedulerState, now: Now) -> list[FrozenRow]:
    """Return the rows of the frozen engines, in order of their tasks."""
    return [
        FrozenRow(
            each.name,
            each.id,
            each.node,
            each.pid,
            each.run.task,
            each.run.run[1],
            each.run.error,
            each.run.place,
            now.wall_s + each.ends_s - now.mono_s,
            each.connection_file,
            "ending" if each.ending else "frozen" if _is_heard(farm.agents.by_session[each.agent]) else "unreachable",
        )
        for each in sorted(farm.frozen.by_name.values(), key=lambda each: each.run.task)
    ]


def _is_heard(agent: AgentEntry) -> bool:
    return agent.present and agent.reachable


def on_engines(farm: SchedulerState, session: str, n: int, question: ListEngines, now: Now, out: Decision) -> None:
    """Answer with all engines, by id."""
    notes = {**farm.frozen.missed, **farm.frozen.thawed}
    out.answer(session, n, EngineTable(_engine_rows(farm), frozen_rows(farm, now), notes, taking_commands(farm)))


def agent_row(farm: SchedulerState, agent: AgentEntry) -> dict[str, Any]:
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
        "frozen": sum(1 for _ in farm.frozen.of_agent(agent.session)),
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
    return "up" if _is_heard(agent) else "unreachable"


def wanted_engines(farm: SchedulerState) -> int:
    """Return how many engines are wanted, those that agents bring included."""
    brought = sum(agent.brings or 0 for agent in farm.agents.by_session.values() if not agent.leaving)
    return farm.lifecycle.wanted + brought


def on_farm_status(farm: SchedulerState, session: str, n: int, question: FarmStatus, now: Now, out: Decision) -> None:
    """Answer with the state of the whole farm.

    The controller's loop adds its own values: pid, size of the store, time of its start.
    """
    agents = [agent_row(farm, agent) for agent in farm.agents.by_session.values()] if question.engines else []
    state = FarmState(
        farm.name,
        farm.incarnation,
        farm.epoch,
        0,
        0.0,
        wanted_engines(farm),
        farm.lifecycle.held,
        farm.lifecycle.stopping,
        {state.value: farm.tasks.counts[state] for state in SHOWN_STATES},
        _engine_rows(farm) if question.engines else [],
        agents,
        sum(1 for c in farm.clients.by_session.values() if c.connected),
        0,
        list(farm.diagnostics.losses),
        waiting=farm.queues.size,
        waiting_s=waiting_work_s(farm),
        frozen=frozen_rows(farm, now),
        refusing=refusing(farm),
    )
    out.answer(session, n, state)
