"""What a read-only key allows."""

from __future__ import annotations

from ..core.messages import (
    AgentMessage,
    AskQuestion,
    ClientMessage,
    ExplainTasks,
    FarmStatus,
    FetchResults,
    ListCache,
    ListEngines,
    ListKept,
    ListSticky,
    ListTasks,
    QueueStatus,
    ReadCacheKey,
    ReadHistory,
    ReadTask,
    Stack,
    WatchTasks,
)
from ..core.messages.blob_chunks import ReadBlob
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
    *VIEW_QUESTIONS,
)
"""The questions that a read-only key allows."""


def why_refused(message: ClientMessage | AgentMessage) -> str:
    """Return why a message under a read-only key is refused; "" if it only asks."""
    if isinstance(message, AskQuestion) and isinstance(message.question, READ_ONLY):
        return ""
    what = type(message.question if isinstance(message, AskQuestion) else message).__name__
    return f"this connection's key is read-only: it does not allow {what}"
