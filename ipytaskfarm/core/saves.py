"""The scheduler's requests to write to the store. One turn's saves are one transaction, in their order.

The store (`storage.store`) turns each into SQL; nothing else reads them.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from .messages.agent import AgentProcess
from .messages.result_cache import CacheKey
from .messages.task_types import AttemptRow, Final, Incarnation, JobSpec, Needs, Rules, RunKey


class SaveBlock(msgspec.Struct, frozen=True):
    """Task ids first..last (inclusive) were given to a session.  With a known `first`: the block has become longer."""

    first: int
    last: int
    session: str


class SaveLeft(msgspec.Struct, frozen=True):
    """The session that had this block has ended: it never uses the ids after `last`, nor any id of the block again."""

    first: int
    last: int
    """`first` - 1 if none of the ids was used."""


class SaveAccepted(msgspec.Struct, frozen=True):
    """All ids of the block up to this one have arrived, whether accepted or refused."""

    block_first: int
    upto: int


class SaveTask(msgspec.Struct, frozen=True, gc=False):
    """A task was accepted."""

    id: int
    queue_seq: int
    payload: bytes
    submitted_s: float
    function: str | None
    rules: Rules | None
    session: str
    blobs: tuple[str, ...] = ()
    needs: Needs | None = None
    parent: int | None = None
    spawn: str | None = None
    """The parent's trial, and the number of the submission with which the task came: "1.3"."""
    items: int = 0
    part: tuple[int, int] | None = None
    """See `Submission`.  An item of a chunk with its id in the row of ids of the chunk is separate from now on."""
    cache: CacheKey | None = None


class SaveFunction(msgspec.Struct, frozen=True):
    """A function's code, once."""

    digest: str
    code: bytes


class DropFunctions(msgspec.Struct, frozen=True):
    """No task needs this code any more."""

    digests: list[str]


class SaveHandOut(msgspec.Struct, frozen=True, gc=False):
    """A batch was assigned to an engine. With a known number: the rest of that batch. One row per batch."""

    number: int
    engine: Incarnation
    engine_id: int
    runs: tuple[RunKey, ...]
    at_s: float


class SaveAgent(msgspec.Struct, frozen=True):
    """Which process an agent is, so that a later controller on its machine knows whether it is gone."""

    session: str
    node: str
    process: AgentProcess


class DropAgent(msgspec.Struct, frozen=True):
    """The agent will never be heard again."""

    session: str


class DropHandOut(msgspec.Struct, frozen=True, gc=False):
    """Every attempt of this batch was answered."""

    number: int


class SaveAttempt(msgspec.Struct, frozen=True):
    """An attempt has ended that was not the end of its task."""

    task: int
    row: AttemptRow


class SaveRequeue(msgspec.Struct, frozen=True):
    """A task goes back to its queue."""

    task: int
    queue_seq: int
    attempt: int
    """Attempts begun so far; the next one has the next number."""
    errors: int
    """Retries spent."""
    losses: int
    """Engines lost."""
    recovery: int = 0
    """How far down the chain of recovery tasks the task is.  0: it is the task itself."""
    payload: bytes | None = None
    """The recovery task's own payload, once its turn has come; `function` likewise."""
    function: str | None = None
    until_s: float | None = None
    """The task waits until then (wall clock)."""
    trial: int = 1
    began_s: float | None = None
    """When the first trial began."""
    state: bytes | None = None
    """The state that the run left for the next trial. None: the stored state stays."""
    received: int = 0


class SavePriority(msgspec.Struct, frozen=True):
    """The priority of an unfinished task was changed, and that of its recovery tasks."""

    task: int
    before: int
    priority: int
    at_s: float


class SaveReopen(msgspec.Struct, frozen=True):
    """A task that had succeeded runs again: its end becomes an attempt with this outcome."""

    task: int
    outcome: str
    queue_seq: int
    attempt: int
    errors: int
    losses: int
    recovery: int


class SaveFinal(msgspec.Struct, frozen=True, gc=False):
    """A task has ended.  `final.history` is not written: its rows were saved as `SaveAttempt`s."""

    final: Final


class SaveClear(msgspec.Struct, frozen=True):
    """Ended tasks are forgotten, with everything that belongs to them alone."""

    ids: list[int]


class SaveSeparate(msgspec.Struct, frozen=True):
    """These items of an ended chunk were cleared: they do not belong to the chunk any more."""

    chunk: int
    indexes: list[int]


class SaveRefusal(msgspec.Struct, frozen=True):
    """A submission can never be accepted: fetching its id raises this error."""

    task: int
    etype: str
    text: str


class SaveJob(msgspec.Struct, frozen=True):
    """A job, and how many of its tasks have been submitted."""

    spec: JobSpec
    session: str
    arrived: int
    failed: str = ""
    """Why all its tasks are aborted."""
    paused: bool = False
    priority: int | None = None
    """The priority that was set for all its tasks.  None: each has its own."""


class SaveMail(msgspec.Struct, frozen=True):
    """A message to a task (outgoing: from it), with its number in that direction."""

    task: int
    outgoing: bool
    seq: int
    sender: str
    mark: str
    """The sender's own name for the message: a repetition is recognised by it."""
    at_s: float
    body: bytes


class SaveSetting(msgspec.Struct, frozen=True):
    """A value of the whole farm that outlives the controller (wanted engines, held)."""

    key: str
    value: int | float | str | None


class SaveSticky(msgspec.Struct, frozen=True):
    """A command that every new engine runs.  The same key replaces the earlier entry and keeps its place."""

    key: str
    verb: str
    body: bytes
    text: str


class DropSticky(msgspec.Struct, frozen=True):
    """Forget these sticky entries (None: all)."""

    keys: list[str] | None


class SaveKept(msgspec.Struct, frozen=True):
    """A command that was done by hand on engines, for their replacements (`SaveKeptOn` says which)."""

    number: int
    session: str
    """The client's session, and the number of the command there: a command that is answered again is kept once."""
    n: int
    verb: str
    body: bytes
    text: str
    names: tuple[str, ...] = ()
    """The names that a push binds."""
    blobs: dict[str, int] = {}
    """Digests of the large values that the body needs, with their bytes."""
    sticky: tuple[str, ...] = ()
    """The keys of the sticky entries that replace the body."""


class SaveKeptOn(msgspec.Struct, frozen=True):
    """A kept command belongs to an engine id.  why: it is not done again, for this reason; then there is no body."""

    engine_id: int
    number: int
    why: str = ""
    text: str = ""


class DropKept(msgspec.Struct, frozen=True):
    """Forget these kept commands of an engine id (None: all), and what no engine id needs any more."""

    engine_id: int
    numbers: list[int] | None


Save: TypeAlias = (
    SaveBlock | SaveLeft | SaveAccepted | SaveTask | SaveFunction | DropFunctions | SaveHandOut | DropHandOut
    | SaveAttempt | SaveRequeue | SaveReopen | SaveMail | SaveFinal | SaveClear | SaveRefusal | SaveJob | SaveSetting
    | SaveSticky | DropSticky | SaveSeparate | SaveKept | SaveKeptOn | DropKept | SaveAgent | DropAgent | SavePriority
)  # fmt: skip


# The data that the store returns when a controller starts.


class TaskRecord(msgspec.Struct, frozen=True, gc=False):
    """An unfinished task as the store knows it."""

    id: int
    queue_seq: int
    function: str | None
    rules: Rules | None
    submitted_s: float
    session: str
    attempt: int
    errors: int
    losses: int
    recovery: int
    history: list[AttemptRow] = []
    needs: Needs | None = None
    until_s: float | None = None
    trial: int = 1
    began_s: float | None = None
    received: int = 0
    parent: int | None = None
    spawn: str | None = None
    accepted_seq: int = 0
    """Its place in the order of acceptance; `queue_seq` is a later one when it went back to its queue."""
    items: int = 0
    part: tuple[int, int] | None = None
    cache: CacheKey | None = None
    payload_bytes: int = 0
    """The size of its payload, with code that nobody before it needs, if one of them is large; else 0."""


class FinalRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An ended task: enough to count it and to find it by name."""

    id: int
    reason: str
    name: str | None
    kept: bool = False
    """See `core.messages.task_types.Needs.keep`."""
    accepted_seq: int = 0
    """Its place in the order of acceptance."""
    items: int = 0
    part: tuple[int, int] | None = None


class MapPlace(msgspec.Struct, frozen=True):
    """The place of a task in its map."""

    index: int
    """Counted from 0."""
    total: int | None
    """The number of the map's items.  None: it takes them as they come."""
    name: str
    """The map's."""
    first: int | None = None
    """The task that this one runs again."""


class TaskOfJob(NamedTuple):
    """A task of a job, as a table of jobs needs it."""

    id: int
    items: int
    """The number of its items, if it is a chunk of a map."""
    is_part: bool
    """Whether it runs one item of a chunk."""
    retry_of: int | None
    """The task that it retries."""


class StoredState(msgspec.Struct, frozen=True):
    """All that a controller remembers of its life before."""

    epoch: int
    """The number of this life: one more than the last one's.  It is on disk already."""
    farm: str
    """The farm's incarnation."""
    next_id: int
    next_queue_seq: int
    next_handout: int
    blocks: list[tuple[int, int, int, str]]
    """(first, last, accepted up to (first - 1: none), session) of all blocks: a late resend must be recognised.

    The session is "" when it has ended."""
    tasks: list[TaskRecord]
    finals: list[FinalRecord]
    refusals: list[tuple[int, str, str]]
    handouts: list[SaveHandOut]
    functions: list[str]
    """Digests of the functions with code in the store."""
    settings: dict[str, int | float | str | None]
    sticky: list[SaveSticky]
    jobs: list[SaveJob] = []
    kept: list[SaveKept] = []
    """In order of their numbers."""
    kept_on: list[SaveKeptOn] = []
    """In order of engine id and number."""
    children: list[tuple[int, str, int]] = []
    """(parent, spawn, id) of children whose parents have not ended."""
    mail: list[tuple[int, int, int, str]] = []
    """(task, 1 if from it, last number, JSON list of marks) of tasks that have not ended."""
    agents: list[SaveAgent] = []
    """The agents with engines that hold runs."""
    separate: list[tuple[int, int]] = []
    """(chunk, index) of items that do not belong to their chunk any more."""
