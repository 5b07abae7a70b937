"""The order in which tasks are handed out: the farm's queue policies, and how to write another one.

A policy turns a task into a sort key. Smaller keys go first, equal keys in order of acceptance. `QueuePolicy.key` is
called when a task is accepted and each time it goes back to its queue. It runs in the controller, so it must be
quick and need little memory (an instance lives as long as the controller). If it raises while the farm starts, the farm
does not start. If it raises later, the task gets the key of `FIFO`, and the log says so.

    # mine.py
    from ipytaskfarm.policies import QueuePolicy

    class ShortNamesFirst(QueuePolicy):
        def key(self, task):
            return (-task.priority, task.id % 10)

    # ipytaskfarm start --queue-policy mine:ShortNamesFirst --policy-path .
"""

from __future__ import annotations

from typing import Any

from .core.scheduler.queue_policy import TaskInfo, fifo_key

__all__ = ["FIFO", "LIFO", "FairShare", "FairShareJobs", "QueuePolicy", "TaskInfo"]


class QueuePolicy:
    """Base class of all policies. Subclasses override `key`."""

    def key(self, task: TaskInfo) -> Any:
        """Return a sortable key of the task. All keys of one policy must be comparable with one another."""
        raise NotImplementedError(f"{type(self).__name__} needs a method key(task)")


class FIFO(QueuePolicy):
    """Higher priority first, then order of acceptance. This is the default."""

    def key(self, task: TaskInfo) -> int:
        """Return minus the priority."""
        return fifo_key(task)


class LIFO(QueuePolicy):
    """Higher priority first, then the newest task."""

    def key(self, task: TaskInfo) -> tuple[int, int]:
        """Return a key that puts the newest task first."""
        return (-task.priority, -task.queue_seq)


class FairShare(QueuePolicy):
    """Higher priority first. Among equal priorities the clients take turns, however many tasks each has submitted.

    This is start-time fair queueing: each client's tasks are tagged 1, 2, 3 …, but never below the tag that is being
    served. So a client that comes late neither waits for all earlier tasks nor takes the whole farm.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, str], int] = {}

    def owner(self, task: TaskInfo) -> str:
        """Return who takes turns with the others: the client."""
        return task.client

    def key(self, task: TaskInfo) -> tuple[int, int]:
        """Return the owner's next tag."""
        served = task.served[1] if task.served is not None and task.served[0] == -task.priority else 0
        owner = (task.priority, self.owner(task))
        tag = max(served, self._last.get(owner, 0)) + 1
        self._last[owner] = tag
        return (-task.priority, tag)


class FairShareJobs(FairShare):
    """Like `FairShare`, but jobs take turns. The tasks of one client that belong to no job count as one job."""

    def owner(self, task: TaskInfo) -> str:
        """Return the task's job; its client if it has no job."""
        return task.job or task.client
