"""The client: what users import and call.

It is the module of IPython 0.10's documentation: with ``from ipytaskfarm import client`` in place of ``from
IPython.kernel import client`` old scripts run.

    taskclient, multiengine       the two clients
    tasks, results, commands      task descriptions, results of tasks, results of commands
    task_arguments                what users write in a task, checked; its code, run here
    command_sender                how commands are sent
    rules, environments, jobs     rules of tasks, environments, groups of tasks that share rules
    maps, tables                  maps over tasks, and the objects that show themselves
    profiling, profiles           profilers on engines, and their results as tables
    sessions, io                  one connection per process and farm, on one IO thread
    outbox, arrivals              the state that this thread and its callers share
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
    """(host, port) of the farm "default"; read on each use."""

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


def get_task_client(furl_or_file: str = "") -> TaskClient:
    """Return a `TaskClient`; "" is the farm "default".  From IPython 0.10."""
    return TaskClient(furl_or_file or None)


def get_multiengine_client(furl_or_file: str = "") -> MultiEngineClient:
    """Return a `MultiEngineClient`; "" is the farm "default".  From IPython 0.10."""
    return MultiEngineClient(furl_or_file or None)


def __getattr__(name: str) -> object:
    if name == "default_task_address":
        from .sessions import default_address

        return default_address()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
