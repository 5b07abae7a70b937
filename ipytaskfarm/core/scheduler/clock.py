"""Time as the scheduler knows it: the moment of the turn, and timers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, NamedTuple


class Now(NamedTuple):
    """The time, read once per turn by the controller's loop."""

    mono_s: float
    """Monotonic seconds: durations, leases and limits are counted in these."""
    wall_s: float
    """Seconds since the epoch: people are shown these, and the store holds them."""


@dataclass(slots=True)
class Timers:
    """What is to happen at which time; `handlers.timers` says how."""

    heap: list[tuple[float, int, str, Any]] = field(default_factory=list)
    """(monotonic seconds, number, name in `handlers.timers.TIMERS`, data)."""
    _numbers: int = 0

    def set(self, at_s: float, what: str, data: Any = None) -> None:
        """Call the function `what` of `handlers.timers.TIMERS` with `data` at that time (monotonic seconds).

        A time that is not a number means at once: in the heap it would put all other timers out of order."""
        if at_s != at_s:
            at_s = 0.0
        self._numbers += 1
        heappush(self.heap, (at_s, self._numbers, what, data))

    def due(self, mono_s: float) -> Iterator[tuple[str, Any]]:
        """Take out the timers that have run out, oldest first."""
        heap = self.heap
        while heap and heap[0][0] <= mono_s:
            _, _, what, data = heappop(heap)
            yield what, data

    def next_s(self) -> float | None:
        """Return when (monotonic seconds) the next timer is due."""
        return self.heap[0][0] if self.heap else None
