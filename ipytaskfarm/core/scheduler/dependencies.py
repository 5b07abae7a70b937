"""The edges of the graph: which tasks wait for which others, and which tasks use which results.

The edges are added and removed where tasks come and go (`core.scheduler.transitions`); `core.scheduler.graph` acts on
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

REMADE_KEPT = 10_000


@dataclass(slots=True)
class DependencyGraph:
    """The edges of the graph."""

    dependents: dict[int, list[int]] = field(default_factory=dict)
    """Task -> the tasks that wait for it, possibly with some that have ended in the meantime."""
    ended: deque[int] = field(default_factory=deque)
    """Tasks that have ended, and of which not all dependents have been told; those are left in `dependents`."""
    consumers: dict[int, int] = field(default_factory=dict)
    """Task -> how many unfinished tasks take its result; such a result is not cleared."""
    ready_joins: deque[int] = field(default_factory=deque)
    """Joins for which all awaited tasks have ended."""
    remade: dict[int, float] = field(default_factory=dict)
    """Reopened task that has succeeded again -> when (monotonic)."""

    def add_dependent(self, task_id: int, waiting: int) -> None:
        """Make the task `waiting` wait for `task_id`."""
        dependents = self.dependents.get(task_id)
        if dependents is None:
            self.dependents[task_id] = [waiting]
        else:
            dependents.append(waiting)

    def is_needed(self, task_id: int) -> bool:
        """Return whether the end of an ended task, or its result, still matters to others: it is not cleared then."""
        return task_id in self.consumers or task_id in self.dependents

    def add_consumer(self, sources: Iterable[int]) -> None:
        """Count one more unfinished task that uses the results of these tasks."""
        for source in sources:
            self.consumers[source] = self.consumers.get(source, 0) + 1

    def remove_consumer(self, sources: Iterable[int]) -> None:
        """Count one task less that uses the results of these tasks, because it has ended."""
        for source in sources:
            self.consumers[source] -= 1
            if not self.consumers[source]:
                del self.consumers[source]

    def note_remade(self, task_id: int, mono_s: float) -> None:
        """Note that a reopened task has succeeded again."""
        self.remade[task_id] = mono_s
        while len(self.remade) > REMADE_KEPT:
            del self.remade[next(iter(self.remade))]
