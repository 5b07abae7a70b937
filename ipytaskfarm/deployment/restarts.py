"""When a crashed process of a farm is started again: soon after a single crash, later and later in a storm of them."""

from __future__ import annotations

PAUSE_MIN_S, PAUSE_MAX_S = 0.5, 30.0
WORKED_S = 5.0
"""A process that has lived this long does not crash at once each time: its crash begins a new row."""
RESTARTS = 3
"""After this many crashes in a row a process may be given up, if nobody needs it."""


class Restarts:
    """The crashes in a row of one process. Times are in seconds."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def pause_s(self, lived_s: float) -> float:
        """Note a crash after a life of `lived_s`, and return how long to wait before the next start."""
        self.in_a_row = 1 if lived_s >= WORKED_S else self.in_a_row + 1
        return float(min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** min(self.in_a_row - 1, 10)))

    @property
    def too_many(self) -> bool:
        """Return whether the process has crashed so often in a row that it may be given up."""
        return self.in_a_row > RESTARTS
