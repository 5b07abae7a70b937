"""``tc.submit(f, x)``: tasks as futures.

A future is resolved by a thread of its own per session, never by the IO thread: what users hang onto it may take long,
fetch a result, or hand in more.  A result is unpacked where it is asked for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from ..core.messages.payload import ResultBody
from ..core.messages.task_types import Final
from ..core.states import ABORTS
from ..serialization.references import reference
from .results import TaskResult, error_of
from .tasks import CallTask, as_task

if TYPE_CHECKING:
    from .session import Session
    from .taskclient import TaskClient
    from .tasks import Task

_T = TypeVar("_T")


class TaskFuture(concurrent.futures.Future[Any]):
    """The future of one task, of ``concurrent.futures`` and awaitable.

    ``result()`` is a function's return value, or the dict of a StringTask's names; it raises what the task raised.  As
    an argument of another task it stands for its value: that task waits for it, and no data passes through the client.
    Wherever an id is expected the future will do; `id` is it.
    """

    def __init__(self, client: TaskClient, task_id: int) -> None:
        super().__init__()
        self._client = client
        self.id = task_id
        """The task's id."""

    def __index__(self) -> int:
        return self.id

    def __reduce__(self) -> tuple[Any, ...]:
        return reference(self.id)

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "done" if self.done() else "waiting"
        return f"<TaskFuture of task {self.id}: {state}>"

    def result(self, timeout: float | None = None) -> Any:
        """The value; waits at most `timeout` seconds (TimeoutError), raises what the task raised, or CancelledError."""
        return self._ended(timeout).result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, or None; waits like `result`."""
        failure = self._ended(timeout).failure
        return failure.value if failure is not None else None

    def _ended(self, timeout: float | None) -> TaskResult:
        given = super().exception(timeout)  # of the right type it is only when it is unpacked
        try:
            found: TaskResult = self._client.get_task_result(self.id, raw=False)
        except ConnectionError:
            if given is not None:
                raise given from None
            raise
        return found

    def cancel(self) -> bool:
        """Abort it if it has not begun; False if it runs, or has ended."""
        if self.done():
            return self.cancelled()
        row = self._client.status(self.id)
        if row.state != "scheduled":
            return False
        try:
            self._client.abort(self.id, interrupt=False)
        except IndexError:
            return False
        return super().cancel() or self.cancelled()

    def running(self) -> bool:
        """Whether an engine has begun it."""
        return not self.done() and self._client.status(self.id).state in ("pending", "running")

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

    def settle(self, final: Final) -> None:
        """Its task has ended; called by `Settler` alone."""
        if final.reason in ABORTS:
            super().cancel()
            self.set_running_or_notify_cancel()
        elif not self.done():
            if final.reason:
                # Waiters look whether there is an exception; what it is, is unpacked when it is asked for.
                super().set_exception(error_of(final, _NO_BODY))
            else:
                super().set_result(None)


_NO_BODY = ResultBody()


class Settler:
    """Resolves a session's futures, in a thread of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ended: queue.SimpleQueue[tuple[TaskFuture, Final]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, future: TaskFuture) -> None:
        """Resolve it when its task has ended, perhaps at once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="ipytaskfarm futures", daemon=True)
                self._thread.start()
        self._session.on_end(future.id, lambda final: self._ended.put((future, final)))

    def _serve(self) -> None:
        while True:
            future, final = self._ended.get()
            future.settle(final)


_settlers: WeakKeyDictionary[Session, Settler] = WeakKeyDictionary()


def future_of(client: TaskClient, task_id: int) -> TaskFuture:
    """A future of a task that this process handed in, or watches."""
    future = TaskFuture(client, task_id)
    session = client._session
    settler = _settlers.get(session)
    if settler is None:
        settler = _settlers.setdefault(session, Settler(session))
    settler.add(future)
    return future


def submit(self: TaskClient, function: Callable[..., Any] | Task, /, *args: Any, **kwargs: Any) -> TaskFuture:
    """Hand in ``function(*args, **kwargs)``, or a `Task`, and return its `TaskFuture` at once.

    Futures of other tasks (and `Ref`) may stand anywhere among the arguments: the task waits for them and gets
    their values.  Raises UnpickleableException for what cannot travel.  From ``concurrent.futures``.
    """
    if callable(function) and not hasattr(function, "_pack"):
        task: Task = CallTask(function, args=args, kwargs=kwargs)
    else:
        task = as_task(function)
        if args or kwargs:
            raise TypeError("a Task has its arguments already: submit(Task(f, args=(…)))")
    return future_of(self, self.run(task))
