"""The interface of queue policies, and the default one. Settings name it, so engines and clients import it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class TaskInfo(msgspec.Struct, frozen=True):
    """The data about a task that a queue policy may use."""

    id: int
    priority: int
    client: str
    queue_seq: int
    started: int
    """How many tasks of this client have begun."""
    served: Any = None
    """The key of the task that was assigned last.  None: none was yet."""
    job: str | None = None
    group: str | None = None


PolicyKey = Callable[[TaskInfo], Any]


def fifo_key(info: TaskInfo) -> int:
    """Order tasks by priority, the higher first, then by their acceptance."""
    return -info.priority
