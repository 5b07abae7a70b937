"""What a task waits for: other tasks, and the results of some of them as its arguments.

Values only.  Where they are acted on: `core.graph`.
"""

from __future__ import annotations

import msgspec

FAIL, SKIP, RUN = "fail", "skip", "run"
"""What becomes of a task when one that it waits for has failed: it fails too, it ends as skipped, or it runs all the
same."""
IF_FAILED = (FAIL, SKIP, RUN)


class Needs(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The edges of a graph that lead to one task."""

    after: tuple[int, ...]
    """It does not begin before these have ended."""
    inputs: tuple[tuple[int, int], ...] = ()
    """(id under which its payload asks for a value, id of the task whose result that is), all among `after`."""
    if_failed: str = FAIL
    join: bool = False
    """It has no payload: it ends well as soon as `after` have, without an engine.  n tasks before and m after a join
    are n + m edges instead of n × m."""
    keep: bool = False
    """It is not cleared with all others, only by its id: it stands for something that is held for later tasks."""

    @property
    def takes(self) -> tuple[int, ...]:
        """The tasks whose results it takes."""
        return tuple(source for _, source in self.inputs)
