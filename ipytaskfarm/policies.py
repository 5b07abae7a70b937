"""In what order tasks are handed out: the queue policies that come with the farm, and how to write one.

A policy turns a task into a sort key; smaller keys go first, equal ones in order of acceptance.  `QueuePolicy.key` is
called when a task is accepted and each time it goes back to its queue.  It runs in the controller: keep it quick, and
keep its memory to itself (an instance lives as long as the controller).  If it raises when the farm starts, the farm
does not start; if it raises later, that task counts as `FIFO` would count it and the log says so.

    # mine.py
    from ipytaskfarm.policies import QueuePolicy

    class ShortNamesFirst(QueuePolicy):
        def key(self, task):
            return (-task.priority, task.id % 10)

    # ipytaskfarm start --queue-policy mine:ShortNamesFirst --policy-path .
"""

from __future__ import annotations

from typing import Any

from .core.scheduler.queue import TaskInfo, fifo_key

__all__ = ["FIFO", "LIFO", "FairShare", "FairShareJobs", "QueuePolicy", "TaskInfo"]


class QueuePolicy:
    """Base of all policies: override `key`."""

    def key(self, task: TaskInfo) -> Any:
        """Return a sortable key; all keys of one policy must be comparable with one another."""
        raise NotImplementedError(f"{type(self).__name__} needs a method key(task)")


class FIFO(QueuePolicy):
    """Higher priority first, then order of acceptance (the default)."""

    def key(self, task: TaskInfo) -> int:
        """Minus the priority."""
        return fifo_key(task)


class LIFO(QueuePolicy):
    """Higher priority first, then the newest."""

    def key(self, task: TaskInfo) -> tuple[int, int]:
        """Newest first."""
        return (-task.priority, -task.queue_seq)


class FairShare(QueuePolicy):
    """Higher priority first; among equal ones the clients take turns, whoever handed in most.

    Start-time fair queueing: each client's tasks are tagged 1, 2, 3 …, never behind what is being served now, so a
    client that comes late neither waits for all that stands before it nor takes the farm for itself.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], int] = {}

    def owner(self, task: TaskInfo) -> str:
        """Who takes turns with the others."""
        return task.client

    def key(self, task: TaskInfo) -> tuple[int, int]:
        """Return the owner's next tag."""
        served = task.served[1] if task.served is not None and task.served[0] == -task.priority else 0
        owner = (task.priority, self.owner(task))
        tag = max(served, self._last.get(owner, 0)) + 1
        self._last[owner] = tag
        return (-task.priority, tag)


class FairShareJobs(FairShare):
    """The same, but jobs take turns, and the tasks of each client that belong to no job."""

    def owner(self, task: TaskInfo) -> str:
        """Return the job, else the client."""
        return task.job or task.client
