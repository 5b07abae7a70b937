"""Which engine prepares itself for which environment, and which one makes room for another.

An engine takes on an environment with the first task that needs it, and keeps it to its end.  A task finds its engine
among those that have its environment, else a blank one takes it on, else an idle engine of another environment is
recycled for it.  Blank engines prefer what nobody has yet, so that many environments on few engines are set up once
each.  A busy engine gives way only to a higher priority, or to a task that was passed over for too long.
"""

from __future__ import annotations

from .decision import Decision
from .demands import Environment
from .eligibility import may_serve
from .ending import recycle
from .farm import Engine, EngineState, Farm, Now, Use
from .gates import gate
from .queue import TaskClass, serves_environment
from .slots import free_slots

LOOKED_AT = 64
"""So many classes at most have room made for them in one turn."""


def use_of(farm: Farm, environment: Environment) -> Use:
    """What is known of an environment."""
    use = farm.environments.get(environment.identity)
    if use is None:
        use = farm.environments[environment.identity] = Use(environment)
    return use


def take_on(farm: Farm, engine: Engine, environment: Environment) -> None:
    """A blank engine is to be prepared for this; it is set up with its first task."""
    engine.environment = environment
    use_of(farm, environment).engines[engine] = None


def drop_unused(farm: Farm, identity: str) -> None:
    """Nobody has it or needs it: it is forgotten."""
    use = farm.environments.get(identity)
    if use is not None and not use.referenced and not use.engines:
        del farm.environments[identity]
        if use.environment.unique is not None and farm.named.get(use.environment.unique) == identity:
            del farm.named[use.environment.unique]


def for_blank(farm: Farm, engine: Engine, task_class: TaskClass) -> TaskClass:
    """Of the classes as urgent as this one, the earliest whose environment no engine has; else this one."""
    if task_class.environment is None or not farm.environments[task_class.environment].engines:
        return task_class

    def is_new(other: TaskClass) -> bool:
        if other.environment is None or farm.environments[other.environment].engines:
            return False
        agent = farm.agents.get(engine.agent)
        return agent is not None and gate(farm, agent, other.key.asks, other.key.limit_s) is None

    return engine.heads.preferred(engine, is_new) or task_class


def idle_mate(farm: Farm, engine: Engine, task_class: TaskClass) -> Engine | None:
    """An idle engine that has the environment already, where a blank one was about to take it on."""
    if task_class.environment is None or engine.environment is not None:
        return None
    for mate in farm.environments[task_class.environment].engines:
        idle = mate in farm.waiting or mate in farm.hungry
        if idle and not mate.handed and mate in task_class.eligible and not mate.retiring:
            agent = farm.agents.get(mate.agent)
            if (
                agent is not None
                and agent.able
                and gate(farm, agent, task_class.key.asks, task_class.key.limit_s) is None
            ):
                return mate
    return None


def gives_way(farm: Farm, engine: Engine, own: tuple[object, int] | None, now: Now) -> str:
    """Why this engine, free or about to be, is to be recycled for a task of another environment; "": it is not.

    own: (key, queue_seq) of what it would take next."""
    found = farm.environment_heads.first()
    if found is None or engine.environment is None:
        return ""
    key, seq, task_class = found
    if serves_environment(engine, task_class.environment) or own is None:
        return ""
    more_urgent = key < own[0]
    if not more_urgent and not _was_passed_over(farm, task_class, (key, seq), own, now):
        return ""
    if coming(farm) or not _could_serve(farm, engine, task_class):
        return ""
    if any(_could_serve(farm, other, task_class) for other in farm.waiting):
        return ""  # an idle one makes room at the end of the turn
    what = "a more urgent task" if more_urgent else "a task that has waited long"
    return f"for {what} of environment {_name(farm, task_class)}"


def _was_passed_over(
    farm: Farm, task_class: TaskClass, head: tuple[object, int], own: tuple[object, int], now: Now
) -> bool:
    """Whether its head has waited too long behind tasks that came later, and nobody has its environment."""
    patience_s = farm.settings.environment_patience_s
    first = task_class.first()
    if patience_s is None or first is None or head > own or task_class.environment is None:
        return False
    return now.wall_s - first.submitted_s > patience_s and not farm.environments[task_class.environment].engines


def _could_serve(farm: Farm, engine: Engine, task_class: TaskClass) -> bool:
    """If it were blank."""
    if engine.state != EngineState.UP or engine.retiring or not may_serve(farm, engine, task_class.key):
        return False
    agent = farm.agents.get(engine.agent)
    return agent is not None and agent.able and gate(farm, agent, task_class.key.asks, task_class.key.limit_s) is None


def coming(farm: Farm) -> int:
    """Engines that will be there soon, and blank."""
    starting = sum(len(agent.starting) for agent in farm.agents.values())
    return starting + sum(
        1
        for engine in farm.engines.values()
        if engine.recycled or (engine.environment is None and engine.state == EngineState.PREPARING)
    )


def make_room(farm: Farm, now: Now, out: Decision) -> None:
    """At the end of a turn: tasks whose environment no free engine has get idle engines of other environments."""
    if farm.environment_heads.first() is None:
        return
    idle = [engine for engine in farm.waiting if engine.environment is not None]
    if not idle:
        return
    idle.sort(key=lambda engine: _worth(farm, engine))
    credit = coming(farm) + free_slots(farm)
    served: set[TaskClass] = set()

    def next_class(task_class: TaskClass) -> bool:
        return task_class not in served

    while idle and len(served) < LOOKED_AT:
        found = farm.environment_heads.preferred(None, next_class, as_urgent=False)
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


def _worth(farm: Farm, engine: Engine) -> tuple[bool, bool, bool, float]:
    """Smallest first: whose environment was edited, which nobody needs, where nobody keeps things, longest idle."""
    environment = engine.environment
    assert environment is not None
    edited = environment.unique is not None and farm.named.get(environment.unique) != environment.identity
    return not edited, farm.environments[environment.identity].referenced, engine.touched, engine.idle_s


def _name(farm: Farm, task_class: TaskClass) -> str:
    return farm.environments[task_class.environment].environment.name if task_class.environment is not None else ""
