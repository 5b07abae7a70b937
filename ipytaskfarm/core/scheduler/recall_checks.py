"""When it is checked whether runs that were sent ahead are recalled."""

from __future__ import annotations

from itertools import islice

from .decision import Now
from .entries import EngineEntry
from .state import SchedulerState

RECALL_REST = 5
"""On a farm where all engines are busy, and the tasks that wait are no more urgent than those that run, it is checked
so many times less often whether runs are recalled."""
WORTH_S = 0.010
"""So much work behind an engine's present run is recalled at once for an engine that becomes idle. A recall takes one
or two milliseconds; less work, and that behind a run that takes long, waits for `recall_after_s`."""
EXAMINED_MAX = 32
"""The number of engines that are examined for such work when another one becomes idle."""


def arm_recall(farm: SchedulerState, now: Now) -> None:
    """Set the time of the next check, if runs were sent ahead and somebody may want them."""
    readiness, after_s = farm.readiness, farm.settings.recall_after_s
    newly_idle, readiness.has_newly_idle = readiness.has_newly_idle, False
    if not readiness.with_runs_ahead or not (readiness.idle or farm.queues.size):
        return
    due_s = readiness.recall_check_s
    if newly_idle and readiness.idle and any(map(has_much_behind, islice(readiness.with_runs_ahead, EXAMINED_MAX))):
        readiness.recall_check_s = now.mono_s
    elif due_s is not None and due_s <= now.mono_s + after_s:
        return
    elif _may_be_wanted(farm):
        readiness.recall_check_s = now.mono_s + after_s
    elif due_s is None:
        readiness.recall_check_s = now.mono_s + RECALL_REST * after_s
    else:
        return
    farm.timers.set(readiness.recall_check_s, "recall")


def has_much_behind(engine: EngineEntry) -> bool:
    """Return whether an engine holds much work behind its present run, as far as is known."""
    oldest = next(iter(engine.assigned.values()), None)
    return oldest is not None and engine.ahead_s - oldest.cost_s >= WORTH_S


def _may_be_wanted(farm: SchedulerState) -> bool:
    """Return whether runs may be recalled soon: an engine is idle, or the queue's head may be more urgent."""
    queues = farm.queues
    if farm.readiness.idle or queues.size > queues.open_size:
        return True
    first = queues.open_heads.first()
    return first is not None and first[0] != queues.last_key
