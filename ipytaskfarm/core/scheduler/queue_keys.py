"""The class of a task in its present state, and the key by which the queue policy orders tasks of one class."""

from __future__ import annotations

from ..requirements import Asks
from .entries import TaskEntry
from .queue_policy import TaskInfo, fifo_key
from .state import SchedulerState
from .task import DEFAULT_RULES, NO_PAST, OPEN_CLASS, ClassKey


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


def class_key_of(task: TaskEntry, by_time_limit: bool) -> ClassKey:
    """Return the class of a task in its present state.

    `by_time_limit` says whether there are agents of limited time.
    """
    rules = task.rules
    past = task.past
    if rules is None and past is NO_PAST:
        return OPEN_CLASS
    rules = rules or DEFAULT_RULES
    own = task.id if past.rejections else None
    requirements = rules.asks
    job = rules.job if requirements is not None and requirements.by_job else None
    limit_s = rules.time_limit_s if by_time_limit else None
    concurrent = rules.coroutine and not rules.freeze and runs_concurrently(task, requirements)
    return ClassKey(rules.depend, rules.targets, past.avoid, past.suspect, own, requirements, job, limit_s, concurrent)


SUSPECTS_TOGETHER = 16
"""How many coroutine tasks that have lost an engine together share one engine again."""


def runs_concurrently(task: TaskEntry, requirements: Asks | None) -> bool:
    """Return whether a coroutine task shares its engine with others.

    It runs alone if it holds resources of the node, if its memory is measured, or if it was there when two engines were
    lost.
    """
    if task.past.losses > 1:
        return False
    if requirements is None:
        return True
    memory = requirements.recycle is not None and requirements.recycle.memory_bytes is not None
    return not (requirements.resources or requirements.exclusive or memory)
