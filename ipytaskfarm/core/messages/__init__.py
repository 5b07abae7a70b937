"""Everything that crosses a process boundary, as typed structs.

The processes of a farm never import one another: this file is where they meet.  It has three parts:

1. client -> controller and back;
2. agent -> controller and back;
3. agent -> engine and back (the *lane*).

Neighbours: `core.messages.task_types` (what a task is made of, and what comes back), `core.messages.blob_chunks`
(large values), `core.messages.tables` (answers to questions), `core.messages.payload` and
`core.messages.engine_commands` (what only clients and engines read), `core.messages.running_task` (calls of running
tasks), `core.requirements` (requirements of tasks),
`transport.handshake`, and `core.messages.evaluator` (the evaluator).

Structs that travel by the thousand are arrays without a tag (``array_like``).  All others are tagged by their class
name, so that a person can read a tape of messages.

Names that end in ``_s`` are seconds: wall-clock seconds since the epoch where the name says when (``submitted_s``),
plain durations otherwise (``run_s``).  An *engine* in a message is an incarnation, ``"<agent session>.<counter>"``; an
*engine id* is the small number that people see.

To add a message: add the struct here, add it to the union of its direction, and write its handler (``core/handlers``
for what the controller receives, ``agent/``, ``engine/`` or ``client/`` for the rest).  A change that an older peer
cannot read raises ``PROTOCOL``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from ..requirements import Allotment, Environment, Recycle
from .blob_chunks import BlobHere, BlobPiece, ReadBlob, WantBlob
from .running_task import Letters, Progress, TaskCall, TaskReply
from .tables import (
    CommandQueueTable,
    ConnectionTable,
    EngineTable,
    EventTable,
    FarmState,
    JobTable,
    ProgressTable,
    QueueStatusReply,
    StickyTable,
    TaskTable,
)
from .task_types import Ended, Failure, Final, Function, Incarnation, JobSpec, Rules, RunKey, Submission

PROTOCOL = 5
"""Peers with another number are refused, with both versions named."""


# --------------------------------------------------------------------------------------------------
# 1. client <-> controller


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Tasks that are handed in; the ids ascend within each block."""

    tasks: list[Submission]
    functions: list[Function] = []
    jobs: list[JobSpec] = []


class NeedIds(msgspec.Struct, frozen=True, tag=True):
    """The client has used half of its block."""


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Question: tell this client when these tasks end.  Answer: `Watched`."""

    ids: list[int]


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Question: the results of these tasks.  Answer: `Fetched`."""

    ids: list[int]


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Question: end these tasks.  Answer: `Aborted`, one outcome per id."""

    ids: list[int]
    interrupt: bool = True
    reason: str = ""
    """For people."""


class Clear(msgspec.Struct, frozen=True, tag=True):
    """Question: forget these ended tasks (None: all).  Answer: `Cleared`."""

    ids: list[int] | None = None


class Retry(msgspec.Struct, frozen=True, tag=True):
    """Question: hand in these failed tasks again, as new ones linked to them.  Answer: `Retried`.

    failed_only=False: those that succeeded too."""

    ids: list[int]
    failed_only: bool = True


class QueueStatus(msgspec.Struct, frozen=True, tag=True):
    """Question: how many tasks are in each state?  Answer: `QueueStatusReply`."""

    verbose: bool = False


class Tasks(msgspec.Struct, frozen=True, tag=True):
    """Question: a table of tasks.  Answer: `TaskTable`.  ids None: all that match."""

    ids: list[int] | None = None
    name: str | None = None
    state: str | None = None
    """scheduled, pending, succeeded, failed, unfinished, finished or None."""
    last: int = 0
    """At most so many, those with the highest ids.  0: all."""


class Explain(msgspec.Struct, frozen=True, tag=True):
    """Question: why is a task where it is, in words?  Answer: `Text`."""

    id: int


class Check(msgspec.Struct, frozen=True, tag=True):
    """Question: which engines could serve a task of these rules, and why not the others?  Answer: `Checked`."""

    rules: Rules | None
    functions: list[Function] = []


class Stuck(msgspec.Struct, frozen=True, tag=True):
    """Question: why does none of these tasks move?  Answer: `Text`, empty if one of them runs, may run or has ended."""

    ids: list[int]


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """Question: what do these tasks (None: this session's) print now?

    Answer: `Number`, how many engines were asked; then an `Output` from each that has something new.  seen: (task,
    attempt, characters of stdout, of stderr) that the client knows."""

    ids: list[int] | None
    seen: list[tuple[int, int, int, int]] = []


class MarkDone(msgspec.Struct, frozen=True, tag=True):
    """Question: let this task succeed with that encoded `ResultBody`.  Answer: `Flag`."""

    id: int
    body: bytes
    blobs: tuple[str, ...] = ()


class MarkFailed(msgspec.Struct, frozen=True, tag=True):
    """Question: let this task's run, or its result, count as failed.  Answer: `Text`, what became of it."""

    id: int
    why: str = ""


class PauseJobs(msgspec.Struct, frozen=True, tag=True):
    """Question: start no task of these jobs (on=False: resume).  Answer: `Number`, how many tasks wait for it."""

    ids: list[str]
    on: bool = True


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Question: give these nodes' engines no more tasks (on=False: resume).  Answer: `Number`, how many agents."""

    nodes: list[str]
    on: bool = True


class FindJobs(msgspec.Struct, frozen=True, tag=True):
    """Question: the jobs of that id or name (None: all) of which not all tasks were cleared.  Answer: `JobTable`.

    tasks=True: with the ids of their tasks."""

    wanted: str | None = None
    tasks: bool = False


class Send(msgspec.Struct, frozen=True, tag=True):
    """Question: send these messages to a task that has not ended.  Answer: `Number`, the last one's number.

    mark: the sender's own name for them; a repetition is recognised by it."""

    id: int
    bodies: list[bytes]
    mark: str


class Read(msgspec.Struct, frozen=True, tag=True):
    """Question: the messages from a task behind this number.

    Answer: `Letters`, as soon as there are some, or none when the task has ended."""

    id: int
    after: int = 0


class ProgressOf(msgspec.Struct, frozen=True, tag=True):
    """Question: how far have these running tasks come?  Answer: `ProgressTable`."""

    ids: list[int]


class History(msgspec.Struct, frozen=True, tag=True):
    """Question: what happened, and when?  Answer: `EventTable`, in order of time, the last events that match."""

    ids: list[int] | None = None
    name: str | None = None
    what: str | None = None
    since_s: float = 0.0
    last: int = 1000


class Stack(msgspec.Struct, frozen=True, tag=True):
    """Question: where is this running task now?  Answer: `Text`."""

    id: int


class Spin(msgspec.Struct, frozen=True, tag=True):
    """Question: drop the verdicts of depend functions, and look again.  Answer: `Flag`."""


class Engines(msgspec.Struct, frozen=True, tag=True):
    """Question: which engines are there?  Answer: `EngineTable`."""


class CommandQueues(msgspec.Struct, frozen=True, tag=True):
    """Question: which commands wait on which engines?  Answer: `CommandQueueTable`."""


class FarmStatus(msgspec.Struct, frozen=True, tag=True):
    """Question: how is the farm?  Answer: `FarmState`."""


class SetWanted(msgspec.Struct, frozen=True, tag=True):
    """Question: keep this many engines (None: as many as now), plus `more`.  Answer: `Number`, how many are wanted."""

    engines: int | None = None
    more: int = 0


class RemoveEngines(msgspec.Struct, frozen=True, tag=True):
    """Question: end these engines, and want that many fewer.  Answer: `Number`.

    drain: their running tasks end first; else they are lost with their engines."""

    ids: list[int]
    drain: bool = True


class RemoveAgents(msgspec.Struct, frozen=True, tag=True):
    """Question: send away the agents of these names.  Answer: `Number`, how many there are.

    within_s: how long running tasks may go on (None: to their ends); then they are treated as at a stop."""

    names: list[str]
    within_s: float | None = None


class AgentsEnded(msgspec.Struct, frozen=True, tag=True):
    """Question: the launcher knows that these agents have ended.  Answer: `Number`, how many were given up."""

    names: list[str]
    why: str


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Question: start no task (on=False: resume).  Answer: `Flag`, whether the farm was held before."""

    on: bool = True


class Compact(msgspec.Struct, frozen=True, tag=True):
    """Question: give the room of cleared tasks back to the disk.  Answer: `Text`.

    The controller does nothing else meanwhile."""


class ReloadKeys(msgspec.Struct, frozen=True, tag=True):
    """Question: read the farm's keys, which have changed.  Answer: `Number`, how many connections were cut."""


class Connections(msgspec.Struct, frozen=True, tag=True):
    """Question: who is connected, by which key?  Answer: `ConnectionTable`."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Question: end the farm.  Answer: `Flag` at once.

    drain_s: how long running tasks may go on (None: until they end)."""

    drain_s: float | None = 10.0


class SetSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: keep this command for every new engine.  Answer: `Flag` once it is on disk.

    The same `key` replaces the earlier entry."""

    key: str
    verb: str
    body: bytes
    text: str = ""
    """For people: shown by `mec.sticky()`."""


class ListSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: which sticky commands are there?  Answer: `StickyTable`."""


class ClearSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: forget these sticky commands (None: all).  Answer: `Number`, how many."""

    keys: list[str] | None = None


Question: TypeAlias = (
    Watch | Fetch | Abort | Clear | Retry | QueueStatus | Tasks | Explain | Check | Stuck | Outputs | Stack | Spin
    | MarkDone | MarkFailed | PauseJobs | Drain | FindJobs | Send | Read | ProgressOf | History
    | Engines | CommandQueues | FarmStatus | SetWanted | RemoveEngines | Hold | Compact | Stop | SetSticky | ListSticky
    | ClearSticky | RemoveAgents | AgentsEnded | ReloadKeys | Connections | ReadBlob
)  # fmt: skip


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A question with a number that the client has chosen; the `Answer` has the same."""

    n: int
    question: Question


class Command(msgspec.Struct, frozen=True, tag=True):
    """A MultiEngine command to these engine ids (None: all).  Each engine answers with a `CommandAnswer`.

    Only clients and engines read the verbs and their bodies (`core.messages.engine_commands`).  An unknown id is
    answered alone, with
    `error` InvalidEngineID, and nothing is run."""

    n: int
    engines: list[int] | None
    verb: str
    body: bytes = b""
    text: str = ""
    """For people: shown by `mec.queue_status()`."""


ClientMessage: TypeAlias = Submit | NeedIds | Ask | Command


class IdBlock(msgspec.Struct, frozen=True, tag=True):
    """Task ids first..last (inclusive) belong to this client."""

    first: int
    last: int


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """All submissions up to these ids are on disk: (first id of the block, accepted up to) pairs."""

    blocks: list[tuple[int, int]]


class Full(msgspec.Struct, frozen=True, tag=True):
    """Nothing from this id on was accepted: the client keeps it, and sends it again after a second."""

    first_id: int
    why: str


class Finals(msgspec.Struct, frozen=True, tag=True):
    """Tasks that have ended: those that this session handed in or watches."""

    finals: list[Final]


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """An answer that is an error: `etype` is a name of `core.errors` or a builtin's."""

    etype: str
    text: str


class Reopened(msgspec.Struct, frozen=True, tag=True):
    """Tasks that had succeeded run again: their results are not valid any more."""

    ids: list[int]


class Watched(msgspec.Struct, frozen=True, tag=True):
    """The ends of all tasks but these follow, or have come."""

    unknown: list[int]


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """The ended tasks with their results; the others by id."""

    finals: list[Final]
    unfinished: list[int] = []
    unknown: list[int] = []


class Aborted(msgspec.Struct, frozen=True, tag=True):
    """Per id: aborted, already aborted, already completed, unknown."""

    outcomes: list[tuple[int, str]]


class Cleared(msgspec.Struct, frozen=True, tag=True):
    """How many tasks were forgotten, which are not there, and which have not ended."""

    count: int
    missing: list[int] = []
    unfinished: list[int] = []
    needed: list[int] = []
    """Tasks whose results other tasks have yet to take."""


class Retried(msgspec.Struct, frozen=True, tag=True):
    """(old id, new id) pairs, and the tasks that could not be retried: not there, or not failed."""

    ids: list[tuple[int, int]]
    missing: list[int] = []
    not_failed: list[int] = []


class Checked(msgspec.Struct, frozen=True, tag=True):
    """For each engine: its id, its node, and why it cannot serve the task ("": it can)."""

    rows: list[tuple[int, str, str]]
    unmet: str = ""
    """Why no engine can ever serve it, as the farm is now.  "": one can."""


class Text(msgspec.Struct, frozen=True, tag=True):
    """Lines for people."""

    text: str


class Flag(msgspec.Struct, frozen=True, tag=True):
    """Yes or no."""

    value: bool


class Number(msgspec.Struct, frozen=True, tag=True):
    """A count."""

    value: int


Reply: TypeAlias = (
    Refusal | Watched | Fetched | Aborted | Cleared | Retried | Checked | QueueStatusReply | TaskTable | Text
    | JobTable | Letters | ProgressTable | EventTable | Flag | Number | EngineTable
    | CommandQueueTable | FarmState | StickyTable | ConnectionTable | BlobPiece
)  # fmt: skip


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The answer to the `Ask` of that number."""

    n: int
    reply: Reply


class CommandAnswer(msgspec.Struct, frozen=True, tag=True):
    """One engine's answer to a `Command`."""

    n: int
    engine_id: int
    ok: bool
    body: bytes = b""
    """ok: the verb's own packed value.  Not ok: an encoded `FailureBody`."""


class Notice(msgspec.Struct, frozen=True, tag=True):
    """Something that the client of a task should know; it is shown as a warning, once."""

    text: str


class Output(msgspec.Struct, frozen=True, tag=True):
    """What a running task has printed since the last `Output`."""

    run: RunKey
    engine_id: int
    stdout: str
    stderr: str
    seen: tuple[int, int]
    """The number of characters of stdout and stderr up to here."""


ToClient: TypeAlias = IdBlock | Accepted | Full | Finals | Answer | CommandAnswer | Output | Notice | Reopened


# --------------------------------------------------------------------------------------------------
# 2. agent <-> controller


class EngineReport(msgspec.Struct, frozen=True):
    """A living engine, in an agent's inventory."""

    engine: Incarnation
    id: int
    pid: int
    ready: bool
    """Whether the engine has said hello and can be given work."""
    started_s: float
    facts: dict[str, Any] = {}
    held: list[RunKey] = []
    """Runs that were sent to the engine and that the controller has not acknowledged: waiting, running or ended, in
    order."""
    properties: Properties | None = None
    connection_file: str = ""
    prepared: bool = False
    """Whether the engine has run the start-up code and the sticky commands."""
    finished: int = 0
    """How many runs the engine has ended."""
    environment: Environment | None = None
    """The environment that the engine was given.  None: it is blank."""
    set_up: bool = False
    """Whether the environment's setup has succeeded."""
    holding: tuple[RunKey, Allotment] | None = None
    """The resources of the engine's running task."""
    recycling: tuple[tuple[str, Recycle], ...] = ()
    """As the last `HandOut` said."""


class Crash(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an engine ended."""

    signal: int | None = None
    exit_code: int | None = None
    cause: str = ""
    """time limit, "memory: …", abort, stopped, stuck … where the agent knows it, else ""."""
    peak_bytes: int = 0
    output: str = ""
    """The last lines that the engine printed."""
    dump: str = ""
    """The text of faulthandler."""


class AgentState(msgspec.Struct, frozen=True, tag=True):
    """The first message of an agent in an epoch: what it is, and its engines with their runs.

    Results that were not acknowledged follow as `Results`, losses of earlier sessions as `EngineLost`."""

    node: str
    pid: int
    cores: int
    memory_bytes: int
    platform: str
    python: str
    engines: list[EngineReport]
    slots: int | None = None
    """How many engines there may be at most.  None: the agent has no limit of its own."""
    former: list[str] = []
    """Sessions of agents that had this one's folder before.  They are dead; what became of their engines follows."""
    resources: dict[str, float] = {}
    """How much there is of each resource, found or declared."""
    gpus: tuple[str, ...] = ()
    """The devices' names, as many as resources["gpu"] says."""
    priority: int = 0
    """Agents of a higher priority are given tasks first."""
    utc_offset_s: int = 0
    """The node's local time minus UTC, as it is now.  `NodeState` says when it changes."""
    name: str = ""
    """The name by which the agent's launcher knows it.  "": no launcher placed it."""
    brings: int | None = None
    """How many engines the agent brings.  None: it takes its share of those that the farm wants."""
    time_left_s: float | None = None
    """How long until the agent has to leave.  None: its time is not limited."""
    wall_s: float = 0.0
    """The time of the agent's clock when the message was written.  0: the agent does not say."""


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """The agent was told to end: it gets no more work.  within_s: after so long it is gone."""

    within_s: float


class EngineUp(msgspec.Struct, frozen=True, tag=True):
    """An engine has said hello and can be given work."""

    report: EngineReport


class EngineLost(msgspec.Struct, frozen=True, tag=True):
    """An engine's process is gone.  All its finished results were sent before this."""

    engine: Incarnation
    id: int
    running: RunKey | None
    known: bool
    """Whether the flight recorder could be read: then `running` is true, and the other runs never began."""
    crash: Crash
    expected: bool = False
    """Whether the engine was told to end."""


class Results(msgspec.Struct, frozen=True, tag=True):
    """Ended attempts from one engine's flight recorder.  Agents put `msgspec.Raw` records in here, unopened."""

    engine: Incarnation
    ended: list[Ended]


class Returned(msgspec.Struct, frozen=True, tag=True):
    """Runs that were not begun and never will be on this engine: recalled, or no longer fitting."""

    engine: Incarnation
    runs: list[RunKey]
    why: str = "recalled"


class CommandDone(msgspec.Struct, frozen=True, tag=True):
    """An engine's answer to an `EngineCommand`."""

    engine: Incarnation
    session: str
    n: int
    ok: bool
    body: bytes = b""


class Properties(msgspec.Struct, frozen=True, tag=True):
    """All the user's properties of an engine, each time they change.  `packed` is a packed dict."""

    engine: Incarnation
    version: int
    packed: bytes
    plain: dict[str, str | float | bool] = {}
    """The values that are text or numbers, for conditions: the controller unpickles nothing."""


class StackText(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `StackQuery`."""

    n: int
    text: str


class OutputText(msgspec.Struct, frozen=True, tag=True):
    """The answer to an `OutputQuery`.  It is bounded: of too much text the oldest is left out."""

    n: int
    run: RunKey
    stdout: str = ""
    stderr: str = ""
    seen: tuple[int, int] = (0, 0)


class NodeState(msgspec.Struct, frozen=True, tag=True):
    """The load and the free memory and disk of a node, sent every few seconds if they have changed."""

    load: float
    """The share of the cores that is busy, 0 to 1."""
    free_memory: int
    free_disk: int
    """Bytes, where the engines' files are."""
    utc_offset_s: int = 0
    """The node's local time minus UTC."""
    fetched_blobs: int = 0
    """How many large values were brought to the node since its agent began."""
    fetched_bytes: int = 0
    """How many bytes these had."""


class SetUp(msgspec.Struct, frozen=True, tag=True):
    """An engine's environment is ready.  error: why it never will be.

    An error without an identity: a task has changed the engine's process for good.
    """

    engine: Incarnation
    identity: str
    error: str = ""


class Demand(msgspec.Struct, frozen=True, tag=True):
    """A running task requests these resources, in place of what it has.  Answer: `Granted`, at once or when they are
    free.

    The task repeats its request.  It says what is wanted, not what is added, so a repetition changes nothing."""

    engine: Incarnation
    run: RunKey
    n: int
    amounts: dict[str, float]


class EngineNote(msgspec.Struct, frozen=True, tag=True):
    """Something about an engine that people should know (it failed to start, its start-up code raised, …)."""

    id: int
    text: str
    engine: Incarnation | None = None
    failed_start: bool = False
    """Whether a `StartEngine` has failed."""


AgentMessage: TypeAlias = (
    AgentState
    | Leaving
    | EngineUp
    | EngineLost
    | Results
    | Returned
    | CommandDone
    | Properties
    | StackText
    | OutputText
    | EngineNote
    | NodeState
    | SetUp
    | Demand
    | TaskCall
    | Progress
    | ReadBlob
)


class StartEngine(msgspec.Struct, frozen=True, tag=True):
    """Start one engine with this id.  `EngineUp` or a failed-start `EngineNote` follows."""

    id: int
    beside: int = 0
    """So many engines are meant to be on that agent's machine, this one among them: they share its cores."""


class StopEngine(msgspec.Struct, frozen=True, tag=True):
    """End this engine: it exits by itself within grace_s, else it is killed.  `EngineLost(expected=True)` follows."""

    engine: Incarnation
    grace_s: float = 2.0


class Input(msgspec.Struct, frozen=True, array_like=True):
    """The result of another task, for this run's arguments."""

    number: int
    """The number under which the payload asks for the value."""
    task: int
    reason: str = ""
    """Why that task failed.  "": it succeeded."""
    body: bytes | None = None
    """The encoded `ResultBody`.  None: it is gone."""
    failure: Failure | None = None


class Special(msgspec.Struct, frozen=True, omit_defaults=True):
    """What only some runs are sent with."""

    inputs: list[Input] = []
    trial: int = 1
    state: bytes = b""
    """What the last trial left, a packed dict."""
    received: int = 0
    """How many messages earlier trials have read."""
    parent: int | None = None


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt that an engine is to run."""

    task: int
    attempt: int
    payload: bytes
    function: str | None = None
    time_limit_s: float | None = None
    properties_version: int | None = None
    """The version of the properties that a depend function accepted.  With another version the engine returns the run
    unrun."""
    environment: str | None = None
    """Identity of the environment that the run needs.  The batch brings the code with its functions."""
    measured: bool = False
    """Whether the engine's memory is reported with the run's end."""
    allotment: Allotment | None = None
    special: Special | None = None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Runs in the order in which they are run, with the functions that the engine has not seen."""

    runs: list[Run]
    functions: list[Function] = []


class HandOut(msgspec.Struct, frozen=True, tag=True):
    """A `Batch` for an engine, still encoded, and which runs are in it."""

    engine: Incarnation
    runs: list[RunKey]
    batch: msgspec.Raw
    environment: Environment | None = None
    """The engine's environment from now on."""
    allotment: Allotment | None = None
    """The resources of the batch's only run."""
    recycling: tuple[tuple[str, Recycle], ...] = ()
    """When the engine is recycled.  The agent keeps this for the controller's next life."""
    graces: dict[int, float] | None = None
    """Task -> seconds between the interrupt of its time limit and the signals, for tasks with a time of their own."""


class Recall(msgspec.Struct, frozen=True, tag=True):
    """Give these runs back (`Returned`) if they were not begun; else their `Ended` is the answer."""

    engine: Incarnation
    runs: list[RunKey]


class Interrupt(msgspec.Struct, frozen=True, tag=True):
    """Stop this run: interrupt it, after grace_s terminate its engine, after another half of that kill it.

    A run that has not begun is returned.  For a run that has ended nothing happens."""

    engine: Incarnation
    run: RunKey
    grace_s: float = 1.0


class EngineCommand(msgspec.Struct, frozen=True, tag=True):
    """A MultiEngine command for one engine.

    (session, n) names it: a second command of that name is answered, not run.  session "" is the farm itself: start-up
    code and sticky commands."""

    engine: Incarnation
    session: str
    n: int
    verb: str
    body: bytes = b""


class StackQuery(msgspec.Struct, frozen=True, tag=True):
    """Where is this engine now?"""

    n: int
    engine: Incarnation


class OutputQuery(msgspec.Struct, frozen=True, tag=True):
    """What has this run printed beyond so many characters?"""

    n: int
    engine: Incarnation
    run: RunKey
    stdout: int = 0
    stderr: int = 0


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `Demand`: the resources of the run from now on.  error: why it can never have more."""

    engine: Incarnation
    run: RunKey
    n: int
    allotment: Allotment
    error: str = ""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End all engines and then the agent; results are sent first."""

    grace_s: float = 2.0


class Leave(msgspec.Struct, frozen=True, tag=True):
    """End the agent when its engines have ended, which are told one by one.  within_s: at the latest after so long."""

    within_s: float | None = None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """The farm's lease: an agent's engines must be gone when it has not heard the controller for so long."""

    lease_s: float


class EnginePrepared(msgspec.Struct, frozen=True, tag=True):
    """The engine has run start-up code and sticky commands; the agent reports this (`EngineReport.prepared`)."""

    engine: Incarnation


ToAgent: TypeAlias = (
    StartEngine
    | StopEngine
    | HandOut
    | Recall
    | Interrupt
    | EngineCommand
    | StackQuery
    | OutputQuery
    | EnginePrepared
    | Leave
    | Lease
    | Granted
    | TaskReply
    | BlobPiece
    | Shutdown
)


# --------------------------------------------------------------------------------------------------
# 3. The lane: agent <-> engine.  Results do not travel here: they are in the flight recorder.


class LaneHello(msgspec.Struct, frozen=True, tag=True):
    """An engine is ready for work."""

    engine: Incarnation
    pid: int
    facts: dict[str, Any]
    connection_file: str = ""


class LaneExit(msgspec.Struct, frozen=True, tag=True):
    """Finish the running task, return the other runs, and exit."""


FromEngine: TypeAlias = (
    LaneHello | Returned | CommandDone | Properties | OutputText | EngineNote | SetUp | Demand | TaskCall | Progress
    | WantBlob
)  # fmt: skip
ToEngine: TypeAlias = Batch | Recall | EngineCommand | OutputQuery | Granted | TaskReply | BlobHere | LaneExit

Message: TypeAlias = ClientMessage | ToClient | AgentMessage | ToAgent
