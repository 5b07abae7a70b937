"""The order in which tasks were accepted, which is not the order of their ids.

Each client has ids of its own to give out, so a task that is accepted later may have a lower id.  Ids that follow one
another were mostly accepted one after the other: the order is kept as runs of ids, a few for each client.
"""

from __future__ import annotations

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
        """Note that so many items of the latest task have the ids after its own."""
        self._runs[-1][1] += count

    def restore(self, accepted: Iterable[tuple[int, int, int]]) -> None:
        """Take the order from the store.

        accepted: (place in the order, id, number of items) of all tasks that were not cleared."""
        self._runs.clear()
        for _, task_id, items in sorted(accepted):
            if not self._runs or not self._runs[-1][0] <= task_id <= self._runs[-1][1]:
                self.add(task_id)
                self.add_items(items)

    def latest(self, count: int, is_known: Callable[[int], bool], is_wanted: Callable[[int], bool]) -> list[int]:
        """Return the latest `count` of the wanted ids, the latest first.

        `is_known` returns whether a task was not cleared. Cleared ids at the end of a run are dropped on the way, so
        that no later call examines them again.
        """
        found: list[int] = []
        for position in range(len(self._runs) - 1, -1, -1):
            run = self._runs[position]
            while run[1] >= run[0] and not is_known(run[1]):
                run[1] -= 1
            if run[1] < run[0]:
                del self._runs[position]
                continue
            for task_id in range(run[1], run[0] - 1, -1):
                if is_known(task_id) and is_wanted(task_id):
                    found.append(task_id)
                    if len(found) >= count:
                        return found
        return found
