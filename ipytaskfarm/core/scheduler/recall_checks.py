"""When it is checked whether runs that were sent ahead are recalled."""

from __future__ import annotations

from .clock import Now
from .state import SchedulerState

RECALL_REST = 5
"""On a farm where all engines are busy, and the tasks that wait are no more urgent than those that run, it is checked
so many times less often whether runs are recalled."""


def arm_recall(farm: SchedulerState, now: Now) -> None:
    """Set the time of the next check, if runs were sent ahead and somebody may want them."""
    readiness, after_s = farm.readiness, farm.settings.recall_after_s
    if not readiness.with_runs_ahead or not (readiness.idle or farm.queues.size):
        return
    due_s = readiness.recall_check_s
    if due_s is not None and due_s <= now.mono_s + after_s:
        return
    if _may_be_wanted(farm):
        readiness.recall_check_s = now.mono_s + after_s
    elif due_s is None:
        readiness.recall_check_s = now.mono_s + RECALL_REST * after_s
    else:
        return
    farm.timers.set(readiness.recall_check_s, "recall")


def _may_be_wanted(farm: SchedulerState) -> bool:
    """Return whether runs may be recalled soon: an engine is idle, or the queue's head may be more urgent."""
    queues = farm.queues
    if farm.readiness.idle or queues.size > queues.open_size:
        return True
    first = queues.open_heads.first()
    return first is not None and first[0] != queues.last_key
