"""Messages between agents and the controller."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from ..requirements import Allotment, Environment, Recycle
from .blob_chunks import BlobPiece, BlobWritten, ReadBlob, WriteBlob
from .kernel_bytes import KernelAnswer, KernelQuery
from .running_task import ItemsLeft, ProgressReport, TaskCall, TaskReply
from .task_types import Ended, FailureSummary, FrozenRun, Function, Incarnation, RunKey


class EngineReport(msgspec.Struct, frozen=True):
    """A living engine, in an agent's inventory."""

    engine: Incarnation
    id: int
    pid: int
    ready: bool
    """Whether the engine has said hello and can be given work."""
    started_s: float
    facts: dict[str, Any] = {}
    held: bytes = b""
    """Runs that were sent to the engine and that the controller has not acknowledged: waiting, running or ended, in
    order, as `encode_runs` writes them.  The reports of a node are one message, and bytes count as one of its values.
    """
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
    """As in the last `HandOut`."""
    concurrent: bool = False
    """Whether the engine runs what it holds concurrently, see `Special.concurrent`."""
    frozen: FrozenRun | None = None
    """What the engine keeps for a debugger, if it is frozen."""


class AgentProcess(msgspec.Struct, frozen=True):
    """Which process an agent is: together with the machine's present boot, enough to know later whether it is gone."""

    host: str
    """The machine, see `system.machine.host`. It stays the same over reboots."""
    boot: str
    """The boot of the machine."""
    namespace: str
    """The namespace in which the pid counts."""
    pid: int
    started_s: float
    """When the process started, in seconds since the boot."""


class Crash(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an engine ended."""

    signal: int | None = None
    exit_code: int | None = None
    cause: str = ""
    """The cause (time limit, "memory: …", abort, stopped, stuck …) if the agent knows it, else ""."""
    peak_bytes: int = 0
    output: str = ""
    """The last lines that the engine printed."""
    dump: str = ""
    """The text of faulthandler."""


class AgentState(msgspec.Struct, frozen=True, tag=True):
    """The first message of an agent in an epoch: the agent's facts, and its engines with their runs.

    Unacknowledged results follow as `Results`, losses of earlier sessions as `EngineDown`.
    """

    node: str
    pid: int
    cores: int
    memory_bytes: int
    platform: str
    python: str
    engines: list[EngineReport]
    slots: int | None = None
    """The largest number of engines; None if the agent has no limit of its own."""
    former: list[str] = []
    """Sessions of dead agents that had this folder before. Reports on their engines follow."""
    resources: dict[str, float] = {}
    """Resource -> the amount, found or declared."""
    gpus: tuple[str, ...] = ()
    """The devices' names; their number is resources["gpu"]."""
    priority: int = 0
    """Agents of a higher priority are given tasks first."""
    utc_offset_s: int = 0
    """The node's present local time minus UTC. `NodeState` reports changes."""
    name: str = ""
    """The name by which the agent's launcher knows it; "" if no launcher placed it."""
    brings: int | None = None
    """Engines that the agent brings. None: it takes its share of those that the farm wants."""
    time_left_s: float | None = None
    """Seconds until the agent has to leave; None if its time is not limited."""
    wall_s: float = 0.0
    """The time of the agent's clock when the message was written; 0 if unknown."""
    process: AgentProcess | None = None
    left: list[Incarnation] | None = None
    """The engines of former sessions on which reports follow. Nothing is known of their other engines. None: the agent
    does not say."""


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """The agent was told to end, and gets no more work. It is gone after `within_s`."""

    within_s: float


class EngineUp(msgspec.Struct, frozen=True, tag=True):
    """An engine has said hello and can be given work."""

    report: EngineReport


class EngineDown(msgspec.Struct, frozen=True, tag="EngineLost"):
    """An engine's process is gone. All its finished results were sent before this message."""

    engine: Incarnation
    id: int
    running: RunKey | None
    """The run that was running, or the one of several for which the agent ended the engine."""
    known: bool
    """Whether the flight recorder could be read: then `running` and `beside` are true, and the other runs never began.
    """
    crash: Crash
    expected: bool = False
    """Whether the engine was told to end."""
    items: tuple[int, int] | None = None
    """Of a chunk that was running: the items up to the second index may have begun, and those before the first had
    ended.  None: nothing is known."""
    beside: tuple[RunKey, ...] = ()
    """The other runs that had begun, of coroutine tasks."""
    begun_upto: tuple[int, int] | None = None
    """Of an engine that ended with its machine, so that `known` is false: (number of a batch, place in it). No run
    behind that place had begun, except the first that was not answered. None: nothing is known."""


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
    began_s: float = 0.0
    """When the engine began the command (wall clock); 0: it did not run."""
    ended_s: float = 0.0


class PropertiesChanged(msgspec.Struct, frozen=True, tag="Properties"):
    """All the user's properties of an engine, each time they change.  `packed` is a packed dict."""

    engine: Incarnation
    version: int
    packed: bytes
    plain: dict[str, str | float | bool] = {}
    """The values that are text or numbers, for conditions, because the controller unpickles nothing."""


class StackText(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `StackQuery`."""

    n: int
    text: str


class OutputText(msgspec.Struct, frozen=True, tag=True):
    """The answer to an `OutputQuery`. Its size is limited; of too much text the oldest is left out."""

    n: int
    run: RunKey
    stdout: str = ""
    stderr: str = ""
    seen: tuple[int, int] = (0, 0)
    displays: bytes = b""
    """Encoded (place, display) pairs of new and changed displays; only the client decodes them."""
    serial: int = 0
    """The number of the last of these displays."""
    items: bytes = b""
    """Of a chunk of a map: an encoded list of `payload.ItemOutput`, in place of stdout and stderr."""


class NodeState(msgspec.Struct, frozen=True, tag=True):
    """The load and the free memory and disk of a node, sent every few seconds if they have changed."""

    load: float
    """The share of the cores that is busy, 0 to 1."""
    free_memory: int
    free_disk: int
    """Free bytes on the disk with the engines' files."""
    utc_offset_s: int = 0
    """The node's local time minus UTC."""
    fetched_blobs: int = 0
    """How many large values were fetched to the node since its agent began."""
    fetched_bytes: int = 0
    """The bytes of these values."""
    engine_bytes: dict[Incarnation, int] = {}
    """Engine -> its private memory with that of its children."""
    engine_limit: int = 0
    """The private memory at which an engine is ended; 0: there is no limit."""
    wall_s: float = 0.0
    """The time of the node's clock when the message was written; 0 if unknown."""


class SetUp(msgspec.Struct, frozen=True, tag=True):
    """An engine's environment is ready, or `error` says why it never will be.

    An error without an identity: a task has changed the engine's process irrevocably.
    """

    engine: Incarnation
    identity: str
    error: str = ""


class Frozen(msgspec.Struct, frozen=True, tag=True):
    """An engine has frozen itself after a failed attempt. The message is repeated when a console uses the engine."""

    engine: Incarnation
    run: FrozenRun


class ResourceRequest(msgspec.Struct, frozen=True, tag="Demand"):
    """A running task requests these resources in place of its present ones. Answer: `Granted`, once they are free.

    The task repeats its request. The request states the wanted amounts, not the additional ones, so a repetition
    changes nothing.
    """

    engine: Incarnation
    run: RunKey
    n: int
    amounts: dict[str, float]


class EngineNote(msgspec.Struct, frozen=True, tag=True):
    """A message for people about an engine (it failed to start, its start-up code raised, …)."""

    id: int
    text: str
    engine: Incarnation | None = None
    failed_start: bool = False
    """Whether a `StartEngine` has failed."""


AgentMessage: TypeAlias = (
    AgentState | Leaving | EngineUp | EngineDown | Results | Returned | ItemsLeft | CommandDone | PropertiesChanged
    | StackText | KernelAnswer | OutputText | EngineNote | NodeState | SetUp | Frozen | ResourceRequest | TaskCall
    | ProgressReport | ReadBlob | WriteBlob
)  # fmt: skip


class StartEngine(msgspec.Struct, frozen=True, tag=True):
    """Start one engine with this id.  `EngineUp` or a failed-start `EngineNote` follows."""

    id: int
    beside: int = 0
    """The number of engines meant to be on that agent's machine, including this one: they share its cores."""


class StopEngine(msgspec.Struct, frozen=True, tag=True):
    """End this engine: it exits within `grace_s`, else it is killed. `EngineDown(expected=True)` follows."""

    engine: Incarnation
    grace_s: float = 2.0


class Input(msgspec.Struct, frozen=True, array_like=True):
    """The result of another task, for this run's arguments."""

    number: int
    """The number under which the payload asks for the value."""
    task: int
    reason: str = ""
    """Why that task failed; "" if it succeeded."""
    body: bytes | None = None
    """The encoded `ResultBody`; None if it does not exist any more."""
    failure: FailureSummary | None = None
    item: int | None = None
    """The body is that of a chunk of a map, of which the item of this index is meant."""
    from_cache: bool = False
    """The result was taken from the result cache: its large values are compared with their digests."""


class Special(msgspec.Struct, frozen=True, omit_defaults=True):
    """Data that only some runs are sent with."""

    inputs: list[Input] = []
    trial: int = 1
    state: bytes = b""
    """The state that the last trial left, a packed dict."""
    received: int = 0
    """How many messages earlier trials have read."""
    parent: int | None = None
    part: int | None = None
    """The payload is a chunk's, and the run is that of the item of this index alone."""
    concurrent: bool = False
    """The run is a coroutine that the engine runs concurrently with others; all runs of its batch are."""
    freeze: bool = False
    """If the run fails, the engine freezes itself."""
    recovery: int = 0
    """The position of the run's task in its chain of recovery tasks."""


class Run(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt for an engine to run."""

    task: int
    attempt: int
    payload: bytes
    function: str | None = None
    time_limit_s: float | None = None
    properties_version: int | None = None
    """The version of the properties that a depend function accepted.  With another version the engine returns the run
    unrun."""
    environment: str | None = None
    """Identity of the environment that the run needs. The batch has its code among the functions."""
    measured: bool = False
    """Whether the engine's memory is reported with the run's end."""
    allotment: Allotment | None = None
    special: Special | None = None


class TaskBatch(msgspec.Struct, frozen=True, tag="Batch"):
    """Runs in the order in which they are run, with the functions that the engine has not seen."""

    runs: list[Run]
    functions: list[Function] = []
    number: int = 0
    """The number of the hand-out. It only grows."""
    first: int = 0
    """The place of the first of these runs in the hand-out."""
    newest_s: float = 0.0
    """When the latest of the hand-out's tasks was submitted (wall clock of its client). An edit of a module counts only
    for tasks that were submitted after it."""


class HandOut(msgspec.Struct, frozen=True, tag=True):
    """An encoded `TaskBatch` for an engine, and the list of its runs."""

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
    """Task -> seconds between the interrupt of its time limit and the signals, for tasks with their own."""
    concurrent: bool = False
    """Whether the runs are concurrent, see `Special.concurrent`."""


class Recall(msgspec.Struct, frozen=True, tag=True):
    """Give these runs back (`Returned`) if they were not begun; else their `Ended` is the answer."""

    engine: Incarnation
    runs: list[RunKey]


class Interrupt(msgspec.Struct, frozen=True, tag=True):
    """Stop this run: interrupt it, after `grace_s` terminate its engine, after half of that again kill it.

    A run that has not begun is returned. If the run has ended, nothing happens.
    """

    engine: Incarnation
    run: RunKey
    grace_s: float = 1.0
    items: tuple[int, ...] = ()
    """Of a chunk: it is interrupted when one of these items runs, now or later.  Empty: whatever it runs."""


class EngineCommand(msgspec.Struct, frozen=True, tag=True):
    """A MultiEngine command for one engine.

    (session, n) identifies it: a second command of that identity is answered, not run. Session "" is the farm itself:
    start-up code and sticky commands, and repeated commands from the engine's predecessor (then n is negative, and the
    same in all epochs).
    """

    engine: Incarnation
    session: str
    n: int
    verb: str
    body: bytes = b""
    replays: tuple[str, int] | None = None
    """The identity under which the command was done by hand on the predecessor. An engine does no command twice under
    that identity, and the names that this command binds are not sticky."""


class StackQuery(msgspec.Struct, frozen=True, tag=True):
    """A question for this engine's present stack."""

    n: int
    engine: Incarnation


class OutputQuery(msgspec.Struct, frozen=True, tag=True):
    """A question for this run's output after the given numbers of characters."""

    n: int
    engine: Incarnation
    run: RunKey
    """For a command: (-1, its number)."""
    stdout: int = 0
    stderr: int = 0
    serial: int = 0
    """The number of the last display that the client knows."""
    session: str = ""
    """The session of the command; "": the question is about a task."""


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `ResourceRequest`: the run's resources from now on, or an error why it can never have more."""

    engine: Incarnation
    run: RunKey
    n: int
    allotment: Allotment
    error: str = ""


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End all engines and then the agent; results are sent first."""

    grace_s: float = 2.0


class Leave(msgspec.Struct, frozen=True, tag=True):
    """End the agent when its engines have ended, which are told one by one; after `within_s` at the latest."""

    within_s: float | None = None


class Lease(msgspec.Struct, frozen=True, tag=True):
    """The farm's lease: an agent must end its engines if it has not heard the controller for this time."""

    lease_s: float


class EnginePrepared(msgspec.Struct, frozen=True, tag=True):
    """The engine has run start-up code and sticky commands; the agent reports this (`EngineReport.prepared`)."""

    engine: Incarnation


ToAgent: TypeAlias = (
    StartEngine | StopEngine | HandOut | Recall | Interrupt | EngineCommand | StackQuery | KernelQuery | OutputQuery
    | EnginePrepared | Leave | Lease | Granted | TaskReply | BlobPiece | BlobWritten | Shutdown
)  # fmt: skip
