"""What a read-only key allows."""

from __future__ import annotations

from ..core.messages import (
    AgentMessage,
    AskQuestion,
    ClientMessage,
    ExplainTasks,
    FarmStatus,
    FetchResults,
    FindJobs,
    ListCache,
    ListCommandQueues,
    ListEngines,
    ListKept,
    ListRunning,
    ListSticky,
    ListTasks,
    ProgressOf,
    QueueStatus,
    ReadCacheKey,
    ReadHistory,
    ReadTask,
    ReadTaskMessages,
    SendCommand,
    Stack,
    Stuck,
    WatchTasks,
)
from ..core.messages.blob_chunks import ReadBlob
from ..core.messages.engine_commands import PROFILE, READ_SAMPLES
from ..core.messages.view import VIEW_QUESTIONS

READ_ONLY = (
    WatchTasks,
    FetchResults,
    ReadTask,
    ListCache,
    ReadCacheKey,
    QueueStatus,
    ListTasks,
    ExplainTasks,
    Stack,
    ListEngines,
    FarmStatus,
    ListKept,
    ListSticky,
    ReadBlob,
    ReadHistory,
    FindJobs,
    ListRunning,
    ListCommandQueues,
    ProgressOf,
    ReadTaskMessages,
    Stuck,
    *VIEW_QUESTIONS,
)
"""The questions that a read-only key allows."""

SAMPLED_MAX = 64
"""The largest number of engines that such a key may ask for their samples at once."""


def why_refused(message: ClientMessage | AgentMessage) -> str:
    """Return why a message under a read-only key is refused; "" if it only asks."""
    if isinstance(message, AskQuestion) and isinstance(message.question, READ_ONLY):
        return ""
    if isinstance(message, SendCommand) and _only_reads(message):
        return ""
    what = type(message.question if isinstance(message, AskQuestion) else message).__name__
    return f"this connection's key is read-only: it does not allow {what}"


def _only_reads(command: SendCommand) -> bool:
    """Return whether a command reads the sampler's stacks, for a flame graph.  It names its engines, a few of them."""
    few = command.engines is not None and len(command.engines) <= SAMPLED_MAX
    return few and command.verb == PROFILE and command.body == READ_SAMPLES and command.keep is None
