"""The places of a task, and data that only few tasks need."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ..messages.task_types import Incarnation, Rules
from ..states import Waiting

DEFAULT_RULES = Rules()


def job_of(rules: Rules | None) -> str | None:
    """Return the job of tasks with these rules."""
    return rules.job if rules is not None else None


class Queued(msgspec.Struct, frozen=True):
    """The place of a task that no engine has: in its queue, or set aside until a time."""

    why: Waiting = Waiting.QUEUED
    until_s: float | None = None
    """Monotonic seconds.  None: as soon as an engine is free."""
    until_wall_s: float | None = None
    """The same time in wall-clock seconds, for the store."""


class Assigned(msgspec.Struct, frozen=True):
    """The place of a task that an engine has.  `since_s` None: the run was sent ahead and has not begun."""

    engine: Incarnation
    attempt: int
    since_s: float | None = None
    wall_s: float | None = None


Place: TypeAlias = Queued | Assigned

QUEUED = Queued()
RETURNED = Queued(Waiting.RETURNED)
RETRIED = Queued(Waiting.RETRY)
FOR_TASKS = Queued(Waiting.TASKS)
PAUSED = Queued(Waiting.PAUSED)
FOR_CACHE = Queued(Waiting.CACHE)


class Rejection(msgspec.Struct):
    """How often one engine was rejected by a task, and until when it is not tried again."""

    count: int
    until_s: float
    version: int
    """The version of the engine's properties at the time.  Another version lifts the rejection."""


class TrialState(msgspec.Struct, gc=False):
    """Data that only few tasks need: about trials, and reports of their runs."""

    trial: int = 1
    """1 plus the number of runs that ended with a deferral."""
    began_s: float | None = None
    """When (wall clock) the first trial began, once it was deferred."""
    received: int = 0
    """How many of the messages sent to the task were read by earlier trials."""
    input_losses: int = 0
    """How often a run has found inputs lost."""
    again: bool = False
    """Whether the task had succeeded before and was reopened."""
    late: bool = False
    """Whether the run takes longer than `warn_after`."""
