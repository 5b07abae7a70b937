"""The edges of the graph: which tasks wait for which others, and which tasks use which results.

The edges are added and removed where tasks come and go (`core.scheduler.transitions`); `core.scheduler.graph` acts on
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..messages.task_types import FailureSummary, Final
from ..text import error_line

REMADE_KEPT = 10_000
CAUSE_CHARS = 200
"""The most characters of an error in the error of a task that waited for the failed one."""


class FirstFailure(NamedTuple):
    """The task because of which a chain of tasks failed, and its error."""

    task: int
    failure: FailureSummary

    def because(self, ended: int) -> str:
        """Return the end of the sentence that `ended` has failed."""
        text = self.failure.value.partition("\n")[0][:CAUSE_CHARS]
        error = error_line(self.failure.etype, text)
        return f": {error}" if ended == self.task else f", because task {self.task} failed: {error}"


@dataclass(slots=True)
class DependencyGraph:
    """The edges of the graph."""

    dependents: dict[int, list[int]] = field(default_factory=dict)
    """Task -> the tasks that wait for it, possibly with some that have ended in the meantime."""
    ended: deque[int] = field(default_factory=deque)
    """Tasks that have ended, and of which not all dependents have been told; those are left in `dependents`."""
    causes: dict[int, FirstFailure] = field(default_factory=dict)
    """Failed task of which not all dependents have been told -> the first failure of its chain.  Not kept on disk."""
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

    def note_end(self, final: Final) -> None:
        """Note that a task with dependents has ended: they are told at the end of the turn."""
        self.ended.append(final.id)
        if final.failure is not None and final.id not in self.causes:
            self.causes[final.id] = FirstFailure(final.id, final.failure)

    def forget_ended(self) -> None:
        """Forget the oldest of the ended tasks: all that wait for it were told."""
        self.causes.pop(self.ended.popleft(), None)

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
