"""What a read-only key allows."""

from __future__ import annotations

from ..core import messages as m
from ..core.messages.blob_chunks import ReadBlob
from ..core.messages.engine_commands import PROFILE, READ_SAMPLES
from ..core.messages.view import VIEW_QUESTIONS

READ_ONLY = (
    m.WatchTasks,
    m.FetchResults,
    m.ReadTask,
    m.ListCache,
    m.ReadCacheKey,
    m.QueueStatus,
    m.ListTasks,
    m.ExplainTasks,
    m.Stack,
    m.ListEngines,
    m.FarmStatus,
    m.ListKept,
    m.ListSticky,
    ReadBlob,
    m.ReadHistory,
    m.FindJobs,
    m.ListRunning,
    m.ListCommandQueues,
    m.ProgressOf,
    m.ReadTaskMessages,
    m.Stuck,
    *VIEW_QUESTIONS,
)
"""The questions that a read-only key allows."""

SAMPLED_MAX = 64
"""The largest number of engines that such a key may ask for their samples, or tasks for their output, at once."""


def why_refused(message: m.ClientMessage | m.AgentMessage) -> str:
    """Return why a message under a read-only key is refused; "" if it only asks."""
    if isinstance(message, m.AskQuestion) and (
        isinstance(message.question, READ_ONLY) or _looks_at_output(message.question)
    ):
        return ""
    if isinstance(message, m.SendCommand) and _only_reads(message):
        return ""
    what = type(message.question if isinstance(message, m.AskQuestion) else message).__name__
    return (
        f"this connection's key is read-only: it does not allow {what}; `ipytaskfarm keys add --client` makes another"
    )


def _looks_at_output(question: m.Question) -> bool:
    """Return whether a question asks for what a few tasks have written."""
    return isinstance(question, m.Outputs) and question.ids is not None and len(question.ids) <= SAMPLED_MAX


def _only_reads(command: m.SendCommand) -> bool:
    """Return whether a command reads the sampler's stacks, for a flame graph.  It names its engines, a few of them."""
    few = command.engines is not None and len(command.engines) <= SAMPLED_MAX
    return few and command.verb == PROFILE and command.body == READ_SAMPLES and command.keep is None
