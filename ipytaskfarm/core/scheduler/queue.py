"""Where and in which order tasks wait for engines, and what keeps them from starting although engines are free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..messages.task_types import Rules
from .entries import Heads, TaskClass
from .task import ClassKey

_RULES_KNOWN = 16_384
"""The most rules of which the class of fresh tasks is remembered."""


class KnownRules(msgspec.Struct, eq=False, gc=False):
    """The rules of earlier tasks, which equal ones share."""

    rules: Rules
    task_class: TaskClass | None = None
    """The class of fresh tasks with these rules, if it is known."""


@dataclass(slots=True)
class Queues:
    """The classes of waiting tasks, and where engines find them."""

    classes: dict[ClassKey, TaskClass] = field(default_factory=dict)
    storable_rules: dict[Rules, KnownRules] = field(default_factory=dict)
    """Rules that can be stored, see `core.validation.known_rules`."""
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

    def note_class(self, rules: Rules | None, task_class: TaskClass) -> None:
        """Note the class of fresh tasks with these rules."""
        if len(self.of_rules) >= _RULES_KNOWN:
            self.of_rules.clear()
        self.of_rules[id(rules)] = rules, task_class

    def forget_classes_of_rules(self) -> None:
        """Look for the class of each task again, because classes were dropped, or rules now lead to other ones."""
        self.of_rules.clear()
        self.storable_rules.clear()


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
