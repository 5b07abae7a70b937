"""The work of tasks and maps, for a progress display."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Set
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from ..core.messages import ListRunning, RunningTable
from ..core.messages.pages import IDS_MAX
from ..core.messages.task_types import Final
from .estimate import Estimate, Running, Tally
from .questions import AsksController, PendingQuestion

if TYPE_CHECKING:
    from .arrivals import Arrivals, Waiter

ASK_EVERY_S = 1.0
ANSWER_S = 0.05
"""Seconds to wait for an answer; a late answer is read at the next look."""
SILENT_S = 5.0
"""A question that is open for this time is not answered: the farm is away, and what it said before may be over."""


class Follows(AsksController, Protocol):
    """The methods of a session that this module uses: ask the controller, and read what has arrived."""

    arrivals: Arrivals

    @property
    def _lock(self) -> AbstractContextManager[object]: ...
    @property
    def fatal(self) -> BaseException | None: ...


class RunningNow:
    """Asks the controller from time to time which tasks run, without blocking on the answer."""

    def __init__(self, session: AsksController) -> None:
        self._session = session
        self._asked: PendingQuestion | None = None
        self._asked_s = -ASK_EVERY_S
        self._asked_ended = -1
        self._table: RunningTable | None = None
        self._table_s = 0.0
        self.away_s = 0.0
        """Seconds since the last answer of a farm that does not answer; 0: it answers."""
        self.why = ""
        """Why it does not answer."""

    def look(self, ids: Set[int], ended: int, now_s: float) -> tuple[list[Running] | None, int, int]:
        """Return which tasks of `ids` run (None: not known yet), how many run, and how many engines there are.

        ended: the number of ended tasks; when it changes, the controller is asked again.
        """
        self._ask(ids, ended, now_s)
        table = self._table
        if self._asked is not None and now_s - self._asked_s > SILENT_S:
            self.why = "the farm does not answer"
        self.away_s = max(0.0, now_s - self._table_s) if self.why and table is not None else 0.0
        if table is None or self.why:
            return None, 0, 0
        late_s = now_s - self._table_s
        running = [Running(f"task {i}", engine, for_s + late_s, task=i) for i, engine, for_s in table.rows if i in ids]
        return running, table.count - (len(table.rows) - len(running)), table.count or table.idle

    def _ask(self, ids: Set[int], ended: int, now_s: float) -> None:
        asked = self._asked
        if asked is None:
            if ended == self._asked_ended and now_s - self._asked_s < ASK_EVERY_S:
                return
            self._asked_s, self._asked_ended = now_s, ended
            # Of more tasks than a question may name, all of the session are asked for.
            some = sorted(ids) if len(ids) <= IDS_MAX[ListRunning] else None
            try:
                asked = self._session.begin(ListRunning(some))
            except ConnectionError as error:
                self.why = str(error)
                return
            asked.event.wait(ANSWER_S)
        if asked.event.is_set():
            self._session.forget(asked)
            if isinstance(asked.reply, RunningTable):
                self._table, self._table_s, self.why = asked.reply, now_s, ""
            asked = None
        self._asked = asked


class MapItems(Protocol):
    """The items of a map, `map_jobs.MapMembers`, as `MapWork` looks at them."""

    tasks: list[tuple[int, int]]
    """(id, number of items of a chunk, or 0)."""

    def __len__(self) -> int: ...
    def held(self, arrivals: Arrivals) -> set[int]: ...
    def left(self, arrivals: Arrivals) -> tuple[int, int]: ...


class MapWork:
    """The work of a map, of which several items may share a run."""

    def __init__(self, session: Follows, members: MapItems) -> None:
        self._session = session
        self._members = members
        self.estimate = Estimate(time.monotonic())
        self._running = RunningNow(session)
        self._counted: set[int] = set()
        self._first_s, self._last_s = math.inf, 0.0

    def is_over(self) -> bool:
        """Return whether all items have ended."""
        return not self._members.left(self._session.arrivals)[0]

    def is_lost(self) -> bool:
        """Return whether nothing more is heard of the items."""
        return self._session.fatal is not None

    def elapsed_s(self) -> float | None:
        """Return for how long the items have gone on, or went on; None: not known."""
        if self._first_s == math.inf:
            return None
        return (self._last_s if self.is_over() else time.time()) - self._first_s

    def tally(self, now_s: float) -> Tally:
        """Return how many items have ended, and how many run."""
        arrivals = self._session.arrivals
        held = self._members.held(arrivals)
        self._count(held, now_s)
        left, failed = self._members.left(arrivals)
        total = len(self._members)
        ended = total - left
        if not left:
            return Tally(total, ended - failed, failed, ())
        open_now = held - self._counted
        running, count, engines = self._running.look(open_now, ended, now_s)
        shown = min(count, left) if running is None else len(running)
        return Tally(total, ended - failed, failed, running, shown, engines, self._running.why, self._running.away_s)

    def _count(self, held: set[int], now_s: float) -> None:
        finals = self._session.arrivals.finals
        for task_id in held - self._counted:
            end = finals.get(task_id)
            if end is None:
                continue
            self._counted.add(task_id)
            silent = end.items - len(end.separate) if end.items else 1
            if silent and end.run_s > 0:
                self.estimate.add_together(silent, end.run_s, now_s)
            if end.submitted_s:
                self._first_s = min(self._first_s, end.submitted_s)
                self._last_s = max(self._last_s, end.completed_s)


class TaskWork:
    """The work of some tasks: ends are counted as they arrive, and the controller is asked which tasks run.

    Nothing happens before the first look, so a short wait costs nothing.
    """

    def __init__(self, session: Follows, ids: set[int]) -> None:
        self._session = session
        self._ids = ids
        self.estimate = Estimate(time.monotonic())
        self._waiter: Waiter | None = None
        self._succeeded = self._failed = 0
        self._first_s, self._last_s = math.inf, 0.0
        """When the first of the ended tasks was submitted, and when the last one ended (wall clock)."""
        self._running = RunningNow(session)
        self._why = ""
        self._why_ended = 0

    def blocked(self, why: str) -> None:
        """Show why none of the tasks can run, until one of them has ended."""
        self._why, self._why_ended = why, self._succeeded + self._failed

    def is_over(self) -> bool:
        """Return whether all tasks have ended."""
        return not self._session.arrivals.live(self._ids)

    def is_lost(self) -> bool:
        """Return whether nothing more is heard of the tasks."""
        return self._session.fatal is not None

    def tally(self, now_s: float) -> Tally:
        """Return how many tasks have ended, and which run."""
        waiter = self._waiter
        if waiter is None:
            waiter = self._begin(now_s)
        with self._session._lock:  # the IO thread adds to the list
            fresh, waiter.finals = waiter.finals or [], []
        if fresh:
            self._count(fresh)
            self.estimate.add(_durations(fresh), now_s)
        ended = self._succeeded + self._failed
        why = self._why if self._why_ended == ended else ""
        if not waiter.remaining:
            return Tally(len(self._ids), self._succeeded, self._failed, ())
        running, count, engines = self._running.look(waiter.remaining, ended, now_s)
        why, away_s = self._running.why or why, self._running.away_s
        return Tally(len(self._ids), self._succeeded, self._failed, running, count, engines, why, away_s)

    def close(self) -> None:
        """Stop following the tasks."""
        if self._waiter is not None:
            self._session.arrivals.end_wait(self._waiter)

    def _begin(self, now_s: float) -> Waiter:
        arrivals = self._session.arrivals
        with self._session._lock:
            waiter = self._waiter = arrivals.wait_for(self._ids)
            waiter.finals = []
            open_now = set(waiter.remaining)
        known = arrivals.finals
        before = [final for i in self._ids if i not in open_now and (final := known.get(i)) is not None]
        self._count(before)
        # A task whose end is not in the cache any more counts as succeeded.
        self._succeeded += len(self._ids) - len(open_now) - len(before)
        self.estimate.add_earlier(_durations(before), now_s)
        return waiter

    def elapsed_s(self) -> float | None:
        """Return the seconds since the first submission, up to now or to the last end; None: not known."""
        if self._first_s == math.inf:
            return None
        return (self._last_s if self.is_over() else time.time()) - self._first_s

    def _count(self, finals: list[Final]) -> None:
        for final in finals:
            if final.submitted_s:
                self._first_s = min(self._first_s, final.submitted_s)
                self._last_s = max(self._last_s, final.completed_s)
        failed = sum(1 for final in finals if final.reason)
        self._failed += failed
        self._succeeded += len(finals) - failed


def _durations(finals: Iterable[Final]) -> list[float]:
    """Return the durations of those tasks that ran."""
    return [final.run_s for final in finals if final.engine_id >= 0 and final.run_s > 0]
