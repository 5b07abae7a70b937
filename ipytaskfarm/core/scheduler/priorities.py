"""Changes of the priority of tasks that were submitted before."""

from __future__ import annotations

from ..saves import SavePriority
from .clock import Now
from .decision import Decision
from .entries import TaskEntry
from .queue_keys import compute_key
from .state import SchedulerState
from .task import DEFAULT_RULES, QUEUED, NewRules, Queued
from .transitions import rejoin


def change_priority(farm: SchedulerState, task: TaskEntry, new: NewRules, now: Now, out: Decision) -> None:
    """Give an unfinished task another priority, and all recovery tasks that may take over under its id.

    A task that waits in a queue gets its place by the new priority: among equals by its acceptance, as before.  Any
    other place stays.  A task that has the priority already is left alone, so a repeated question changes nothing."""
    before = (task.rules or DEFAULT_RULES).priority
    if before == new.priority:
        return
    task.rules = new.of(task.rules)
    out.saves.append(SavePriority(task.id, before, new.priority, now.wall_s))
    compute_key(farm, task)
    if task.task_class is not None:
        place = task.place
        rejoin(farm, task, place if type(place) is Queued and place.until_s is None else QUEUED)
