"""What changes from moment to moment: resources, limits, load.  May a task of this class start on this node now?

What a run takes of its node is its `Claim`, made when it is handed out and given back when it is answered.  A class
that finds its gate closed is *parked*, with the node or with its group, and announced again when something changes
there; so it delays nobody, and nobody looks at it in vain.  One that has waited too long for room is not passed over
any longer: one node *reserves* for it and starts nothing that stands after it (an exclusive task: at once).
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from .demands import (
    CHANGING,
    CORES,
    FREE_CORES,
    FREE_DISK,
    FREE_MEMORY,
    GPU,
    LOAD,
    TIME_LEFT,
    Asks,
    amount,
    unmet,
)
from .eligibility import announce, announce_to, wake
from .farm import Agent, Claim, Engine, Farm, Group, Now
from .messages import Demand, Granted
from .parcels import RunKey
from .queue import TaskClass
from .task import DEFAULT_RULES, Task

_DUST = 1e-9
"""Sums of fractions are not exact."""


class Closed(NamedTuple):
    """A gate that does not open now."""

    why: str
    by_group: bool = False
    """It opens when fewer of the group run, wherever."""
    for_room: bool = False
    """It opens when there is more room on the node."""
    for_time: bool = False
    """It does not open again."""


def gate(farm: Farm, agent: Agent, key_asks: Asks | None, limit_s: float | None = None) -> Closed | None:
    """Why a task that asks for this may not start on this node now; None: it may.  limit_s: its time limit."""
    if agent.exclusive is not None:
        return Closed(f"task {agent.exclusive[0]} has {agent.node} to itself")
    if key_asks is None or not key_asks.force:
        why = overload(farm, agent)
        if why:
            return Closed(why)
    if (late := too_late(farm, agent, limit_s)) != "":
        return Closed(late, for_time=True)
    if key_asks is None:
        return None
    for condition in key_asks.requires:
        if condition.name in CHANGING and (why := unmet(condition, changing(farm, agent))):
            return Closed(why)
    for want in key_asks.resources:
        if (free := _free(agent, want.name)) < want.least - _DUST:
            needed, there = amount(want.name, want.least), amount(want.name, free)
            return Closed(f"it needs {needed}; {agent.node} has {there} free", for_room=True)
    if key_asks.exclusive and any(engine.handed for engine in agent.engines.values()):
        return Closed(f"it needs {agent.node} to itself, and others run there", for_room=True)
    return _limit(farm, agent, key_asks)


def _limit(farm: Farm, agent: Agent, asks: Asks) -> Closed | None:
    group = farm.groups.get(asks.group) if asks.group is not None else None
    if group is None:
        return None
    if asks.max_parallel is not None and group.running >= asks.max_parallel:
        return Closed(f"{group.running} of group {asks.group!r} run, and max_parallel is {asks.max_parallel}", True)
    here = group.on.get(agent.session, 0)
    most = asks.max_parallel_per_node
    if most is not None and here >= most:
        return Closed(f"{here} of group {asks.group!r} run on {agent.node}, and max_parallel_per_node is {most}")
    return None


def overload(farm: Farm, agent: Agent) -> str:
    """The load guard's word: why nothing is started there; "" if it may be."""
    state, settings = agent.state, farm.settings
    if state is None:
        return ""
    if settings.load_limit is not None and state.load > settings.load_limit:
        return f"the load guard: {state.load:.0%} of {agent.node}'s cores are busy, more than {settings.load_limit:.0%}"
    if settings.free_memory_limit is not None and state.free_memory < settings.free_memory_limit:
        return (
            f"the load guard: {state.free_memory / 2**20:,.0f} MiB of memory are free on {agent.node}, less than "
            f"{settings.free_memory_limit / 2**20:,.0f}"
        )
    return ""


def too_late(farm: Farm, agent: Agent, limit_s: float | None) -> str:
    """Why a task that may take so long is not started on this node any more; "": it would have the time."""
    if limit_s is None or agent.ends_s is None or farm.mono_s + limit_s <= agent.ends_s:
        return ""
    left_s = max(0.0, agent.ends_s - farm.mono_s)
    return f"its time limit is {limit_s:g} s, and the agent on {agent.node} has {left_s:.0f} s left"


def changing(farm: Farm, agent: Agent) -> dict[str, float]:
    """The facts of a node that change by themselves."""
    left_s = inf if agent.ends_s is None else max(0.0, agent.ends_s - farm.mono_s)
    found: dict[str, float] = {FREE_CORES: _free(agent, CORES), TIME_LEFT: left_s}
    if agent.state is not None:
        found[LOAD] = agent.state.load
        found[FREE_MEMORY] = agent.state.free_memory
        found[FREE_DISK] = agent.state.free_disk
    return found


def _free(agent: Agent, name: str) -> float:
    return agent.capacity.get(name, 0.0) - agent.used.get(name, 0.0)


# -- claims


def claim(farm: Farm, agent: Agent, task: Task, run: RunKey) -> Claim | None:
    """What this task takes from now on; None: nothing that is counted.  Its gate was found open."""
    asks = (task.rules or DEFAULT_RULES).asks
    if asks is None or not asks.gated:
        return None
    made = Claim(exclusive=asks.exclusive, group=asks.group)
    for want in asks.resources:
        made.amounts[want.name] = max(want.least, min(want.most, _free(agent, want.name)))
    _take(farm, agent, made, run)
    return made


def _take(farm: Farm, agent: Agent, made: Claim, run: RunKey) -> None:
    for name, value in made.amounts.items():
        agent.used[name] = agent.used.get(name, 0.0) + value
    made.gpus = _devices(agent, made)
    if made.exclusive:
        agent.exclusive = run
    if made.group is not None:
        group = farm.groups.setdefault(made.group, Group())
        group.running += 1
        group.on[agent.session] = group.on.get(agent.session, 0) + 1


def _devices(agent: Agent, made: Claim) -> tuple[str, ...]:
    """As many of the node's GPUs as it was allotted, those that it has already first; they are from now on in use."""
    count = int(made.amounts.get(GPU, 0) + _DUST)
    if not count:
        return ()
    free = [name for name in agent.gpus if name not in agent.gpus_used]
    chosen = tuple([*made.gpus, *free][:count])
    agent.gpus_used.update(chosen)
    return chosen


def release_claim(farm: Farm, agent: Agent | None, session: str, made: Claim, run: RunKey) -> None:
    """The run has been answered, or is lost."""
    if made.group is not None and (group := farm.groups.get(made.group)) is not None:
        group.running -= 1
        group.on[session] -= 1
        parked, group.parked = group.parked, {}
        for task_class in parked:
            announce(farm, task_class)
        if not group.running and not group.parked:
            del farm.groups[made.group]
    if agent is None:
        return
    _give_back(agent, made)
    if agent.exclusive == run:
        agent.exclusive = None
    farm.freed[agent.session] = None


def _give_back(agent: Agent, made: Claim) -> None:
    for name, value in made.amounts.items():
        left = agent.used.get(name, 0.0) - value
        if left > _DUST:
            agent.used[name] = left
        else:
            agent.used.pop(name, None)
    agent.gpus_used.difference_update(made.gpus)


def adopt_claim(farm: Farm, agent: Agent, made: Claim, amounts: dict[str, float], gpus: tuple[str, ...]) -> None:
    """An agent says what a run of the controller's life before holds."""
    _give_back(agent, made)
    made.amounts, made.gpus = dict(amounts), gpus
    for name, value in amounts.items():
        agent.used[name] = agent.used.get(name, 0.0) + value
    agent.gpus_used.update(gpus)


# -- a running task yields and takes


def answer_demand(farm: Farm, agent: Agent, engine: Engine, demand: Demand) -> Granted | None:
    """What a running task holds from now on; None: it has to wait for more."""
    handing = engine.handed[demand.run]
    made = handing.claim or Claim()
    for name, value in demand.amounts.items():
        if agent.capacity.get(name, 0.0) < value - _DUST:
            text = (
                f"{amount(name, value)} were asked for, and {agent.node} has {agent.capacity.get(name, 0.0):g} in all"
            )
            return Granted(engine.name, demand.run, demand.n, made.allotment, text)
        if _free(agent, name) + made.amounts.get(name, 0.0) < value - _DUST:
            return None
    _give_back(agent, made)
    made.amounts = {name: value for name, value in demand.amounts.items() if value > 0}
    for name, value in made.amounts.items():
        agent.used[name] = agent.used.get(name, 0.0) + value
    made.gpus = _devices(agent, made)
    handing.claim = made
    farm.freed[agent.session] = None
    return Granted(engine.name, demand.run, demand.n, made.allotment)


# -- parking


def park(farm: Farm, agent: Agent, task_class: TaskClass, closed: Closed) -> None:
    """It need not be looked at again before something has changed."""
    if closed.for_time:
        for engine in agent.engines.values():
            task_class.eligible.pop(engine, None)
        return
    group = _group_of(farm, task_class) if closed.by_group else None
    if group is not None:
        group.parked[task_class] = None
    else:
        agent.parked[task_class] = None


def _group_of(farm: Farm, task_class: TaskClass) -> Group | None:
    asks = task_class.key.asks
    return farm.groups.get(asks.group) if asks is not None and asks.group is not None else None


def look_again(farm: Farm) -> None:
    """Where something has changed: what is parked there is announced, engines that could start nothing are woken."""
    for session in farm.freed:
        agent = farm.agents.get(session)
        if agent is None:
            continue
        agent.reserving = False
        parked, agent.parked = agent.parked, {}
        for task_class in parked:
            for engine in agent.engines.values():
                if engine in task_class.eligible:
                    announce_to(farm, task_class, engine)
        for engine in agent.engines.values():
            if engine in farm.barred or engine in farm.waiting:
                wake(farm, engine)
    farm.freed.clear()


def reserves(farm: Farm, agent: Agent, task_class: TaskClass, closed: Closed, now: Now) -> bool:
    """Whether this node keeps what becomes free for this class's head, and starts nothing that stands after it."""
    if not closed.for_room:
        return False
    first = task_class.first()
    asks = task_class.key.asks
    if first is None or asks is None:
        return False
    patience_s = 0.0 if asks.exclusive else farm.settings.resource_patience_s
    if now.wall_s - first.submitted_s < patience_s:
        return False
    other = farm.agents.get(task_class.reserved_by or "")
    if other is not None and other is not agent and other.able and other.engines:
        return False
    task_class.reserved_by = agent.session
    agent.reserving = True
    return True
