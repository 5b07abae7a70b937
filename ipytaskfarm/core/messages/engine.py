"""Messages between an agent and its engines (the *lane*).  Results do not travel here: the flight recorder holds
them."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from .agent import (
    CommandDone,
    EngineCommand,
    EngineNote,
    Frozen,
    Granted,
    OutputQuery,
    OutputText,
    PropertiesChanged,
    Recall,
    ResourceRequest,
    Returned,
    SetUp,
    TaskBatch,
)
from .blob_chunks import BlobHere, BlobKept, KeepBlob, WantBlob
from .running_task import ItemsLeft, ProgressReport, TaskCall, TaskReply
from .task_types import Incarnation


class LaneHello(msgspec.Struct, frozen=True, tag=True):
    """An engine is ready for work."""

    engine: Incarnation
    pid: int
    facts: dict[str, Any]
    connection_file: str = ""


class LaneExit(msgspec.Struct, frozen=True, tag=True):
    """Finish the running task, return the other runs, and exit."""


FromEngine: TypeAlias = (
    LaneHello | Returned | ItemsLeft | CommandDone | PropertiesChanged | OutputText | EngineNote | SetUp | Frozen |
    ResourceRequest | TaskCall | ProgressReport
    | WantBlob | KeepBlob
)  # fmt: skip
ToEngine: TypeAlias = (
    TaskBatch | Recall | EngineCommand | OutputQuery | Granted | TaskReply | BlobHere | BlobKept | LaneExit
)
