"""How many engines there may be, and on which nodes.

The farm's owner wants a number of engines (`Lifecycle.wanted`), which are spread over the agents that came without a
number of their own. An agent that *brings* engines (`AgentEntry.brings`) is filled up to that number while it is
present.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace

from .agent_entry import AgentEntry
from .kept_engines import count_kept, count_missing
from .state import SchedulerState

MANY = 1 << 30
"""More engines than any node has."""


def room_on(farm: SchedulerState, agent: AgentEntry) -> int:
    """Return how many more engines an agent may have.  Each slot that a waiting run lends counts as one more.

    Kept engines take no room: they are within the number that there was during a wait.
    """
    if not agent.accepts_tasks or farm.mono_s < agent.start_after_s:
        return 0
    slots = agent.slots if agent.brings is None else agent.brings
    if slots is None:
        return MANY
    slots += farm.nested_waits.lent_slots.get(agent.session, 0)
    return max(0, slots - len(agent.engines) + count_kept(farm, agent) - len(agent.starting))


def free_slots(farm: SchedulerState) -> int:
    """Return how many slots hold no engine and could."""
    shared, brought = _free(farm)
    return shared + brought


def _free(farm: SchedulerState) -> tuple[int, int]:
    """Return two numbers of free slots: those for engines wanted anywhere, and those of agents that bring engines."""
    shared = brought = 0
    for agent in farm.agents.by_session.values():
        if agent.brings is not None:
            brought += room_on(farm, agent)
        else:
            shared += room_on(farm, agent)
    return min(count_missing(farm), shared), brought


def slots_to_fill(farm: SchedulerState) -> int:
    """Return how many free slots get an engine now: all, or as many as are kept warm or have waiting tasks."""
    free = free_slots(farm)
    warm = farm.settings.warm
    if warm is None or not free:
        return free
    starting = sum(len(agent.starting) for agent in farm.agents.by_session.values())
    blank = sum(1 for e in farm.engines.by_name.values() if e.environment is None and not e.assigned and not e.retiring)
    return min(free, max(warm - blank - starting, farm.queues.size - blank - starting, 0))


def nodes_to_fill(farm: SchedulerState) -> Iterator[AgentEntry]:
    """Yield an agent for each of `slots_to_fill`: the one with the fewest engines for its cores."""
    shared, _ = _free(farm)
    heap: list[tuple[float, int, int, int, AgentEntry]] = []
    for number, agent in enumerate(farm.agents.by_session.values()):
        if room := room_on(farm, agent):
            # An additional engine belongs to the node on which a slot is lent.
            extra = farm.nested_waits.lent_slots.get(agent.session, 0) + count_kept(farm, agent)
            load = len(agent.engines) + len(agent.starting) - extra
            heap.append((load / max(1, agent.cores), number, load, room, agent))
    heapify(heap)
    for _ in range(slots_to_fill(farm)):
        while heap and heap[0][4].brings is None and not shared:
            heappop(heap)
        if not heap:
            return
        _, number, load, room, agent = heap[0]
        shared -= agent.brings is None
        if room > 1:
            heapreplace(heap, ((load + 1) / max(1, agent.cores), number, load + 1, room - 1, agent))
        else:
            heappop(heap)
        yield agent
