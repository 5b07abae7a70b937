"""Which of several free engines takes a task.

default             agents of the highest priority, in turns; of an agent's engines the least recently used, blank ones
                    before those that have an environment
priority            agents of the highest priority, then the lowest engine id
least_recent        the engine that was given its last task the longest ago, on any node
most_recent         the engine that was given its last task most recently: the others may rest, and be recycled
random              seeded
nearest_environment an engine on the node where most engines have the task's environment: files that it left are near

Under each placement, an engine that has the task's environment comes before one that would have to be set up, and a
locality function decides before everything else. The default costs nothing per engine; the others examine all free
engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace

from .admission import gate_for
from .agent_entry import AgentEntry
from .entries import EngineEntry, TaskClass, serves_environment
from .readiness import IdleEntry
from .state import SchedulerState

_STALE_MAX = 16
"""The number of outdated entries that an agent's heap keeps, in addition to one entry for each engine."""

_Rank = Callable[[SchedulerState, TaskClass, list[EngineEntry]], EngineEntry]


def in_default_order(farm: SchedulerState, engines: Iterable[EngineEntry]) -> list[EngineEntry]:
    """Return free engines in the default order."""
    by_agent: dict[str, list[EngineEntry]] = {}
    for engine in engines:
        by_agent.setdefault(engine.agent, []).append(engine)
    if len(by_agent) == 1:
        return sorted(next(iter(by_agent.values())), key=_least_recent)
    ranked = [entry for session, own in by_agent.items() for entry in _ranked(farm, session, own)]
    ranked.sort(key=lambda entry: entry[:4])
    return [engine for *_, engine in ranked]


def _ranked(
    farm: SchedulerState, session: str, engines: list[EngineEntry]
) -> Iterator[tuple[bool, int, int, int, EngineEntry]]:
    agent = farm.agents.by_session.get(session)
    priority, last_batch = (agent.priority, agent.last_batch) if agent is not None else (0, 0)
    for place, engine in enumerate(sorted(engines, key=_least_recent)):
        yield engine.environment is not None, -priority, place, last_batch, engine


def _least_recent(engine: EngineEntry) -> tuple[bool, int, int]:
    return engine.environment is not None, engine.last_batch, engine.id


def _fill_heaps(farm: SchedulerState) -> None:
    """Put the engines that became idle into the heaps of their agents."""
    readiness = farm.readiness
    for engine in readiness.newly_idle:
        engine.is_newly_idle = False
        if engine not in readiness.idle:
            continue
        heap = readiness.idle_heaps.setdefault(engine.agent, [])
        own = farm.agents.by_session[engine.agent].engines.values()
        if len(heap) > 2 * len(own) + _STALE_MAX:
            heap[:] = [_entry(farm, other) for other in own if other in readiness.idle]
            heapify(heap)
        heappush(heap, _entry(farm, engine))
    readiness.newly_idle.clear()


def _entry(farm: SchedulerState, engine: EngineEntry) -> IdleEntry:
    return *_least_recent(engine), farm.number(), engine


def first_idle(farm: SchedulerState, count: int) -> list[EngineEntry]:
    """Return the first `count` idle engines of the default order, without examining the others.

    The caller wakes them, so that none is found a second time.
    """
    if farm.readiness.newly_idle:
        _fill_heaps(farm)
    heads: list[tuple[bool, int, int, int, int, list[IdleEntry]]] = []
    for number, (session, heap) in enumerate(list(farm.readiness.idle_heaps.items())):
        agent = farm.agents.by_session.get(session)
        if agent is None or not _has_idle(farm, heap, {}):
            del farm.readiness.idle_heaps[session]
        else:
            heads.append((heap[0][0], -agent.priority, 0, agent.last_batch, number, heap))
    heapify(heads)
    chosen: dict[EngineEntry, None] = {}
    while heads and len(chosen) < count:
        _, priority, place, last_batch, number, heap = heads[0]
        chosen[heappop(heap)[-1]] = None
        if _has_idle(farm, heap, chosen):
            heapreplace(heads, (heap[0][0], priority, place + 1, last_batch, number, heap))
        else:
            heappop(heads)
    return list(chosen)


def _has_idle(farm: SchedulerState, heap: list[IdleEntry], chosen: dict[EngineEntry, None]) -> bool:
    """Drop outdated entries from a heap, and return whether an idle engine is left, which is then the first."""
    while heap:
        prepared, last_batch, _, _, engine = heap[0]
        if (
            engine in farm.readiness.idle
            and engine not in chosen
            and (prepared, last_batch) == _least_recent(engine)[:2]
        ):
            return True
        heappop(heap)
    return False


def better_engine(farm: SchedulerState, engine: EngineEntry, task_class: TaskClass) -> EngineEntry:
    """Return the free engine that takes this class's head instead of `engine`; it may be `engine`."""
    requirements = task_class.key.requirements
    placement = (requirements.placement if requirements is not None else None) or farm.settings.placement
    locality = requirements.locality if requirements is not None else None
    if placement == "default" and locality is None:
        return engine
    free = [
        other
        for other in (engine, *farm.readiness.candidates, *farm.readiness.idle)
        if _is_free(farm, other, engine, task_class)
    ]
    if locality is not None:
        best = max(farm.functions.score_of(other, locality) for other in free)
        free = [other for other in free if farm.functions.score_of(other, locality) == best]
    if task_class.environment is not None and any(other.environment is not None for other in free):
        free = [other for other in free if other.environment is not None]
    return _RANKS[placement](farm, task_class, free)


def _is_free(farm: SchedulerState, other: EngineEntry, engine: EngineEntry, task_class: TaskClass) -> bool:
    if other is engine:
        return True
    agent = farm.agents.by_session.get(other.agent)
    return (
        not other.assigned
        and not other.retiring
        and agent is not None
        and agent.accepts_tasks
        and (not task_class.restricted or other in task_class.eligible)
        and serves_environment(other, task_class.environment)
        and gate_for(farm, agent, task_class.key) is None
    )


def _default(farm: SchedulerState, task_class: TaskClass, free: list[EngineEntry]) -> EngineEntry:
    return in_default_order(farm, free)[0]


def _priority(farm: SchedulerState, task_class: TaskClass, free: list[EngineEntry]) -> EngineEntry:
    return min(free, key=lambda e: (-_agent(farm, e).priority, e.id))


def _random(farm: SchedulerState, task_class: TaskClass, free: list[EngineEntry]) -> EngineEntry:
    # A linear congruential generator (Knuth's MMIX): it need only be even and repeatable.
    readiness = farm.readiness
    readiness.random_state = (readiness.random_state * 6364136223846793005 + 1442695040888963407) % 2**64
    return sorted(free, key=lambda e: e.id)[(readiness.random_state >> 33) % len(free)]


def _nearest(farm: SchedulerState, task_class: TaskClass, free: list[EngineEntry]) -> EngineEntry:
    if task_class.environment is None:
        return _default(farm, task_class, free)
    there: dict[str, int] = {}
    for engine in farm.environments.uses[task_class.environment].engines:
        there[engine.agent] = there.get(engine.agent, 0) + 1
    most = max(there.get(engine.agent, 0) for engine in free)
    return _default(farm, task_class, [engine for engine in free if there.get(engine.agent, 0) == most])


def _agent(farm: SchedulerState, engine: EngineEntry) -> AgentEntry:
    return farm.agents.by_session[engine.agent]


_RANKS: dict[str, _Rank] = {
    "default": _default,
    "priority": _priority,
    "least_recent": lambda farm, task_class, free: min(free, key=lambda e: (e.last_batch, e.id)),
    "most_recent": lambda farm, task_class, free: max(free, key=lambda e: (e.last_batch, -e.id)),
    "random": _random,
    "nearest_environment": _nearest,
}
