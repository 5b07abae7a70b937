"""Estimate how long running work will still take.  The module is pure: callers pass the time.

The estimate is based on the durations of the parts that have ended, and on the engines that work on the rest.  There is
no estimate before the first part has ended.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

SHORT_S = 0.5
"""Seconds; if parts take less on average, the estimate uses their rate per second instead of their durations."""
WINDOW_S = 20.0
"""Seconds over which this rate is measured."""
KEPT = 1_000
"""Number of latest durations that are kept, to judge parts that run for long."""
SLOW_TIMES, SLOW_S, SLOW_KNOWN = 3.0, 5.0, 3
"""A part is slow if it runs for this multiple of the mean and this many seconds, and at least three
parts have ended.
"""
SLOW_SHOWN = 3
ROUNDS_MAX = 2_000
"""Number of waiting parts up to which the schedule is simulated part by part; beyond it the mean is accurate enough."""


class Running(NamedTuple):
    """One running part."""

    label: str
    """The name shown to the user: ``task 7``, ``item 12``."""
    engine: int
    for_s: float
    parts: int = 1
    """Number of parts that run one after the other there: the items of a map that share a task."""
    task: int = -1


class Tally(NamedTuple):
    """The state of some work at one moment."""

    total: int
    succeeded: int = 0
    failed: int = 0
    running: Sequence[Running] | None = None
    """The running parts; None: not known yet."""
    running_count: int | None = None
    """Number of running parts, if `running` lists only the longest of them; None: `running` is complete."""
    engines: int = 0
    """Number of engines that work on it, or could start at once."""
    why: str = ""
    """Why no part can run, or is known to run; "": parts run."""
    away_s: float = 0.0
    """Seconds since the farm was heard, if it is away; 0: it answers."""

    @property
    def ended(self) -> int:
        """Return the number of parts that have ended."""
        return self.succeeded + self.failed

    @property
    def runs(self) -> int | None:
        """Return the number of running parts; None: not known yet."""
        if self.running is None:
            return None
        count = sum(each.parts for each in self.running) if self.running_count is None else self.running_count
        return min(count, self.total - self.ended)

    @property
    def waits(self) -> int | None:
        """Return the number of waiting parts; None: not known yet."""
        return None if self.runs is None else self.total - self.ended - self.runs


class Estimate:
    """Estimates the remaining time of some work.

    Args:
        began_s: when the work, or the wait for it, began, on the clock that all other times use.
    """

    def __init__(self, began_s: float) -> None:
        self._count = 0
        self._sum_s = 0.0
        self._latest: deque[float] = deque(maxlen=KEPT)
        self._ends: deque[tuple[float, int]] = deque([(began_s, 0)])

    def add(self, durations_s: Iterable[float], now_s: float) -> None:
        """Record the durations of parts that have ended."""
        fresh = list(durations_s)
        self._count += len(fresh)
        self._sum_s += sum(fresh)
        self._latest.extend(fresh[-KEPT:])
        self._note(now_s)

    def add_earlier(self, durations_s: Iterable[float], now_s: float) -> None:
        """Record the durations of parts that ended at an unknown time: they do not count in the rate."""
        self.add(durations_s, now_s)
        self._ends = deque([(now_s, self._count)])

    def add_together(self, parts: int, run_s: float, now_s: float) -> None:
        """Record the common duration of parts that ran one after the other."""
        if parts > 0:
            self._count += parts
            self._sum_s += run_s
            self._latest.append(run_s / parts)
            self._note(now_s)

    def _note(self, now_s: float) -> None:
        ends = self._ends
        if ends[-1][0] == now_s:
            ends[-1] = now_s, self._count
        else:
            ends.append((now_s, self._count))
        while len(ends) > 2 and now_s - ends[1][0] > WINDOW_S:
            ends.popleft()

    @property
    def mean_s(self) -> float | None:
        """Return the mean duration of a part; None: no part has ended."""
        return self._sum_s / self._count if self._count else None

    def left_s(self, tally: Tally, now_s: float) -> float | None:
        """Return the estimated remaining seconds; None: unknown."""
        left = tally.total - tally.ended
        if left <= 0:
            return 0.0
        mean_s = self.mean_s
        if mean_s is None or tally.running is None or tally.why:
            return None
        if mean_s < SHORT_S:
            return self._left_by_rate(left, now_s)
        return self._left_by_durations(tally, tally.running, mean_s)

    def _left_by_rate(self, left: int, now_s: float) -> float | None:
        first_s, first = self._ends[0]
        ended = self._count - first
        return left * (now_s - first_s) / ended if ended and now_s > first_s else None

    def _left_by_durations(self, tally: Tally, running: Sequence[Running], mean_s: float) -> float | None:
        # A part that runs longer than the mean counts with the time that it has taken so far.
        longer = [each.for_s for each in running if each.parts == 1 and each.for_s > mean_s]
        mean_s = (self._sum_s + sum(longer)) / (self._count + len(longer))
        latest = _Durations(self._latest)
        busy = [_rest_s(each, mean_s, latest) for each in running]
        waits = tally.waits or 0
        known = [rest for rest in busy if rest is not None]
        engines = max(len(running), tally.engines, 1 if waits and known else 0)
        if not engines or (not waits and not known):
            return None
        # The remaining time is unknown for a part that runs longer than all others did: its engine is not planned with.
        free = known + [0.0] * (engines - len(running))
        return _end_of_all(free, waits, mean_s) if free or not waits else None

    def slow(self, tally: Tally) -> list[str]:
        """Return a sentence for each part that runs much longer than the others did."""
        mean_s = self.mean_s
        if mean_s is None or self._count < SLOW_KNOWN:
            return []
        least_s = max(SLOW_S, SLOW_TIMES * max(mean_s, max(self._latest)))
        slow = sorted((r for r in tally.running or () if r.parts == 1 and r.for_s > least_s), key=lambda r: -r.for_s)
        others = f"the others took {span(mean_s)}"
        found = [f"{r.label} has run for {span(r.for_s)} on engine {r.engine}, {others}" for r in slow[:SLOW_SHOWN]]
        if len(slow) > SLOW_SHOWN:
            found.append(f"and {len(slow) - SLOW_SHOWN:,} more like it")
        return found


class _Durations:
    """Sorted durations, with the sums of the longest ones."""

    def __init__(self, durations_s: Iterable[float]) -> None:
        self._sorted = sorted(durations_s)
        self._sums = [*accumulate(reversed(self._sorted), initial=0.0)]
        self.longest_s = self._sorted[-1] if self._sorted else 0.0

    def mean_of_longer(self, than_s: float) -> float | None:
        """Return the mean of the durations above this one; None: there is no longer one."""
        count = len(self._sorted) - bisect_right(self._sorted, than_s)
        return self._sums[count] / count if count else None


def _rest_s(each: Running, mean_s: float, known: _Durations) -> float | None:
    """Return the estimated remaining seconds of a running part; None: it runs longer than all parts that have ended."""
    if each.parts > 1:
        return max(0.0, each.parts * mean_s - each.for_s)
    longer_s = known.mean_of_longer(each.for_s)
    if longer_s is not None:
        return longer_s - each.for_s
    # Durations vary, and the message about the end may be on its way.
    return 0.0 if each.for_s < 1.25 * known.longest_s else None


def _end_of_all(free_s: list[float], waits: int, mean_s: float) -> float:
    """Return when the last of the waiting parts ends, if each starts on the engine that is free first.

    Args:
        free_s: for each engine, seconds until it is free.
        waits: the number of waiting parts.
        mean_s: the duration of each.
    """
    if not waits:
        return max(free_s)
    if waits > ROUNDS_MAX:
        return (sum(free_s) + waits * mean_s) / len(free_s)
    heap = list(free_s)
    heapq.heapify(heap)
    for _ in range(waits):
        heapq.heapreplace(heap, heap[0] + mean_s)
    return max(heap)


def span(seconds: float) -> str:
    """Format a duration for people: ``0.4 s``, ``27 s``, ``3 min 07 s``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds < 0.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"
