"""Which engines may serve which class of tasks.

Restricted classes keep the set of their engines (`TaskClass.eligible`); it is worked out anew only when something it
rests on has changed: an engine came or went, a depend function spoke, a task was rejected.  An engine's environment is
not among these things (`core.environments`: another one can be made to serve), nor is what changes from moment to
moment (`core.gates`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .demands import CHANGING, Asks, Want, amount, unmet
from .farm import Agent, Engine, EngineState, Farm
from .queue import OPEN_CLASS, ClassKey, TaskClass, serves_environment

_KEPT_CLASSES = 1024
"""Empty classes are kept for their measured durations up to this many, or to one for each engine."""


def class_for(farm: Farm, key: ClassKey) -> TaskClass:
    """The class of that key, made if it is new."""
    task_class = farm.classes.get(key)
    if task_class is None:
        kept = max(_KEPT_CLASSES, len(farm.engines))
        if len(farm.classes) >= 2 * kept:
            _drop_empty_classes(farm, kept)
        task_class = farm.classes[key] = TaskClass(key)
        if task_class.restricted:
            task_class.eligible = serving(farm, key)
        if key.asks is not None and (key.asks.placement or key.asks.locality):
            farm.choosy = True
    elif key.own is not None:
        # The task comes back with one more rejection.
        task_class.eligible = {e: None for e in task_class.eligible if may_serve(farm, e, key)}
    return task_class


def _drop_empty_classes(farm: Farm, kept: int) -> None:
    empty = [key for key, c in farm.classes.items() if c.size == 0 and key != OPEN_CLASS]
    for key in empty[: max(0, len(empty) - kept // 2)]:
        del farm.classes[key]
    farm.last_class = None


def may_serve(farm: Farm, engine: Engine, key: ClassKey) -> bool:
    """Whether this engine may run tasks of this class now."""
    agent = farm.agents.get(engine.agent)
    if agent is not None and agent.aside:
        return False
    if not _suits(farm, engine, key):
        return False
    if key.own is not None and _rejected(farm, engine, key.own):
        return False
    # Avoided engines are the last choice, not a forbidden one: alone, they serve.
    if not key.avoid or engine.name not in key.avoid:
        return True
    others = (e for e in farm.engines.values() if e.state == EngineState.UP and e.name not in key.avoid)
    return not any(_suits(farm, e, key) for e in others)


def _suits(farm: Farm, engine: Engine, key: ClassKey) -> bool:
    if key.targets is not None and engine.id not in key.targets:
        return False
    if key.depend is not None:
        verdict = verdict_of(farm, engine, key.depend)
        if verdict is None or not verdict[1]:
            return False
    if key.limit_s is not None and not _has_time(farm, engine, key.limit_s):
        return False
    return key.asks is None or not unmet_asks(farm, engine, key.asks)


def _has_time(farm: Farm, engine: Engine, limit_s: float) -> bool:
    agent = farm.agents.get(engine.agent)
    return agent is None or agent.ends_s is None or farm.mono_s + limit_s <= agent.ends_s


def unmet_asks(farm: Farm, engine: Engine, asks: Asks) -> str:
    """Why this engine can never serve a task that asks for this, as the farm is now; "" if it can.

    Resources of an agent that has not said what it has (the controller has just started) count as enough."""
    agent = farm.agents.get(engine.agent)
    if asks.requires:
        known = known_of(engine)
        for condition in asks.requires:
            if condition.name not in CHANGING and (why := unmet(condition, known)):
                return why
    if asks.resources and agent is not None and agent.capacity and (why := beyond(agent, asks.resources)):
        return why
    if asks.locality is not None:
        verdict = verdict_of(farm, engine, locality_key(asks.locality))
        if verdict is None:
            return "its locality function has not answered yet"
        if verdict[3] < 0:
            return "its locality function forbids it"
    return ""


def known_of(engine: Engine) -> dict[str, Any]:
    """What conditions are weighed against: the engine's facts, and those of its properties that are plain values."""
    return {**engine.facts, **engine.properties.plain} if engine.properties is not None else engine.facts


def locality_key(digest: str) -> str:
    """Under which a locality function stands in `Farm.depends`: the same function may be a depend function too."""
    return f"locality {digest}"


def verdict_of(farm: Farm, engine: Engine, key: str) -> tuple[int, bool, str, int] | None:
    """What a function has said of an engine as it is now."""
    depend = farm.depends.get(key)
    verdict = depend.verdicts.get(engine.name) if depend is not None else None
    return verdict if verdict is not None and verdict[0] == engine.version else None


def score_of(farm: Farm, engine: Engine, digest: str) -> int:
    """What a locality function gives for this engine."""
    verdict = verdict_of(farm, engine, locality_key(digest))
    return verdict[3] if verdict is not None else 0


def beyond(agent: Agent, wants: tuple[Want, ...]) -> str:
    """What this node could not give even if it were idle; "": nothing."""
    for want in wants:
        capacity = agent.capacity.get(want.name, 0.0)
        if capacity < want.least:
            return (
                f"it needs {amount(want.name, want.least)}, and {agent.node} has {amount(want.name, capacity)} in all"
            )
    return ""


def _rejected(farm: Farm, engine: Engine, task_id: int) -> bool:
    task = farm.tasks.get(task_id)
    rejection = task.rejections.get(engine.name) if task and task.rejections else None
    return rejection is not None and rejection.version == engine.version and rejection.until_s > 0.0


def refresh_class(farm: Farm, task_class: TaskClass) -> None:
    """Work out anew which engines may serve a class: engines came or went, a verdict or a rejection changed."""
    if not task_class.restricted:
        return
    task_class.eligible = serving(farm, task_class.key)
    if task_class.size:
        announce(farm, task_class)


def serving(farm: Farm, key: ClassKey) -> dict[Engine, None]:
    """All engines that may serve a class; those that its targets exclude are not even looked at."""
    if key.targets is None:
        candidates: Iterable[Engine] = farm.engines.values()
    else:
        candidates = [engine for i in key.targets for engine in farm.numbered.get(i, ())]
    return {engine: None for engine in candidates if engine.state == EngineState.UP and may_serve(farm, engine, key)}


def refresh_classes(farm: Farm, engines: Iterable[Engine]) -> None:
    """After these engines came, went, or became other ones."""
    changed = list(engines)
    for task_class in farm.classes.values():
        if not task_class.restricted:
            continue
        if task_class.key.avoid:
            refresh_class(farm, task_class)  # whether an avoided engine serves depends on who else is there
            continue
        for engine in changed:
            _refresh_member(farm, task_class, engine)


def _refresh_member(farm: Farm, task_class: TaskClass, engine: Engine) -> None:
    if engine.state != EngineState.UP or not may_serve(farm, engine, task_class.key):
        task_class.eligible.pop(engine, None)
        return
    task_class.eligible[engine] = None
    if task_class.size:
        announce_to(farm, task_class, engine)


def announce(farm: Farm, task_class: TaskClass) -> None:
    """A class has an earlier head, or other engines: make it known where it can be found."""
    if not task_class.restricted:
        farm.open_heads.push(task_class)
        return
    if task_class.environment is not None:
        farm.environment_heads.push(task_class)
    for engine in task_class.eligible:
        announce_to(farm, task_class, engine)


def announce_to(farm: Farm, task_class: TaskClass, engine: Engine) -> None:
    """The same for one engine."""
    if not serves_environment(engine, task_class.environment):
        return
    engine.heads.push(task_class)
    if engine in farm.waiting or engine in farm.roomy or engine in farm.barred:
        wake(farm, engine)


def wake(farm: Farm, engine: Engine) -> None:
    """Look at this engine in this turn."""
    farm.waiting.pop(engine, None)
    farm.barred.pop(engine, None)
    farm.roomy.pop(engine, None)
    farm.hungry[engine] = None


def asleep(farm: Farm, engine: Engine) -> None:
    """Nothing more for this engine."""
    farm.waiting.pop(engine, None)
    farm.barred.pop(engine, None)
    farm.roomy.pop(engine, None)
    farm.hungry.pop(engine, None)
    farm.laden.pop(engine, None)
