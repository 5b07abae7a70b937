"""Where and in which order tasks wait for engines, and what keeps them from starting although engines are free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..messages.task_types import Rules
from .class_key import ClassKey
from .entries import Heads, TaskClass


@dataclass(slots=True)
class Queues:
    """The classes of waiting tasks, and where engines find them."""

    classes: dict[ClassKey, TaskClass] = field(default_factory=dict)
    of_rules: dict[int, tuple[Rules | None, TaskClass]] = field(default_factory=dict)
    """Identity of rules -> (the rules, which must live as long as their identity is used, and the class of fresh tasks
    with these rules)."""
    open_heads: Heads = field(default_factory=Heads)
    """The unrestricted classes."""
    open_size: int = 0
    """How many tasks wait in unrestricted classes."""
    drop_at: int = 0
    """The number of classes at which the empty ones are looked for again."""
    environment_heads: Heads = field(default_factory=Heads)
    """The classes that need an environment."""
    size: int = 0
    """How many tasks wait in all classes."""
    next_seq: int = 0
    """The `queue_seq` of the next task that joins the end of its queue."""
    last_key: Any = None
    """The policy key of the task that was assigned last."""
    by_time_limit: bool = False
    """Whether tasks with a time limit wait in classes of their own, because some agents' time is limited."""
    has_preferences: bool = False
    """Whether some task had its own placement or locality."""


@dataclass(slots=True)
class ParallelGroup:
    """The running tasks of one group; `max_parallel` limits their number."""

    running: int = 0
    per_agent: dict[str, int] = field(default_factory=dict)
    """An agent's session -> how many run under it."""
    parked: dict[TaskClass, None] = field(default_factory=dict)
    """Classes that wait until fewer tasks of the group run."""


@dataclass(slots=True)
class StartLimits:
    """Limits that may keep a task from starting although an engine is free."""

    groups: dict[str, ParallelGroup] = field(default_factory=dict)
    """The groups of which tasks run, or wait for others of the group to end."""
    load_guard: bool = False
    """Whether the farm's settings have a load guard."""
