"""The handle that ``%%task`` gives for a task that nobody waits for."""

from __future__ import annotations

import contextvars
import html
import threading
from collections.abc import Callable, Generator
from typing import Any

from ..client import TaskClient, TaskResult
from ..client.results import NS
from .tracebacks import short_errors


class TaskHandle:
    """A task on its way: `id`, `status`, `done()`; `result()`, `ns` and ``await`` wait for its end."""

    def __init__(self, client: TaskClient, task_id: int) -> None:
        self._client = client
        self.id = task_id

    def done(self) -> bool:
        """Return whether it has ended, well or not."""
        return self._client.get_task_result(self.id, block=False, raw=False) is not None

    @property
    def status(self) -> str:
        """scheduled, running, succeeded or failed."""
        return self._client.status(self.id).state

    def result(self, timeout: float | None = None) -> TaskResult:
        """Its `TaskResult`; waits for it, `timeout` seconds at most (TimeoutError)."""
        result: TaskResult = self._client.get_task_result(self.id, block=True, timeout=timeout, raw=False)
        return result

    @property
    def ns(self) -> NS:
        """Return the pulled names as attributes: ``h.ns.a``.  Raises what the task raised."""
        with short_errors():
            return self.result().ns

    def abort(self) -> None:
        """Stop it, see ``tc.abort``."""
        self._client.abort(self.id)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._client.result(self.id).__await__()

    def __index__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        try:
            return f"<task {self.id}: {self.status}>"
        except Exception as error:  # a farm that is away, a task that was cleared: a repr does not raise
            return f"<task {self.id}: {type(error).__name__}>"

    def _repr_html_(self) -> str:
        return f"<div>⏳ task {self.id}: {html.escape(repr(self)[1:-1].partition(': ')[2])}</div>"


def follow(handle: TaskHandle, show: Callable[[TaskResult], None]) -> None:
    """Call `show` with the result when it is there, in a thread of its own, in the context of the caller.

    The context holds which cell an output belongs to.
    """
    context = contextvars.copy_context()

    def wait() -> None:
        try:
            result = handle.result()
        except Exception:  # aborted, cleared, or the farm is gone: the handle says so to whoever asks it
            return
        context.run(show, result)

    threading.Thread(target=wait, name=f"task {handle.id}", daemon=True).start()
