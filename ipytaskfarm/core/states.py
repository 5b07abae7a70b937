"""The states of a task, the reasons for them, and the legal moves between them.

`core.scheduler.transitions` is the only place that moves a task, and it checks each move against `MOVES`. The table in
``docs/architecture.md`` is made from `MOVES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a task is.  `SUCCEEDED` and `FAILED` are final."""

    SCHEDULED = "scheduled"
    """The task is queued, sent ahead to an engine and not begun, or waits for something; the reason says which."""
    PENDING = "pending"
    """The task is running, and people are shown "running": it is the oldest run of an engine."""
    SUCCEEDED = "succeeded"
    """The task has ended well.  Its result is kept until it is cleared."""
    FAILED = "failed"
    """The task has ended for one of the reasons below.  It is never run again under this id."""


FINAL = frozenset({State.SUCCEEDED, State.FAILED})

MOVES: dict[tuple[State | None, State], str] = {
    (None, State.SCHEDULED): "accepted",
    (State.SCHEDULED, State.PENDING): "begun by an engine",
    (State.PENDING, State.SCHEDULED): "retried, returned unrun, or its engine lost with budget left",
    (State.SCHEDULED, State.SUCCEEDED): "taken from the result cache, or begun and ended between two looks",
    (State.PENDING, State.SUCCEEDED): "ended well",
    (State.SCHEDULED, State.FAILED): "aborted, nothing can ever run it, or begun and ended between two looks",
    (State.PENDING, State.FAILED): "failed with no budget left",
    (State.SUCCEEDED, State.SCHEDULED): "reopened: its result was marked as failed, or is lost",
}
"""(from, to) -> what happened.  Any other move is our bug."""


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
    CACHE = "looked up in the result cache"


class Reason(StrEnum):
    """Why a task, or one of its attempts, failed."""

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
"""Each of these spends a retry, until none is left."""

FREEZES = frozenset({Reason.ERROR, Reason.TIME_LIMIT})
"""After an attempt that failed so, its engine still has the frames, and freezes itself if that was asked for."""

ABORTS = frozenset({Reason.ABORTED, Reason.JOB_ABORTED})
"""Reasons of tasks that a user or a job has aborted: reading their result raises `TaskAborted`."""

CONSEQUENCES = frozenset({Reason.NEEDED, Reason.SKIPPED, Reason.JOB_ABORTED})
"""Reasons for an end that the ends of other tasks caused, and not a run of the task's own."""

OVERTAKEN = "overtaken"
"""The outcome of a run whose task has ended meanwhile by another run, see `core.scheduler.second_copies`."""

DEFERS, LOSES_INPUTS = "deferred", "inputs lost"
"""Outcomes of attempts after which the task goes on."""

RECOVERABLE = CHARGED_AS_ERROR | {Reason.ENGINE_LOST, Reason.QUARANTINED}
"""The recovery task runs after these, when the budget is spent."""

RUNNING = "running"
"""The word for `PENDING` to people: a task that is pending in messages and in the store is running."""
STATE_WORDS = ("scheduled", RUNNING, "succeeded", "failed")
"""The states as people see and type them."""
ASKED_STATES = (*STATE_WORDS, "aborted", "unfinished", "finished")
"""What people may type to choose tasks by state.  Aborted ones are among those that failed."""
ACCEPTED_STATES = (*ASKED_STATES, "pending")
"""The same, with IPython 0.10's word for running."""
SEVERAL_STATES = {"unfinished": STATE_WORDS[:2], "finished": STATE_WORDS[2:], "pending": (RUNNING,)}
"""Accepted words that are not states as people see them -> these states."""


def state_word(state: str) -> str:
    """Return the word for a state that people see."""
    return RUNNING if state == State.PENDING else state


def state_counts(counts: Mapping[State, int] | Mapping[str, int]) -> dict[str, int]:
    """Return numbers of tasks under the words that people see, in the order of a task's life."""
    found = {state_word(state): count for state, count in counts.items()}
    return {word: found.get(word, 0) for word in STATE_WORDS}
