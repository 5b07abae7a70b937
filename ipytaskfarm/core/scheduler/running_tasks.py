"""The records about running tasks: their claims on nodes, children, waits, messages, progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from ..messages.running_task import TaskCall
from ..messages.task_types import Incarnation, RunKey
from ..requirements import Allotment
from .clients import OpenQuestions


@dataclass(slots=True)
class Claim:
    """The resources of a node that one run takes, and the group in which it counts."""

    amounts: dict[str, float] = field(default_factory=dict)
    gpus: tuple[str, ...] = ()
    exclusive: bool = False
    group: str | None = None
    """The group of the run, if `max_parallel` limits it."""

    @property
    def allotment(self) -> Allotment:
        """Return the claim in the form for its task."""
        return Allotment(dict(self.amounts), self.gpus, self.exclusive)


@dataclass(slots=True)
class NestedWait:
    """A run that waits for other tasks, see `core.scheduler.nested_waits`."""

    call: TaskCall
    ids: list[int]
    unfinished: set[int] = field(default_factory=set)
    """Those of `ids` that have not ended."""
    slot_lent: bool = False
    """Whether one more engine may run on the node in the meantime."""


@dataclass(slots=True)
class NestedWaits:
    """The runs that wait for other tasks."""

    by_task: dict[int, set[tuple[Incarnation, RunKey]]] = field(default_factory=dict)
    """Task -> the runs that wait for it."""
    over: dict[tuple[Incarnation, RunKey], None] = field(default_factory=dict)
    """Runs for which all has ended that they wait for; they continue as soon as their resources are free."""
    lent_slots: dict[str, int] = field(default_factory=dict)
    """An agent's session -> how many slots of its waiting runs are lent."""
    kept_places: dict[str, list[float]] = field(default_factory=dict)
    """An agent's session -> until when (monotonic) each engine that was additional is kept, in order of time."""
    kept_timer: bool = False
    """Whether the timer is set that ends kept engines."""


@dataclass(slots=True)
class Family:
    """The children that a task has submitted."""

    spawned: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    """"trial.n" -> (checksum of the submitted tasks, their ids)."""


class Reader(NamedTuple):
    """A client that waits for the messages of a task."""

    session: str
    n: int
    after: int


@dataclass(slots=True)
class Mailbox:
    """The messages to and from an unfinished task: their numbers, and the sessions that wait for more."""

    incoming: int = 0
    outgoing: int = 0
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Sender -> (the sender's number of its last message, our number of it)."""
    posted: dict[int, int] = field(default_factory=dict)
    """Attempt -> how many messages it has sent."""
    receiver: TaskCall | None = None
    readers: list[Reader] = field(default_factory=list)


@dataclass(slots=True)
class Conversations:
    """The messages and children of unfinished tasks."""

    families: dict[int, Family] = field(default_factory=dict)
    """Task -> its children."""
    mailboxes: dict[int, Mailbox] = field(default_factory=dict)
    reading: OpenQuestions = field(default_factory=OpenQuestions)
    """The clients among `Mailbox.readers`."""
    progress: dict[int, tuple[float, float | None, str]] = field(default_factory=dict)
    """Running task -> (value, total, message)."""


WITHDRAWN: RunKey = (-1, 0)
"""Stands in a batch for a run that came back unbegun."""


class RecordedBatch(msgspec.Struct, eq=False, gc=False):
    """Runs that were sent to an engine together. The store's row of the batch is deleted when all are answered."""

    number: int
    at_s: float
    """When the batch was sent (wall clock)."""
    sent: tuple[RunKey, ...] = ()
    """The runs in the order in which they were sent, with `WITHDRAWN` in place of those that came back unbegun."""
    unanswered: int = 0
    """How many of the runs have not been answered."""
    newest_s: float = 0.0
    """When the latest of the tasks was submitted (wall clock)."""

    def place(self, run: RunKey) -> tuple[int, int]:
        """Return (number of the batch, place in it) of a run, by which the runs of an engine are ordered."""
        return self.number, self.sent.index(run) if run in self.sent else -1

    def withdraw(self, run: RunKey) -> None:
        """Note that a run has come back unbegun. The places of the others stay."""
        self.sent = tuple(WITHDRAWN if other == run else other for other in self.sent)
