"""Everything that crosses a process boundary, as typed structs.

The processes of a farm never import one another: they meet in this package.

=====================  ==================================================================================
``client``             clients and the controller
``agent``              agents and the controller
``engine``             an agent and its engines: the *lane*
``task_types``         the parts of a task, and of its end
``running_task``       calls of a running task to the controller, and the answers
``tables``             the answers to questions about the farm
``view``               the questions of the live view, and the changes that its followers get
``payload``            a task's work and its result: client and engine only, bytes to all others
``engine_commands``    MultiEngine commands: client and engine only
``blob_chunks``        large values on their way to and from other machines
``kernel_bytes``       the kernel of a frozen engine, for a client on another machine
``outputs``            what running tasks and commands have written, for clients
``result_cache``       keys of kept results, and questions about them
``evaluator``          questions about users' ``depend`` functions to the evaluator
=====================  ==================================================================================

The handshake of a connection is in `transport.handshake`, and requirements of tasks are in `core.requirements`.

Structs that travel by the thousand are arrays without a tag (``array_like``). All others are tagged by their class
name, so that a person can read an event log.

Names that end in ``_s`` are seconds: wall-clock seconds since the epoch if the name says when (``submitted_s``), plain
durations otherwise (``run_s``). An *engine* in a message is an incarnation, ``"<agent session>.<counter>"``; an *engine
id* is the small number that people see.

To add a message: add the struct to the file of its direction and to its union, then write its handler
(``core/handlers`` for messages to the controller, ``agent/``, ``engine/`` or ``client/`` for the others). A change that
an older peer cannot read raises ``PROTOCOL``.
"""

from __future__ import annotations

from typing import TypeAlias

from .agent import (
    AgentMessage as AgentMessage,
    AgentProcess as AgentProcess,
    AgentState as AgentState,
    CommandDone as CommandDone,
    Crash as Crash,
    EngineCommand as EngineCommand,
    EngineDown as EngineDown,
    EngineNote as EngineNote,
    EnginePrepared as EnginePrepared,
    EngineReport as EngineReport,
    EngineUp as EngineUp,
    Frozen as Frozen,
    Granted as Granted,
    HandOut as HandOut,
    Input as Input,
    Interrupt as Interrupt,
    Lease as Lease,
    Leave as Leave,
    Leaving as Leaving,
    NodeState as NodeState,
    OutputQuery as OutputQuery,
    OutputText as OutputText,
    PropertiesChanged as PropertiesChanged,
    Recall as Recall,
    ResourceRequest as ResourceRequest,
    Results as Results,
    Returned as Returned,
    Run as Run,
    SetUp as SetUp,
    Shutdown as Shutdown,
    Special as Special,
    StackQuery as StackQuery,
    StackText as StackText,
    StartEngine as StartEngine,
    StopEngine as StopEngine,
    TaskBatch as TaskBatch,
    ToAgent as ToAgent,
)
from .blob_chunks import (
    ReadBlob as ReadBlob,
    WriteBlob as WriteBlob,
)
from .client import (
    Aborted as Aborted,
    AbortTasks as AbortTasks,
    Accepted as Accepted,
    AgentsEnded as AgentsEnded,
    Answer as Answer,
    AskQuestion as AskQuestion,
    Checked as Checked,
    CheckTask as CheckTask,
    Clear as Clear,
    Cleared as Cleared,
    ClearKept as ClearKept,
    ClearSticky as ClearSticky,
    ClientMessage as ClientMessage,
    CommandAnswer as CommandAnswer,
    CompactStore as CompactStore,
    DrainNode as DrainNode,
    ExplainTasks as ExplainTasks,
    FarmStatus as FarmStatus,
    Fetched as Fetched,
    FetchResults as FetchResults,
    Finals as Finals,
    FindJobs as FindJobs,
    FlagReply as FlagReply,
    Full as Full,
    HoldFarm as HoldFarm,
    IdBlock as IdBlock,
    Keep as Keep,
    ListCommandQueues as ListCommandQueues,
    ListConnections as ListConnections,
    ListEngines as ListEngines,
    ListKept as ListKept,
    ListRunning as ListRunning,
    ListSticky as ListSticky,
    ListTasks as ListTasks,
    MarkTasksDone as MarkTasksDone,
    MarkTasksFailed as MarkTasksFailed,
    NeedIds as NeedIds,
    Notice as Notice,
    NumberReply as NumberReply,
    PauseJobs as PauseJobs,
    ProgressOf as ProgressOf,
    Question as Question,
    QueueStatus as QueueStatus,
    ReadHistory as ReadHistory,
    ReadTask as ReadTask,
    ReadTaskMessages as ReadTaskMessages,
    Refusal as Refusal,
    ReleaseFrozen as ReleaseFrozen,
    ReloadKeys as ReloadKeys,
    RemoveAgents as RemoveAgents,
    RemoveEngines as RemoveEngines,
    Reopened as Reopened,
    Reply as Reply,
    Retried as Retried,
    RetryTasks as RetryTasks,
    SendCommand as SendCommand,
    SendToTask as SendToTask,
    SetSticky as SetSticky,
    SetWanted as SetWanted,
    SpinFarm as SpinFarm,
    Stack as Stack,
    StopFarm as StopFarm,
    Stuck as Stuck,
    Submit as Submit,
    TaskCopy as TaskCopy,
    TextReply as TextReply,
    ToClient as ToClient,
    Watched as Watched,
    WatchTasks as WatchTasks,
)
from .engine import (
    FromEngine as FromEngine,
    LaneExit as LaneExit,
    LaneHello as LaneHello,
    ToEngine as ToEngine,
)
from .kernel_bytes import (
    ExchangeBytes as ExchangeBytes,
    KernelAnswer as KernelAnswer,
    KernelBytes as KernelBytes,
    KernelQuery as KernelQuery,
)
from .outputs import (
    ANY_ATTEMPT as ANY_ATTEMPT,
    NO_DISPLAYS as NO_DISPLAYS,
    CommandOutputs as CommandOutputs,
    Output as Output,
    Outputs as Outputs,
)
from .priorities import (
    PrioritySet as PrioritySet,
    SetJobPriority as SetJobPriority,
    SetPriority as SetPriority,
)
from .result_cache import (
    CacheReport as CacheReport,
    CacheTable as CacheTable,
    ForgetCache as ForgetCache,
    ListCache as ListCache,
    ReadCacheKey as ReadCacheKey,
)
from .tables import RunningTable as RunningTable
from .task_types import FrozenRun as FrozenRun
from .view import (
    FarmChanges as FarmChanges,
    FollowFarm as FollowFarm,
    ReadCauses as ReadCauses,
    ReadEngines as ReadEngines,
    ReadJobs as ReadJobs,
    ReadStretches as ReadStretches,
    ReadTaskInput as ReadTaskInput,
    ReadTaskPage as ReadTaskPage,
    WhyWaiting as WhyWaiting,
)

PROTOCOL = 12
"""Peers with another number are refused, with both versions named."""

Message: TypeAlias = ClientMessage | ToClient | AgentMessage | ToAgent
