"""What running tasks take of their nodes, and what limits how many of them run."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..requirements import Allotment
from .queue import TaskClass


@dataclass(slots=True)
class Claim:
    """The resources of a node that one run takes, and the group in which it counts."""

    amounts: dict[str, float] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    exclusive: bool = False
    group: str | None = None
    """The group whose runs `max_parallel` limits."""

    @property
    def allotment(self) -> Allotment:
        """Return the claim as its task is told of it."""
        return Allotment(dict(self.amounts), self.gpus, self.exclusive)


@dataclass(slots=True)
class ParallelGroup:
    """The running tasks of one group, whose number `max_parallel` limits."""

    running: int = 0
    per_agent: dict[str, int] = field(default_factory=dict)
    """An agent's session -> how many run under it."""
    parked: dict[TaskClass, None] = field(default_factory=dict)
    """Classes that wait until fewer tasks of the group run."""


@dataclass(slots=True)
class StartLimits:
    """What may keep a task from being started although an engine is free."""

    groups: dict[str, ParallelGroup] = field(default_factory=dict)
    """The groups of which tasks run, or wait for others of the group to end."""
    load_guard: bool = False
    """Whether the farm's settings have a load guard."""
