"""Questions that only look: counts, tables, and why a task is not running."""

from __future__ import annotations

import heapq

from ..durations import SLOW_S
from ..eligibility import may_serve
from ..farm import Decision, Engine, EngineState, Farm, LoadExplanation, LoadTable, Now
from ..messages import (
    Answer,
    EngineRow,
    Engines,
    EngineTable,
    Explain,
    FarmState,
    FarmStatus,
    QueueStatus,
    QueueStatusReply,
    Refusal,
    Stuck,
    TaskRow,
    Tasks,
    TaskTable,
    Text,
)
from ..queue import ClassKey
from ..states import FINAL, State, Waiting
from ..task import DEFAULT_RULES, Handed, Queued, Task

_SHOWN = (State.SCHEDULED, State.PENDING, State.SUCCEEDED, State.FAILED)


def on_queue_status(farm: Farm, session: str, n: int, question: QueueStatus, now: Now, out: Decision) -> None:
    """Every uncleared id is in exactly one of the four states."""
    counts = {state.value: farm.counts[state] for state in _SHOWN}
    ids: dict[str, list[int]] | None = None
    if question.verbose:
        ids = {state.value: [] for state in _SHOWN}
        for task_id, task in farm.tasks.items():
            ids[task.state].append(task_id)
        for task_id, reason in farm.finals.items():
            ids[State.FAILED if reason else State.SUCCEEDED].append(task_id)
        for found in ids.values():
            found.sort()
    out.sends.append((session, Answer(n, QueueStatusReply(counts, ids))))


_GROUPS: dict[str | None, frozenset[State]] = {
    None: frozenset(State),
    "unfinished": frozenset({State.SCHEDULED, State.PENDING}),
    "finished": FINAL,
    **{state.value: frozenset({state}) for state in State},
}


def on_tasks(farm: Farm, session: str, n: int, question: Tasks, now: Now, out: Decision) -> None:
    """A table of tasks: the unfinished from memory, the final ones from the store."""
    states = _GROUPS.get(question.state)
    if states is None:
        names = sorted(name for name in _GROUPS if name)
        text = f"there is no task state {question.state!r}: expected one of {names}"
        out.sends.append((session, Answer(n, Refusal("ValueError", text))))
        return
    ids = list(dict.fromkeys(question.ids)) if question.ids is not None else None
    alive = farm.tasks.values() if ids is None else [farm.tasks[i] for i in ids if i in farm.tasks]
    found = [t for t in alive if t.state in states and (question.name is None or _name(t) == question.name)]
    final_ids = farm.finals if ids is None else [i for i in ids if i in farm.finals]
    wanted = [i for i in final_ids if (State.FAILED if farm.finals[i] else State.SUCCEEDED) in states]
    omitted = 0
    if question.last and question.name is None and len(found) + len(wanted) > question.last:
        # Of a million rows fifty are wanted: the others are not even made. Names of final tasks only the store knows.
        omitted = len(found) + len(wanted) - question.last
        first = heapq.nlargest(question.last, [*(t.id for t in found), *wanted])[-1]
        found = [t for t in found if t.id >= first]
        wanted = [i for i in wanted if i >= first]
    rows = [task_row(farm, task) for task in found]
    unknown = [i for i in ids or () if i not in farm.tasks and i not in farm.finals and i not in farm.refusals]
    for task_id in [i for i in ids or () if i in farm.refusals]:
        rows.append(TaskRow(task_id, State.FAILED, "refused", None, None, 0, 0.0))
    if wanted:
        out.loads.append(LoadTable(session, n, wanted, rows, unknown, question.name, question.last, omitted))
    else:
        out.sends.append((session, Answer(n, last_rows(rows, unknown, question.last, omitted))))


def last_rows(rows: list[TaskRow], unknown: list[int], last: int, omitted: int) -> TaskTable:
    """A table of the last of these, in order; last 0: all."""
    ordered = sorted(rows, key=lambda row: row.id)
    kept = ordered[-last:] if last else ordered
    return TaskTable(kept, unknown, omitted + len(ordered) - len(kept))


def _name(task: Task) -> str | None:
    return task.rules.name if task.rules else None


def task_row(farm: Farm, task: Task) -> TaskRow:
    """One unfinished task for a table."""
    place = task.place
    engine = farm.engines.get(place.engine) if type(place) is Handed else None
    began = place.wall_s if type(place) is Handed else None
    return TaskRow(
        task.id,
        task.state,
        _reason(farm, task),
        _name(task),
        engine.id if engine else None,
        task.attempt,
        task.submitted_s,
        began,
    )


def _reason(farm: Farm, task: Task) -> str:
    place = task.place
    if type(place) is Handed:
        return "running" if place.since_s is not None else Waiting.SENT_AHEAD
    if farm.held:
        return Waiting.PAUSED
    if task.task_class is not None and task.task_class.restricted and not task.task_class.eligible:
        return Waiting.NO_ENGINE
    return place.why if type(place) is Queued else Waiting.QUEUED


# -- engines and the farm


def engine_row(farm: Farm, engine: Engine) -> EngineRow:
    """One engine for a table."""
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
        max(0, len(engine.handed) - 1),
        engine.started_s,
        engine.facts,
        engine.connection_file,
        engine.note,
    )


def _engine_rows(farm: Farm) -> list[EngineRow]:
    return [engine_row(farm, engine) for engine in sorted(farm.engines.values(), key=lambda e: e.id)]


def on_engines(farm: Farm, session: str, n: int, question: Engines, now: Now, out: Decision) -> None:
    """All engines, by id."""
    out.sends.append((session, Answer(n, EngineTable(_engine_rows(farm)))))


def on_farm_status(farm: Farm, session: str, n: int, question: FarmStatus, now: Now, out: Decision) -> None:
    """The whole farm at a glance; the shell fills in what only it knows (pid, store, start)."""
    agents = [
        {
            "node": a.node,
            "pid": a.pid,
            "engines": len(a.engines),
            "starting": len(a.starting),
            "slots": a.slots,
            "state": "up" if a.here and a.reachable else "unreachable",
        }
        for a in farm.agents.values()
    ]
    state = FarmState(
        farm.name,
        farm.incarnation,
        farm.epoch,
        0,
        0.0,
        farm.wanted,
        farm.held,
        farm.stopping,
        {state.value: farm.counts[state] for state in _SHOWN},
        _engine_rows(farm),
        agents,
        sum(1 for c in farm.clients.values() if c.here),
        0,
        list(farm.losses),
    )
    out.sends.append((session, Answer(n, state)))


# -- explain


def on_explain(farm: Farm, session: str, n: int, question: Explain, now: Now, out: Decision) -> None:
    """Why a task is where it is, in sentences."""
    task = farm.tasks.get(question.id)
    if task is not None:
        out.sends.append((session, Answer(n, Text("\n".join(explain(farm, task, now))))))
    elif question.id in farm.finals:
        out.loads.append(LoadExplanation(session, n, question.id))
    elif question.id in farm.refusals:
        out.sends.append((session, Answer(n, Text("refused: " + farm.refusals[question.id][1]))))
    else:
        text = f"there is no task {question.id}: it was never handed in, or has been cleared"
        out.sends.append((session, Answer(n, Refusal("IndexError", text))))


def on_stuck(farm: Farm, session: str, n: int, question: Stuck, now: Now, out: Decision) -> None:
    """For those who wait: nothing to say as long as anything moves."""
    text = ""
    tasks = [farm.tasks.get(i) for i in question.ids]
    if tasks and not any(task is None or _may_move(farm, task) for task in tasks):
        first = tasks[0]
        assert first is not None
        text = "\n".join(explain(farm, first, now))
        if len(tasks) > 1:
            text += f"\n… and {len(tasks) - 1} more like it"
    out.sends.append((session, Answer(n, Text(text))))


def _may_move(farm: Farm, task: Task) -> bool:
    """Whether it runs, or is to run as soon as an engine is free."""
    place = task.place
    if type(place) is Handed:
        engine = farm.engines.get(place.engine)
        return engine is not None and engine.state != EngineState.AWAY
    if farm.held or farm.stopping:
        return False
    if type(place) is Queued and task.task_class is None:
        return True  # it comes back by itself, at its time
    if task.task_class is not None and task.task_class.restricted:
        return bool(task.task_class.eligible)
    return any(engine.state == EngineState.UP and not engine.retiring for engine in farm.engines.values())


def explain(farm: Farm, task: Task, now: Now) -> list[str]:
    """Lines for people about an unfinished task."""
    name = f" ({_name(task)})" if _name(task) else ""
    shown = "running" if task.state is State.PENDING else task.state.value
    lines = [f"task {task.id}{name} is {shown}: {_reason(farm, task)}"]
    for row in task.history or ():
        what = row.failure.value.splitlines()[0] if row.failure and row.failure.value else row.outcome
        lines.append(f"attempt {row.number} on engine {row.engine_id}: {row.outcome}: {what}")
    place = task.place
    if type(place) is Handed:
        lines.append(_explain_handed(farm, task, place, now))
        return lines
    if farm.held:
        lines.append("the farm is held: `ipytaskfarm` start without --hold, or resume, lets tasks run")
    if farm.stopping:
        lines.append("the farm is stopping")
    if not farm.engines:
        starting = sum(len(a.starting) for a in farm.agents.values())
        lines.append(f"the farm has no engines now ({starting} starting, {farm.wanted} wanted)")
    for engine in sorted(farm.engines.values(), key=lambda e: e.id):
        lines.append(f"engine {engine.id}: {_why_not(farm, task, engine, now)}")
    return lines


def _explain_handed(farm: Farm, task: Task, place: Handed, now: Now) -> str:
    engine = farm.engines.get(place.engine)
    where = f"engine {engine.id} on {engine.node}" if engine else "an engine that is away"
    if place.since_s is not None:
        return f"on {where} for {now.mono_s - place.since_s:.1f} s"
    oldest = engine.oldest() if engine else None
    behind = f" behind task {oldest[0]}, which holds the interpreter" if oldest else ""
    return f"sent ahead to {where},{behind} not begun" if behind else f"sent ahead to {where}, not begun"


def _why_not(farm: Farm, task: Task, engine: Engine, now: Now) -> str:
    rules = task.rules or DEFAULT_RULES
    if engine.state != EngineState.UP:
        return f"it is {engine.state}"
    if engine.retiring:
        return "it is about to end"
    agent = farm.agents.get(engine.agent)
    if agent is not None and agent.aside:
        return f"its node is set aside: {agent.aside}"
    if rules.targets is not None and engine.id not in rules.targets:
        return f"it is not among the task's targets {list(rules.targets)}"
    if rules.depend is not None:
        depend = farm.depends.get(rules.depend)
        verdict = depend.verdicts.get(engine.name) if depend else None
        if verdict is None or verdict[0] != engine.version:
            return "its depend function has not answered yet"
        if not verdict[1]:
            return f"its depend function failed: {verdict[2]}" if verdict[2] else "its depend function said no"
    key: ClassKey | None = task.task_class.key if task.task_class else None
    rejection = task.rejections.get(engine.name) if task.rejections else None
    if key is not None and not may_serve(farm, engine, key):
        if rejection is not None:
            return f"the task rejected it {rejection.count} times"
        return "the task failed there: another engine is preferred"
    if engine.withheld_until_s > now.mono_s:
        return f"withheld for {engine.withheld_until_s - now.mono_s:.1f} s after a failure (failure_penalty)"
    oldest = engine.oldest()
    if oldest is not None:
        slow = "" if engine.ahead_s < SLOW_S else f" and holds {engine.ahead_s * 1e3:.0f} ms of work"
        return f"it runs task {oldest[0]}{slow}"
    return "it is free: the task is next, or others stand before it"
