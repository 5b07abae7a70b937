"""A process that the supervisor keeps running.

After a crash it is started again: soon after a single one, later and later in a storm of them.
"""

from __future__ import annotations

from collections.abc import Callable

from ipytaskfarm.launchers import Placed, ProcessSpec
from ipytaskfarm.system import process

LOOK_S = 2.0
"""Seconds between two looks at whether the process was stopped."""
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


class WatchedProcess:
    """A process to keep running: its specification, the running process, and its recent restarts."""

    def __init__(self, kind: str, make: Callable[[], ProcessSpec]) -> None:
        self.kind = kind
        self.make = make
        self.placed: Placed | None = None
        self.restarts = Restarts()
        self.placed_s = 0.0
        self.restart_at: float | None = None
        self._stopped = process.StoppedWatch()
        self._look_at = 0.0

    @property
    def lives(self) -> bool:
        """Return whether there is such a process, as far as is known."""
        return self.placed is not None

    def was_stopped(self, now: float) -> bool:
        """Return whether the process was stopped (SIGSTOP) for too long: then it is gone for everybody else."""
        if self.placed is None or now < self._look_at:
            return False
        self._look_at = now + LOOK_S
        pid = self.placed.record().get("pid")
        return self._stopped.too_long(isinstance(pid, int) and process.is_stopped(pid), now, process.STOPPED_S)
