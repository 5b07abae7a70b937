"""Which of several free engines a task takes.

default             agents of the highest priority, in turns; of an agent's engines the least recently used, blank ones
                    before those that have an environment
priority            agents of the highest priority, then the lowest engine id
least_recent        the engine that was given its last task the longest ago, wherever
most_recent         the other way round: the others may rest, and be recycled
random              seeded
nearest_environment on the node where most engines have the task's environment: what it left there is near

Whatever is chosen, an engine that has the task's environment comes before one that would have to be set up, and a
locality function's word before all.  The default way costs nothing per engine; the others look at all free ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace

from .eligibility import score_of
from .farm import Agent, Engine, Farm, IdleEntry
from .gates import gate
from .queue import TaskClass, serves_environment

PLACEMENTS = ("default", "priority", "least_recent", "most_recent", "random", "nearest_environment")

_STALE_MAX = 16
"""Beside one for each engine, so many entries of engines that have worked since they were noted are kept."""

_Rank = Callable[[Farm, TaskClass, list[Engine]], Engine]


def in_turns(farm: Farm, engines: Iterable[Engine]) -> list[Engine]:
    """Free engines in the default order."""
    by_agent: dict[str, list[Engine]] = {}
    for engine in engines:
        by_agent.setdefault(engine.agent, []).append(engine)
    if len(by_agent) == 1:
        return sorted(next(iter(by_agent.values())), key=_least_recent)
    ranked = [entry for session, own in by_agent.items() for entry in _ranked(farm, session, own)]
    ranked.sort(key=lambda entry: entry[:4])
    return [engine for *_, engine in ranked]


def _ranked(farm: Farm, session: str, engines: list[Engine]) -> Iterator[tuple[bool, int, int, int, Engine]]:
    agent = farm.agents.get(session)
    priority, given = (agent.priority, agent.given) if agent is not None else (0, 0)
    for place, engine in enumerate(sorted(engines, key=_least_recent)):
        yield engine.environment is not None, -priority, place, given, engine


def _least_recent(engine: Engine) -> tuple[bool, int, int]:
    return engine.environment is not None, engine.given, engine.id


def note_idle(farm: Farm, engine: Engine) -> None:
    """It has joined those that wait: `first_idle` finds it from now on."""
    heap = farm.idle.setdefault(engine.agent, [])
    own = farm.agents[engine.agent].engines.values()
    if len(heap) > 2 * len(own) + _STALE_MAX:
        heap[:] = [_entry(farm, other) for other in own if other in farm.waiting]
        heapify(heap)
    heappush(heap, _entry(farm, engine))


def _entry(farm: Farm, engine: Engine) -> IdleEntry:
    return *_least_recent(engine), farm.number(), engine


def first_idle(farm: Farm, count: int) -> list[Engine]:
    """So many of the engines that wait, those that `in_turns` puts first; no other is looked at.  They are to be woken:
    none of them is found a second time."""
    heads: list[tuple[bool, int, int, int, int, list[IdleEntry]]] = []
    for number, (session, heap) in enumerate(list(farm.idle.items())):
        agent = farm.agents.get(session)
        if agent is None or not _has_idle(farm, heap, {}):
            del farm.idle[session]
        else:
            heads.append((heap[0][0], -agent.priority, 0, agent.given, number, heap))
    heapify(heads)
    chosen: dict[Engine, None] = {}
    while heads and len(chosen) < count:
        _, priority, place, given, number, heap = heads[0]
        chosen[heappop(heap)[-1]] = None
        if _has_idle(farm, heap, chosen):
            heapreplace(heads, (heap[0][0], priority, place + 1, given, number, heap))
        else:
            heappop(heads)
    return list(chosen)


def _has_idle(farm: Farm, heap: list[IdleEntry], chosen: dict[Engine, None]) -> bool:
    """Whether there is another one, which then stands first: what has worked since it was noted is dropped."""
    while heap:
        prepared, given, _, _, engine = heap[0]
        if engine in farm.waiting and engine not in chosen and (prepared, given) == _least_recent(engine)[:2]:
            return True
        heappop(heap)
    return False


def better(farm: Farm, engine: Engine, task_class: TaskClass) -> Engine:
    """The free engine that this class's head takes, where `engine` was about to."""
    asks = task_class.key.asks
    placement = (asks.placement if asks is not None else None) or farm.settings.placement
    locality = asks.locality if asks is not None else None
    if placement == "default" and locality is None:
        return engine
    free = [other for other in (engine, *farm.hungry, *farm.waiting) if _is_free(farm, other, engine, task_class)]
    if locality is not None:
        best = max(score_of(farm, other, locality) for other in free)
        free = [other for other in free if score_of(farm, other, locality) == best]
    if task_class.environment is not None and any(other.environment is not None for other in free):
        free = [other for other in free if other.environment is not None]
    return _RANKS[placement](farm, task_class, free)


def _is_free(farm: Farm, other: Engine, engine: Engine, task_class: TaskClass) -> bool:
    if other is engine:
        return True
    agent = farm.agents.get(other.agent)
    return (
        not other.handed
        and not other.retiring
        and agent is not None
        and agent.able
        and (not task_class.restricted or other in task_class.eligible)
        and serves_environment(other, task_class.environment)
        and gate(farm, agent, task_class.key.asks, task_class.key.limit_s) is None
    )


def _default(farm: Farm, task_class: TaskClass, free: list[Engine]) -> Engine:
    return in_turns(farm, free)[0]


def _priority(farm: Farm, task_class: TaskClass, free: list[Engine]) -> Engine:
    return min(free, key=lambda e: (-_agent(farm, e).priority, e.id))


def _random(farm: Farm, task_class: TaskClass, free: list[Engine]) -> Engine:
    # A linear congruential generator (Knuth's MMIX): no more is asked of it than that it is even, and repeatable.
    farm.chance = (farm.chance * 6364136223846793005 + 1442695040888963407) % 2**64
    return sorted(free, key=lambda e: e.id)[(farm.chance >> 33) % len(free)]


def _nearest(farm: Farm, task_class: TaskClass, free: list[Engine]) -> Engine:
    if task_class.environment is None:
        return _default(farm, task_class, free)
    there: dict[str, int] = {}
    for engine in farm.environments[task_class.environment].engines:
        there[engine.agent] = there.get(engine.agent, 0) + 1
    most = max(there.get(engine.agent, 0) for engine in free)
    return _default(farm, task_class, [engine for engine in free if there.get(engine.agent, 0) == most])


def _agent(farm: Farm, engine: Engine) -> Agent:
    return farm.agents[engine.agent]


_RANKS: dict[str, _Rank] = {
    "default": _default,
    "priority": _priority,
    "least_recent": lambda farm, task_class, free: min(free, key=lambda e: (e.given, e.id)),
    "most_recent": lambda farm, task_class, free: max(free, key=lambda e: (e.given, -e.id)),
    "random": _random,
    "nearest_environment": _nearest,
}
