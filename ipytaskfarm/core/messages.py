"""Everything that crosses a process boundary, as typed structs.

The processes of a farm never import one another: this file is where they meet.  It has three parts:

1. client -> controller and back;
2. agent -> controller and back;
3. agent -> engine and back (the *lane*).

What a task is made of, and what comes back of it, stands in `core.parcels`, how large values reach other machines in
`core.pieces`.
Tables that answer questions stand in `core.tables`, what client and engine say to each other through the others' hands
in `core.work` and `core.verbs`, what tasks ask of their engines in `core.demands`, the handshake of a connection in
`core.handshake`, what the evaluator is asked in `core.verdicts`.

Structs that travel by the thousand are arrays without a tag (``array_like``); all others are tagged by
their class name, so that a tape of messages can be read by a person.

Words ending in ``_s`` are seconds: wall-clock seconds since the epoch where the name says when
(``submitted_s``), plain durations otherwise (``run_s``).  An *engine* in a message is an incarnation,
``"<agent session>.<counter>"``; an *engine id* is the small number people see.

To add a message: add the struct here, add it to the union of its direction, and write its handler
(``core/handlers`` for what the controller receives, ``agent/``, ``engine/`` or ``client/`` for the rest).
Changing a struct in a way that an older peer cannot read raises ``PROTOCOL``.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from .calls import Letters, Progress, TaskCall, TaskReply
from .demands import Allotment, Environment, Recycle
from .parcels import Ended, Failure, Final, Function, Incarnation, JobSpec, Rules, RunKey, Submission
from .pieces import BlobHere, BlobPiece, ReadBlob, WantBlob
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

PROTOCOL = 4
"""Peers with another number are refused, with both versions named."""


# --------------------------------------------------------------------------------------------------
# 1. client <-> controller


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Tasks handed in, their ids ascending within each block."""

    tasks: list[Submission]
    functions: list[Function] = []
    jobs: list[JobSpec] = []


class NeedIds(msgspec.Struct, frozen=True, tag=True):
    """The client has used half of its block."""


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Question: tell me when these end.  Answer: `Watched`."""

    ids: list[int]


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Question: the results of these.  Answer: `Fetched`."""

    ids: list[int]


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Question.  Answer: `Aborted`, one outcome per id."""

    ids: list[int]
    interrupt: bool = True
    reason: str = ""
    """For people."""


class Clear(msgspec.Struct, frozen=True, tag=True):
    """Question: forget these final results (None: all).  Answer: `Cleared`."""

    ids: list[int] | None = None


class Retry(msgspec.Struct, frozen=True, tag=True):
    """Question: hand these failed tasks in again as new linked ones (failed_only=False: those that ended well too).
    Answer: `Retried`."""

    ids: list[int]
    failed_only: bool = True


class QueueStatus(msgspec.Struct, frozen=True, tag=True):
    """Question.  Answer: `QueueStatusReply`."""

    verbose: bool = False


class Tasks(msgspec.Struct, frozen=True, tag=True):
    """Question: a table of tasks.  Answer: `TaskTable`.  ids None: all that match."""

    ids: list[int] | None = None
    name: str | None = None
    state: str | None = None
    """scheduled, pending, succeeded, failed, unfinished, finished or None."""
    last: int = 0
    """No more than so many, those with the highest ids; 0: all."""


class Explain(msgspec.Struct, frozen=True, tag=True):
    """Question: for people.  Answer: `Text`."""

    id: int


class Check(msgspec.Struct, frozen=True, tag=True):
    """Question: which engines could serve a task of these rules, and why not the others.  Answer: `Checked`."""

    rules: Rules | None
    functions: list[Function] = []


class Stuck(msgspec.Struct, frozen=True, tag=True):
    """Question: why does none of these move?  Answer: `Text`, empty if one of them runs, may run, or has ended."""

    ids: list[int]


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """Question: what do these tasks (None: this session's) print now?  Answer: `Number`, how many engines were asked;
    an `Output` from each that has something new.  seen: (task, attempt, characters of stdout, of stderr) known."""

    ids: list[int] | None
    seen: list[tuple[int, int, int, int]] = []


class MarkDone(msgspec.Struct, frozen=True, tag=True):
    """Question: let this task have ended well, with that encoded `ResultBody`.  Answer: `Flag`."""

    id: int
    body: bytes
    blobs: tuple[str, ...] = ()


class MarkFailed(msgspec.Struct, frozen=True, tag=True):
    """Question: let this task's run, or its result, count as failed.  Answer: `Text`, what became of it."""

    id: int
    why: str = ""


class PauseJobs(msgspec.Struct, frozen=True, tag=True):
    """Question: start nothing of these jobs (on=False: go on).  Answer: `Number`, how many tasks wait for that."""

    ids: list[str]
    on: bool = True


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Question: give these nodes' engines nothing more (on=False: go on).  Answer: `Number`, how many agents."""

    nodes: list[str]
    on: bool = True


class FindJobs(msgspec.Struct, frozen=True, tag=True):
    """Question: jobs of that id or name (None: all) whose tasks were not all cleared.  Answer: `JobTable`.
    tasks=True: with the ids of their tasks."""

    wanted: str | None = None
    tasks: bool = False


class Send(msgspec.Struct, frozen=True, tag=True):
    """Question: these for that task, which has not ended.  mark: the sender's own name for them: taken once.
    Answer: `Number`, the last one's number."""

    id: int
    bodies: list[bytes]
    mark: str


class Read(msgspec.Struct, frozen=True, tag=True):
    """Question: what that task has sent behind this number.  Answer: `Letters`, as soon as there are some, or none
    when it has ended."""

    id: int
    after: int = 0


class ProgressOf(msgspec.Struct, frozen=True, tag=True):
    """Question: how far have these come that run?  Answer: `ProgressTable`."""

    ids: list[int]


class History(msgspec.Struct, frozen=True, tag=True):
    """Question: what happened, and when.  Answer: `EventTable`, in order of time, the last so many that match."""

    ids: list[int] | None = None
    name: str | None = None
    what: str | None = None
    since_s: float = 0.0
    last: int = 1000


class Stack(msgspec.Struct, frozen=True, tag=True):
    """Question: where is this running task now.  Answer: `Text`."""

    id: int


class Spin(msgspec.Struct, frozen=True, tag=True):
    """Question: drop cached depend answers and look again.  Answer: `Flag`."""


class Engines(msgspec.Struct, frozen=True, tag=True):
    """Question.  Answer: `EngineTable`."""


class CommandQueues(msgspec.Struct, frozen=True, tag=True):
    """Question: which commands wait on which engines.  Answer: `CommandQueueTable`."""


class FarmStatus(msgspec.Struct, frozen=True, tag=True):
    """Question.  Answer: `FarmState`."""


class SetWanted(msgspec.Struct, frozen=True, tag=True):
    """Question: keep this many engines (None: as many as now), plus `more`.  Answer: `Number`, how many are wanted."""

    engines: int | None = None
    more: int = 0


class RemoveEngines(msgspec.Struct, frozen=True, tag=True):
    """Question: end these engines, and want that many fewer.  Answer: `Number`.
    drain: what runs there comes to its end first; else it is lost with its engine."""

    ids: list[int]
    drain: bool = True


class RemoveAgents(msgspec.Struct, frozen=True, tag=True):
    """Question: send these agents away, by their names.  Answer: `Number`, how many are there.
    within_s: how long what runs there may go on (None: to its end); then it is dealt with as at a stop."""

    names: list[str]
    within_s: float | None = None


class AgentsEnded(msgspec.Struct, frozen=True, tag=True):
    """Question: their launcher knows that these agents have ended.  Answer: `Number`, how many were given up."""

    names: list[str]
    why: str


class Hold(msgspec.Struct, frozen=True, tag=True):
    """Question: start no task (on=False: go on).  Answer: `Flag`, whether it was held before."""

    on: bool = True


class Compact(msgspec.Struct, frozen=True, tag=True):
    """Question: give the room of cleared tasks back to the disk; the controller does nothing else meanwhile.
    Answer: `Text`."""


class ReloadKeys(msgspec.Struct, frozen=True, tag=True):
    """Question: the farm's keys have changed, read them anew.  Answer: `Number`, how many connections were cut."""


class Connections(msgspec.Struct, frozen=True, tag=True):
    """Question: who is connected, by which key.  Answer: `ConnectionTable`."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Question: end the farm.  Answer: `Flag` at once.
    drain_s: how long running tasks may go on (None: until they end)."""

    drain_s: float | None = 10.0


class SetSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: keep this command for every fresh engine.  Answer: `Flag` once it is on disk.
    The same `key` replaces the earlier entry."""

    key: str
    verb: str
    body: bytes
    text: str = ""
    """For people: what `mec.sticky()` shows."""


class ListSticky(msgspec.Struct, frozen=True, tag=True):
    """Question.  Answer: `StickyTable`."""


class ClearSticky(msgspec.Struct, frozen=True, tag=True):
    """Question: forget these entries (None: all).  Answer: `Number`, how many."""

    keys: list[str] | None = None


Question: TypeAlias = (
    Watch | Fetch | Abort | Clear | Retry | QueueStatus | Tasks | Explain | Check | Stuck | Outputs | Stack | Spin
    | MarkDone | MarkFailed | PauseJobs | Drain | FindJobs | Send | Read | ProgressOf | History
    | Engines | CommandQueues | FarmStatus | SetWanted | RemoveEngines | Hold | Compact | Stop | SetSticky | ListSticky
    | ClearSticky | RemoveAgents | AgentsEnded | ReloadKeys | Connections | ReadBlob
)  # fmt: skip


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A question with a number of the client's choosing; the `Answer` bears the same."""

    n: int
    question: Question


class Command(msgspec.Struct, frozen=True, tag=True):
    """A MultiEngine command to these engine ids (None: all): one `CommandAnswer` each.

    The verbs and their bodies are a matter between client and engine (`core.verbs`).
    An unknown id is answered alone, with `error` InvalidEngineID, and nothing is run.
    """

    n: int
    engines: list[int] | None
    verb: str
    body: bytes = b""
    text: str = ""
    """For people: what `mec.queue_status()` shows."""


ClientMessage: TypeAlias = Submit | NeedIds | Ask | Command


class IdBlock(msgspec.Struct, frozen=True, tag=True):
    """Task ids first..last (inclusive) are this client's."""

    first: int
    last: int


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """All submissions up to these ids are on disk: (first id of the block, accepted up to) pairs."""

    blocks: list[tuple[int, int]]


class Full(msgspec.Struct, frozen=True, tag=True):
    """Nothing from this id on was accepted: keep it, and send again after a second."""

    first_id: int
    why: str


class Finals(msgspec.Struct, frozen=True, tag=True):
    """Tasks that ended: those this session handed in or watches."""

    finals: list[Final]


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """An answer that is an error: `etype` is a name of `core.errors` or a builtin's."""

    etype: str
    text: str


class Reopened(msgspec.Struct, frozen=True, tag=True):
    """These had ended well and run again: their results are not to be shown any more."""

    ids: list[int]


class Watched(msgspec.Struct, frozen=True, tag=True):
    """Finals follow (or have come) for all but these."""

    unknown: list[int]


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """Final ones in full; the others by id."""

    finals: list[Final]
    unfinished: list[int] = []
    unknown: list[int] = []


class Aborted(msgspec.Struct, frozen=True, tag=True):
    """Per id: aborted, already aborted, already completed, unknown."""

    outcomes: list[tuple[int, str]]


class Cleared(msgspec.Struct, frozen=True, tag=True):
    """How many were forgotten; which are not there; which are not final."""

    count: int
    missing: list[int] = []
    unfinished: list[int] = []
    needed: list[int] = []
    """Results that other tasks have yet to take."""


class Retried(msgspec.Struct, frozen=True, tag=True):
    """(old id, new id) pairs; which could not be: not there, or not failed."""

    ids: list[tuple[int, int]]
    missing: list[int] = []
    not_failed: list[int] = []


class Checked(msgspec.Struct, frozen=True, tag=True):
    """Per engine: its id, its node, and why it cannot serve the task ("": it can)."""

    rows: list[tuple[int, str, str]]
    unmet: str = ""
    """Why no engine ever can, as the farm is now; "": one can."""


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
    """ok: the verb's own packed value; else an encoded `FailureBody`."""


class Notice(msgspec.Struct, frozen=True, tag=True):
    """Something that whoever handed in a task should know; shown as a warning, once."""

    text: str


class Output(msgspec.Struct, frozen=True, tag=True):
    """What a running task has printed since the last one."""

    run: RunKey
    engine_id: int
    stdout: str
    stderr: str
    seen: tuple[int, int]
    """Characters of stdout and stderr until here."""


ToClient: TypeAlias = IdBlock | Accepted | Full | Finals | Answer | CommandAnswer | Output | Notice | Reopened


# --------------------------------------------------------------------------------------------------
# 2. agent <-> controller


class EngineReport(msgspec.Struct, frozen=True):
    """A living engine, in an agent's inventory."""

    engine: Incarnation
    id: int
    pid: int
    ready: bool
    """It has said hello and can be given work."""
    started_s: float
    facts: dict[str, Any] = {}
    held: list[RunKey] = []
    """Handed to it and not acknowledged by the controller yet, in order: held, running, or done."""
    properties: Properties | None = None
    connection_file: str = ""
    prepared: bool = False
    """Start-up code and sticky state have been run on it."""
    finished: int = 0
    """Runs that it has ended."""
    environment: Environment | None = None
    """What it was told to prepare for; None: it is blank."""
    set_up: bool = False
    """The environment's setup has ended well."""
    holding: tuple[RunKey, Allotment] | None = None
    """What its running task was allotted."""
    recycling: tuple[tuple[str, Recycle], ...] = ()
    """As the last hand-out said."""


class Crash(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an engine ended."""

    signal: int | None = None
    exit_code: int | None = None
    cause: str = ""
    """time limit, "memory: …", abort, stopped, stuck ... where the agent knows; else ""."""
    peak_bytes: int = 0
    output: str = ""
    """The last lines it printed."""
    dump: str = ""
    """faulthandler's text."""


class AgentState(msgspec.Struct, frozen=True, tag=True):
    """The first message of an agent in an epoch: what it is and what it holds.
    Results not yet acknowledged follow as `Results`, losses of earlier sessions as `EngineLost`."""

    node: str
    pid: int
    cores: int
    memory_bytes: int
    platform: str
    python: str
    engines: list[EngineReport]
    slots: int | None = None
    """Most engines it may have; None: no limit of its own."""
    former: list[str] = []
    """Sessions of agents that had this one's folder before it: they are dead, and what their engines left follows."""
    resources: dict[str, float] = {}
    """What there is of each resource, found or declared."""
    gpus: tuple[str, ...] = ()
    """The devices' names; as many as resources["gpu"]."""
    priority: int = 0
    """Agents of a higher one are given tasks first."""
    utc_offset_s: int = 0
    """Of the node's local time, as it is now; `NodeState` says when it changes."""
    name: str = ""
    """By which its launcher knows it; "": none placed it."""
    brings: int | None = None
    """How many engines it brings; None: it takes its share of those that the farm wants."""
    time_left_s: float | None = None
    """Until it is to leave; None: nobody limits its time."""
    wall_s: float = 0.0
    """By its clock, when this is said; 0: it does not say."""


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """Whoever placed this agent has told it to end: give it nothing more.  within_s: it cannot stay any longer."""

    within_s: float


class EngineUp(msgspec.Struct, frozen=True, tag=True):
    """An engine said hello and can be given work."""

    report: EngineReport


class EngineLost(msgspec.Struct, frozen=True, tag=True):
    """An engine's process is gone; all its finished results were sent before this."""

    engine: Incarnation
    id: int
    running: RunKey | None
    known: bool
    """The flight recorder could be read, so `running` is the truth and the rest never began."""
    crash: Crash
    expected: bool = False
    """It was told to end."""


class Results(msgspec.Struct, frozen=True, tag=True):
    """Ended attempts from one engine's ring.  Agents put `msgspec.Raw` records in here, unopened."""

    engine: Incarnation
    ended: list[Ended]


class Returned(msgspec.Struct, frozen=True, tag=True):
    """These were not begun and never will be on this engine: recalled, or no longer fitting."""

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
    """The user's properties of an engine, whole, each time they change.  `packed` is a packed dict."""

    engine: Incarnation
    version: int
    packed: bytes
    plain: dict[str, str | float | bool] = {}
    """Those of its values that are text or numbers, for conditions: the controller unpickles nothing."""


class StackText(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `StackQuery`."""

    n: int
    text: str


class OutputText(msgspec.Struct, frozen=True, tag=True):
    """The answer to an `OutputQuery`: bounded, the oldest left out if there is too much."""

    n: int
    run: RunKey
    stdout: str = ""
    stderr: str = ""
    seen: tuple[int, int] = (0, 0)


class NodeState(msgspec.Struct, frozen=True, tag=True):
    """How a node does; every few seconds, if it has changed."""

    load: float
    """Share of its cores that is busy, 0 to 1."""
    free_memory: int
    free_disk: int
    """Bytes, where its engines' files are."""
    utc_offset_s: int = 0
    """Of its local time."""
    fetched_blobs: int = 0
    """So many large values were brought to it, …"""
    fetched_bytes: int = 0
    """… of so many bytes, since its agent began."""


class SetUp(msgspec.Struct, frozen=True, tag=True):
    """An engine's environment is ready; error: it never will be."""

    engine: Incarnation
    identity: str
    error: str = ""


class Demand(msgspec.Struct, frozen=True, tag=True):
    """A running task wants to hold so much from now on, all in all.  Answer: `Granted`, at once or when it is free.
    Repeated by who waits: it says what is wanted, not what is added."""

    engine: Incarnation
    run: RunKey
    n: int
    amounts: dict[str, float]


class EngineNote(msgspec.Struct, frozen=True, tag=True):
    """Something about an engine that people should know (failed to start, start-up code raised, ...)."""

    id: int
    text: str
    engine: Incarnation | None = None
    failed_start: bool = False
    """No engine came of this `StartEngine`."""


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


class StopEngine(msgspec.Struct, frozen=True, tag=True):
    """End this engine: exit by itself within grace_s, else killed.  `EngineLost(expected=True)` follows."""

    engine: Incarnation
    grace_s: float = 2.0


class Input(msgspec.Struct, frozen=True, array_like=True):
    """The result of another task, for this run's arguments."""

    number: int
    """By which the payload asks for it."""
    task: int
    reason: str = ""
    """Why that one failed; "": it did not."""
    body: bytes | None = None
    """Its encoded `ResultBody`; None: it is not there any more."""
    failure: Failure | None = None


class Special(msgspec.Struct, frozen=True, omit_defaults=True):
    """What only some runs come with."""

    inputs: list[Input] = []
    trial: int = 1
    state: bytes = b""
    """What the last trial left, a packed dict."""
    received: int = 0
    """Messages that earlier trials have read."""
    parent: int | None = None


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt to be run by an engine."""

    task: int
    attempt: int
    payload: bytes
    function: str | None = None
    time_limit_s: float | None = None
    properties_version: int | None = None
    """The version a depend function said yes to; another one now: return it unrun."""
    environment: str | None = None
    """Identity of the environment that it needs; the batch brings the code with its functions."""
    measured: bool = False
    """Report the engine's memory with its end."""
    allotment: Allotment | None = None
    special: Special | None = None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Attempts in the order in which they are to be run, with the functions the engine has not seen."""

    runs: list[Run]
    functions: list[Function] = []


class HandOut(msgspec.Struct, frozen=True, tag=True):
    """A `Batch` for an engine, still encoded, and what is in it."""

    engine: Incarnation
    runs: list[RunKey]
    batch: msgspec.Raw
    environment: Environment | None = None
    """The engine's from now on."""
    allotment: Allotment | None = None
    """Of its one run."""
    recycling: tuple[tuple[str, Recycle], ...] = ()
    """When the engine is recycled: the agent keeps it for the controller's next life."""
    graces: dict[int, float] | None = None
    """Task -> seconds between the interrupt of its time limit and the signals that end its engine, where it says so."""


class Recall(msgspec.Struct, frozen=True, tag=True):
    """Give these back (`Returned`) if they were not begun; else their `Ended` is the answer."""

    engine: Incarnation
    runs: list[RunKey]


class Interrupt(msgspec.Struct, frozen=True, tag=True):
    """Stop this attempt: interrupt, after grace_s terminate, after another half of it kill.
    Not begun: it is returned.  Ended already: nothing happens."""

    engine: Incarnation
    run: RunKey
    grace_s: float = 1.0


class EngineCommand(msgspec.Struct, frozen=True, tag=True):
    """A MultiEngine command for one engine.  (session, n) names it: a second one of that name is answered, not run.
    session "" is the farm itself: start-up code and sticky state."""

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
    """The answer to a `Demand`: what the run holds from now on; `error`: why it never can."""

    engine: Incarnation
    run: RunKey
    n: int
    allotment: Allotment
    error: str = ""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End all engines and then yourself; results come first."""

    grace_s: float = 2.0


class Leave(msgspec.Struct, frozen=True, tag=True):
    """End yourself when your engines have ended, which are told one by one.  within_s: then at the latest."""

    within_s: float | None = None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """The farm's lease: so long after you last heard the controller your engines have to be gone."""

    lease_s: float


class EnginePrepared(msgspec.Struct, frozen=True, tag=True):
    """Start-up code and sticky state have been run: say so (`EngineReport.prepared`) in the next inventory."""

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
# 3. The lane: agent <-> engine.  Results do not travel here: they stand in the flight recorder.


class LaneHello(msgspec.Struct, frozen=True, tag=True):
    """An engine is ready for work."""

    engine: Incarnation
    pid: int
    facts: dict[str, Any]
    connection_file: str = ""


class LaneExit(msgspec.Struct, frozen=True, tag=True):
    """Finish the running task, return the rest, exit."""


FromEngine: TypeAlias = (
    LaneHello | Returned | CommandDone | Properties | OutputText | EngineNote | SetUp | Demand | TaskCall | Progress
    | WantBlob
)  # fmt: skip
ToEngine: TypeAlias = Batch | Recall | EngineCommand | OutputQuery | Granted | TaskReply | BlobHere | LaneExit

Message: TypeAlias = ClientMessage | ToClient | AgentMessage | ToAgent
