"""Why a task is where it is, in sentences."""

from __future__ import annotations

from ..decision import Decision, LoadExplanation
from ..durations import SLOW_S
from ..eligibility import may_serve
from ..farm import Engine, EngineState, Farm, Now
from ..gates import gate
from ..lending import MAX_EXTRA_ENGINES
from ..messages import Answer, Explain, Refusal, Stuck, Text
from ..queue import ClassKey, serves_environment
from ..states import State, Waiting
from ..task import DEFAULT_RULES, Handed, Queued, Task
from .asking import why_nobody, why_not
from .tables import name_of, reason_of

SHOWN = 5
"""So many of those that a task waits for are named."""


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
    if task.left:
        return _any_may_move(farm, task.left)
    if type(place) is Queued and task.task_class is None:
        return place.why is not Waiting.PAUSED  # it comes back by itself, at its time
    if task.task_class is not None and task.task_class.restricted:
        return bool(task.task_class.eligible) and not why_nobody(farm, task.rules or DEFAULT_RULES)
    return any(engine.state == EngineState.UP and not engine.retiring for engine in farm.engines.values())


def _any_may_move(farm: Farm, needed: set[int]) -> bool:
    """Whether anything that these wait for, however far, may move."""
    seen = set(needed)
    waiting = list(needed)
    while waiting:
        task = farm.tasks.get(waiting.pop())
        if task is None:
            return True
        if task.left:
            fresh = task.left - seen
            seen |= fresh
            waiting += fresh
        elif _may_move(farm, task):
            return True
    return False


def explain(farm: Farm, task: Task, now: Now) -> list[str]:
    """Lines for people about an unfinished task."""
    name = f" ({name_of(task)})" if name_of(task) else ""
    shown = "running" if task.state is State.PENDING else task.state.value
    lines = [f"task {task.id}{name} is {shown}: {reason_of(farm, task)}"]
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
    if type(place) is Queued and task.task_class is None:
        lines.append(_explain_away(farm, task, place, now))
        return lines
    if not farm.engines:
        starting = sum(len(a.starting) for a in farm.agents.values())
        lines.append(f"the farm has no engines now ({starting} starting, {farm.wanted} wanted)")
    for engine in sorted(farm.engines.values(), key=lambda e: e.id):
        lines.append(f"engine {engine.id}: {_why_not(farm, task, engine, now)}")
    return lines


def _explain_away(farm: Farm, task: Task, place: Queued, now: Now) -> str:
    """Of a task that stands in no queue."""
    if task.left:
        first = sorted(task.left)[:SHOWN]
        more = f" and {len(task.left) - len(first)} more" if len(task.left) > len(first) else ""
        states = ", ".join(
            f"task {i} ({reason_of(farm, farm.tasks[i]) if i in farm.tasks else 'ended'})" for i in first
        )
        return f"it waits for {states}{more}"
    if place.until_s is not None:
        return f"it comes again in {max(0.0, place.until_s - now.mono_s):.1f} s"
    job = farm.jobs.get(task.job or "")
    return f"its job {job.spec.name!r} is paused" if job is not None else "it waits for its turn"


def _explain_handed(farm: Farm, task: Task, place: Handed, now: Now) -> str:
    engine = farm.engines.get(place.engine)
    where = f"engine {engine.id} on {engine.node}" if engine else "an engine that is away"
    if place.since_s is not None:
        return f"on {where} for {now.mono_s - place.since_s:.1f} s{_waits_inside(engine, task, place)}"
    oldest = engine.oldest() if engine else None
    behind = f" behind task {oldest[0]}, which holds the interpreter" if oldest else ""
    return f"sent ahead to {where},{behind} not begun" if behind else f"sent ahead to {where}, not begun"


def _waits_inside(engine: Engine | None, task: Task, place: Handed) -> str:
    handing = engine.handed.get((task.id, place.attempt)) if engine is not None else None
    if handing is None or handing.waiting is None:
        return ""
    text = f"; it waits for {len(handing.waiting.left)} tasks"
    if not handing.waiting.lends:
        text += f", and lends no place: {MAX_EXTRA_ENGINES} engines of its node do already"
    return text


def _why_not(farm: Farm, task: Task, engine: Engine, now: Now) -> str:
    rules = task.rules or DEFAULT_RULES
    if engine.retiring and engine.state == EngineState.UP:
        return f"it is about to be recycled: {engine.recycled}" if engine.recycled else "it is about to end"
    why = why_not(farm, rules, engine)
    if why:
        return why
    key: ClassKey | None = task.task_class.key if task.task_class else None
    rejection = task.rejections.get(engine.name) if task.rejections else None
    if key is not None and not may_serve(farm, engine, key):
        if rejection is not None:
            return f"the task rejected it {rejection.count} times"
        return "the task failed there: another engine is preferred"
    agent = farm.agents.get(engine.agent)
    closed = gate(farm, agent, rules.asks, rules.time_limit_s) if agent is not None else None
    if closed is not None:
        return closed.why
    if key is not None and engine.environment is not None and not serves_environment(engine, key.environment):
        return _other_environment(engine)
    if engine.withheld_until_s > now.mono_s:
        return f"withheld for {engine.withheld_until_s - now.mono_s:.1f} s after a failure (failure_penalty)"
    oldest = engine.oldest()
    if oldest is not None:
        slow = "" if engine.ahead_s < SLOW_S else f" and holds {engine.ahead_s * 1e3:.0f} ms of work"
        return f"it runs task {oldest[0]}{slow}"
    if agent is not None and agent.reserving:
        return f"what becomes free on {agent.node} is kept for a task that has waited longer"
    return "it is free: the task is next, or others stand before it"


def _other_environment(engine: Engine) -> str:
    name = engine.environment.name if engine.environment is not None else ""
    oldest = engine.oldest()
    runs = f", and runs task {oldest[0]}" if oldest is not None else ""
    return f"it has environment {name}{runs}: it is recycled for another one when it is idle"
