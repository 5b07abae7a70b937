"""The class of a task in its present state."""

from __future__ import annotations

from ..requirements import Asks
from .class_key import OPEN_CLASS, ClassKey
from .entries import TaskEntry
from .task import DEFAULT_RULES, NO_PAST


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
