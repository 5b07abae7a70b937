"""Which engines may serve which class of tasks.

A restricted class keeps the set of its engines (`TaskClass.eligible`). The set is computed again only if something
changes on which it depends: an engine came or went, a depend function answered, a task was rejected. It does not depend
on an engine's environment (an engine can be recycled for another environment, see `core.scheduler.environments`), nor
on resources, limits and load (see `core.scheduler.admission`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..requirements import CHANGING, Asks, ResourceAmount, amount, unmet
from .agent_entry import AgentEntry
from .decision import Now
from .entries import EngineEntry, EngineState, TaskClass, TaskEntry, serves_environment
from .functions import locality_key
from .queue_keys import class_key_of
from .state import SchedulerState
from .task import OPEN_CLASS, ClassKey

_KEPT_CLASSES = 1024
"""The number of empty classes, or one for each engine, that are kept for their measured durations."""


def class_for(farm: SchedulerState, key: ClassKey) -> TaskClass:
    """Return the class of a key; it is made if it is new."""
    task_class = farm.queues.classes.get(key)
    if task_class is None:
        kept = max(_KEPT_CLASSES, len(farm.engines.by_name))
        if len(farm.queues.classes) >= max(2 * kept, farm.queues.drop_at):
            _drop_empty_classes(farm, kept)
        task_class = farm.queues.classes[key] = TaskClass(key)
        if task_class.restricted:
            task_class.eligible = engines_for(farm, key)
        if key.requirements is not None and (key.requirements.placement or key.requirements.locality):
            farm.queues.has_preferences = True
    elif key.own is not None:
        # The task comes back with one more rejection.
        task_class.eligible = {e: None for e in task_class.eligible if may_serve(farm, e, key)}
    return task_class


def _drop_empty_classes(farm: SchedulerState, kept: int) -> None:
    empty = [key for key, c in farm.queues.classes.items() if c.size == 0 and key != OPEN_CLASS]
    for key in empty[: max(0, len(empty) - kept // 2)]:
        del farm.queues.classes[key]
    # Classes with tasks stay, and to look at all of them takes long: it is not done for each new class.
    farm.queues.drop_at = len(farm.queues.classes) * 5 // 4
    farm.queues.forget_classes_of_rules()


def may_serve(farm: SchedulerState, engine: EngineEntry, key: ClassKey) -> bool:
    """Return whether an engine may run tasks of this class now."""
    if not qualifies(farm, engine, key):
        return False
    if key.own is not None and _rejected(farm, engine, key.own):
        return False
    # Avoided engines are the last choice, but not forbidden: they serve if there are no others.
    if not key.avoid or engine.name not in key.avoid:
        return True
    return not any(other.name not in key.avoid for other in taking(farm, key))


def taking(farm: SchedulerState, key: ClassKey) -> Iterator[EngineEntry]:
    """Yield the engines that take tasks of this class, whatever has become of single tasks there."""
    for engine in farm.engines.by_name.values():
        if engine.state == EngineState.UP and not engine.retiring and qualifies(farm, engine, key):
            yield engine


def qualifies(farm: SchedulerState, engine: EngineEntry, key: ClassKey) -> bool:
    """Return whether an engine may run tasks of this class, but for those that have failed or been rejected there."""
    agent = farm.agents.by_session.get(engine.agent)
    if agent is not None and agent.excluded:
        return False
    if key.targets is not None and engine.id not in key.targets:
        return False
    if key.depend is not None:
        verdict = farm.functions.verdict_of(engine, key.depend)
        if verdict is None or not verdict[1]:
            return False
    if key.limit_s is not None and not _has_time(farm, engine, key.limit_s):
        return False
    return key.requirements is None or not unmet_requirement(farm, engine, key.requirements)


def _has_time(farm: SchedulerState, engine: EngineEntry, limit_s: float) -> bool:
    agent = farm.agents.by_session.get(engine.agent)
    return agent is None or agent.ends_s is None or farm.mono_s + limit_s <= agent.ends_s


def unmet_requirement(farm: SchedulerState, engine: EngineEntry, requirements: Asks) -> str:
    """Return the reason why an engine can never meet these requirements, in the farm's present state; "" if it can.

    Resources of an agent that has not reported them (the controller has just started) count as sufficient.
    """
    agent = farm.agents.by_session.get(engine.agent)
    if requirements.requires:
        known = facts_of(engine)
        for condition in requirements.requires:
            if condition.name not in CHANGING and (why := unmet(condition, known)):
                return why
    if (
        requirements.resources
        and agent is not None
        and agent.capacity
        and (why := beyond_capacity(agent, requirements.resources))
    ):
        return why
    if requirements.locality is not None:
        verdict = farm.functions.verdict_of(engine, locality_key(requirements.locality))
        if verdict is None:
            return "its locality function has not answered yet"
        if verdict[3] < 0:
            return "its locality function forbids it"
    return ""


def facts_of(engine: EngineEntry) -> dict[str, Any]:
    """Return the values for conditions: an engine's facts, and its properties that are plain values."""
    return {**engine.facts, **engine.properties.plain} if engine.properties is not None else engine.facts


def beyond_capacity(agent: AgentEntry, wants: tuple[ResourceAmount, ...]) -> str:
    """Return the resource of these that a node could not give even if it were idle; "" for none."""
    for want in wants:
        capacity = agent.capacity.get(want.name, 0.0)
        if capacity < want.least:
            return (
                f"it needs {amount(want.name, want.least)}, and {agent.node} has {amount(want.name, capacity)} in all"
            )
    return ""


def _rejected(farm: SchedulerState, engine: EngineEntry, task_id: int) -> bool:
    task = farm.tasks.unfinished.get(task_id)
    rejection = task.past.rejections.get(engine.name) if task and task.past.rejections else None
    return rejection is not None and rejection.version == engine.version and rejection.until_s > 0.0


def refresh_class(farm: SchedulerState, task_class: TaskClass) -> None:
    """Compute again which engines may serve a class, because engines, a verdict or a rejection have changed."""
    if not task_class.restricted:
        return
    task_class.eligible = engines_for(farm, task_class.key)
    if task_class.size:
        announce(farm, task_class)


def engines_for(farm: SchedulerState, key: ClassKey) -> dict[EngineEntry, None]:
    """Return all engines that may serve a class. Engines that the class's targets exclude are not examined."""
    if key.targets is None:
        candidates: Iterable[EngineEntry] = farm.engines.by_name.values()
    else:
        candidates = [engine for i in key.targets for engine in farm.engines.by_id.get(i, ())]
    return {engine: None for engine in candidates if engine.state == EngineState.UP and may_serve(farm, engine, key)}


def refresh_classes(farm: SchedulerState, engines: Iterable[EngineEntry], properties: set[str] | None = None) -> None:
    """Update all classes after these engines came, went, or changed.

    properties: only these of their properties have changed. A task may change one many times a second."""
    changed = list(engines)
    for task_class in farm.queues.classes.values():
        if not task_class.restricted or not (properties is None or _depends_on(task_class.key, properties)):
            continue
        if task_class.key.avoid:
            refresh_class(farm, task_class)  # whether an avoided engine serves depends on the other engines
            continue
        for engine in changed:
            _refresh_member(farm, task_class, engine)


def _depends_on(key: ClassKey, properties: set[str]) -> bool:
    """Return whether the engines of a class depend on these properties; functions and rejections depend on all."""
    if key.depend is not None or key.own is not None:
        return True
    requirements = key.requirements
    if requirements is None:
        return False
    return requirements.locality is not None or any(each.name in properties for each in requirements.requires)


def _refresh_member(farm: SchedulerState, task_class: TaskClass, engine: EngineEntry) -> None:
    if engine.state != EngineState.UP or not may_serve(farm, engine, task_class.key):
        task_class.eligible.pop(engine, None)
        return
    task_class.eligible[engine] = None
    if task_class.size:
        announce_to(farm, task_class, engine)


def announce(farm: SchedulerState, task_class: TaskClass, head: tuple[Any, int] | None = None) -> None:
    """Make a class known to the engines that may serve it, because its head or its set of engines has changed.

    head: the class's head, if it is known."""
    if not task_class.restricted:
        farm.queues.open_heads.push(task_class)
        return
    if task_class.environment is not None:
        farm.queues.environment_heads.push(task_class)
    head = head or task_class.head()
    for engine in task_class.eligible:
        _announce_head(farm, task_class, head, engine)


def announce_to(farm: SchedulerState, task_class: TaskClass, engine: EngineEntry) -> None:
    """Make a class known to one engine."""
    _announce_head(farm, task_class, task_class.head(), engine)


def _announce_head(
    farm: SchedulerState, task_class: TaskClass, head: tuple[Any, int] | None, engine: EngineEntry
) -> None:
    readiness = farm.readiness
    if task_class.environment is not None and not serves_environment(engine, task_class.environment):
        return
    if head is not None:
        engine.heads.push_head(head, task_class)
    if engine.waits_in is not None:
        readiness.wake(engine)


def watch_unmet(farm: SchedulerState, task: TaskEntry, now: Now, least_s: float = 0.0) -> None:
    """Set the timer of `unmet_timeout` for a task that not every engine can serve."""
    seconds = farm.settings.unmet_timeout_s
    if seconds is not None and class_key_of(task, farm.queues.by_time_limit).restricted:
        farm.timers.set(now.mono_s + max(seconds, least_s), "unmet", (task.id, True))
