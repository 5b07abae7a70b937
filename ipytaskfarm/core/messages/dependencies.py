"""The dependencies of a task: tasks that it waits for, and results of some of them as its arguments.

These are only values; `core.scheduler.graph` acts on them.
"""

from __future__ import annotations

import msgspec

FAIL, SKIP, RUN = "fail", "skip", "run"
"""What happens to a task if one that it waits for has failed: it fails too, it ends as skipped, or it runs all the
same."""
IF_FAILED = (FAIL, SKIP, RUN)


class Needs(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The edges of the graph that lead to one task."""

    after: tuple[int, ...]
    """The tasks that must have ended before this one begins."""
    inputs: tuple[tuple[int, int], ...] = ()
    """(id under which the payload asks for a value, id of the task with that result). `after` has these tasks too."""
    if_failed: str = FAIL
    join: bool = False
    """Whether the task has no payload: it succeeds as soon as `after` have ended, without an engine. n tasks before
    and m after a join are n + m edges instead of n × m."""
    keep: bool = False
    """Whether the task is cleared only by its id, not with all others: later tasks need it."""

    @property
    def takes(self) -> tuple[int, ...]:
        """Return the tasks with results that this one uses."""
        return tuple(source for _, source in self.inputs)
