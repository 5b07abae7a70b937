"""Runs in the user's process: what one types.

This is the module of IPython 0.10's documentation: ``from ipytaskfarm import client`` in place of
``from IPython.kernel import client``, and old scripts run.

    taskclient, multiengine     what users call
    tasks, results, commands    what goes in and what comes back
    rules, environments, jobs   what tasks ask for, and what they share
    maps, tables, nodes, display  conveniences over these
    profiling, profiles         asking engines what takes the time, and what they say; listing, flamegraph show it
    sessions, io                one connection per process and farm, on one IO thread
    outbox, arrivals            what that thread and its callers share
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core import errors
from ..core.errors import CompositeError, TaskAborted, TaskFarmError, TaskRejectError, TaskTimeout
from ..environment import RecycleSettings, TaskEnvironment
from ..serialization.pack import add_dependency
from ..serialization.references import Ref
from .commands import PendingResult, ResultList
from .futures import TaskFuture
from .jobs import Job
from .multiengine import MultiEngineClient
from .results import NS, Failure, TaskResult
from .taskclient import TaskClient
from .tasks import CallTask, Join, MapTask, StringTask, Task

if TYPE_CHECKING:
    default_task_address: tuple[str, int]
    """Where the farm "default" listens; read on use."""

__all__ = [
    "NS",
    "CallTask",
    "CompositeError",
    "Failure",
    "Job",
    "Join",
    "MapTask",
    "MultiEngineClient",
    "PendingResult",
    "RecycleSettings",
    "Ref",
    "ResultList",
    "StringTask",
    "Task",
    "TaskAborted",
    "TaskClient",
    "TaskEnvironment",
    "TaskFarmError",
    "TaskFuture",
    "TaskRejectError",
    "TaskResult",
    "TaskTimeout",
    "add_dependency",
    "default_task_address",
    "errors",
]


def __getattr__(name: str) -> object:
    if name == "default_task_address":
        from .sessions import default_address

        return default_address()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
