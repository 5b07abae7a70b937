"""Questions that change the priority of tasks that were submitted before."""

from __future__ import annotations

import msgspec


class SetPriority(msgspec.Struct, frozen=True, tag=True):
    """Question: give these unfinished tasks this priority.  Answer: `PrioritySet`.

    A task that waits gets its place by it at once.  A running one goes on, and its next run has the new priority, as
    have the recovery tasks that take over under its id.  An item of a map that shares its run takes the run with it,
    and all items of the run.  Neither the tasks that it waits for nor its children change."""

    ids: list[int]
    priority: int


class SetJobPriority(msgspec.Struct, frozen=True, tag=True):
    """Question: give this job's unfinished tasks this priority, and those that are submitted to it later.

    Answer: `PrioritySet`.  The priority of the later ones is set by the first page, before all others."""

    job: str
    priority: int
    after: int = -1
    """Only tasks with higher ids: the `next` of the last answer."""


class PrioritySet(msgspec.Struct, frozen=True, tag=True):
    """How many unfinished tasks have the priority now, those included that had it before."""

    count: int
    ended: list[int] = []
    """Of the named tasks: those that have ended."""
    unknown: list[int] = []
    next: int | None = None
    """Of a job: where the next question begins; None: all its tasks were looked at."""
