"""Explanations for people: why a task is where it is."""

from __future__ import annotations

from ..messages import ExplainTasks, Refusal, Stuck, TextReply
from ..messages.pages import LOOKED_AT_MAX
from ..messages.task_types import RunKey
from ..scheduler.admission import gate
from ..scheduler.decision import Decision, LoadExplanation, Now
from ..scheduler.eligibility import may_serve
from ..scheduler.entries import EngineEntry, EngineState, TaskEntry, serves_environment
from ..scheduler.kept_engines import KEPT
from ..scheduler.nested_waits import MAX_EXTRA_ENGINES
from ..scheduler.state import SchedulerState
from ..scheduler.task import DEFAULT_RULES, Assigned, ClassKey, Queued
from ..states import ABORTS, Waiting, state_word
from .requirements import lines_by_reason, why_nobody, why_not
from .tables import name_of, reason_of

SHOWN = 5
"""The number of awaited tasks that are named."""


def on_explain(farm: SchedulerState, session: str, n: int, question: ExplainTasks, now: Now, out: Decision) -> None:
    """Answer why a task is where it is, in sentences."""
    holder = farm.tasks.holder(question.id)
    task = farm.tasks.unfinished.get(holder)
    if task is not None:
        lines = explain(farm, task, now, question.id)
        if holder != question.id:
            lines.append(f"it shares a run with {farm.tasks.chunks.size(holder) - 1} other items of its map")
        if (job := farm.jobs.by_id.get(task.job or "")) is not None and job.spec.is_map:
            out.loads.append(LoadExplanation(session, n, question.id, lines=lines))
        else:
            out.answer(session, n, TextReply("\n".join(lines)))
    elif holder in farm.tasks.finals:
        item = None if holder == question.id else question.id
        more = tuple(_about_frozen(farm, question.id, now))
        unfrozen = "" if more else _about_unfrozen(farm, question.id)
        out.loads.append(LoadExplanation(session, n, holder, item, more=more, unfrozen=unfrozen))
    elif question.id in farm.tasks.refusals:
        out.answer(session, n, TextReply("refused: " + farm.tasks.refusals[question.id][1]))
    else:
        text = f"there is no task {question.id}: it was never submitted, or has been cleared"
        out.answer(session, n, Refusal("IndexError", text))


def on_stuck(farm: SchedulerState, session: str, n: int, question: Stuck, now: Now, out: Decision) -> None:
    """Answer why none of these tasks moves; the text is empty as long as one may move."""
    text = ""
    tasks = [farm.tasks.unfinished.get(farm.tasks.holder(i)) for i in question.ids]
    seen: set[int] = set()
    if tasks and not any(task is None or _may_move(farm, task, seen) for task in tasks):
        first = tasks[0]
        assert first is not None
        text = "\n".join(explain(farm, first, now))
        if len(tasks) > 1:
            text += f"\n… and {len(tasks) - 1} more like it"
    out.answer(session, n, TextReply(text))


def _may_move(farm: SchedulerState, task: TaskEntry, seen: set[int]) -> bool:
    """Return whether a task runs, or will run as soon as an engine is free.

    seen: tasks that are known not to move; grows."""
    place = task.place
    if type(place) is Assigned:
        engine = farm.engines.by_name.get(place.engine)
        return engine is not None and engine.state != EngineState.AWAY
    if farm.lifecycle.held or farm.lifecycle.stopping:
        return False
    if task.waits_for:
        return _any_may_move(farm, task.waits_for, seen)
    if type(place) is Queued and place.why is Waiting.CACHE:
        owner = farm.cache_uses.owner_of(task.id)
        equal = farm.tasks.unfinished.get(owner) if owner is not None else None
        return equal is None or _may_move(farm, equal, seen)
    if type(place) is Queued and task.task_class is None:
        return place.why is not Waiting.PAUSED  # it rejoins its queue at its time
    if task.task_class is not None and task.task_class.restricted:
        return bool(task.task_class.eligible) and not why_nobody(farm, task.rules or DEFAULT_RULES)
    return any(engine.state == EngineState.UP and not engine.retiring for engine in farm.engines.by_name.values())


def _any_may_move(farm: SchedulerState, needed: set[int], seen: set[int]) -> bool:
    """Return whether any of these tasks, or of those that they wait for directly or indirectly, may move.

    After `LOOKED_AT_MAX` tasks, the rest is not examined, and the answer is yes."""
    waiting = list(needed - seen)
    seen |= needed
    while waiting:
        task = farm.tasks.unfinished.get(waiting.pop())
        if task is None or len(seen) > LOOKED_AT_MAX:
            return True
        if task.waits_for:
            fresh = task.waits_for - seen
            seen |= fresh
            waiting += fresh
        elif _may_move(farm, task, seen):
            return True
    return False


def explain(farm: SchedulerState, task: TaskEntry, now: Now, task_id: int | None = None) -> list[str]:
    """Return lines for people about an unfinished task.  task_id: the item of a chunk that is asked about."""
    if task_id is None:
        task_id = farm.tasks.chunks.first(task.id) if task.items else task.id
    name = " ".join((name_of(task) or "").split())
    name = f" ({name})" if name else ""
    state, reason = state_word(task.state), reason_of(farm, task)
    lines = [f"task {task_id}{name} is {state}{'' if reason == state else f': {reason}'}"]
    if task.rules is not None and task.rules.priority:
        lines.append(f"its priority is {task.rules.priority}: tasks of a higher one come first")
    for row in task.past.history or ():
        what = row.failure.value.splitlines()[0] if row.failure and row.failure.value else row.outcome
        lines.append(f"attempt {row.number} on engine {row.engine_id}: {row.outcome}: {what}")
    lines += _about_frozen(farm, task_id, now)
    place = task.place
    if type(place) is Assigned:
        lines.append(_explain_handed(farm, task, place, now))
        engine_found = farm.engines.by_name.get(place.engine)
        if engine_found is not None and engine_found.note:
            lines.append(f"engine {engine_found.id}: {engine_found.note}")
        return lines
    if farm.lifecycle.held:
        lines.append("the farm is paused: `ipytaskfarm resume` or tc.resume() lets tasks start")
    if farm.lifecycle.stopping:
        lines.append("the farm is stopping")
    if type(place) is Queued and task.task_class is None:
        lines.append(_explain_away(farm, task, place, now))
        return lines
    if not farm.engines.by_name:
        starting = sum(len(a.starting) for a in farm.agents.by_session.values())
        lines.append(f"the farm has no engines now ({starting} starting, {farm.lifecycle.wanted} wanted)")
    if farm.diagnostics.losses and all(engine.state != EngineState.UP for engine in farm.engines.by_name.values()):
        lines.append(f"no engine is ready, and the last that was lost: {farm.diagnostics.losses[-1]}")
    return lines + lines_by_reason((engine.id, _why_not(farm, task, engine, now)) for engine in farm.engines.in_order())


def _about_frozen(farm: SchedulerState, task_id: int, now: Now) -> list[str]:
    """Return a line about the engine that keeps a task's frames, or why none does, if that was asked for."""
    frozen = farm.frozen.of_task(task_id)
    if frozen is None:
        note = farm.frozen.note_of(task_id)
        return [] if note is None else [note]
    where = f"the engine of attempt {frozen.run.run[1]} on {frozen.node} is frozen"
    return [f"{where} for {frozen.ends_s - now.mono_s:.0f} s more: tc.debug({task_id}) opens its frames"]


def _about_unfrozen(farm: SchedulerState, task_id: int) -> str:
    """Return a line on why no engine may be frozen for a task, where more is not known: it failed long ago."""
    settings = farm.settings
    kept = (
        f"a node keeps at most {settings.frozen_engines} (`--frozen-engines`), "
        f"for {settings.frozen_s:g} s after their last use (`--frozen-time`)"
    )
    if not settings.frozen_engines:
        kept = farm.frozen.full("", settings)
    return f"no engine is frozen for task {task_id}: {kept}; tc.debug({task_id}) runs the task here"


def _explain_away(farm: SchedulerState, task: TaskEntry, place: Queued, now: Now) -> str:
    """Explain the place of a task that is in no queue."""
    if task.waits_for:
        first = sorted(task.waits_for)[:SHOWN]
        more = f" and {len(task.waits_for) - len(first)} more" if len(task.waits_for) > len(first) else ""
        states = ", ".join(
            f"task {i} ({reason_of(farm, farm.tasks.unfinished[i]) if i in farm.tasks.unfinished else 'ended'})"
            for i in first
        )
        return f"it waits for {states}{more}{_first_of_chain(farm, task)}"
    if place.until_s is not None:
        return f"it comes again in {max(0.0, place.until_s - now.mono_s):.1f} s"
    if place.why is Waiting.CACHE:
        owner = farm.cache_uses.owner_of(task.id)
        return "it is looked up in the result cache" if owner is None else f"it waits for task {owner}, which is equal"
    job = farm.jobs.by_id.get(task.job or "")
    if job is None:
        return "it waits for its turn"
    return f"its job {job.spec.name!r} {'is paused' if job.paused else 'was resumed: it joins its queue soon'}"


def _first_of_chain(farm: SchedulerState, task: TaskEntry) -> str:
    """Return which task all others of a chain wait for in the end; "" if it was named, or is too far away."""
    steps, each = 0, task
    while each.waits_for and steps < LOOKED_AT_MAX:
        needed = farm.tasks.unfinished.get(min(each.waits_for))
        if needed is None:
            return ""
        steps, each = steps + 1, needed
    if steps < 2 or each.waits_for:
        return ""
    return f"; the first of this chain is task {each.id} ({reason_of(farm, each)})"


def _explain_handed(farm: SchedulerState, task: TaskEntry, place: Assigned, now: Now) -> str:
    engine = farm.engines.by_name.get(place.engine)
    where = f"engine {engine.id} on {engine.node}" if engine else "an engine that is away"
    if task.id in farm.second_copies.others:
        other = farm.engines.by_name.get(farm.second_copies.others[task.id].place.engine)
        where += f", and a second copy on engine {other.id} on {other.node}" if other is not None else ""
    if place.since_s is not None:
        beside = engine.concurrent - 1 if engine is not None else 0
        company = f", beside {beside:,} other coroutine tasks" if beside > 0 else ""
        return f"on {where} for {now.mono_s - place.since_s:.1f} s{company}{_waits_inside(engine, task, place)}"
    oldest = engine.oldest() if engine else None
    runs = f": {_running_on(farm, oldest, now)}" if oldest else ""
    return f"sent ahead to {where}, and not begun{runs}"


def _running_on(farm: SchedulerState, run: RunKey, now: Now) -> str:
    """Return which task an engine runs, and for how long, if that is known."""
    task = farm.tasks.unfinished.get(run[0])
    if task is None and farm.tasks.finals.get(run[0]) in ABORTS:
        return f"it runs task {run[0]}, which was aborted and has not stopped yet"
    since_s = task.place.since_s if task is not None and type(task.place) is Assigned else None
    return f"it runs task {run[0]}" + ("" if since_s is None else f" for {now.mono_s - since_s:.1f} s now")


def _waits_inside(engine: EngineEntry | None, task: TaskEntry, place: Assigned) -> str:
    assigned = engine.assigned.get((task.id, place.attempt)) if engine is not None else None
    if assigned is None or assigned.nested_wait is None:
        return ""
    count = len(assigned.nested_wait.unfinished)
    text = f"; it waits for {count} task{'s' * (count != 1)}"
    if not assigned.nested_wait.slot_lent:
        text += f", and lends no place: {MAX_EXTRA_ENGINES} engines of its node do already"
    return text


def _why_not(farm: SchedulerState, task: TaskEntry, engine: EngineEntry, now: Now) -> str:
    rules = task.rules or DEFAULT_RULES
    if engine.retiring and engine.state == EngineState.UP:
        about_to_end = KEPT if engine.kept else "it is about to end"
        return f"it is about to be recycled: {engine.recycled}" if engine.recycled else about_to_end
    why = why_not(farm, rules, engine)
    if why:
        return why
    key: ClassKey | None = task.task_class.key if task.task_class else None
    rejection = task.past.rejections.get(engine.name) if task.past.rejections else None
    if key is not None and not may_serve(farm, engine, key):
        if rejection is not None:
            return f"the task rejected it {rejection.count} times"
        return "the task failed there: another engine is preferred"
    agent = farm.agents.by_session.get(engine.agent)
    closed = gate(farm, agent, rules.asks, rules.time_limit_s) if agent is not None else None
    if closed is not None:
        return closed.why
    if key is not None and engine.environment is not None and not serves_environment(engine, key.environment):
        return _other_environment(engine)
    if engine.withheld_until_s > now.mono_s:
        return f"withheld for {engine.withheld_until_s - now.mono_s:.1f} s after a failure (failure_penalty)"
    if engine.concurrent:
        return _behind_coroutines(farm, engine, key)
    oldest = engine.oldest()
    if oldest is not None:
        ahead = len(engine.runs_ahead())
        behind = f"; sent ahead to it: {ahead} more" if ahead else ""
        return _running_on(farm, oldest, now) + behind
    if agent is not None and agent.reserving:
        return f"what becomes free on {agent.node} is kept for a task that has waited longer"
    return "it is free: the task is next, or others stand before it"


def _behind_coroutines(farm: SchedulerState, engine: EngineEntry, key: ClassKey | None) -> str:
    """Explain why an engine that runs coroutine tasks does not take a task now."""
    there = f"it runs {engine.concurrent:,} coroutine tasks"
    if key is None or not key.concurrent:
        return f"{there}: this task runs alone, and begins when they have ended"
    if key.suspect:
        return f"{there}: this task was there when an engine was lost, and shares an engine only with others like it"
    return f"{there}, of {farm.settings.coroutines:,} that it may run at once (coroutines)"


def _other_environment(engine: EngineEntry) -> str:
    name = engine.environment.name if engine.environment is not None else ""
    oldest = engine.oldest()
    runs = f", and runs task {oldest[0]}" if oldest is not None else ""
    return f"it has environment {name}{runs}: it is recycled for another one when it is idle"
