"""Objects in reference cycles that ended runs have left: they are collected before they take much memory.

Python collects cycles by the number of objects, not by their size: a model, a figure or an exception with its frames is
few objects and many megabytes. In a process of its own a task's garbage dies with it; here the next task would be
charged for it, and ended when the engine exceeds its limit of memory.
"""

from __future__ import annotations

import gc
import os

from ..system.process import resident_bytes

LOOK_EVERY_S = 0.05
GROWTH_BYTES, GROWTH_SHARE = 32 << 20, 0.25
"""A collection follows when the process has grown by both since the last one. The share is for values that stay: they
would be examined again and again."""


class Garbage:
    """Collects cyclic garbage between runs if the process has grown."""

    def __init__(self) -> None:
        self.due_s = 0.0
        """When (`time.perf_counter`) to look again."""
        self._least = resident_bytes(os.getpid())
        """Resident bytes, the fewest since the last collection."""

    def look(self, now_s: float) -> None:
        """Collect if the process has grown; not if the user's own code has switched the collector off."""
        self.due_s = now_s + LOOK_EVERY_S
        resident = resident_bytes(os.getpid())
        if resident - self._least < max(GROWTH_BYTES, GROWTH_SHARE * self._least):
            self._least = min(self._least, resident)
        elif gc.isenabled():
            gc.collect()
            self._least = resident_bytes(os.getpid())
