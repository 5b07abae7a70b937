"""The futures of an `Executor`, and the ends of both: an error as a process pool's, and the text."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ipytaskfarm.adapters.call_chunks import CallChunk, KnownFunction
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.task_types import Final
from ipytaskfarm.display.ipython import show_users_frames

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient
    from ipytaskfarm.client.results import TaskResult
    from ipytaskfarm.deployment.farm import Farm


INHERITED = "this executor or pool belongs to the process that this one was forked from: make a new one here"


class WorkerLost(errors.EngineLost, BrokenProcessPool):
    """The engine that ran a call was lost.

    Unlike in a ``ProcessPoolExecutor``, the other calls go on, and the executor takes new ones.
    """


def original_of(error: BaseException) -> BaseException:
    """Return the error that pickle raised for a call, as a ``ProcessPoolExecutor`` does; its cause is our report, and
    its note says in the last line of a traceback which value it was.
    """
    original = error.__cause__
    if not isinstance(error, errors.UnpickleableException) or original is None:
        return error
    error.__cause__ = None
    original.__cause__ = error
    original.add_note(str(error))
    show_users_frames(original)
    return original


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls a method as long as its object exists."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> None:
        found = reference()
        if found is not None:
            found(*arguments)

    return call


def write_output(ended: TaskResult) -> None:
    """Write what a call has printed to this session's streams; where nobody can read it, it is left out."""
    for text, stream in ((ended.stdout, sys.stdout), (ended.stderr, sys.stderr)):
        if text and stream is not None:
            with contextlib.suppress(OSError, ValueError):  # a closed pipe, a closed stream
                stream.write(text)


def abort_waiting(client: TaskClient, ids: list[int], reason: str) -> list[int]:
    """Abort those of the tasks that are known and have not begun, and return their ids.

    Some may have ended and been cleared meanwhile.  The controller decides with the abort whether a call has begun: the
    answer to a question before it would be outdated when the abort arrives, and a cancelled call would run on.
    """
    from ipytaskfarm.client.operate import abort_known
    from ipytaskfarm.core.messages import AbortTasks

    if not ids:
        return []
    outcomes = abort_known(client.session, AbortTasks(ids, reason=reason, running=False))
    return [task_id for task_id, outcome in outcomes if outcome == "aborted"]


def clear_arrived(client: TaskClient, ids: list[int]) -> None:
    """Clear results that have arrived from the farm; of calls that share a task, the chunk with all of them."""
    from ipytaskfarm.client.operate import clear_results

    if ids:
        try:
            clear_results(client.session, ids, chunks=True)
        except (KeyError, ConnectionError):
            pass  # cleared by another client, or the farm is gone


def end(client: TaskClient, farm: Farm | None, arrived: list[int]) -> None:
    """End an executor whose calls have ended: its own farm, or its results in the farm of others."""
    if farm is None:
        clear_arrived(client, arrived)
        arrived.clear()
    else:
        client.close()
        farm.stop()


def leave(client: TaskClient, farm: Farm | None, arrived: list[int]) -> None:
    """End an executor that nobody has shut down and nobody holds any more, as CPython's does."""
    # The garbage collector calls this in any thread, with any lock held.
    threading.Thread(target=end, args=(client, farm, arrived), name="ipytaskfarm executor").start()


class Ending(Protocol):
    """What the end of a process, or its fork, needs of an executor, see `Executor`."""

    def end_at_exit(self) -> None: ...
    def after_fork(self) -> None: ...


_living: weakref.WeakSet[Ending] = weakref.WeakSet()


def register(executor: Ending) -> None:
    """Let an executor end when the interpreter does."""
    _living.add(executor)
    # Exit functions run in reverse order of registration: the farm's own comes after this one.
    atexit.unregister(_end_all)
    atexit.register(_end_all)


def _end_all() -> None:
    for executor in list(_living):
        executor.end_at_exit()


def _after_fork() -> None:
    for executor in list(_living):
        executor.after_fork()
    _living.clear()


os.register_at_fork(after_in_child=_after_fork)


def interrupted() -> bool:
    """Return whether the program ends by a Ctrl-C.  A session at a prompt goes on after one, and ends later."""
    return getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")


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
