"""The calls of a client that jobs, maps and futures use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from .ids import Ids, Timeout
from .session import Session
from .tables import TaskStatus


class TaskCalls(Protocol):
    """The methods of `TaskClient` that jobs, maps and futures call; they are documented there."""

    farm: str

    @property
    def session(self) -> Session:
        """Return the connection, shared by all clients of this process."""

    @property
    def progress(self) -> object:
        """Return a value that is true if waits show a progress display."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Return the rules of tasks that do not set these rules themselves."""

    def run(self, task: Any, block: bool = False) -> Any:
        """Submit a task and return its id."""

    def get_task_result(self, taskid: int, block: bool | None = None, timeout: Timeout = None, raw: bool = True) -> Any:
        """Return the result of a task."""

    def status(self, taskid: int) -> TaskStatus:
        """Return state, engine and times of one task."""

    def barrier(self, ids: Ids | None = None, timeout: Timeout = None, stream: bool = False) -> None:
        """Wait until tasks have ended."""

    def wait(
        self, ids: Ids, timeout: Timeout = None, return_when: Literal["all", "first"] = "all"
    ) -> tuple[list[int], list[int]]:
        """Wait for tasks and return (ended, not ended)."""

    def as_completed(self, ids: Ids, timeout: Timeout = None) -> Iterator[int]:
        """Yield each id as soon as its task has ended."""

    def abort(self, taskid: Ids, interrupt: bool = True, reason: str = "", running: bool = True) -> list[int]:
        """Abort tasks."""

    def clear(self, ids: Ids | None = None) -> int:
        """Forget final results."""
