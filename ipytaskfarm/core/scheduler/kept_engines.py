"""Engines beyond the wanted number.

Surplus ones finish their runs and end, or are taken back if more are wanted again.  Additional ones are kept for the
next nested wait.

A new engine imports everything anew, which takes seconds with a large library.  So when a nested wait ends, its
additional engine is *kept*: it gets no more tasks and commands, and is shown as stopping, until the next wait on its
node puts it to work again.  There are never more engines than there were during the waits: a wait takes a kept place
before it adds one.
"""

from __future__ import annotations

from itertools import count, islice

from .agent_entry import AgentEntry
from .decision import Decision
from .engine_shutdown import retire
from .entries import EngineEntry, EngineState
from .state import SchedulerState

KEPT = "it is kept for tasks that wait for others, and gets no tasks"
KEPT_S = 10.0
"""How long an additional engine is kept: longer than the steps between the nested waits of one computation."""


def add_place(farm: SchedulerState, session: str) -> None:
    """Keep the place of an additional engine on a node, because a nested wait is over."""
    farm.nested_waits.kept_places.setdefault(session, []).append(farm.mono_s + KEPT_S)
    _set_timer(farm)


def take_place(farm: SchedulerState, session: str) -> bool:
    """Return whether a new nested wait takes a kept place on its node; its engine, if it is there, is put to work."""
    places = farm.nested_waits.kept_places.get(session)
    if not places:
        return False
    places.pop()
    if not places:
        del farm.nested_waits.kept_places[session]
    agent = farm.agents.by_session.get(session)
    kept = kept_on(agent) if agent is not None else []
    if not kept:
        return False
    _resume(farm, min(kept, key=lambda engine: (engine.state != EngineState.UP, bool(engine.assigned), engine.id)))
    return True


def _resume(farm: SchedulerState, engine: EngineEntry) -> None:
    engine.kept = engine.surplus = engine.retiring = False
    if engine.state == EngineState.UP:
        farm.readiness.wake(engine)


def kept_on(agent: AgentEntry) -> list[EngineEntry]:
    return [engine for engine in agent.engines.values() if engine.kept]


def count_kept(farm: SchedulerState, agent: AgentEntry) -> int:
    """Return the number of kept engines of an agent, without a look at the engines if it has no kept places."""
    return len(kept_on(agent)) if agent.session in farm.nested_waits.kept_places else 0


def retire_surplus(farm: SchedulerState, out: Decision) -> None:
    """Keep or retire engines if there are more than wanted: of two with one id the idle one, then the highest ids.

    Two engines have one id if a controller that did not know of the first one had its place filled."""
    shared: list[EngineEntry] = []
    lent = 0
    for agent in farm.agents.by_session.values():
        if agent.brings is not None:
            places = agent.brings + farm.nested_waits.lent_slots.get(agent.session, 0)
            if len(agent.engines) > places:
                _retire_beyond(farm, [e for e in agent.engines.values() if e.counts_as_wanted], places, out)
        else:
            lent += farm.nested_waits.lent_slots.get(agent.session, 0)
            shared += [engine for engine in agent.engines.values() if engine.counts_as_wanted]
    _retire_beyond(farm, shared, farm.lifecycle.wanted + lent, out)


def _retire_beyond(farm: SchedulerState, staying: list[EngineEntry], places: int, out: Decision) -> None:
    if places < len(staying):
        staying.sort(key=lambda engine: (engine.id, engine.state != EngineState.UP, not engine.assigned))
        ids = set[int]()
        first, second = list[EngineEntry](), list[EngineEntry]()
        for engine in staying:
            (second if engine.id in ids else first).append(engine)
            ids.add(engine.id)
        for engine in (*first, *second)[places:]:
            _keep_or_retire(farm, engine, out)


def _keep_or_retire(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    agent = farm.agents.by_session.get(engine.agent)
    kept_places = farm.nested_waits.kept_places.get(engine.agent, ())
    if agent is None or engine.retiring or count_kept(farm, agent) >= len(kept_places):
        _retire(farm, engine, out)
    else:
        engine.kept = engine.retiring = True
        farm.readiness.withdraw(engine)


def _retire(farm: SchedulerState, engine: EngineEntry, out: Decision) -> None:
    if not any(other.counts_as_wanted for other in farm.engines.by_id.get(engine.id, ()) if other is not engine):
        farm.requests.forget_kept([engine.id], out)
    retire(farm, engine, out)
    engine.surplus = True


def take_back(farm: SchedulerState) -> None:
    """Put surplus engines that have not ended yet to work again, if new ones would have their ids otherwise.

    They finish their runs first, which may take long, and nobody could have their ids meanwhile.
    """
    agents = farm.agents.by_session
    surplus = {
        engine.id: engine
        for engine in farm.engines.by_name.values()
        if engine.surplus and engine.state != EngineState.STOPPING and _may_serve(agents.get(engine.agent))
    }
    if not surplus:
        return
    used = {engine.id for engine in farm.engines.by_name.values() if engine.counts_as_wanted}
    used.update(engine_id for agent in agents.values() for engine_id in agent.starting)
    for engine_id in islice((i for i in count() if i not in used), count_missing(farm)):
        if engine_id in surplus:
            _resume(farm, surplus[engine_id])


def count_missing(farm: SchedulerState) -> int:
    """Return how many of the engines that are wanted anywhere are neither there nor starting."""
    missing = farm.lifecycle.wanted
    for agent in farm.agents.by_session.values():
        if agent.brings is None:
            missing += farm.nested_waits.lent_slots.get(agent.session, 0) - len(agent.starting)
            missing -= sum(1 for engine in agent.engines.values() if engine.counts_as_wanted)
    return max(0, missing)


def _may_serve(agent: AgentEntry | None) -> bool:
    return agent is not None and agent.accepts_tasks and agent.brings is None


def end_kept(farm: SchedulerState, out: Decision) -> None:
    """Retire the engines that were kept for long enough; the timer of `add_place`."""
    farm.nested_waits.kept_timer = False
    places = farm.nested_waits.kept_places
    for session in list(places):
        places[session] = [until_s for until_s in places[session] if until_s > farm.mono_s]
        if not places[session]:
            del places[session]
    _retire_kept_beyond_places(farm, out)
    _set_timer(farm)


def drop_kept(farm: SchedulerState, out: Decision) -> None:
    """Retire all kept engines at once: fewer engines are wanted, or a sticky command would have to reach them."""
    farm.nested_waits.kept_places.clear()
    _retire_kept_beyond_places(farm, out)


def _retire_kept_beyond_places(farm: SchedulerState, out: Decision) -> None:
    for agent in farm.agents.by_session.values():
        kept = sorted(kept_on(agent), key=lambda engine: (bool(engine.assigned), engine.id))
        for engine in kept[len(farm.nested_waits.kept_places.get(agent.session, ())) :]:
            _retire(farm, engine, out)


def _set_timer(farm: SchedulerState) -> None:
    """Set one timer for all places: nested waits may end thousands of times while a place is kept."""
    waits = farm.nested_waits
    if waits.kept_places and not waits.kept_timer:
        waits.kept_timer = True
        farm.timers.set(min(places[0] for places in waits.kept_places.values()), "kept")


def check_kept_engines(farm: SchedulerState) -> None:
    """Check the invariants of kept engines between two turns.

    Raises:
        AssertionError: one is broken.
    """
    waits = farm.nested_waits
    assert not waits.kept_places or waits.kept_timer, "kept engines never end"
    for agent in farm.agents.by_session.values():
        kept, places = kept_on(agent), waits.kept_places.get(agent.session, [])
        assert all(engine.retiring and not engine.recycled for engine in kept), f"kept engines on {agent.node} work"
        assert len(kept) <= len(places), f"{len(kept)} engines of {agent.node} are kept for {len(places)} places"
        assert places == sorted(places), "kept places are out of order"
