"""Admission: may a task of this class start on this node now? That depends on resources, limits and load.

A run takes resources of its node as its `Claim`, which is made when the run is assigned and given back when it is
answered. A class that may not start is *parked* with the node or with its group. It is announced again when something
changes there. So it delays no other class, and is not examined in vain. A class that has waited too long for resources
is no longer passed over: one node *reserves* its freed resources for the class, and starts nothing later than the
class's head (for an exclusive task: at once).
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from ..messages import Granted, ResourceRequest
from ..messages.task_types import RunKey
from ..requirements import (
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
from .agent_entry import AgentEntry
from .decision import Now
from .eligibility import announce, announce_to
from .entries import EngineEntry, TaskClass, TaskEntry
from .queue import ParallelGroup
from .running_tasks import Claim
from .state import SchedulerState
from .task import DEFAULT_RULES, ClassKey

_DUST = 1e-9
"""Sums of fractions are not exact; smaller differences are ignored."""


class Closed(NamedTuple):
    """The reason why a task may not start now."""

    why: str
    by_group: bool = False
    """Whether it may start when fewer tasks of the group run, on any node."""
    for_room: bool = False
    """Whether it may start when more resources are free on the node."""
    for_time: bool = False
    """Whether it may never start here, because too little of the agent's time is left."""


def gate(
    farm: SchedulerState, agent: AgentEntry, requirements: Asks | None, limit_s: float | None = None
) -> Closed | None:
    """Return the reason why a task with these requirements may not start on this node now; None if it may.

    `limit_s` is the task's time limit.
    """
    if agent.exclusive is not None:
        return Closed(f"task {agent.exclusive[0]} has {agent.node} to itself")
    if requirements is None or not requirements.force:
        why = overload(farm, agent)
        if why:
            return Closed(why)
    if (late := lacks_time(farm, agent, limit_s)) != "":
        return Closed(late, for_time=True)
    if requirements is None:
        return None
    for condition in requirements.requires:
        if condition.name in CHANGING and (why := unmet(condition, changing_facts(farm, agent))):
            return Closed(why)
    for want in requirements.resources:
        if (free := _free(agent, want.name)) < want.least - _DUST:
            needed, there = amount(want.name, want.least), amount(want.name, free)
            return Closed(f"it needs {needed}; {agent.node} has {there} free", for_room=True)
    if requirements.exclusive and any(engine.assigned for engine in agent.engines.values()):
        return Closed(f"it needs {agent.node} to itself, and others run there", for_room=True)
    return _limit(farm, agent, requirements)


def gate_for(farm: SchedulerState, agent: AgentEntry, key: ClassKey) -> Closed | None:
    """Return the reason why a task of this class may not start on this node now; None if it may."""
    return gate(farm, agent, key.requirements, key.limit_s)


def _limit(farm: SchedulerState, agent: AgentEntry, requirements: Asks) -> Closed | None:
    group = farm.limits.groups.get(requirements.group) if requirements.group is not None else None
    if group is None:
        return None
    if requirements.max_parallel is not None and group.running >= requirements.max_parallel:
        return Closed(
            f"{group.running} of group {requirements.group!r} run, and max_parallel is {requirements.max_parallel}",
            True,
        )
    here = group.per_agent.get(agent.session, 0)
    most = requirements.max_parallel_per_node
    if most is not None and here >= most:
        return Closed(
            f"{here} of group {requirements.group!r} run on {agent.node}, and max_parallel_per_node is {most}"
        )
    return None


def overload(farm: SchedulerState, agent: AgentEntry) -> str:
    """Return the reason why the load guard lets nothing start on a node; "" if it does."""
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


def lacks_time(farm: SchedulerState, agent: AgentEntry, limit_s: float | None) -> str:
    """Return the reason why a task that may take `limit_s` is not started on this node any more; "" if
    there is time.
    """
    if limit_s is None or agent.ends_s is None or farm.mono_s + limit_s <= agent.ends_s:
        return ""
    left_s = max(0.0, agent.ends_s - farm.mono_s)
    return f"its time limit is {limit_s:g} s, and the agent on {agent.node} has {left_s:.0f} s left"


def changing_facts(farm: SchedulerState, agent: AgentEntry) -> dict[str, float]:
    """Return the facts of a node that change by themselves."""
    left_s = inf if agent.ends_s is None else max(0.0, agent.ends_s - farm.mono_s)
    found: dict[str, float] = {FREE_CORES: _free(agent, CORES), TIME_LEFT: left_s}
    if agent.state is not None:
        found[LOAD] = agent.state.load
        found[FREE_MEMORY] = agent.state.free_memory
        found[FREE_DISK] = agent.state.free_disk
    return found


def _free(agent: AgentEntry, name: str) -> float:
    return agent.capacity.get(name, 0.0) - agent.used.get(name, 0.0)


# -- claims


def claim(farm: SchedulerState, agent: AgentEntry, task: TaskEntry, run: RunKey) -> Claim | None:
    """Take the resources that a task needs from its node, and return the claim; None if it needs nothing that is
    counted.

    The task was admitted before (`gate`).
    """
    requirements = (task.rules or DEFAULT_RULES).asks
    if requirements is None or not requirements.gated:
        return None
    made = Claim(exclusive=requirements.exclusive, group=requirements.group)
    for want in requirements.resources:
        made.amounts[want.name] = max(want.least, min(want.most, _free(agent, want.name)))
    _take(farm, agent, made, run)
    return made


def _take(farm: SchedulerState, agent: AgentEntry, made: Claim, run: RunKey) -> None:
    for name, value in made.amounts.items():
        agent.used[name] = agent.used.get(name, 0.0) + value
    made.gpus = _allot_gpus(agent, made)
    if made.exclusive:
        agent.exclusive = run
    if made.group is not None:
        group = farm.limits.groups.setdefault(made.group, ParallelGroup())
        group.running += 1
        group.per_agent[agent.session] = group.per_agent.get(agent.session, 0) + 1


def _allot_gpus(agent: AgentEntry, made: Claim) -> tuple[str, ...]:
    """Mark as many of the node's GPUs as the claim counts as used, first those that it has already, and return them."""
    count = int(made.amounts.get(GPU, 0) + _DUST)
    if not count:
        return ()
    free = [name for name in agent.gpus if name not in agent.gpus_used]
    chosen = tuple([*made.gpus, *free][:count])
    agent.gpus_used.update(chosen)
    return chosen


def release_claim(farm: SchedulerState, agent: AgentEntry | None, session: str, made: Claim, run: RunKey) -> None:
    """Give back the resources of a run that was answered or lost."""
    if made.group is not None and (group := farm.limits.groups.get(made.group)) is not None:
        group.running -= 1
        group.per_agent[session] -= 1
        parked, group.parked = group.parked, {}
        for task_class in parked:
            announce(farm, task_class)
        if not group.running and not group.parked:
            del farm.limits.groups[made.group]
    if agent is None:
        return
    _free_resources(agent, made)
    if agent.exclusive == run:
        agent.exclusive = None
    farm.agents.changed[agent.session] = None


def _free_resources(agent: AgentEntry, made: Claim) -> None:
    for name, value in made.amounts.items():
        left = agent.used.get(name, 0.0) - value
        if left > _DUST:
            agent.used[name] = left
        else:
            agent.used.pop(name, None)
    agent.gpus_used.difference_update(made.gpus)


def adopt_claim(
    farm: SchedulerState, agent: AgentEntry, made: Claim, amounts: dict[str, float], gpus: tuple[str, ...]
) -> None:
    """Replace a claim with the resources that an agent reports for a run from before the controller's restart."""
    _free_resources(agent, made)
    made.amounts, made.gpus = dict(amounts), gpus
    for name, value in amounts.items():
        agent.used[name] = agent.used.get(name, 0.0) + value
    agent.gpus_used.update(gpus)


# -- running tasks that request other resources


def answer_resource_request(
    farm: SchedulerState, agent: AgentEntry, engine: EngineEntry, request: ResourceRequest
) -> Granted | None:
    """Change a running task's resources to what it requests; None if it must wait for more."""
    assigned = engine.assigned[request.run]
    made = assigned.claim or Claim()
    for name, value in request.amounts.items():
        if agent.capacity.get(name, 0.0) < value - _DUST:
            text = (
                f"{amount(name, value)} were asked for, and {agent.node} has {agent.capacity.get(name, 0.0):g} in all"
            )
            return Granted(engine.name, request.run, request.n, made.allotment, text)
        if _free(agent, name) + made.amounts.get(name, 0.0) < value - _DUST:
            return None
    _free_resources(agent, made)
    made.amounts = {name: value for name, value in request.amounts.items() if value > 0}
    for name, value in made.amounts.items():
        agent.used[name] = agent.used.get(name, 0.0) + value
    made.gpus = _allot_gpus(agent, made)
    assigned.claim = made
    farm.agents.changed[agent.session] = None
    return Granted(engine.name, request.run, request.n, made.allotment)


# -- parking


def park(farm: SchedulerState, agent: AgentEntry, task_class: TaskClass, closed: Closed) -> None:
    """Set a class aside until something has changed."""
    if closed.for_time:
        for engine in agent.engines.values():
            task_class.eligible.pop(engine, None)
        return
    group = _group_of(farm, task_class) if closed.by_group else None
    if group is not None:
        group.parked[task_class] = None
    else:
        agent.parked[task_class] = None


def _group_of(farm: SchedulerState, task_class: TaskClass) -> ParallelGroup | None:
    requirements = task_class.key.requirements
    return (
        farm.limits.groups.get(requirements.group)
        if requirements is not None and requirements.group is not None
        else None
    )


def announce_parked(farm: SchedulerState) -> None:
    """Announce the classes that are parked on nodes where something has changed, and wake the engines there."""
    readiness = farm.readiness
    for session in farm.agents.changed:
        agent = farm.agents.by_session.get(session)
        if agent is None:
            continue
        agent.reserving = False
        parked, agent.parked = agent.parked, {}
        for task_class in parked:
            for engine in agent.engines.values():
                if engine in task_class.eligible:
                    announce_to(farm, task_class, engine)
        for engine in agent.engines.values():
            if engine in readiness.blocked or engine in readiness.idle:
                readiness.wake(engine)
    farm.agents.changed.clear()


def reserves(farm: SchedulerState, agent: AgentEntry, task_class: TaskClass, closed: Closed, now: Now) -> bool:
    """Return whether a node keeps freed resources for this class's head, and starts nothing later."""
    if not closed.for_room:
        return False
    first = task_class.first()
    requirements = task_class.key.requirements
    if first is None or requirements is None:
        return False
    patience_s = 0.0 if requirements.exclusive else farm.settings.resource_patience_s
    if now.since_s(first.submitted_s) < patience_s:
        return False
    other = farm.agents.by_session.get(task_class.reserved_by or "")
    if other is not None and other is not agent and other.accepts_tasks and other.engines:
        return False
    task_class.reserved_by = agent.session
    agent.reserving = True
    return True
