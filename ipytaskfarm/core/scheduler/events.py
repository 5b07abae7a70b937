"""Events that are not messages: peers that come and go, time, and answers to the scheduler's own `Load`s."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from ..messages import AgentMessage, ClientMessage
from ..messages.evaluator import Evaluated
from ..messages.task_types import Submission
from ..saves import TaskRecord


class Joined(msgspec.Struct, frozen=True):
    """A session is new in this life of the controller."""

    role: str
    name: str


class Back(msgspec.Struct, frozen=True):
    """A silent peer was heard again."""


class Silent(msgspec.Struct, frozen=True):
    """A peer was not heard for 5 s: it gets no more work."""


class Gone(msgspec.Struct, frozen=True):
    """A peer has left, or was silent for so long that its session is forgotten."""

    said: bool = False
    """Whether it said so itself: then this session never comes back."""


class Revoked(msgspec.Struct, frozen=True):
    """An agent may not come back: its key was revoked, or its farm is another one now."""

    why: str = "its key was revoked"


class ProcessGone(msgspec.Struct, frozen=True):
    """An agent's process cannot be alive any more: it was killed, or its machine was started again."""

    why: str


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: timers may be due."""


class StoreRoom(msgspec.Struct, frozen=True):
    """Whether the store has room. If not, `why` has the reason."""

    why: str | None


class UnusedFunctions(msgspec.Struct, frozen=True):
    """No task in the store needs this code."""

    digests: list[str]


class Originals(msgspec.Struct, frozen=True):
    """Tasks as they were submitted, for `RetryTasks` number `n` of this session."""

    n: int
    tasks: list[Submission]
    missing: list[int]
    not_failed: list[int]
    earlier: list[tuple[int, int, int]] = []
    """See `RetryTasks.earlier`."""
    newest: dict[int, int] = {}
    """Of those tasks, and of those that they need, which were submitted again before: their latest retries."""
    latest: bool = False
    """See `RetryTasks.latest`."""
    fault: str = ""
    """Why none of them is submitted again."""


class EndedLoaded(msgspec.Struct, frozen=True):
    """Ended tasks that run again, from the store. Tasks that were cleared in the meantime are missing."""

    tasks: list[TaskRecord]
    asked: list[int]
    outcome: str
    """The outcome that their last attempts get."""
    asker: tuple[str, int] | None = None
    """(session, question number) of the client that asked for it."""
    children: list[tuple[int, str, int]] = []
    """See `StoredState.children`, of these tasks."""
    mail: list[tuple[int, int, int, str]] = []
    """See `StoredState.mail`, of these tasks."""


class JobsCleared(msgspec.Struct, frozen=True):
    """Jobs of which all tasks were cleared, each with the number of its tasks at that time."""

    jobs: list[tuple[str, int]]


class Cached(msgspec.Struct, frozen=True):
    """What was found for one task in the result cache."""

    task: int
    key: str = ""
    """The full key, with the results of other tasks in it; "": it cannot be known."""
    body: bytes | None = None
    """The kept result.  None: there is none."""
    blobs: tuple[str, ...] = ()
    note: str = ""
    """Why an entry could not be used."""


class LookedUp(msgspec.Struct, frozen=True):
    """The answer to `decision.LookUp`."""

    found: list[Cached]


Event: TypeAlias = (
    ClientMessage | AgentMessage | Evaluated | Joined | Back | Silent | Gone | Revoked | ProcessGone | Tick | StoreRoom
    | UnusedFunctions | Originals | EndedLoaded | JobsCleared | LookedUp
)  # fmt: skip
