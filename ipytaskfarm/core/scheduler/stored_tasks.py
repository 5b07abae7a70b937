"""Tasks that are read from the store."""

from __future__ import annotations

from ..messages.task_types import Rules
from ..saves import TaskRecord
from .entries import TaskEntry
from .task import NO_PAST, TaskPast, TrialState, job_of, recovery_rules


def task_of(record: TaskRecord) -> TaskEntry:
    """Return a task as the store knows it; it is not among the unfinished ones yet."""
    rules = record.rules
    if record.recovery:
        rules = _rules_of(rules, record.recovery)
    task = TaskEntry(
        record.id, record.queue_seq, record.submitted_s, record.session, record.function, rules, job_of(record.rules),
        NO_PAST, attempt=record.attempt, parent=record.parent, items=record.items, part=record.part,
    )  # fmt: skip
    if record.attempt or record.errors or record.losses or record.recovery or record.history:
        task.past = TaskPast(
            record.errors, record.losses, record.recovery, list(record.history) or None, suspect=record.losses > 0
        )
    if record.trial > 1:
        task.own_past().trial_state = TrialState(record.trial, record.began_s, record.received)
    return task


def _rules_of(rules: Rules | None, depth: int) -> Rules | None:
    """Return the rules of the n-th recovery task down the chain."""
    for _ in range(depth):
        recovery = rules.recovery if rules else None
        if recovery is None:
            return rules
        rules = recovery_rules(rules, recovery)
    return rules
