"""An agent and its node as the scheduler knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from ..messages import AgentProcess, NodeState, ResourceRequest
from ..messages.task_types import Incarnation, RunKey
from .decision import NEAR_S, Now
from .entries import EngineEntry, TaskClass

TaskKind: TypeAlias = tuple[str | None, tuple[int, ...] | None]
"""(depend, targets) of a task: the part of its class that identifies its kind."""
Charge: TypeAlias = Literal["error", "loss", "error and loss"]
"""What a failed attempt cost its task."""


def skew_of(node_s: float, own_s: float) -> float:
    """Return how far a node's clock is ahead of the controller's; 0.0: it is near, or unknown (`node_s` is 0).

    The way of a message explains less than `NEAR_S`, which does less harm.
    """
    ahead_s = node_s - own_s
    return ahead_s if node_s and abs(ahead_s) > NEAR_S else 0.0


LATE_S = 30.0
"""A report that is so much older than those before it was late, unless it stays so for `SETTLE_S`."""
SETTLE_S = 20.0
"""Longer than the interval of an agent's reports: after a cut the last of those that come together is not late."""


def note_clock(agent: AgentEntry, wall_s: float, now: Now) -> None:
    """Note how far a node's clock is ahead, from the time of a report; it may be set while the agent runs.

    A report takes time, which looks like a clock that is behind, but never like one that is ahead.
    """
    if not wall_s:
        return
    ahead_s = wall_s - now.wall_s
    if agent.clock_ahead_s is not None and ahead_s < agent.clock_ahead_s - LATE_S:
        if agent.behind_since_s is None:
            agent.behind_since_s = now.mono_s
        if now.mono_s - agent.behind_since_s < SETTLE_S:
            return
    agent.behind_since_s = None
    agent.clock_ahead_s = ahead_s
    agent.skew_s = skew_of(wall_s, now.wall_s)


class FailedAttempt(NamedTuple):
    """One failed attempt on a node, as `AgentEntry.failures` remembers it."""

    task: int
    recovery: int
    """The number of the task's recovery so far: the next recovery task has a budget of its own."""
    kind: TaskKind
    charge: Charge


@dataclass(slots=True)
class AgentEntry:
    """One session of an agent."""

    session: str
    node: str
    pid: int = 0
    process: AgentProcess | None = None
    """The agent's process, as it is stored. None: the agent does not say."""
    gone: str = ""
    """Why the agent will never be heard again, if that is known; an agent in its folder may report on its engines."""
    cores: int = 1
    memory_bytes: int = 0
    platform: str = ""
    python: str = ""
    slots: int | None = None
    """The largest number of engines; None for any number."""
    name: str = ""
    """The name by which the agent's launcher knows it; "" if no launcher placed it."""
    brings: int | None = None
    """Engines that the agent brings in addition to those that the farm wants. None: it takes its share of those."""
    ends_s: float | None = None
    """The monotonic time at which the agent's time is over, if that is limited."""
    former: frozenset[str] = frozenset()
    """Sessions of dead agents in whose folder this agent runs: it reports for their engines."""
    present: bool = True
    """Whether the agent has reported and has not left."""
    reachable: bool = True
    rejoining: bool = False
    """Whether its session has started again, and its report of what its engines hold is still to come."""
    starting: dict[int, float] = field(default_factory=dict)
    """Engine id -> when its start was requested."""
    backoff_s: float = 0.0
    """How long the next start waits after failed ones; 0 if the last start succeeded."""
    start_after_s: float = 0.0
    """The monotonic time from which the next engine may be started."""
    engines: dict[Incarnation, EngineEntry] = field(default_factory=dict)
    deadline_s: float | None = None
    """The monotonic time at which the agent is given up while it is unreachable."""
    failures: list[FailedAttempt] = field(default_factory=list)
    """Attempts that failed here since the last one that succeeded here."""
    succeeded_elsewhere: set[TaskKind] = field(default_factory=set)
    """Kinds of tasks that succeeded on other nodes in the meantime."""
    excluded: str = ""
    """The reason why the agent gets no more tasks; "" if it gets tasks."""
    leaving: bool = False
    """Whether the agent ends when its engines have ended."""
    priority: int = 0
    capacity: dict[str, float] = field(default_factory=dict)
    """Resource -> the amount that the node has."""
    used: dict[str, float] = field(default_factory=dict)
    """Resource -> the amount that running tasks have."""
    gpus: tuple[str, ...] = ()
    gpus_used: set[str] = field(default_factory=set)
    exclusive: RunKey | None = None
    """The run that has the node to itself."""
    state: NodeState | None = None
    """The agent's latest report of load, memory and disk."""
    utc_offset_s: int = 0
    """The node's local time minus UTC."""
    clock_ahead_s: float | None = None
    """The node's clock minus the controller's."""
    behind_since_s: float | None = None
    """Since when (monotonic) all reports have been older than the clock was thought to be, see `note_clock`."""
    skew_s: float = 0.0
    """What is taken off the node's times, see `skew_of`."""
    parked: dict[TaskClass, None] = field(default_factory=dict)
    """Classes that wait until something changes on this node."""
    reserving: bool = False
    """Whether freed resources are kept for the head of a class, see `core.scheduler.admission`."""
    resource_requests: list[ResourceRequest] = field(default_factory=list)
    """Requests of running tasks for more resources, which wait until these are free."""
    last_batch: int = 0
    """The number of the batch that was sent last to one of the agent's engines."""

    @property
    def accepts_tasks(self) -> bool:
        """Return whether the agent's engines may be given tasks."""
        return self.present and self.reachable and not self.excluded


@dataclass(slots=True)
class AgentRegistry:
    """The agents, and the records about their nodes."""

    by_session: dict[str, AgentEntry] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    """Sessions of agents with entries in `AgentEntry.failures`."""
    awaited: set[str] = field(default_factory=set)
    """After a restart: sessions of agents that were there before, and were not heard yet. They may have engines."""
    awaited_until_s: float = 0.0
    """Until then (monotonic) no engine is started in the place of one that such an agent may have."""
    drained_nodes: set[str] = field(default_factory=set)
    """Nodes with engines that get no more tasks, because the farm's owner has drained the nodes."""
    changed: dict[str, None] = field(default_factory=dict)
    """Sessions of agents on nodes with freed resources: their parked classes are announced in this turn."""
