"""Checks of durations, sizes and counts that users give.  Each returns the value as it is kept; None stays None."""

from __future__ import annotations

from datetime import timedelta

from .demands import bytes_of


def check_seconds(what: str, value: object, zero: bool = True) -> float | None:
    """Return a duration in seconds.

    value: seconds or a timedelta, 0 or more; with zero=False more than 0.  TypeError or ValueError: it is neither."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be seconds, a timedelta or None, not {type(value).__name__}: {value!r:.80}")
    if not (value >= 0 if zero else value > 0):
        raise ValueError(f"{what} must be {'0 seconds or more' if zero else 'more than 0 seconds'}, not {value}")
    return float(value)


def check_bytes(what: str, value: object) -> int | None:
    """Return a size in bytes.

    value: a number, or text like ``"300 MiB"`` (k, M, G and T are powers of 1024).  TypeError or ValueError: it is
    neither."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = bytes_of(value)
        except ValueError:
            raise ValueError(f"{what} must be a size like '300 MiB' or '2G', not {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be bytes or text like '300 MiB', not {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{what} must be more than 0 bytes, not {value}")
    return value


def check_count(what: str, value: object, least: int) -> int | None:
    """Return a whole number that is at least `least`.  TypeError or ValueError: it is not."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}: {value!r:.80}")
    if value < least:
        raise ValueError(f"{what} must be {least} or more, not {value}")
    return value
