"""The key of a class of tasks: what the tasks that wait for the same engines have in common."""

from __future__ import annotations

import msgspec

from ..messages.task_types import Incarnation
from ..requirements import Asks


class ClassKey(msgspec.Struct, frozen=True):
    """The common part of tasks of one class: they wait for the same engines."""

    depend: str | None = None
    targets: tuple[int, ...] | None = None
    avoid: frozenset[Incarnation] | None = None
    suspect: bool = False
    own: int | None = None
    """The id of a task that was rejected by engines, and therefore has exclusions of its own."""
    requirements: Asks | None = None
    job: str | None = None
    """Set only if the job matters for recycling."""
    limit_s: float | None = None
    """The tasks' time limit, on farms with agents of limited time."""
    concurrent: bool = False
    """Whether the tasks are coroutines that share an engine."""

    @property
    def restricted(self) -> bool:
        """Return whether some engine may not serve the class, at some moment."""
        return bool(
            self.depend
            or self.targets is not None
            or self.avoid
            or self.own is not None
            or self.requirements is not None
            or self.limit_s is not None
            or self.concurrent
        )

    @property
    def environment(self) -> str | None:
        """Return the identity of the environment that the tasks need."""
        return self.requirements.identity if self.requirements is not None else None


OPEN_CLASS = ClassKey()
