"""Calls of running tasks and the farm's replies: children, messages, progress.

A call goes engine -> agent -> controller. It counts only while its attempt is the current one on that engine. Each call
is repeated until it is answered. It states the wanted result, never an addition, so a repetition changes nothing.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .task_types import Final, Function, Incarnation, ItemEnd, JobSpec, RunKey, Submission


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """A message to a task, or from one."""

    seq: int
    sender: str
    at_s: float
    body: bytes
    """A packed value."""


class TaskMessages(msgspec.Struct, frozen=True, tag="Letters"):
    """Messages in order.  over: no more will come."""

    letters: list[Letter]
    over: bool = False


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """From a running task: submit these tasks as its children.  Answer: `Spawned`.

    The same n of the same trial of the same link of the chain of recovery tasks gets the same ids."""

    n: int
    tasks: list[Submission]
    """Their ids only name the edges between them: the controller gives them others."""
    functions: list[Function] = []
    job: JobSpec | None = None
    """The job that the children belong to: a child job of the task's."""


def trial_name(trial: int, recovery: int) -> str:
    """Return what tells the children of one trial from those of others, and of other links of the chain of recoveries.

    recovery: the position of the link in the chain; 0 for the task itself."""
    return f"{trial}-{recovery}" if recovery else f"{trial}"


class Children(msgspec.Struct, frozen=True, tag=True):
    """From a running task: what became of its children?  Answer: `ChildTable`."""


class Await(msgspec.Struct, frozen=True, tag=True):
    """From a running task: it waits until these have ended ([]: it waits no longer), and lends its slot in the
    meantime.

    keeps: its resources stay with it, because it goes on without asking for them.

    Answer: `Counted`, the number of them that failed.
    """

    ids: list[int]
    keeps: bool = False


class Take(msgspec.Struct, frozen=True, tag=True):
    """From a running task: the results of these ended tasks.  Answer: `Taken`."""

    ids: list[int]


class Post(msgspec.Struct, frozen=True, tag=True):
    """From a running task: messages for the clients that read them.  `first` is the first one's number in the attempt.

    Answer: `Counted`, the number of the last message that is on disk."""

    first: int
    bodies: list[bytes]


class Receive(msgspec.Struct, frozen=True, tag=True):
    """From a running task: the messages to it behind that number.  Answer: `TaskMessages`, as soon as there are
    some."""

    after: int


TaskQuestion: TypeAlias = Spawn | Children | Await | Take | Post | Receive


class TaskCall(msgspec.Struct, frozen=True, tag=True):
    """A running task's call.  Answer: `TaskReply` with the same n.  The call is repeated until it is answered."""

    engine: Incarnation
    run: RunKey
    n: int
    question: TaskQuestion


class ProgressReport(msgspec.Struct, frozen=True, tag="Progress"):
    """How far a running task has come, as it reports itself; at most about ten times a second."""

    engine: Incarnation
    run: RunKey
    value: float
    total: float | None = None
    message: str = ""


class ItemsLeft(msgspec.Struct, frozen=True, tag=True):
    """An item of a chunk waits, or takes long: the run goes on with this item alone.

    The chunk's `Ended` repeats all of it.
    """

    engine: Incarnation
    run: RunKey
    done: int
    """The index of the item that runs.  Those behind it have not begun, and never will in this run."""
    told: list[ItemEnd] = []
    """The ends of items before it."""


class Spawned(msgspec.Struct, frozen=True, tag=True):
    """The ids of a `Spawn`'s tasks, in its order."""

    ids: list[int]


class ChildTable(msgspec.Struct, frozen=True, tag=True):
    """(id, state) in the order of submission."""

    rows: list[tuple[int, str]]


class Counted(msgspec.Struct, frozen=True, tag=True):
    """A number."""

    value: int


class Taken(msgspec.Struct, frozen=True, tag=True):
    """Ends of tasks, with their results."""

    finals: list[Final]
    left: list[int] = []
    """Tasks to ask for again: their results were too much for one answer."""


class Declined(msgspec.Struct, frozen=True, tag=True):
    """An answer that is an error: `etype` is a name of `core.errors` or a builtin's."""

    etype: str
    text: str


class TaskReply(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `TaskCall`."""

    engine: Incarnation
    run: RunKey
    n: int
    reply: Spawned | ChildTable | Counted | Taken | TaskMessages | Declined
