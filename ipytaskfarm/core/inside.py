"""What the farm remembers of tasks that talk to it while they run: children, waiting, messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .calls import TaskCall


@dataclass(slots=True)
class Lending:
    """A run that waits for other tasks, see `core.lending`."""

    call: TaskCall
    ids: list[int]
    left: set[int] = field(default_factory=set)
    lends: bool = False
    """Its place is lent to others."""


@dataclass(slots=True)
class Family:
    """What a task has submitted."""

    spawned: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    """"trial.n" -> (check of what it was, ids)."""


class Reader(NamedTuple):
    """A client that waits for what a task sends."""

    session: str
    n: int
    after: int


@dataclass(slots=True)
class Mailbox:
    """Messages to and from a task that has not ended: how many there are, and who waits for more."""

    incoming: int = 0
    outgoing: int = 0
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Sender -> (its own number of its last one, ours)."""
    posted: dict[int, int] = field(default_factory=dict)
    """Attempt -> how many it has sent."""
    receiver: TaskCall | None = None
    readers: list[Reader] = field(default_factory=list)
