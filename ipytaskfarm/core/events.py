"""What happens to the scheduler that is not a message: peers coming and going, time, and answers to its own `Load`s."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .messages import AgentMessage, ClientMessage
from .parcels import Submission
from .saves import TaskRecord
from .verdicts import Evaluated


class Joined(msgspec.Struct, frozen=True):
    """A session is new in this life of the controller."""

    role: str
    name: str


class Back(msgspec.Struct, frozen=True):
    """A silent peer was heard again."""


class Silent(msgspec.Struct, frozen=True):
    """A peer was not heard for 5 s: no more work for it."""


class Gone(msgspec.Struct, frozen=True):
    """A peer has left, or was silent for so long that its session is forgotten."""


class Revoked(msgspec.Struct, frozen=True):
    """An agent's key was revoked: it is gone for good."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed: look at the timers."""


class StoreRoom(msgspec.Struct, frozen=True):
    """Whether the store has room: `why` says why not."""

    why: str | None


class Originals(msgspec.Struct, frozen=True):
    """Tasks as they were handed in, for `Retry` number `n` of this session."""

    n: int
    tasks: list[Submission]
    missing: list[int]
    not_failed: list[int]


class EndedLoaded(msgspec.Struct, frozen=True):
    """Ended tasks that are to run again, as the store knows them; what was cleared meanwhile is not among them."""

    tasks: list[TaskRecord]
    asked: list[int]
    outcome: str
    """What becomes of their last attempt."""
    asker: tuple[str, int] | None = None


Event: TypeAlias = (
    ClientMessage | AgentMessage | Evaluated | Joined | Back | Silent | Gone | Revoked | Tick | StoreRoom
    | Originals | EndedLoaded
)  # fmt: skip
