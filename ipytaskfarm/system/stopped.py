"""Finds processes that were stopped (SIGSTOP, ^Z): nothing ends them, and everything waits for them."""

from __future__ import annotations

STOPPED_S = 30.0
"""A process that was stopped for this time is killed: its tasks would wait for ever."""


class StoppedWatch:
    """Measures how long one process has been in state T, from checks that may come late.

    Each gap counts for at most `gap_max_s`. If the machine or the agent's loop was suspended, nobody could check, and
    that time must not count against the process.
    """

    def __init__(self, gap_max_s: float = 5.0) -> None:
        self._gap_max_s = gap_max_s
        self._stopped_s = 0.0
        self._last_s: float | None = None

    def too_long(self, stopped: bool, now_s: float, limit_s: float = STOPPED_S) -> bool:
        """Note the present state, and return whether the process has been stopped for `limit_s` seconds."""
        if not stopped:
            self._stopped_s, self._last_s = 0.0, None
            return False
        if self._last_s is not None:
            self._stopped_s += min(now_s - self._last_s, self._gap_max_s)
        self._last_s = now_s
        return self._stopped_s >= limit_s


def is_stopped(pid: int) -> bool:
    """Return whether a process is in state T.  State t (traced by a debugger) does not count: a person is at work."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False
