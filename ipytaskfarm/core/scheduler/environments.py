"""Which engine prepares itself for which environment, and which engine is recycled for another environment.

An engine takes an environment with the first task that needs it, and keeps it until it ends. A task is given to an
engine that has its environment, else to a blank one; else an idle engine of another environment is recycled for it.
Blank engines prefer an environment that no engine has yet, so that many environments on few engines are set up once
each. A busy engine is recycled only for a higher priority, or for a task that was passed over for too long.
"""

from __future__ import annotations

from .admission import gate_for
from .decision import Decision, Now
from .eligibility import may_serve
from .engine_shutdown import recycle
from .entries import EngineEntry, EngineState, TaskClass, serves_environment
from .slots import free_slots
from .state import SchedulerState

LOOKED_AT = 64
"""The number of classes that `make_room` considers in one turn."""


def class_for_blank(farm: SchedulerState, engine: EngineEntry, task_class: TaskClass) -> TaskClass:
    """Return, of the classes as urgent as this one, the earliest with an environment that no engine has;
    else this one.
    """
    if task_class.environment is None or not farm.environments.uses[task_class.environment].engines:
        return task_class

    def is_new(other: TaskClass) -> bool:
        if other.environment is None or farm.environments.uses[other.environment].engines:
            return False
        agent = farm.agents.by_session.get(engine.agent)
        return agent is not None and gate_for(farm, agent, other.key) is None

    return engine.heads.preferred(engine, is_new) or task_class


def idle_engine_with(farm: SchedulerState, engine: EngineEntry, task_class: TaskClass) -> EngineEntry | None:
    """Return an idle engine that has the class's environment, if a blank one was about to take it."""
    if task_class.environment is None or engine.environment is not None:
        return None
    for mate in farm.environments.uses[task_class.environment].engines:
        idle = mate in farm.readiness.idle or mate in farm.readiness.candidates
        if idle and not mate.assigned and mate in task_class.eligible and not mate.retiring:
            agent = farm.agents.by_session.get(mate.agent)
            if agent is not None and agent.accepts_tasks and gate_for(farm, agent, task_class.key) is None:
                return mate
    return None


def why_gives_way(farm: SchedulerState, engine: EngineEntry, own: tuple[object, int] | None, now: Now) -> str:
    """Return the reason why an engine is recycled for a task of another environment; "" if it is not.

    `own` is (key, queue_seq) of the task that the engine would take next.
    """
    found = farm.queues.environment_heads.first()
    if found is None or engine.environment is None:
        return ""
    key, seq, task_class = found
    if serves_environment(engine, task_class.environment) or own is None:
        return ""
    more_urgent = key < own[0]
    if not more_urgent and not _was_passed_over(farm, task_class, (key, seq), own, now):
        return ""
    if engines_coming(farm) or not _could_serve(farm, engine, task_class):
        return ""
    if any(_could_serve(farm, other, task_class) for other in farm.readiness.idle):
        return ""  # an idle one is recycled at the end of the turn
    what = "a more urgent task" if more_urgent else "a task that has waited long"
    return f"for {what} of environment {_name(farm, task_class)}"


def _was_passed_over(
    farm: SchedulerState, task_class: TaskClass, head: tuple[object, int], own: tuple[object, int], now: Now
) -> bool:
    """Return whether a class's head has waited too long behind later tasks, and no engine has its environment."""
    patience_s = farm.settings.environment_patience_s
    first = task_class.first()
    if patience_s is None or first is None or head > own or task_class.environment is None:
        return False
    return now.since_s(first.submitted_s) > patience_s and not farm.environments.uses[task_class.environment].engines


def _could_serve(farm: SchedulerState, engine: EngineEntry, task_class: TaskClass) -> bool:
    """Return whether an engine could serve a class if it were blank."""
    if engine.state != EngineState.UP or engine.retiring or not may_serve(farm, engine, task_class.key):
        return False
    agent = farm.agents.by_session.get(engine.agent)
    return agent is not None and agent.accepts_tasks and gate_for(farm, agent, task_class.key) is None


def engines_coming(farm: SchedulerState) -> int:
    """Return how many blank engines will come up soon."""
    starting = sum(len(agent.starting) for agent in farm.agents.by_session.values())
    return starting + sum(
        1
        for engine in farm.engines.by_name.values()
        if engine.recycled or (engine.environment is None and engine.state == EngineState.PREPARING)
    )


def make_room(farm: SchedulerState, now: Now, out: Decision) -> None:
    """Recycle idle engines for tasks with an environment that no free engine has. Called at the end of a turn."""
    if farm.queues.environment_heads.first() is None:
        return
    idle = [engine for engine in farm.readiness.idle if engine.environment is not None]
    if not idle:
        return
    idle.sort(key=lambda engine: _worth(farm, engine))
    credit = engines_coming(farm) + free_slots(farm)
    served: set[TaskClass] = set()

    def next_class(task_class: TaskClass) -> bool:
        return task_class not in served

    while idle and len(served) < LOOKED_AT:
        found = farm.queues.environment_heads.preferred(None, next_class, as_urgent=False)
        if found is None:
            break
        served.add(found)
        missing = found.size - credit
        credit = max(0, credit - found.size)
        for engine in list(idle):
            if missing <= 0:
                break
            if serves_environment(engine, found.environment) or not _could_serve(farm, engine, found):
                continue
            idle.remove(engine)
            recycle(farm, engine, f"for environment {_name(farm, found)}", now, out)
            missing -= 1


def _worth(farm: SchedulerState, engine: EngineEntry) -> tuple[bool, bool, bool, float]:
    """Return a sort key that puts the least needed engines first.

    First come those with an edited environment, then those with an unneeded environment, then those that ran no
    commands of users, then those that were idle the longest.
    """
    environment = engine.environment
    assert environment is not None
    edited = (
        environment.unique is not None
        and farm.environments.by_unique_id.get(environment.unique) != environment.identity
    )
    return not edited, farm.environments.uses[environment.identity].referenced, engine.ran_commands, engine.idle_s


def _name(farm: SchedulerState, task_class: TaskClass) -> str:
    return farm.environments.uses[task_class.environment].environment.name if task_class.environment is not None else ""
