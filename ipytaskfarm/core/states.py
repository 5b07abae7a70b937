"""The states of a task, why it is in one, and the legal moves between them.

`core.transition` is the only place that moves a task, and it checks each move against `MOVES`.
The picture in ``docs/architecture.md`` is drawn from the same table.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a task is.  `SUCCEEDED` and `FAILED` are final."""

    SCHEDULED = "scheduled"
    """Queued, or sent ahead to an engine and not begun, or waiting for something: the reason says which."""
    PENDING = "pending"
    """Running (people are shown "running"): the oldest unanswered hand-out of an engine."""
    SUCCEEDED = "succeeded"
    """Ended well; its result is kept until it is cleared."""
    FAILED = "failed"
    """Ended for one of the reasons below; never run again under this id."""


FINAL = frozenset({State.SUCCEEDED, State.FAILED})

MOVES: dict[tuple[State | None, State], str] = {
    (None, State.SCHEDULED): "accepted",
    (State.SCHEDULED, State.PENDING): "begun by an engine",
    (State.PENDING, State.SCHEDULED): "retried, returned unrun, or its engine lost with budget left",
    (State.SCHEDULED, State.SUCCEEDED): "begun and ended between two looks",
    (State.PENDING, State.SUCCEEDED): "ended well",
    (State.SCHEDULED, State.FAILED): "aborted, nothing can ever run it, or begun and ended between two looks",
    (State.PENDING, State.FAILED): "failed with no budget left",
    (State.SUCCEEDED, State.SCHEDULED): "reopened: its result was marked as failed, or is lost",
}
"""(from, to) -> what happened.  Anything else is our bug."""


class Waiting(StrEnum):
    """Why a scheduled task is not running yet."""

    QUEUED = "queued"
    SENT_AHEAD = "sent ahead"
    NO_ENGINE = "no suitable engine"
    RETRY = "retried"
    RETURNED = "returned"
    REJECTED = "set aside by an engine"
    PAUSED = "paused"
    TASKS = "waiting for tasks"
    DEFERRED = "deferred"
    REOPENED = "reopened"
    RESOURCES = "waiting for resources"
    LIMIT = "limit reached"


class Reason(StrEnum):
    """Why a task (or one attempt of it) failed."""

    ERROR = "error"
    ABORTED = "aborted"
    TIME_LIMIT = "time limit"
    ENGINE_LOST = "engine lost"
    MEMORY = "memory"
    QUARANTINED = "quarantined"
    REJECTED = "rejected"
    UNMET = "unmet"
    ENVIRONMENT = "environment setup"
    JOB_ABORTED = "aborted with its job"
    NEEDED = "a needed task failed"
    SKIPPED = "skipped"
    DEFERRED = "deferred too long"
    TOO_LARGE = "too large"
    REFUSED = "refused"


CHARGED_AS_ERROR = frozenset({Reason.ERROR, Reason.TIME_LIMIT, Reason.MEMORY, Reason.TOO_LARGE, Reason.ENVIRONMENT})
"""Spend a retry, until none is left."""

ABORTS = frozenset({Reason.ABORTED, Reason.JOB_ABORTED})
"""Somebody wanted it so: `TaskAborted` is raised by who fetches it."""

CONSEQUENCES = frozenset({Reason.NEEDED, Reason.SKIPPED, Reason.JOB_ABORTED})
"""It never came to a run of its own, because of what became of others."""

DEFERS, LOSES_INPUTS = "deferred", "inputs lost"
"""Outcomes of attempts that are no end of their task."""

RECOVERABLE = CHARGED_AS_ERROR | {Reason.ENGINE_LOST, Reason.QUARANTINED}
"""Run the recovery_task when the budget is used up."""
