"""Messages between clients and the controller."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .agent import Input
from .blob_chunks import BlobPiece, BlobWritten, ReadBlob, WriteBlob
from .kernel_bytes import ExchangeBytes, KernelBytes
from .outputs import CommandOutputs, Output, Outputs
from .priorities import PrioritySet, SetJobPriority, SetPriority
from .result_cache import CacheReport, CacheTable, ForgetCache, ListCache, ReadCacheKey
from .running_task import TaskMessages
from .tables import (
    CommandQueueTable,
    ConnectionTable,
    EngineTable,
    EventTable,
    FarmState,
    JobTable,
    KeptTable,
    ProgressTable,
    QueueStatusReply,
    RunningTable,
    StickyTable,
    TaskRows,
)
from .task_types import Final, Function, JobSpec, KeptResults, Rules, Submission
from .view import (
    CauseTable,
    EnginePage,
    FarmChanges,
    FollowFarm,
    JobPage,
    ReadCauses,
    ReadEngines,
    ReadJobs,
    ReadStretches,
    ReadTaskInput,
    ReadTaskPage,
    StretchTable,
    TaskInput,
    TaskPage,
    WaitingTable,
    WhyWaiting,
)


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Tasks that are submitted; the ids ascend within each block."""

    tasks: list[Submission]
    functions: list[Function] = []
    jobs: list[JobSpec] = []


class NeedIds(msgspec.Struct, frozen=True, tag=True):
    """The client has used half of its block and needs another one."""


class WatchTasks(msgspec.Struct, frozen=True, tag="Watch"):
    """Question: tell this client when these tasks end.  Answer: `Watched`."""

    ids: list[int]


class FetchResults(msgspec.Struct, frozen=True, tag="Fetch"):
    """Question: the results of these tasks.  Answer: `Fetched`, with as many as `pages.FETCHED_BYTES` allows."""

    ids: list[int]


class ReadTask(msgspec.Struct, frozen=True, tag=True):
    """Question: a task as it was submitted, with its code and its inputs.  Answer: `TaskCopy`."""

    id: int


class AbortTasks(msgspec.Struct, frozen=True, tag="Abort"):
    """Question: end these tasks, running ones and chunks only if `running`.  Answer: `Aborted`, an outcome per id.

    chunks: ids of chunks stand for all their items; otherwise they are unknown, because nobody sees them."""

    ids: list[int]
    interrupt: bool = True
    reason: str = ""
    running: bool = True
    chunks: bool = False


class Clear(msgspec.Struct, frozen=True, tag=True):
    """Question: forget these ended tasks (None: all).  Answer: `Cleared`.

    after: of all tasks, only those with higher ids, the `next` of the last answer.  chunks: as in `AbortTasks`."""

    ids: list[int] | None = None
    after: int = -1
    chunks: bool = False


class RetryTasks(msgspec.Struct, frozen=True, tag="Retry"):
    """Question: submit these failed tasks again, as new ones linked to them. Answer: `Retried`.

    failed_only=False: also those that succeeded. Of those with retries, once: none; latest: their latest, if failed.
    function: to be called in the place of theirs; it needs these blobs."""

    ids: list[int]
    failed_only: bool = True
    earlier: list[tuple[int, int, int]] = []
    """Tasks that were retried just before, see `pages.runs_of`: tasks that need them get the new ones."""
    once: bool = False
    latest: bool = False
    function: Function | None = None
    blobs: tuple[str, ...] = ()


class QueueStatus(msgspec.Struct, frozen=True, tag=True):
    """Question: how many tasks (after: with higher ids) are in each state?  Answer: `QueueStatusReply`."""

    verbose: bool = False
    after: int = -1


class ListTasks(msgspec.Struct, frozen=True, tag="Tasks"):
    """Question: a table of tasks (ids None: all; unretried: without those submitted again). Answer: `TaskRows`."""

    ids: list[int] | None = None
    name: str | None = None
    state: str | None = None
    """scheduled, pending, succeeded, failed, unfinished, finished or None."""
    last: int = 0
    """The largest number of rows, those that were accepted last; 0 for all."""
    after: int = -1
    """The last answer's `next`: only tasks with higher ids, or with `last` those accepted earlier."""
    unretried: bool = False


class ExplainTasks(msgspec.Struct, frozen=True, tag="Explain"):
    """Question: why is a task where it is, in words?  Answer: `TextReply`."""

    id: int


class CheckTask(msgspec.Struct, frozen=True, tag="Check"):
    """Question: which engines could serve a task of these rules, and why not the others?  Answer: `Checked`."""

    rules: Rules | None
    functions: list[Function] = []


class Stuck(msgspec.Struct, frozen=True, tag=True):
    """Question: why does none of these tasks move?  Answer: `TextReply`, empty if one runs, may run or has ended."""

    ids: list[int]


class MarkTasksDone(msgspec.Struct, frozen=True, tag="MarkDone"):
    """Question: end this task as succeeded with this encoded `ResultBody`. Answer: `FlagReply`."""

    id: int
    body: bytes
    blobs: tuple[str, ...] = ()


class MarkTasksFailed(msgspec.Struct, frozen=True, tag="MarkFailed"):
    """Question: count this task's run, or its result, as failed.  Answer: `TextReply`, the consequence for the task."""

    id: int
    why: str = ""
    only_ended: bool = False
    """An unfinished task is left alone: another client has marked its result before."""


class PauseJobs(msgspec.Struct, frozen=True, tag=True):
    """Question: start no task of these jobs (on=False: resume). Answer: `NumberReply`, the number of affected tasks."""

    ids: list[str]
    on: bool = True


class DrainNode(msgspec.Struct, frozen=True, tag="Drain"):
    """Question: give these nodes' engines no more tasks (on=False: resume).  Answer: `NumberReply`, how many agents."""

    nodes: list[str]
    on: bool = True


class FindJobs(msgspec.Struct, frozen=True, tag=True):
    """Question: the jobs of this id or name (None: all) that still have tasks. Answer: `JobTable`.

    tasks=True: with the ids of their tasks.  after: the `next` of the last answer."""

    wanted: str | None = None
    tasks: bool = False
    after: tuple[float, str, int] | None = None


class SendToTask(msgspec.Struct, frozen=True, tag="Send"):
    """Question: send these messages to an unfinished task. Answer: `NumberReply`, the last message's number.

    `mark` is the sender's own id for them, by which a repetition is recognised."""

    id: int
    bodies: list[bytes]
    mark: str


class ReadTaskMessages(msgspec.Struct, frozen=True, tag="Read"):
    """Question: a task's messages after this number. Answer: `TaskMessages`, once there are some or it has ended."""

    id: int
    after: int = 0


class ProgressOf(msgspec.Struct, frozen=True, tag=True):
    """Question: the progress of these running tasks. Answer: `ProgressTable`."""

    ids: list[int]


class ListRunning(msgspec.Struct, frozen=True, tag="Running"):
    """Question: which of these tasks (None: of this session's) run now, and where?  Answer: `RunningTable`."""

    ids: list[int] | None


class ReadHistory(msgspec.Struct, frozen=True, tag="History"):
    """Question: the last matching events (before: the last answer's `next`). Answer: `EventTable`, in order of time."""

    ids: list[int] | None = None
    name: str | None = None
    what: str | None = None
    since_s: float = 0.0
    last: int = 1000
    before: tuple[float, int, str] | None = None


class Stack(msgspec.Struct, frozen=True, tag=True):
    """Question: the present stack of this running task. Answer: `TextReply`."""

    id: int


class SpinFarm(msgspec.Struct, frozen=True, tag="Spin"):
    """Question: drop the verdicts of depend functions, and examine all tasks again. Answer: `FlagReply`."""


class ListEngines(msgspec.Struct, frozen=True, tag="Engines"):
    """Question: which engines are there?  Answer: `EngineTable`."""


class ListCommandQueues(msgspec.Struct, frozen=True, tag="CommandQueues"):
    """Question: which commands wait on which engines?  Answer: `CommandQueueTable`."""


class FarmStatus(msgspec.Struct, frozen=True, tag=True):
    """Question: the state of the farm (engines=False: without engines and agents). Answer: `FarmState`."""

    engines: bool = True


class SetWanted(msgspec.Struct, frozen=True, tag=True):
    """Question: keep this many engines (None: the present number), plus `more`.  Answer: `NumberReply`, the sum."""

    engines: int | None = None
    more: int = 0


class RemoveEngines(msgspec.Struct, frozen=True, tag=True):
    """Question: end these engines, after their running tasks if `drain`, and want fewer. Answer: `NumberReply`."""

    ids: list[int]
    drain: bool = True


class ReleaseFrozen(msgspec.Struct, frozen=True, tag=True):
    """Question: end the frozen engines of these tasks. None: all. Answer: `NumberReply`, the number of engines."""

    tasks: list[int] | None = None


class RemoveAgents(msgspec.Struct, frozen=True, tag=True):
    """Question: remove the agents of these names. Answer: `NumberReply`, the number of agents.

    `within_s` is how long running tasks may go on (None: until they end); then they are treated as at a stop."""

    names: list[str]
    within_s: float | None = None


class AgentsEnded(msgspec.Struct, frozen=True, tag=True):
    """Question: the launcher knows that these agents have ended.  Answer: `NumberReply`, how many were given up."""

    names: list[str]
    why: str


class HoldFarm(msgspec.Struct, frozen=True, tag="Hold"):
    """Question: start no task (on=False: resume).  Answer: `FlagReply`, whether the farm was held before."""

    on: bool = True


class CompactStore(msgspec.Struct, frozen=True, tag="Compact"):
    """Question: give the disk space of cleared tasks back, and do nothing else meanwhile. Answer: `TextReply`."""


class ReloadKeys(msgspec.Struct, frozen=True, tag=True):
    """Question: read the farm's keys, which have changed.  Answer: `NumberReply`, how many connections were cut."""


class ListConnections(msgspec.Struct, frozen=True, tag="Connections"):
    """Question: the connected peers and their keys. Answer: `ConnectionTable`."""


class StopFarm(msgspec.Struct, frozen=True, tag="Stop"):
    """Question: end the farm after `drain_s` for running tasks (None: when they end). Answer: `FlagReply` at once."""

    drain_s: float | None = 10.0


class SetSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: keep this command for every new engine.  Answer: `FlagReply` once it is on disk.

    The same `key` replaces the earlier entry."""

    key: str
    verb: str
    body: bytes
    text: str = ""
    """The text for people in `mec.sticky()`."""


class ListSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: the sticky commands. Answer: `StickyTable`."""


class ClearSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: forget these sticky commands (None: all).  Answer: `NumberReply`, how many."""

    keys: list[str] | None = None


class ListKept(msgspec.Struct, frozen=True, tag=True):
    """Question: the commands done by hand on engines, kept for their replacements. Answer: `KeptTable`."""


class ClearKept(msgspec.Struct, frozen=True, tag=True):
    """Question: forget the commands done by hand on these engine ids (None: all). Answer: `NumberReply`, how many."""

    engines: list[int] | None = None


Question: TypeAlias = (
    WatchTasks | FetchResults | ReadTask | AbortTasks | Clear | RetryTasks | QueueStatus | ListTasks | ExplainTasks
    | CheckTask | Stuck | Outputs | CommandOutputs | Stack | SpinFarm | MarkTasksDone | MarkTasksFailed
    | PauseJobs | DrainNode | FindJobs | SendToTask | ReadTaskMessages | ProgressOf | ReadHistory | ListRunning
    | ListCache | ForgetCache | ReadCacheKey | ListEngines | ListCommandQueues | FarmStatus | SetWanted
    | RemoveEngines | HoldFarm | CompactStore | StopFarm | ReleaseFrozen | ExchangeBytes | SetSticky | ListSticky
    | ClearSticky | ListKept | ClearKept | RemoveAgents | AgentsEnded | ReloadKeys | ListConnections | ReadBlob
    | FollowFarm | ReadCauses | ReadTaskPage | ReadStretches | ReadTaskInput | WhyWaiting | ReadEngines | ReadJobs
    | SetPriority | SetJobPriority | WriteBlob
)  # fmt: skip


class AskQuestion(msgspec.Struct, frozen=True, tag="Ask"):
    """A question with a number that the client has chosen; the `Answer` has the same number."""

    n: int
    question: Question


class Keep(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a command is kept for the replacements of its engines."""

    names: tuple[str, ...] = ()
    """The names that a push binds."""
    blobs: dict[str, int] = {}
    """Digests of the large values that the body needs -> their bytes."""
    sticky: tuple[str, ...] = ()
    """The keys of the sticky entries that replace the body."""
    opted_out: bool = False
    """Whether it must not be repeated; the fact that it was done is recorded all the same."""


class SendCommand(msgspec.Struct, frozen=True, tag="Command"):
    """A MultiEngine command to these engine ids (None: all).  Each engine answers with a `CommandAnswer`.

    Only clients and engines read the verbs and their bodies (`core.messages.engine_commands`).  An unknown id is
    answered alone, with `error` InvalidEngineID, and nothing is run."""

    n: int
    engines: list[int] | None
    verb: str
    body: bytes = b""
    text: str = ""
    """The text for people in `mec.queue_status()`."""
    keep: Keep | None = None
    """None if the command leaves nothing on the engine that a replacement would need."""


ClientMessage: TypeAlias = Submit | NeedIds | AskQuestion | SendCommand


class IdBlock(msgspec.Struct, frozen=True, tag=True):
    """Task ids first..last (inclusive) belong to this client."""

    first: int
    last: int


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """All submissions up to these ids are on disk: (first id of the block, accepted up to) pairs."""

    blocks: list[tuple[int, int]]


class Full(msgspec.Struct, frozen=True, tag=True):
    """Nothing from this id on was accepted: the client keeps these tasks, and sends them again after a second."""

    first_id: int
    why: str


class Finals(msgspec.Struct, frozen=True, tag=True):
    """Tasks that have ended: those that this session submitted or watches."""

    finals: list[Final]


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """An answer that is an error: `etype` is a name of `core.errors` or a builtin's."""

    etype: str
    text: str


class Reopened(msgspec.Struct, frozen=True, tag=True):
    """Tasks that had succeeded run again: their results are not valid any more."""

    ids: list[int]


class Watched(msgspec.Struct, frozen=True, tag=True):
    """The ends of all tasks except these follow, or have come."""

    unknown: list[int]


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """The ended tasks with their results, and the ids of the others."""

    finals: list[Final]
    unfinished: list[int] = []
    unknown: list[int] = []
    left: list[int] = []
    """Ended tasks to ask for again: their results were too much for one answer."""


class TaskCopy(msgspec.Struct, frozen=True, tag=True):
    """A task as it was submitted: all that a client needs to run it itself."""

    task: Submission
    functions: list[Function] = []
    """The code of its function and environment, of the functions among its rules, and of its recovery tasks."""
    inputs: list[Input] = []
    """The results that it takes."""
    item: int | None = None
    """Of an item of a map: its index in the chunk whose payload `task` has."""


class Aborted(msgspec.Struct, frozen=True, tag=True):
    """Per id: aborted, already aborted, already completed, unknown."""

    outcomes: list[tuple[int, str]]


class Cleared(msgspec.Struct, frozen=True, tag=True):
    """The number of forgotten tasks, the unknown ones, and the unfinished ones."""

    count: int
    missing: list[int] = []
    unfinished: list[int] = []
    needed: list[int] = []
    """Tasks with results that other tasks have yet to use."""
    next: int | None = None
    """Of all tasks: where the next question begins; None: all were looked at."""


class Retried(msgspec.Struct, frozen=True, tag=True):
    """(old id, new id) pairs, and the tasks that were not: unknown, not failed, or `settled` (task, its retry)."""

    ids: list[tuple[int, int]]
    missing: list[int] = []
    not_failed: list[int] = []
    settled: list[tuple[int, int]] = []


class Checked(msgspec.Struct, frozen=True, tag=True):
    """For each engine: its id, its node, and why it cannot serve the task; "" if it can."""

    rows: list[tuple[int, str, str]]
    unmet: str = ""
    """Why no engine can ever serve it, in the farm's present state; "" if one can."""


class TextReply(msgspec.Struct, frozen=True, tag="Text"):
    """Lines for people."""

    text: str


class FlagReply(msgspec.Struct, frozen=True, tag="Flag"):
    """Yes or no."""

    value: bool


class NumberReply(msgspec.Struct, frozen=True, tag="Number"):
    """A count."""

    value: int


Reply: TypeAlias = (
    Refusal | Watched | Fetched | TaskCopy | Aborted | Cleared | Retried | Checked | QueueStatusReply | TaskRows
    | TextReply | JobTable | TaskMessages | ProgressTable | RunningTable | EventTable | FlagReply | NumberReply
    | EngineTable | CommandQueueTable | FarmState | StickyTable | KeptTable | ConnectionTable | BlobPiece
    | KernelBytes | CauseTable | TaskPage | StretchTable | TaskInput | WaitingTable | EnginePage | JobPage
    | CacheTable | CacheReport | PrioritySet | BlobWritten
)  # fmt: skip


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer to the `AskQuestion` of that number."""

    n: int
    reply: Reply


class CommandAnswer(msgspec.Struct, frozen=True, tag=True):
    """One engine's answer to a `SendCommand`."""

    n: int
    engine_id: int
    ok: bool
    body: bytes = b""
    """ok: the verb's own packed value.  Not ok: an encoded `FailureBody`."""
    began_s: float = 0.0
    """When the engine began the command (wall clock); 0: it did not run."""
    ended_s: float = 0.0


class Notice(msgspec.Struct, frozen=True, tag=True):
    """A message for the client of a task, shown once as a warning."""

    text: str


ToClient: TypeAlias = (
    IdBlock | Accepted | Full | Finals | KeptResults | Answer | CommandAnswer | Output | Notice | Reopened | FarmChanges
)  # fmt: skip
