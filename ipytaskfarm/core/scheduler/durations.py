"""How long tasks of one class take: enough to decide how much may be sent ahead to an engine."""

from __future__ import annotations

SLOW_S = 0.100
"""A class of which more than one run in twenty takes this long or longer is never sent ahead: a long task is assigned
only when it can start."""

OVERHEAD_S = 25e-6
"""The time of an engine per task in addition to the task's code. It limits the number of no-op tasks sent ahead."""

_FORGET_AT = 512
"""At this count all counts are halved, so that a class with changed tasks is noticed."""


class Durations:
    """Counts runs and the slow ones among them, and keeps a mean; all are halved from time to time."""

    __slots__ = ("_slow", "_sum_s", "_total")

    def __init__(self) -> None:
        self._total = 0
        self._slow = 0
        self._sum_s = 0.0

    def add(self, run_s: float) -> None:
        """Count one finished run."""
        self._total += 1
        self._sum_s += run_s
        if run_s >= SLOW_S:
            self._slow += 1
        if self._total >= _FORGET_AT:
            self._total >>= 1
            self._slow >>= 1
            self._sum_s /= 2

    @property
    def measured(self) -> bool:
        """Return whether any run was counted."""
        return self._total > 0

    @property
    def mean_s(self) -> float:
        """Return the mean time that one task costs an engine, its overhead included."""
        return OVERHEAD_S + (self._sum_s / self._total if self._total else SLOW_S)

    @property
    def quick(self) -> bool:
        """Return whether the class was measured and 95 of 100 runs end within `SLOW_S`."""
        return 0 < self._total >= 20 * self._slow
