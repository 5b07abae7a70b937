"""The end of a time limit, as a moment of the monotonic clock; None stands for no limit."""

from __future__ import annotations

import time


def end_of(limit_s: float | None) -> float | None:
    """Return the moment at which a limit of so many seconds ends."""
    return None if limit_s is None else time.monotonic() + limit_s


def left_s(end_s: float | None) -> float | None:
    """Return how many seconds are left until a moment, 0 after it."""
    return None if end_s is None else max(0.0, end_s - time.monotonic())
