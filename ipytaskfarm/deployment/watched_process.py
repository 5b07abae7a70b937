"""A process that the supervisor keeps running."""

from __future__ import annotations

from collections.abc import Callable

from ipytaskfarm.deployment.restarts import Restarts
from ipytaskfarm.launchers import Placed, ProcessSpec
from ipytaskfarm.system import stopped

LOOK_S = 2.0
"""Seconds between two looks at whether the process was stopped."""


class WatchedProcess:
    """A process to keep running: its specification, the running process, and its recent restarts."""

    def __init__(self, kind: str, make: Callable[[], ProcessSpec]) -> None:
        self.kind = kind
        self.make = make
        self.placed: Placed | None = None
        self.restarts = Restarts()
        self.placed_s = 0.0
        self.restart_at: float | None = None
        self._stopped = stopped.StoppedWatch()
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
        return self._stopped.too_long(isinstance(pid, int) and stopped.is_stopped(pid), now, stopped.STOPPED_S)
