"""Time as the scheduler knows it: the moment of the turn, and timers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

DUE_AT_ONCE = 2_000
"""The most timers of one turn: each of a million tasks may have one for the same moment."""


class Now(NamedTuple):
    """The time, read once per turn by the controller's loop."""

    mono_s: float
    """Monotonic seconds, for durations, leases and limits."""
    wall_s: float
    """Seconds since the epoch, for people and for the store."""


@dataclass(slots=True)
class Timers:
    """Actions at given times; `handlers.timers` defines them."""

    heap: list[tuple[float, int, str, Any]] = field(default_factory=list)
    """(monotonic seconds, number, name in `handlers.timers.TIMERS`, data)."""
    _numbers: int = 0
    clean_at: int = 10_000
    """The number of timers above which `clean` looks for those that have become useless."""

    def set(self, at_s: float, what: str, data: Any = None) -> None:
        """Call the function `what` of `handlers.timers.TIMERS` with `data` at this time (monotonic seconds).

        A time that is not a number means at once: in the heap it would break the order of all other timers.
        """
        if at_s != at_s:
            at_s = 0.0
        self._numbers += 1
        heappush(self.heap, (at_s, self._numbers, what, data))

    def clean(self, what: str, is_useful: Callable[[Any], bool]) -> None:
        """Remove useless timers of this name, if the number of all timers has doubled since the last time.

        Without this a million short runs leave a million timers, each until its time."""
        if len(self.heap) > self.clean_at:
            self.heap = [each for each in self.heap if each[2] != what or is_useful(each[3])]
            heapify(self.heap)
            self.clean_at = max(10_000, 2 * len(self.heap))

    def due(self, mono_s: float) -> Iterator[tuple[str, Any]]:
        """Remove and yield the expired timers, the oldest first.  If there are too many, the next turn goes on."""
        heap = self.heap
        for _ in range(DUE_AT_ONCE):
            if not heap or heap[0][0] > mono_s:
                break
            _, _, what, data = heappop(heap)
            yield what, data

    def next_s(self) -> float | None:
        """Return the time (monotonic seconds) of the next timer."""
        return self.heap[0][0] if self.heap else None
