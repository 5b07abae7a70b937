"""Tasks that are read from the store."""

from __future__ import annotations

from ..messages.task_types import Rules
from ..saves import TaskRecord
from .entries import TaskEntry
from .task import TrialState, job_of


def task_of(record: TaskRecord) -> TaskEntry:
    """Return a task as the store knows it; it is not among the unfinished ones yet."""
    rules = _rules_of(record.rules, record.recovery)
    job = job_of(record.rules)
    task = TaskEntry(record.id, record.queue_seq, record.submitted_s, record.session, record.function, rules, job)
    task.attempt, task.errors, task.losses = record.attempt, record.errors, record.losses
    task.recovery = record.recovery
    task.suspect = record.losses > 0
    task.history = list(record.history) or None
    task.parent = record.parent
    task.items, task.part = record.items, record.part
    if record.trial > 1:
        task.trial_state = TrialState(record.trial, record.began_s, record.received)
    return task


def _rules_of(rules: Rules | None, depth: int) -> Rules | None:
    """Return the rules of the n-th recovery task down the chain."""
    for _ in range(depth):
        recovery = rules.recovery if rules else None
        if recovery is None:
            return rules
        rules = recovery.rules
    return rules
