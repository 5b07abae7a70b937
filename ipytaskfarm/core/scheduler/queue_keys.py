"""Computes the keys by which the queue policy orders tasks."""

from __future__ import annotations

from .entries import TaskEntry
from .queue_policy import TaskInfo, fifo_key
from .state import SchedulerState


def compute_key(farm: SchedulerState, task: TaskEntry) -> None:
    """Compute the key by which the queue policy orders the task."""
    rules = task.rules
    policy = farm.settings.policy
    if policy is fifo_key:  # the default looks at the priority alone
        task.key = -rules.priority if rules is not None else 0
        return
    client = farm.clients.by_session.get(task.session)
    info = TaskInfo(
        task.id,
        rules.priority if rules else 0,
        task.session,
        task.queue_seq,
        client.started if client else 0,
        farm.queues.last_key,
        task.job,
        rules.asks.group if rules is not None and rules.asks is not None else None,
    )
    task.key = policy(info)


def compute_keys(farm: SchedulerState, tasks: list[TaskEntry]) -> None:
    """Compute the keys of tasks with the same rules."""
    if farm.settings.policy is not fifo_key:
        for task in tasks:
            compute_key(farm, task)
        return
    compute_key(farm, tasks[0])
    key = tasks[0].key
    for task in tasks:
        task.key = key
