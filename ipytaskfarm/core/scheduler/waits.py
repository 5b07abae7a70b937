"""Which tasks a task waits for, when it is accepted, restored or reopened."""

from __future__ import annotations

from collections.abc import Iterable

from ..messages.task_types import Needs
from .entries import TaskEntry
from .state import SchedulerState


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
