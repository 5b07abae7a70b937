"""The futures of an `Executor`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from ipytaskfarm.adapters.call_chunks import CallChunk, KnownFunction
from ipytaskfarm.core.messages.task_types import Final

T = TypeVar("T")


class Settles(Protocol):
    """The methods of `Executor` that a future calls; they are documented there."""

    def submit_gathered(self) -> None: ...
    def cancel(self, futures: Iterable[ExecutorFuture[Any]]) -> None: ...
    def is_running(self, task_id: int) -> bool: ...
    def settle(self, future: ExecutorFuture[Any], final: Final) -> None: ...
    def settle_waiting(self, future: ExecutorFuture[Any]) -> CallChunk[ExecutorFuture[Any]]: ...


class ExecutorFuture(concurrent.futures.Future[T]):
    """The future of one call: a ``concurrent.futures.Future`` with the id of its task."""

    def __init__(self, executor: Settles, known: KnownFunction | None = None) -> None:
        super().__init__()
        self._executor: Settles | None = executor
        self._to_settle = threading.Lock()
        """Acquired once, by the code that resolves the future: the end of its task, or a cancellation."""
        self.known = known
        """What is known of the function; None once the call has ended."""
        self.task_id = -1
        self.chunk: CallChunk[ExecutorFuture[Any]] | None = None
        """The calls together with which this one was submitted; None: it was submitted alone, or was not yet."""
        self.items = 0
        """The number of items of a map for which this future stands; 0: it stands for one call."""

    @property
    def id(self) -> int:
        """Return the task's id, for ``explain``, ``status`` and other calls of a `TaskClient`.

        -1: the call was cancelled, or could not be pickled, before it was submitted.
        """
        executor = self._executor
        if self.task_id < 0 and executor is not None:
            executor.submit_gathered()
        return self.task_id

    def ids(self) -> Sequence[int]:
        """Return the ids of the future's calls."""
        return range(self.task_id + 1, self.task_id + 1 + self.items) if self.items else (self.id,)

    def cancel(self) -> bool:
        """Abort the call if it has not begun; return whether it is cancelled."""
        executor = self._executor
        if executor is not None and not self.done():
            executor.cancel([self])
        return self.cancelled()

    def running(self) -> bool:
        """Return whether an engine runs the call now."""
        executor = self._executor
        return executor is not None and not self.done() and executor.is_running(self.id)

    def settle(self, final: Final) -> None:
        """Resolve the future with the final state of its task; the client's thread for futures calls this."""
        executor = self._executor
        if executor is not None and self._to_settle.acquire(blocking=False):
            self._executor = None
            executor.settle(self, final)

    def settle_item(self, final: Final) -> None:
        """Resolve the future of items before their task has ended, because one of them waits."""
        executor = self._executor
        if executor is not None and self._to_settle.acquire(blocking=False):
            self._executor = None
            self.chunk = executor.settle_waiting(self)
        if self.chunk is not None:
            self.chunk.settle_item(final)

    def end(self, value: T | None, error: BaseException | None = None) -> None:
        """Resolve the future with a value or an error, unless it is resolved already."""
        if self._to_settle.acquire(blocking=False):
            self._executor = self.known = None
            self.resolve(value, error)

    def resolve(self, value: T | None, error: BaseException | None) -> None:
        """Set the value or the error, unless the program has set one itself, which would hold up `shutdown`."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if error is None:
                self.set_result(value)  # type: ignore[arg-type]
            else:
                self.set_exception(error)

    def note_cancelled(self) -> None:
        """Resolve the future as cancelled, unless it is resolved already."""
        if self._to_settle.acquire(blocking=False):
            self._executor = self.known = None
            self.resolve_as_cancelled()

    def resolve_as_cancelled(self) -> None:
        """Wake the waiters of the future and call its callbacks."""
        super().cancel()
        self.set_running_or_notify_cancel()
