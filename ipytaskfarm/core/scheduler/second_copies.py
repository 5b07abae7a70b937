"""Second copies: which runs of idempotent tasks take so much longer than others that the task is begun once more.

A task with ``idempotent=True`` may run on two engines at once.  The run that decides is `TaskEntry.place`; the other
one is noted here, and becomes the deciding one if it ends first, or if the first one's engine is lost.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from ..messages.task_types import Incarnation, RunKey
from .entries import TaskEntry
from .settings import SchedulerSettings
from .task import Assigned

REMEMBERED = 500
"""The number of latest durations of a group that are compared."""
GROUPS_KEPT = 256
"""The number of groups that are remembered beyond those with unfinished tasks."""
COPIES_OF_ONE = 2
"""The most second copies that are begun of one task, one after the other."""
RACES_LOST = 3
"""A node that has lost this number of races in a row gets no more tasks."""

GroupKey: TypeAlias = tuple[str | None, str | None, int]
"""(job, function, link of the chain of recovery tasks): tasks that should take about as long as one another."""


@dataclass(slots=True)
class CopyGroup:
    """Idempotent tasks that are alike."""

    unfinished: set[int] = field(default_factory=set)
    succeeded: int = 0
    durations_s: list[float] = field(default_factory=list)
    """The latest ones, in order of size."""
    latest_s: list[float] = field(default_factory=list)
    """The same ones in order of time."""

    def add(self, run_s: float) -> None:
        """Note how long a task took that has succeeded."""
        self.succeeded += 1
        insort(self.durations_s, run_s)
        self.latest_s.append(run_s)
        if len(self.latest_s) > REMEMBERED:
            self.durations_s.remove(self.latest_s.pop(0))

    def is_ripe(self, least: int) -> bool:
        """Return whether enough of the group has succeeded to know which runs are slow: `least`, and half of it."""
        return self.succeeded >= least and self.succeeded >= len(self.unfinished)

    @property
    def usual_s(self) -> float:
        """Return the 75th percentile of the durations."""
        return self.durations_s[len(self.durations_s) * 3 // 4]


class OtherRun(NamedTuple):
    """A run of a task beside the one that decides."""

    place: Assigned
    is_copy: bool
    """Whether this is the later one of the two."""


@dataclass(slots=True)
class SecondCopies:
    """The idempotent tasks, and the runs beside their first ones."""

    groups: dict[GroupKey, CopyGroup] = field(default_factory=dict)
    group_of: dict[int, GroupKey] = field(default_factory=dict)
    """Unfinished idempotent task -> its group."""
    others: dict[int, OtherRun] = field(default_factory=dict)
    """Task with two runs -> the one that does not decide."""
    begun: dict[int, int] = field(default_factory=dict)
    """Unfinished task -> how many second copies were begun of it."""
    to_stop: list[tuple[Incarnation, RunKey]] = field(default_factory=list)
    """Runs that nobody needs any more."""
    lost_races: dict[str, int] = field(default_factory=dict)
    """Node -> the number of races that its runs have lost in a row to second copies elsewhere."""
    look_armed: bool = False
    """Whether a timer is set for the next look at slow runs."""

    def add(self, task: TaskEntry) -> None:
        """Note an idempotent task.  Items that share runs are short, and coroutines share their engines."""
        if task.items or task.part is not None or task.rules is None or task.rules.coroutine:
            return
        key = task.job, task.function, task.past.recovery
        self.group_of[task.id] = key
        self.groups.setdefault(key, CopyGroup()).unfinished.add(task.id)

    def end(self, task_id: int, run_s: float | None) -> None:
        """Forget a task that has ended.  run_s: how long it took, if it has succeeded."""
        key = self.group_of.pop(task_id, None)
        self.begun.pop(task_id, None)
        if key is None:
            return
        group = self.groups[key]
        group.unfinished.discard(task_id)
        if run_s is not None:
            group.add(run_s)
        if not group.unfinished:  # more tasks of the group may come
            self.groups[key] = self.groups.pop(key)
            while len(self.groups) > GROUPS_KEPT and not (oldest := next(iter(self.groups.items())))[1].unfinished:
                del self.groups[oldest[0]]

    def stop_other(self, task_id: int) -> None:
        """Stop the run beside the one that decides, if there is one."""
        other = self.others.pop(task_id, None)
        if other is not None:
            self.to_stop.append((other.place.engine, (task_id, other.place.attempt)))

    def is_slow(self, task_id: int, ran_s: float, settings: SchedulerSettings) -> bool:
        """Return whether a run takes longer than the set multiple of what is usual in its group."""
        key = self.group_of.get(task_id)
        if key is None or task_id in self.others or self.begun.get(task_id, 0) >= COPIES_OF_ONE:
            return False
        group = self.groups[key]
        return group.is_ripe(settings.second_copy_least) and ran_s > settings.second_copy_after * group.usual_s

    def next_look_s(self, settings: SchedulerSettings) -> float | None:
        """Return after how many seconds slow runs are looked for again.  None: no group is ripe."""
        least = settings.second_copy_least
        usual = [group.usual_s for group in self.groups.values() if group.unfinished and group.is_ripe(least)]
        return min(5.0, max(0.05, min(usual) * settings.second_copy_after / 4)) if usual else None

    def budget(self, engines: int, settings: SchedulerSettings) -> int:
        """Return how many more second copies may be begun with this number of engines."""
        return max(1, int(engines * settings.second_copy_share)) - len(self.others)
