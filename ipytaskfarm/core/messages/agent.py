"""Messages between agents and the controller."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from ..requirements import Allotment, Environment, Recycle
from .blob_chunks import BlobPiece, ReadBlob
from .running_task import ProgressReport, TaskCall, TaskReply
from .task_types import Ended, FailureSummary, Function, Incarnation, RunKey


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
    properties: PropertiesChanged | None = None
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

    Results that were not acknowledged follow as `Results`, losses of earlier sessions as `EngineDown`."""

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


class EngineDown(msgspec.Struct, frozen=True, tag="EngineLost"):
    """An engine's process is gone.  All its finished results were sent before this."""

    engine: Incarnation
    id: int
    running: RunKey | None
    known: bool
    """Whether the flight recorder could be read: then `running` is true, and the other runs never began."""
    crash: Crash
    expected: bool = False
    """Whether the engine was told to end."""
    items: tuple[int, int] | None = None
    """Of a chunk that was running: the items up to the second index may have begun, and those before the first had
    ended.  None: nothing is known."""


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


class PropertiesChanged(msgspec.Struct, frozen=True, tag="Properties"):
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


class ResourceRequest(msgspec.Struct, frozen=True, tag="Demand"):
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
    | EngineDown
    | Results
    | Returned
    | CommandDone
    | PropertiesChanged
    | StackText
    | OutputText
    | EngineNote
    | NodeState
    | SetUp
    | ResourceRequest
    | TaskCall
    | ProgressReport
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
    failure: FailureSummary | None = None


class Special(msgspec.Struct, frozen=True, omit_defaults=True):
    """What only some runs are sent with."""

    inputs: list[Input] = []
    trial: int = 1
    state: bytes = b""
    """What the last trial left, a packed dict."""
    received: int = 0
    """How many messages earlier trials have read."""
    parent: int | None = None
    part: int | None = None
    """The payload is a chunk's, and the run is that of the item of this index alone."""


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


class TaskBatch(msgspec.Struct, frozen=True, tag="Batch"):
    """Runs in the order in which they are run, with the functions that the engine has not seen."""

    runs: list[Run]
    functions: list[Function] = []


class HandOut(msgspec.Struct, frozen=True, tag=True):
    """A `TaskBatch` for an engine, still encoded, and which runs are in it."""

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
    items: tuple[int, ...] = ()
    """Of a chunk: it is interrupted only if one of these items runs now.  Empty: whatever it runs."""


class EngineCommand(msgspec.Struct, frozen=True, tag=True):
    """A MultiEngine command for one engine.

    (session, n) names it: a second command of that name is answered, not run.  session "" is the farm itself: start-up
    code and sticky commands, and what was done by hand on the engine's predecessor (then n is negative, and the same in
    all epochs)."""

    engine: Incarnation
    session: str
    n: int
    verb: str
    body: bytes = b""
    replays: tuple[str, int] | None = None
    """The name under which the command was done by hand on the predecessor.  An engine does no command twice under that
    name, and what this one leaves is not sticky."""


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
    """The answer to a `ResourceRequest`: the resources of the run from now on.  error: why it can never have more."""

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
