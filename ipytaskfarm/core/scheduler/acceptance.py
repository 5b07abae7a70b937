"""The order in which tasks were accepted, which is not the order of their ids.

Each client has ids of its own to give out, so a task that is accepted later may have a lower id.  Ids that follow one
another were mostly accepted one after the other: the order is kept as runs of ids, a few for each client.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class AcceptanceOrder:
    """Ids in the order of their acceptance."""

    _runs: list[list[int]] = field(default_factory=list)
    """[first id, last id] of ids that were accepted one after the other; the latest last."""

    def add(self, task_id: int) -> None:
        """Note that this task is the latest."""
        runs = self._runs
        if runs and (last := runs[-1])[1] + 1 == task_id:
            last[1] = task_id
        else:
            runs.append([task_id, task_id])

    def add_items(self, count: int) -> None:
        """Note that this number of items of the latest task have the ids after its own."""
        self._runs[-1][1] += count

    def restore(self, accepted: Iterable[tuple[int, int, int]]) -> None:
        """Take the order from the store.

        accepted: (place in the order, id, number of items) of all tasks that were not cleared."""
        self._runs.clear()
        last = [0, -2]
        for _, task_id, items in sorted(accepted):
            if task_id == last[1] + 1:
                last[1] += 1 + items
            elif not last[0] <= task_id <= last[1]:
                last = [task_id, task_id + items]
                self._runs.append(last)

    def latest(
        self,
        count: int,
        is_known: Callable[[int], bool],
        is_wanted: Callable[[int], bool],
        before: int = -1,
        looked_at_max: int = 2**63,
    ) -> tuple[list[int], int | None]:
        """Return the latest `count` of the wanted ids, the latest first, and the id where to go on.

        Cleared ids at the end of a run are dropped on the way, so that no later call examines them again.

        Args:
            count: the largest number of ids.
            is_known: returns whether a task was not cleared.
            is_wanted: returns whether a task is wanted.
            before: only tasks that were accepted before this one; -1: all.
            looked_at_max: the largest number of ids that are looked at.

        Returns:
            (ids, `before` of the next call; None if there is nothing more to look at).
        """
        found: list[int] = []
        looked_at = 0
        first = len(self._runs) - 1 if before < 0 else self._position(before)
        for position in range(first, -1, -1):
            run = self._runs[position]
            while run[1] >= run[0] and not is_known(run[1]):
                run[1] -= 1
            if run[1] < run[0]:
                del self._runs[position]
                continue
            begin = run[1] if before < 0 or position != first else min(run[1], before - 1)
            for task_id in range(begin, run[0] - 1, -1):
                if is_known(task_id) and is_wanted(task_id):
                    found.append(task_id)
                looked_at += 1
                if len(found) >= count or looked_at >= looked_at_max:
                    at_the_end = position == 0 and task_id == run[0]
                    return found, None if at_the_end else task_id
        return found, None

    def _position(self, task_id: int) -> int:
        """Return the place of the run that has this id, or had it before it was cleared; -1 if there is none."""
        lower = ((run[0], place) for place, run in enumerate(self._runs) if run[0] <= task_id)
        return max(lower, default=(-1, -1))[1]

    def latest_first(self, ids: Iterable[int]) -> list[int]:
        """Return these ids in the order of their acceptance, the latest first."""
        starts = sorted((run[0], place) for place, run in enumerate(self._runs))

        def place(task_id: int) -> tuple[int, int]:
            at = bisect_right(starts, task_id, key=lambda start: start[0]) - 1
            return (starts[at][1] if at >= 0 else -1), task_id

        return sorted(ids, key=place, reverse=True)
