"""The outcome of a map of any client: the values and errors of its items."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import Any

from ..core.messages import FindJobs, ListEngines, tables
from ..core.messages.task_types import Final
from ..system.deadlines import end_of, left_s
from .arrivals import Arrivals
from .map_items import Printed, chunk_values
from .result_cache import kept_results
from .results import TaskResult, decode_body, error_of
from .session import Session
from .tables import TaskCalls

ROWS_MAX = 5_000
"""Of a larger map no table is asked for to count its items."""


@dataclass(slots=True)
class MapMembers:
    """The tasks of a map."""

    tasks: list[tuple[int, int]]
    """(id, number of items of a chunk, or 0) in the order of the items."""
    retried: dict[int, int] = field(default_factory=dict)
    """Item -> the task by which it was retried."""
    _starts: list[int] = field(default_factory=list)
    """The place of the first item of each task."""

    def __len__(self) -> int:
        return sum(items or 1 for _, items in self.tasks)

    def ids(self) -> list[int]:
        """Return the id of each item; of an item that was retried, the last task's."""
        found: list[int] = []
        for task_id, items in self.tasks:
            found += range(task_id + 1, task_id + 1 + items) if items else (task_id,)
        return [self.latest(task_id) for task_id in found] if self.retried else found

    def place_of(self, task_id: int) -> int:
        """Return the place of an item in the map, by its id, by that of a retry of it, or by that of its chunk."""
        if self.retried:
            originals = {again: first for first, again in self.retried.items()}
            while task_id in originals:
                task_id = originals[task_id]
        if len(self._starts) != len(self.tasks):
            counts = [items or 1 for _, items in self.tasks]
            self._starts[:] = [0, *accumulate(counts)][:-1]
        number = bisect_right(self.tasks, task_id, key=itemgetter(0)) - 1
        chunk, items = self.tasks[number]
        return self._starts[number] + (max(0, task_id - chunk - 1) if items else 0)

    def latest(self, task_id: int) -> int:
        """Return the task that stands for an item now."""
        while task_id in self.retried:
            task_id = self.retried[task_id]
        return task_id

    def held(self, arrivals: Arrivals) -> set[int]:
        """Return the ids under which the items' ends arrive, as far as chunks have ended."""
        found = {task_id for task_id, _ in self.tasks}
        for task_id, items in self.tasks:
            if items and task_id in arrivals.chunks.separate:
                found.update(task_id + 1 + index for index in arrivals.chunks.separate[task_id])
        found.update(self.retried.values())
        return found

    def left(self, arrivals: Arrivals) -> tuple[int, int]:
        """Return how many items have not ended, and how many have failed."""
        left = failed = 0
        for task_id, items in self.tasks:
            apart = self.apart(task_id, items, arrivals.chunks.separate.get(task_id, ()))
            for item in apart:
                left, failed = _counted(arrivals, self.latest(item), 1, left, failed)
            left, failed = _counted(arrivals, task_id, (items or 1) - len(apart), left, failed)
        return left, failed

    def apart(self, task_id: int, items: int, separate: Iterable[int]) -> set[int]:
        """Return the ids of the items that are tasks of their own, or were retried as such."""
        if not items:
            return {task_id} if task_id in self.retried else set()
        found = {task_id + 1 + index for index in separate}
        if self.retried:
            again = sorted(self.retried)
            found.update(again[bisect_right(again, task_id) : bisect_right(again, task_id + items)])
        return found


def _counted(arrivals: Arrivals, task_id: int, items: int, left: int, failed: int) -> tuple[int, int]:
    """Add the items of a task to the numbers of those that have not ended, and that have failed."""
    if arrivals.is_live(task_id):
        return left + items, failed
    end = arrivals.finals.get(task_id)
    return left, failed + (items if end is not None and end.reason else 0)


@dataclass(slots=True)
class Gathered:
    """The outcome of a map."""

    values: list[Any] = field(default_factory=list)
    """None stands where an error is."""
    errors: dict[int, BaseException] = field(default_factory=dict)
    printed: Printed = field(default_factory=dict)


def wait_for(
    session: Session,
    members: MapMembers,
    timeout_s: float | None,
    on_tick: Callable[[], None] | None = None,
    go_on_text: str = "",
) -> bool:
    """Wait until all items have ended; False when timeout_s is over."""
    end_s = end_of(timeout_s)
    while True:
        held = members.held(session.arrivals)
        session.watch(held, end_s=end_s)
        if not session.wait(held, left_s(end_s), on_tick, go_on_text=go_on_text):
            return False
        # Items of a chunk may have become tasks of their own, of whose ends nothing was heard yet.
        if members.held(session.arrivals) == held:
            return True


def collect(client: TaskCalls, members: MapMembers) -> Gathered:
    """Return the values and errors of a map whose items have ended."""
    found = Gathered()
    session = client.session
    kept = kept_results(session, [members.latest(task_id) for task_id, items in members.tasks if not items])
    for task_id, items in members.tasks:
        if not items:
            latest = members.latest(task_id)
            add_item(client, latest, found, result=kept.get(latest))
            continue
        start = len(found.values)
        for end in _chunk_end(session, task_id):
            _add_chunk(client, members, end, items, found)
        missing = start + items - len(found.values)
        if missing > 0:
            # The chunk was cleared with all of its silent items.
            gone = IndexError(f"task ID not registered: {task_id + 1} to {task_id + items} (cleared)")
            found.errors.update(dict.fromkeys(range(len(found.values), start + items), gone))
            found.values += [None] * missing
    return found


def _chunk_end(session: Session, task_id: int) -> Iterator[Final]:
    try:
        end = session.fetch(task_id)
    except IndexError:
        return
    if end is not None:
        yield end


def _add_chunk(client: TaskCalls, members: MapMembers, end: Final, items: int, found: Gathered) -> None:
    start = len(found.values)
    if end.reason:
        found.values += [None] * items
        error = error_of(end, decode_body(end))
        found.errors.update(dict.fromkeys(range(start, start + items), error))
    else:
        values = chunk_values(end)
        found.values += values if len(values) == items else [*values, *[None] * (items - len(values))][:items]
    for item in sorted(members.apart(end.id, items, end.separate)):
        place = start + item - end.id - 1
        found.errors.pop(place, None)
        add_item(client, members.latest(item), found, place)


def add_item(
    client: TaskCalls, task_id: int, found: Gathered, place: int | None = None, result: TaskResult | None = None
) -> None:
    """Add the outcome of an item that is a task of its own.  result: its result, if that was read already."""
    if place is None:
        place = len(found.values)
        found.values.append(None)
    try:
        if result is None:
            result = client.get_task_result(task_id, raw=False)
        if result is None:
            raise TimeoutError(f"task {task_id} has not ended")
        if result.stdout or result.stderr:
            found.printed[place] = result.stdout, result.stderr
        found.values[place] = result.result
    except Exception as error:
        found.errors[place] = error
    except BaseException as error:  # SystemExit of an item is the item's failure; Ctrl-C is the caller's
        if isinstance(error, KeyboardInterrupt) and not hasattr(error, "engine_id"):
            raise
        found.errors[place] = error


def counts(session: Session, job: str, members: MapMembers) -> dict[str, int]:
    """Return the number of items of a large map by state, without a table of its items."""
    found = [row for row in session.ask_for(FindJobs(job), tables.JobTable).rows if row.id == job]
    unfinished = found[0].unfinished if found else 0
    running = {row.task for row in session.ask_for(ListEngines(), tables.EngineTable).rows} - {None}
    pending = min(unfinished, len(running & members.held(session.arrivals)))
    _, failed = members.left(session.arrivals)
    succeeded = len(members) - unfinished - failed
    return {"scheduled": unfinished - pending, "pending": pending, "succeeded": max(0, succeeded), "failed": failed}
