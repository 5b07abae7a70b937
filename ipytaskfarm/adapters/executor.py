"""`Executor`: a farm with the interface of ``concurrent.futures``.

Interface, error texts and types are those of CPython's ``ProcessPoolExecutor``.  The client is imported only when
an executor is made: joblib's backend is registered on engines too, and imports this module.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from ipytaskfarm.adapters.call_chunks import (
    BACKLOG,
    LEAST_CALLS,
    TOO_MANY,
    CallChunk,
    GatheredCalls,
    KnownFunction,
    KnownFunctions,
    may_share,
    submit_together,
    values_of,
)
from ipytaskfarm.adapters.executor_calls import Context, call_all, check_context, rules_of_calls, workers_or_client
from ipytaskfarm.adapters.executor_ends import (
    INHERITED,
    ExecutorFuture,
    WorkerLost,
    abort_waiting,
    clear_arrived,
    end,
    interrupted,
    leave,
    original_of,
    register,
    weakly,
    write_output,
)
from ipytaskfarm.adapters.map_futures import Apart, ItemsToSubmit, Together, flattened, values
from ipytaskfarm.core import errors
from ipytaskfarm.core.messages.task_types import Final
from ipytaskfarm.core.states import ABORTS, RUNNING, Reason
from ipytaskfarm.system.process import usable_cores

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient
    from ipytaskfarm.client.futures import Settler
    from ipytaskfarm.client.tasks import CallTask
    from ipytaskfarm.deployment.farm import Farm

P = ParamSpec("P")
T = TypeVar("T")

CLEARED_AT_ONCE = 64
"""Results that have arrived are cleared from the farm in batches of this number."""
INITIALIZER_FAILED = "A process in the process pool could not be initialized: its initializer failed"


class Executor(concurrent.futures.ProcessPoolExecutor):
    """Calls functions on the engines of a farm: ``with Executor(4) as ex: ex.submit(pow, 2, 100).result()``.

    Args:
        max_workers: the number of engines of a farm that the executor starts, and stops at its shutdown (None: one for
            each core); or a `TaskClient` or a `Farm`: the executor uses this farm and does not stop it.
        mp_context, thread_name_prefix: unused; for programs that give them to other executors.  Either may be second.
        initializer, initargs: a function, and its arguments, that each engine calls before its first call.
        max_tasks_per_child: number of calls after which an engine is replaced.
        prints: what a call has printed is written here, to ``sys.stdout`` and ``sys.stderr``, when the call has ended.
        gathers: quick calls of one function may share a task while many calls wait, and end together unless one of
            them waits; False: each call is a task of its own.
        rules: rules of a `Task` for each call: retries, time_limit, resources, environment, priority …

    It is a ``ProcessPoolExecutor`` by type alone, for programs that look (adaptive, pipefunc): nothing of that class is
    used.

    If an engine is lost, its call runs again, at most `retries` times (2); set ``retries=0`` for functions that must
    not run twice.  Results are removed from the farm when they have arrived here; failed tasks stay there for
    inspection.

    Raises ValueError for a `max_workers` below 1; TypeError for one that is neither a whole number nor a farm, and for
    an initializer that is not callable; FarmNotRunning for a farm that was stopped.
    """

    def __init__(
        self,
        max_workers: int | TaskClient | Farm | None = None,
        mp_context: Context | str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        thread_name_prefix: str = "",
        prints: bool = True,
        gathers: bool = True,
        **rules: Any,
    ) -> None:
        self._prints = prints
        check_context("mp_context", mp_context, "; an initializer is the third argument")
        self._rules = rules_of_calls(initializer, initargs, max_tasks_per_child, rules)
        self._farm: Farm | None = None
        workers = workers_or_client("max_workers", max_workers)
        if workers is None or isinstance(workers, int):
            from ipytaskfarm.deployment.farm import Farm

            if workers is not None and workers <= 0:
                raise ValueError("max_workers must be greater than 0")
            self._farm = Farm(n=workers or usable_cores())
            self.client: TaskClient = self._farm.task_client()
            """The client that submits the calls."""
            self._max_workers = workers or usable_cores()
        else:
            self.client = workers
            self._max_workers = self.client.snapshot().slots
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._unfinished: set[ExecutorFuture[Any]] = set()
        self._functions = KnownFunctions() if gathers and may_share(self._rules) else None
        """What is known of the functions of the calls; None: each call is a task of its own."""
        self._gathered: GatheredCalls[ExecutorFuture[Any]] = GatheredCalls(
            self.client, self._rules, weakly(self.settle_chunk), weakly(self._forget), original_of
        )
        self._arrived: list[int] = []
        """Tasks that have results but are not cleared yet."""
        self._is_shut_down = False
        self._broken: Any = None
        """The error of an initializer; None: none has failed."""
        self._closing = threading.Lock()
        # Calls that have not ended hold the executor, so it is collected only when there are none.
        self._unused = weakref.finalize(self, leave, self.client, self._farm, self._arrived)
        self._unused.atexit = False  # `end_at_exit` is for that
        self._is_forked = False
        """Whether this is a forked child's copy, whose calls only threads of the parent resolve."""
        register(self)

    def __repr__(self) -> str:
        return f"<Executor of farm {self.client.farm!r}{', shut down' if self._is_shut_down else ''}>"

    def __reduce__(self) -> Any:
        raise errors.UnpickleableException("an Executor cannot travel; inside a task use `current_task().submit`")

    # -- submitting

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Submit ``fn(*args, **kwargs)``; return its future.

        For a call that cannot be pickled the future fails.  Raises RuntimeError after `shutdown`, BrokenProcessPool
        after a failed initializer.
        """
        known = self._functions.of(fn) if self._functions is not None else None
        return self._submit(fn, args, kwargs, known)

    def _submit(
        self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], known: KnownFunction | None
    ) -> concurrent.futures.Future[T]:
        """Submit a call.  Calls that are known to be quick share tasks while the engines have work."""
        if known is None or known.size < LEAST_CALLS or not self._is_busy():
            return self._submit_alone({}, fn, args, kwargs, known)
        self._must_take()
        future: ExecutorFuture[T] = ExecutorFuture(self, known)
        with self._lock:
            self._unfinished.add(future)
        self._gathered.add(fn, (args, kwargs) if kwargs else (args,), future, known)
        return future

    def submit_chunk(self, fn: Callable[..., T], chunk: list[tuple[Any, ...]]) -> concurrent.futures.Future[list[T]]:
        """Submit calls that are one call for the farm; return the future of their values."""
        return self._submit_alone({}, call_all, (fn, chunk), {}, None)

    def submit_with(
        self, rules: dict[str, Any], fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> concurrent.futures.Future[T]:
        """Submit one call as `submit` does, with more rules of a `Task`."""
        return self._submit_alone(rules, fn, args, kwargs, None)

    def _submit_alone(
        self,
        rules: dict[str, Any],
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        known: KnownFunction | None,
    ) -> concurrent.futures.Future[T]:
        from ipytaskfarm.client.tasks import CallTask

        return self._submit_task(CallTask(fn, args=args, kwargs=kwargs, **{**self._rules, **rules}), known)

    def _submit_task(self, task: CallTask, known: KnownFunction | None) -> ExecutorFuture[Any]:
        self._must_take()
        self._gathered.submit_gathered()  # in the order of submission
        future: ExecutorFuture[Any] = ExecutorFuture(self, known)
        try:
            future.task_id = self.client.run(task)
        except errors.UnpickleableException as error:
            future.end(None, original_of(error))
            return future
        with self._lock:
            self._unfinished.add(future)
        self._settler.add(future)
        return future

    def submit_gathered(self) -> None:
        """Submit the calls that were gathered."""
        self._gathered.submit_gathered()

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over the results of ``fn`` for the items of the iterables, in order.

        Args:
            fn: any callable.
            iterables: read at once, or as far as `buffersize` allows.
            timeout: seconds from now until the last result must be there, else TimeoutError.
            chunksize: the number of calls in one task; more quick calls share one, as long as `buffersize` is None.
            buffersize: the largest number of tasks whose results were not read yet; None: no limit.

        Raises:
            ValueError: `chunksize` or `buffersize` is less than 1.
            TypeError: `buffersize` is no whole number.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end_s = None if timeout is None else time.monotonic() + timeout
        is_own = getattr(self.submit, "__func__", None) is not Executor.submit  # a subclass's, which sees each call
        known = None if is_own or self._functions is None else self._functions.of(fn)
        if known is not None and (chunksize > 1 or buffersize is None):
            star = len(iterables) != 1
            (items,) = [zip(*iterables, strict=False)] if star else iterables
            futures = self._items(fn, items, star, chunksize, buffersize is None, known)
            return values(futures, end_s, buffersize, self.cancel)
        calls: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize == 1:
            return values((self.submit(fn, *items) for items in calls), end_s, buffersize, self.cancel)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        parts = (self.submit(call_all, fn, chunk) if is_own else self.submit_chunk(fn, chunk) for chunk in chunks)
        return flattened(values(parts, end_s, buffersize, self.cancel))

    def submit_items(
        self, fn: Callable[..., Any], items: Iterable[Any], star: bool, chunksize: int
    ) -> Iterator[concurrent.futures.Future[Any]] | None:
        """Return the futures of items that are submitted as those of `map`; None: each chunk must be a task.

        A future has a value, or `Together` of many.  star: an item is a tuple of arguments.
        """
        known = self._functions.of(fn) if self._functions is not None else None
        if known is None:
            return None
        self._must_take()
        return self._items(fn, items, star, chunksize, True, known)

    def _items(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        star: bool,
        chunksize: int,
        grows: bool,
        known: KnownFunction,
    ) -> Iterator[concurrent.futures.Future[Any]]:
        """Return the futures of a map's items, which are submitted as these are asked for."""
        from ipytaskfarm.client.map_items import Items
        from ipytaskfarm.client.map_submission import warn_of_one_for_all
        from ipytaskfarm.client.packing import ReusedPack

        warn_of_one_for_all(fn)
        session, found = self.client.session, Items([items])
        # Without a buffer size all tasks are submitted at once.
        pack = ReusedPack(fn, session.blobs) if grows and found.total is not None else None
        waiting = ItemsToSubmit(
            fn, found, star, chunksize, grows, known, self._max_workers, self._is_busy, session.items_room, pack
        )
        return waiting.futures(self._submit_items)

    def _submit_items(self, of: ItemsToSubmit, items: Sequence[Any], first: int) -> ExecutorFuture[Any] | int:
        """Submit items of a map as one task.  Returns their future, or what `submit_together` returns."""
        from ipytaskfarm.client.map_items import EachTask

        task = EachTask(of.function, items, of.star, first, None, of.packed_function(), **self._rules)
        if len(items) == 1:
            return self._submit_task(task, of.known)
        if of.must_stay_apart(items):
            return TOO_MANY
        self._must_take()
        self._gathered.submit_gathered()  # in the order of submission
        task_id = submit_together(self.client, task, of.known)
        if task_id < 0:
            return task_id
        future: ExecutorFuture[Any] = ExecutorFuture(self, of.known)
        future.task_id, future.items = task_id, len(items)
        with self._lock:
            self._unfinished.add(future)
        self._settler.add_chunk(future)
        return future

    def _is_busy(self) -> bool:
        """Return whether the engines have work for a while."""
        return len(self._unfinished) >= BACKLOG * self._max_workers

    def _must_take(self) -> None:
        if self._is_forked:
            raise errors.ConnectionError(INHERITED)
        if self._broken is not None:
            raise BrokenProcessPool(INITIALIZER_FAILED) from self._broken
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    # -- calls of futures

    @property
    def _settler(self) -> Settler:
        """Return the thread that resolves the futures of the client."""
        from ipytaskfarm.client.futures import Settler

        return Settler.of(self.client.session)

    def cancel(self, futures: Iterable[ExecutorFuture[Any]]) -> None:
        """Abort those calls that have not begun, and resolve their futures as cancelled.

        Calls that share a task are aborted together only: the others of a part of them would begin with them.
        """
        unwanted = set(futures)
        removed = self._gathered.remove(unwanted)
        for future in removed:
            future.note_cancelled()
        self._forget(removed)
        by_id: dict[int, ExecutorFuture[Any]] = {}
        for future in unwanted.difference(removed):
            if future.chunk is None or unwanted.issuperset(future.chunk.unfinished()):
                by_id.update(dict.fromkeys(future.ids(), future))
        ids = abort_waiting(self.client, list(by_id), "cancelled")
        aborted = {by_id[task_id] for task_id in ids}
        for future in aborted:
            future.note_cancelled()
        self._forget(aborted, [task_id for task_id in ids if by_id[task_id].chunk is None])

    def is_running(self, task_id: int) -> bool:
        """Return whether an engine runs this task now."""
        return self.client.status(task_id).state == RUNNING

    def settle(self, future: ExecutorFuture[Any], final: Final) -> None:
        """Resolve a future whose task has ended."""
        if future.items:
            self._settle_items(future, final)
            return
        if future.known is not None and future.chunk is None:
            future.known.ended(1, final)
        future.known = None
        if final.reason in ABORTS:
            future.resolve_as_cancelled()
        else:
            try:
                found = self.client.get_task_result(future.task_id, raw=False)
                if self._prints:
                    write_output(found)
                error = None if found.failure is None else found.failure.value
                value = found.result if error is None else None
            except Exception as unread:  # a refused task, or a value whose class is unknown here
                value, error = None, unread
            future.resolve(value, None if error is None else self._as_error(error, final.reason))
        self._forget([future], [future.task_id] if not final.reason or final.reason in ABORTS else [])

    def _settle_items(self, future: ExecutorFuture[Any], final: Final) -> None:
        """Resolve the future of items of a map."""
        known, future.known = future.known, None
        first = future.task_id + 1
        silent: Sequence[int] = range(first, first + future.items)
        if final.separate:
            separate = set(final.separate)
            silent = [task_id for task_id in silent if task_id - first not in separate]
        assert known is not None
        known.ended(len(silent), final)
        if final.reason in ABORTS and not final.separate:
            future.resolve_as_cancelled()
        else:
            found = self._values_of(known, final, silent)
            found.has_apart = bool(final.separate) or (len(silent) > 0 and type(found[silent[0] - first]) is Apart)
            for index in final.separate:  # there is more to tell of these than the value
                found[index] = Apart(self._future_of(first + index))
            future.set_result(found)
        self._forget([future], [future.task_id] if not final.reason or final.reason in ABORTS else [])

    def settle_waiting(self, future: ExecutorFuture[Any]) -> CallChunk[ExecutorFuture[Any]]:
        """Resolve the future of items of a map while one of them waits; return the futures of each."""
        known, future.known = future.known, None
        assert known is not None
        items: list[ExecutorFuture[Any]] = [ExecutorFuture(self) for _ in range(future.items)]
        with self._lock:
            self._unfinished.update(items)
        chunk = CallChunk(future.task_id, known, items, self.settle_chunk)
        self._settler.add_chunk(chunk)
        found = Together(map(Apart, items))
        found.has_apart = True
        future.set_result(found)
        self._forget([future])
        return chunk

    def _values_of(self, known: KnownFunction, final: Final, silent: Sequence[int]) -> Together:
        """Return the values of items of a map that shared a task.

        silent: the ids of the items without an end of their own.  If their values cannot be unpickled, they run again,
        each as a task of its own.
        """
        if final.reason:
            failed: ExecutorFuture[Any] = ExecutorFuture(self)
            failed.task_id = silent[0] if silent else final.id + 1
            failed.settle(final)
            return Together([Apart(failed)] * max(final.items, len(silent)))  # of a lost connection it has none
        try:
            found = Together(values_of(self.client, final) if silent else ())
            found += [None] * (final.items - len(found))  # a chunk that took long has ended before its last items
            return found
        except Exception:  # one value that cannot be unpickled keeps the others from it
            known.refuses()
            found = Together([None] * final.items)
            for task_id, again in zip(silent, self.client.restart(list(silent)), strict=True):
                found[task_id - final.id - 1] = Apart(self._future_of(again))
            return found

    def _future_of(self, task_id: int) -> ExecutorFuture[Any]:
        """Return a future of a task that is submitted already."""
        future: ExecutorFuture[Any] = ExecutorFuture(self)
        future.task_id = task_id
        with self._lock:
            self._unfinished.add(future)
        self._settler.add(future)
        return future

    def settle_chunk(self, chunk: CallChunk[ExecutorFuture[Any]], final: Final) -> None:
        """Resolve the futures of calls that shared a task, which has ended."""
        chunk.known.ended(final.items - len(final.separate), final)
        separate = set(final.separate)
        futures = chunk.take()
        alone = [future for index, future in enumerate(futures) if index in separate and not future.done()]
        silent = [future for index, future in enumerate(futures) if index not in separate]
        if final.reason:
            for future in silent:
                future.settle(final)
        elif silent and not self._resolve(chunk, silent, final):
            alone += silent
        self._forget(silent, [chunk.id])
        for future in alone:  # of these there is more to tell than the value
            self._settler.add(future)

    def _resolve(self, chunk: CallChunk[ExecutorFuture[Any]], silent: list[ExecutorFuture[Any]], final: Final) -> bool:
        """Resolve futures with their values.  False: the values cannot be unpickled, and the calls run again, alone."""
        try:
            found = values_of(self.client, final)
        except Exception:  # one value that cannot be unpickled keeps the others from it
            chunk.known.refuses()
            for future, again in zip(silent, self.client.restart([each.task_id for each in silent]), strict=True):
                future.task_id, future.chunk = again, None
            return False
        for future in silent:
            future.end(found[future.task_id - chunk.id - 1])
        return True

    def _unsent(self, error: BaseException) -> BaseException:
        """Return the error that the user sees for a value that cannot be pickled."""
        return original_of(error)

    def _as_error(self, error: BaseException, reason: str) -> BaseException:
        """Return the exception that a ``ProcessPoolExecutor`` would set, with ours as its cause."""
        if isinstance(error, errors.UnpickleableException):
            return self._unsent(error)
        if reason in (Reason.ENGINE_LOST, Reason.QUARANTINED):
            lost = WorkerLost(str(error))
            lost.__cause__ = error
            return lost
        if reason == Reason.ENVIRONMENT:
            if self._broken is None:
                logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=error)
            self._broken = error
            broken = BrokenProcessPool(INITIALIZER_FAILED)
            broken.__cause__ = error
            return broken
        return error

    def _forget(self, futures: Iterable[ExecutorFuture[Any]], arrived: Iterable[int] = ()) -> None:
        """Note that futures are resolved.  arrived: the tasks that are cleared from the farm, now or later."""
        cleared: list[int] = []
        with self._lock:
            self._unfinished.difference_update(futures)
            self._arrived.extend(arrived)
            if len(self._arrived) >= CLEARED_AT_ONCE:
                cleared = self._arrived.copy()
                self._arrived.clear()
            if not self._unfinished:
                self._ended.notify_all()
        clear_arrived(self.client, cleared)

    # -- shutdown

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse new calls, and end the executor when the unfinished calls have ended.

        Args:
            wait: return when all calls have ended; False: return at once, and let a thread wait.
            cancel_futures: cancel the calls that have not begun, and in ``except KeyboardInterrupt`` running ones too.
        """
        with self._lock:
            self._is_shut_down = True
            waiting = list(self._unfinished)
        if self._is_forked:
            return
        if cancel_futures and isinstance(sys.exception(), KeyboardInterrupt):
            self._abort_all("Ctrl-C")
        elif cancel_futures and waiting:
            self.cancel(waiting)
        if wait:
            with self.ended_by_ctrl_c():
                self._close()
        else:
            threading.Thread(target=self._close, name="ipytaskfarm executor").start()

    def terminate_workers(self) -> None:
        """Shut down and abort all calls, also running ones; their futures are cancelled.  From Python 3.14."""
        self._abort_all("the executor was terminated")
        self._close()

    kill_workers = terminate_workers

    def _abort_all(self, reason: str) -> None:
        if self._is_forked:
            return
        with self._lock:
            self._is_shut_down = True
        self.submit_gathered()  # a call that another thread is about to submit has an id only then
        with self._lock:
            waiting = list(self._unfinished)
        if ids := [task_id for future in waiting for task_id in future.ids()]:
            self.client.abort(ids, reason=reason)

    @contextlib.contextmanager
    def ended_by_ctrl_c(self) -> Iterator[None]:
        """Let a Ctrl-C in the block abort all calls: a terminal interrupts a pool's processes, but not engines."""
        try:
            yield
        except KeyboardInterrupt:
            self.terminate_workers()
            raise

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> Literal[False]:
        if isinstance(error, KeyboardInterrupt):
            self.terminate_workers()
        else:
            self.shutdown()
        return False

    def end_at_exit(self) -> None:
        """Shut down at the interpreter's exit, after the calls have ended, as CPython does; at once after a Ctrl-C."""
        self.terminate_workers() if interrupted() else self.shutdown()

    def after_fork(self) -> None:
        """Let go of the parent's calls in a forked child: waiting for them raises an error.

        Locks may have been held by the parent's threads.
        """
        from ipytaskfarm.client.futures import end_inherited

        self._is_forked = True
        self._lock = threading.Lock()
        end_inherited(self._unfinished, errors.ConnectionError(INHERITED))
        self._unused.detach()

    def _is_in_callback(self) -> bool:
        """Return whether a callback of a call runs this: its call ends only when the callback returns."""
        return not self._is_forked and self._settler.is_this_thread()

    def _close(self) -> None:
        if self._is_forked:
            return
        if self._is_in_callback():
            threading.Thread(target=self._close, name="ipytaskfarm executor").start()
            return
        self.submit_gathered()
        with self._closing:
            with self._lock:
                while self._unfinished:
                    self._ended.wait()
            self._unused.detach()
            end(self.client, self._farm, self._arrived)
