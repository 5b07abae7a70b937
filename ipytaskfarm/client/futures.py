"""Tasks as futures: ``tc.submit(f, x)``.

Each session has a thread that resolves its futures.  The IO thread must not do that: a callback of the user may take
long, fetch a result, or submit tasks.  A result is unpickled in the thread that asks for it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable
from functools import partial
from types import CoroutineType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeGuard, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

from ..core.messages.payload import ResultBody
from ..core.messages.task_types import Final
from ..core.states import ABORTS, RUNNING
from ..display.ipython import show_users_frames
from ..serialization.references import reference
from ..system.deadlines import end_of, left_s
from .awake_loops import awake_loop
from .ids import Timeout, seconds
from .old_names import no_attribute
from .results import TaskResult, error_of
from .wait_notices import note_cancelled, raise_users, say_interrupted

if TYPE_CHECKING:
    from .session import Session
    from .tables import TaskCalls


T = TypeVar("T")


class TaskFuture(concurrent.futures.Future[T]):
    """The future of one task: a ``concurrent.futures.Future`` that can also be awaited.

    ``result()`` returns a function's return value, or the dict of a StringTask's names; it raises what the task raised.
    A future may be an argument of another task: that task waits for it and gets its value, and no data passes through
    the client.  A future may be given wherever an id is expected.
    """

    waits_begun = 0
    """How often it was awaited."""

    def __init__(self, client: TaskCalls, task_id: int) -> None:
        super().__init__()
        self._client = client
        self.id = task_id
        """The task's id."""

    @property
    def farm(self) -> str:
        """Return the name of the task's farm."""
        return self._client.farm

    def __index__(self) -> int:
        return self.id

    def __float__(self) -> NoReturn:
        # Without it, float(future) and math.sqrt(future) would compute with the id.
        raise TypeError(f"the future of task {self.id} is no number: its result() is the task's value")

    if not TYPE_CHECKING:  # with this method type checkers would allow any attribute

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, "TaskFuture", name)

    def __reduce__(self) -> tuple[Any, ...]:
        return reference(self)

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "done" if self.done() else "waiting"
        return f"<TaskFuture of task {self.id}: {state}>"

    def result(self, timeout: Timeout = None) -> T:
        """Return the task's value; wait for it at most `timeout` (seconds, or a timedelta).

        Raises what the task raised, CancelledError for an aborted task, and TimeoutError.
        """
        value: T = self._ended(timeout).result
        return value

    def exception(self, timeout: Timeout = None) -> BaseException | None:
        """Return what the task raised, or None; wait as `result` does."""
        try:
            failure = self._ended(timeout).failure
        except ConnectionError as lost:  # the future has ended with it, or its farm is gone: asyncio asks ended futures
            return lost
        return failure.value if failure is not None else None

    def _ended(self, timeout: Timeout) -> TaskResult:
        timeout_s = seconds(timeout)
        end_s = end_of(timeout_s)
        try:
            given = super().exception(timeout_s)  # `super` has the right error only after the result is unpickled
        except KeyboardInterrupt as interrupt:
            say_interrupted({self.id}, interrupt)
            raise
        except TimeoutError as late:
            raise_users(late)
            if timeout_s is None or late.args:
                raise
            error = TimeoutError(f"task {self.id} has not ended within {timeout_s:g} s")
            show_users_frames(error)
            raise error from None
        try:
            # It waits for a task that was reopened, see `mark_failed`, and runs again.
            found: TaskResult = self._client.get_task_result(self.id, True, left_s(end_s), raw=False)
        except ConnectionError:
            if given is not None:
                raise given from None
            raise
        return found

    def cancel(self) -> bool:
        """Abort the task if it has not begun; False if it runs or has ended."""
        if self.done():
            return self.cancelled()
        try:
            # The controller decides: it may have begun after the answer to a question.
            aborted = self._client.abort(self.id, running=False)
        except IndexError:  # it has ended, perhaps by another abort
            return self.cancelled()
        return bool(aborted) and (super().cancel() or self.cancelled())

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[T]], object]) -> None:
        """Call ``fn(future)`` when the task has ended.

        `asyncio.wait` takes these futures for its own, and expects to be called in its loop.
        """
        if getattr(fn, "__module__", None) == asyncio.wait.__module__:
            fn = _InLoop(fn, asyncio.get_running_loop())
        super().add_done_callback(fn)

    def remove_done_callback(self, fn: Callable[[Any], object]) -> int:
        """Forget a callback; return how often it was there.  As of `asyncio.Future`, for `asyncio.wait`."""
        callbacks: list[Any] = self._done_callbacks  # type: ignore[attr-defined]  # of concurrent.futures.Future
        with self._condition:
            removed = [each for each in callbacks if each == fn]
            callbacks[:] = [each for each in callbacks if each != fn]
        for each in removed:
            if isinstance(each, _InLoop):
                each.end_wait()
        return len(removed)

    def running(self) -> bool:
        """Return whether an engine runs the task now."""
        return not self.done() and self._client.status(self.id).state == RUNNING

    @property
    def _asyncio_future_blocking(self) -> None:
        """Return None: this is no future of asyncio's own.  It asks before it begins, or drops, a wait."""
        _expect_wait(self)

    def on_dropped_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Abort the task: a wait was cancelled before it began; see `_expect_wait`."""
        loop.run_in_executor(None, self._abort)

    def __await__(self) -> Generator[Any, None, T]:
        self.waits_begun += 1
        return self._awaited().__await__()

    async def _awaited(self) -> T:
        """Wait in any asyncio loop.

        Cancelling the wait aborts the task, as cancelling `await` does for asyncio's tasks.
        """
        try:
            with awake_loop() or contextlib.nullcontext():
                return await asyncio.wrap_future(self)
        except asyncio.CancelledError as cancelled:
            note_cancelled(
                cancelled, f"task {self.id} is aborted with its await; await tc.result(id) leaves a task alone"
            )
            # `wrap_future` has called `cancel`, which does not abort a running task.
            if not self.done():
                loop = asyncio.get_running_loop()
                await asyncio.shield(loop.run_in_executor(None, self._abort))
            raise

    def _abort(self) -> None:
        with contextlib.suppress(IndexError, ConnectionError):  # the task has ended meanwhile, or its farm has
            self._client.abort(self.id, reason="the wait for it was cancelled")

    def settle(self, final: Final) -> None:
        """Resolve the future with the final state of its task; only `Settler` calls this."""
        if final.reason in ABORTS:
            super().cancel()
            self.set_running_or_notify_cancel()
        elif not self.done():
            if final.reason:
                # `concurrent.futures.wait` only tests for an exception; `exception` and `result` unpickle the real one.
                super().set_exception(error_of(final, _NO_BODY))
            else:
                super().set_result(None)  # type: ignore[arg-type]  # `result` unpickles the real value


class _InLoop:
    """A callback that is called in an asyncio loop, whichever thread resolves the future."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, function: Callable[[Any], object], loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._loop = loop
        self._awake = awake_loop()
        if self._awake is not None:
            self._awake.begin()

    def end_wait(self) -> None:
        """Let the loop sleep again; `asyncio.wait` removes its callbacks at its end."""
        if self._awake is not None:
            self._awake.end()

    def __call__(self, future: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._function, future)

    def __eq__(self, other: object) -> bool:
        return self is other or self._function == other


_NO_BODY = ResultBody()


class Settled(Protocol):
    """The methods of a future that `Settler` calls, see `TaskFuture`."""

    @property
    def id(self) -> int: ...
    def settle(self, final: Final) -> None: ...


class SettledChunk(Settled, Protocol):
    """The future of a chunk, whose items may end before it does."""

    def settle_item(self, final: Final) -> None: ...


class Settler:
    """A thread that resolves the futures of one session, and calls the callbacks of its commands.

    The thread ends with the session.  What is put there later begins another one, which ends when it has done that.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._calls: queue.SimpleQueue[tuple[Callable[[Any], object] | None, Any]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._is_closed = False
        session.at_fork.append(self._after_fork)
        session.at_close.append(self._close)

    @staticmethod
    def of(session: Session) -> Settler:
        """Return the settler of a session."""
        settler = _settlers.get(session)
        return settler if settler is not None else _settlers.setdefault(session, Settler(session))

    def add(self, future: Settled) -> None:
        """Resolve this future when its task has ended, perhaps at once."""
        self._session.on_end(future.id, partial(_hand_over, self.call, future.settle), None)

    def add_chunk(self, chunk: SettledChunk) -> None:
        """Do the same for the future of a chunk, which is told of items that end before the chunk does."""
        settle = partial(_hand_over, self.call, chunk.settle)
        self._session.on_end(chunk.id, settle, partial(_hand_over, self.call, chunk.settle_item))

    def call(self, function: Callable[[Any], object], argument: Any) -> None:
        """Call a function in the thread, after all that was put there before; the IO thread may call this method."""
        call = function, argument
        with self._lock:
            self._calls.put(call)
            if self._is_closed:
                self._calls.put(_END)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="ipytaskfarm futures", daemon=True)
                self._thread.start()

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._calls.put(_END)
        _settlers.pop(self._session, None)

    def is_this_thread(self) -> bool:
        """Return whether the caller runs in the thread, as callbacks of futures do."""
        return self._thread is threading.current_thread()

    def _after_fork(self, error: BaseException) -> None:
        """Let the futures in a forked child raise an error: their ends come to the parent."""
        self._lock = threading.RLock()
        waiting = [then.args[1] for each in self._session.arrivals.on_end.values() for then in each if _is_handed(then)]
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.append(self._calls.get_nowait()[0])
        self._calls, self._thread, self._is_closed = queue.SimpleQueue(), None, True
        for owner in [getattr(settle, "__self__", None) for settle in waiting]:
            together: Any = getattr(owner, "futures", [owner])  # of a chunk
            end_inherited([each for each in together if isinstance(each, concurrent.futures.Future)], error)

    def _serve(self) -> None:
        while True:
            function, argument = self._calls.get()
            if function is None:
                with self._lock:
                    if self._calls.empty():
                        self._thread = None
                        return
                continue
            try:
                function(argument)
            except BaseException:  # a user's callback must not end the thread, not by `sys.exit()` either
                traceback.print_exc(file=sys.stderr)
            # The next call may come late: this thread must not keep a value alive meanwhile.
            del function, argument


_END = (None, None)


def _hand_over(call: Callable[..., None], settle: Callable[[Final], None], final: Final) -> None:
    """Let the settler's thread resolve a future, or the futures of a chunk."""
    call(settle, final)


def _is_handed(then: object) -> TypeGuard[partial[None]]:
    return isinstance(then, partial) and then.func is _hand_over


_settlers: WeakKeyDictionary[Session, Settler] = WeakKeyDictionary()


def future_of(client: TaskCalls, task_id: int) -> TaskFuture[Any]:
    """Return a future of a task that this process submitted or watches."""
    future: TaskFuture[Any] = TaskFuture(client, task_id)
    Settler.of(client.session).add(future)
    return future


_ASKERS = ("ensure_future", "_ensure_future")
_WRAPPER = "_wrap_awaitable"
"""asyncio's coroutine that awaits an object."""


def _expect_wait(awaited: TaskFuture[Any]) -> None:
    """Expect a wait to begin, if asyncio's `ensure_future` asks the getter that calls this.

    asyncio drops waits before they have begun: ``asyncio.wait_for(future, 0)``, or one that is cancelled at once. For a
    future of ours it makes a coroutine that awaits it. If that is cancelled before its first step, nothing of the
    future is ever called. But `asyncio.ensure_future` asks beforehand whether the object is a future of asyncio's own,
    and this question is noticed. Then a look is taken at the time when the coroutine must have begun.
    """
    asker = sys._getframe(3)  # the getter was called by `isfuture`, and that by the asker
    if asker.f_code.co_name not in _ASKERS or asker.f_globals.get("__name__") != asyncio.ensure_future.__module__:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # the loop that begins now begins the wait first
    # The coroutine's first step is put behind the first call, and before the second.
    loop.call_soon(loop.call_soon, _look, awaited, awaited.waits_begun, loop)


def _look(awaited: TaskFuture[Any], begun: int, loop: asyncio.AbstractEventLoop) -> None:
    if awaited.waits_begun != begun or awaited.done():
        return
    waiting = (each for each in gc.get_referrers(awaited) if isinstance(each, CoroutineType | GeneratorType))
    if not any(each.__name__ == _WRAPPER for each in waiting):  # else a task factory lets it begin later
        awaited.on_dropped_wait(loop)


_PACKAGE = __name__.partition(".")[0]


@runtime_checkable
class Inherits(Protocol):
    """What waits for futures without being one."""

    def end_inherited(self, error: BaseException) -> None:
        """Let all that wait for it, in this child, raise the error."""


def end_inherited(futures: Iterable[concurrent.futures.Future[Any]], error: BaseException) -> None:
    """Let all that wait for these futures raise an error, unless they have ended; also for what depends on them.

    A forked child calls it: only threads of the parent resolve the futures that it has inherited. Callbacks of users
    are not called: they are the parent's, which calls them when the tasks end.
    """
    for future in futures:
        callbacks: list[Any] = future._done_callbacks  # type: ignore[attr-defined]
        future._done_callbacks = []  # type: ignore[attr-defined]
        # A thread of the parent may have held the lock.
        future._condition = threading.Condition()
        future._waiters = []
        if future.done():
            continue
        concurrent.futures.Future.set_exception(future, error)
        for callback in callbacks:
            _pass_on(callback, future, error)


def _pass_on(callback: Any, future: concurrent.futures.Future[Any], error: BaseException) -> None:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, concurrent.futures.Future):
        end_inherited([owner], error)
    elif isinstance(owner, Inherits):
        owner.end_inherited(error)
    elif isinstance(owner, queue.SimpleQueue):
        callback(future)
    elif isinstance(callback, FunctionType) and callback.__module__.partition(".")[0] == _PACKAGE:
        held = [cell.cell_contents for cell in callback.__closure__ or ()]
        end_inherited([each for each in held if isinstance(each, concurrent.futures.Future)], error)
