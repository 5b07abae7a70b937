"""What a task waits for: other tasks, and the results of some of them as its arguments.

These are only values; `core.scheduler.graph` acts on them.
"""

from __future__ import annotations

import msgspec

FAIL, SKIP, RUN = "fail", "skip", "run"
"""What becomes of a task when one that it waits for has failed: it fails too, it ends as skipped, or it runs all the
same.
"""
IF_FAILED = (FAIL, SKIP, RUN)


class Needs(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The edges of the graph that lead to one task."""

    after: tuple[int, ...]
    """The tasks that must have ended before this one begins."""
    inputs: tuple[tuple[int, int], ...] = ()
    """(id under which the payload asks for a value, id of the task whose result that is).  These tasks are among
    `after`."""
    if_failed: str = FAIL
    join: bool = False
    """Whether the task has no payload: it succeeds as soon as `after` have ended, without an engine.  n tasks before
    and m after a join are n + m edges instead of n × m."""
    keep: bool = False
    """Whether the task is cleared only by its id, not with all others: it stands for something that later tasks use."""

    @property
    def takes(self) -> tuple[int, ...]:
        """Return the tasks whose results this one takes."""
        return tuple(source for _, source in self.inputs)
