"""Waiting in tests: look again until a deadline, never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 60.0
"""Deadline for whatever takes a moment on an idle machine.  A test that passes does not wait for it, and one that runs
beside other programs may need much of it."""


def eventually(
    predicate: Callable[[], T], timeout_s: float = DEADLINE_S, *, every_s: float = 0.01, what: str = ""
) -> T:
    """Call `predicate` until it returns a true value, and return that value.

    An AssertionError in the predicate counts as "not yet", and so does a FileNotFoundError, because a folder may vanish
    while the predicate reads it.  After the deadline the last AssertionError is raised, or one that names `what` (or
    the predicate) and the last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value: T | None = None
        failed: AssertionError | FileNotFoundError | None = None
        try:
            value = predicate()
        except (AssertionError, FileNotFoundError) as error:
            failed = error
        if failed is None and value:
            return value
        if time.monotonic() >= deadline:
            break
        time.sleep(every_s)
    name = what or getattr(predicate, "__qualname__", repr(predicate))
    if failed is not None:
        raise AssertionError(f"not within {timeout_s} s: {name}: {failed}") from failed
    raise AssertionError(f"not within {timeout_s} s: {name} (it returned {value!r})")
