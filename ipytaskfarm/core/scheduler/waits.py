"""Tasks that are accepted, read from the store or reopened: which other tasks they wait for."""

from __future__ import annotations

from collections.abc import Iterable

from ..messages.task_types import Needs, Rules
from ..saves import TaskRecord
from .entries import TaskEntry
from .state import SchedulerState
from .task import NO_PAST, TaskPast, TrialState, job_of, recovery_rules


def count_dependencies(farm: SchedulerState, task: TaskEntry, needs: Needs) -> None:
    """Record which tasks a task waits for, and which results it uses."""
    task.dependencies = needs
    if needs.inputs:
        farm.graph.add_consumer(needs.takes)
    wait_for(farm, task, needs.after)
    if needs.join and not task.waits_for:
        farm.graph.ready_joins.append(task.id)


def wait_for(farm: SchedulerState, task: TaskEntry, ids: Iterable[int]) -> None:
    """Let a task wait for those of these tasks that have not ended or have failed."""
    tasks, graph = farm.tasks, farm.graph
    unfinished, finals = tasks.unfinished, tasks.finals
    ahead = set()
    for task_id in ids:
        if task_id in unfinished:
            ahead.add(task_id)
        elif finals.get(task_id) == "":
            continue  # it has succeeded
        elif tasks.has_failed(task_id):
            ahead.add(task_id)
        elif (holder := tasks.holder(task_id)) in unfinished or tasks.has_failed(holder):
            ahead.add(holder)
    for task_id in ahead:
        graph.add_dependent(task_id, task.id)
        if task_id not in unfinished:
            graph.ended.append(task_id)  # it has failed already; the consequences follow at the end of the turn
    task.waits_for = ahead | task.waits_for if task.waits_for else ahead


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
