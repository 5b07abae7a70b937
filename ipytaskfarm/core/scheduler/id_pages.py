"""The ids of all tasks in pages, in ascending order: no step looks at a million tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import nsmallest

from ..messages.pages import LOOKED_AT_MAX
from ..states import State
from .entries import TaskEntry
from .state import SchedulerState

SPARSE = 10
"""If less than this share (one in N) of the ids is in use, the used ones are sorted, instead of looking at each id."""


def states_after(farm: SchedulerState, after: int) -> tuple[list[tuple[int, State]], int | None]:
    """Return (id, state) of tasks with ids higher than `after`, as people see them, and where the next page begins.

    None: there are no more."""
    tasks = farm.tasks
    ids, end = _ids_after(farm, after, sum(tasks.counts.values()), tasks.all_ids)
    found = [(i, state) for i in ids if i not in tasks.refusals and (state := tasks.state_of(i)) is not None]
    return found, end


def ended_after(farm: SchedulerState, after: int) -> tuple[list[int], int | None]:
    """Return ended tasks and chunks with ids higher than `after`, and where the next page begins; None: nowhere."""
    finals = farm.tasks.finals
    ids, end = _ids_after(farm, after, len(finals), lambda: finals)
    return [i for i in ids if i in finals], end


def unfinished_after(farm: SchedulerState, after: int) -> tuple[list[TaskEntry], int | None]:
    """Return unfinished tasks and chunks with ids higher than `after`, and where the next page begins; None: none."""
    unfinished = farm.tasks.unfinished
    ids, end = _ids_after(farm, after, len(unfinished), lambda: unfinished)
    return [unfinished[i] for i in ids if i in unfinished], end


def _ids_after(
    farm: SchedulerState, after: int, used: int, all_ids: Callable[[], Iterable[int]]
) -> tuple[Iterable[int], int | None]:
    after = max(-1, after)
    highest = farm.clients.ids.next - 1
    if highest - after > SPARSE * used + LOOKED_AT_MAX:
        found = nsmallest(LOOKED_AT_MAX, (i for i in all_ids() if i > after))
        return found, found[-1] if len(found) == LOOKED_AT_MAX else None
    last = min(highest, after + LOOKED_AT_MAX)
    return range(after + 1, last + 1), last if last < highest else None
