"""How long tasks of one class take: enough to decide how much may be sent ahead to an engine."""

from __future__ import annotations

SLOW_S = 0.030
"""A class with its 95th percentile above this is never sent ahead: a long task is assigned only when it can start."""

OVERHEAD_S = 25e-6
"""The time of an engine per task in addition to the task's code. It limits the number of no-op tasks sent ahead."""

_BUCKETS = 12
_UNIT_S = SLOW_S / 2 ** (_BUCKETS - 2)
"""Bucket k holds durations below `_UNIT_S * 2**k`.  The last but one ends exactly at `SLOW_S`."""

_FORGET_AT = 512
"""At this count all counts are halved, so that a class with changed tasks is noticed."""


class Durations:
    """Counts durations in doubling buckets, which are halved from time to time, and keeps a mean of the same memory."""

    __slots__ = ("_counts", "_sum_s", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (_BUCKETS + 1)
        self._total = 0
        self._sum_s = 0.0

    def add(self, run_s: float) -> None:
        """Count one finished run."""
        bucket = int(run_s / _UNIT_S).bit_length()
        self._counts[bucket if bucket < _BUCKETS else _BUCKETS] += 1
        self._total += 1
        self._sum_s += run_s
        if self._total >= _FORGET_AT:
            self._counts = [c >> 1 for c in self._counts]
            kept = sum(self._counts)
            self._sum_s *= kept / self._total
            self._total = kept

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
        if not self._total:
            return False
        slow = self._counts[_BUCKETS - 1] + self._counts[_BUCKETS]
        return slow * 20 <= self._total
