"""`Pool`: a farm with the interface of ``multiprocessing.Pool``.

Interface and error texts are those of CPython's ``multiprocessing.pool``.  An `Executor` does the work.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import queue
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from multiprocessing.pool import (  # type: ignore[attr-defined]  # typeshed leaves MaybeEncodingError out
    CLOSE,
    RUN,
    TERMINATE,
    MaybeEncodingError,
)
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ipytaskfarm.adapters.executor import Executor
from ipytaskfarm.adapters.executor_calls import Context, check_context, check_rules, workers_or_client
from ipytaskfarm.adapters.map_futures import Apart, Together, whole
from ipytaskfarm.core import errors
from ipytaskfarm.system.deadlines import end_of, left_s

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient
    from ipytaskfarm.deployment.farm import Farm

T = TypeVar("T")

CHUNKS_PER_WORKER = 4
"""Number of chunks per worker for a `map` without a chunk size, as in ``multiprocessing``."""
TASKS_AHEAD = 64
"""Unfinished tasks per worker up to which `imap` reads an iterable without a length."""


class PoolResult(Generic[T]):
    """The result of a call that may still run: `get`, `wait`, `ready`, `successful`."""

    def __init__(
        self,
        futures: Sequence[concurrent.futures.Future[Any]],
        join: Callable[[list[Any]], T],
        callback: Callable[[T], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        """Wait for the tasks of a call.

        Args:
            futures: the tasks of the call.
            join: combines the values of the tasks into the value of the call.
            callback: called with the value, in a thread of the client, before `get` and `wait` return.
            error_callback: called with the first error instead.
        """
        self._futures = futures
        self._join = join
        self._callback = callback
        self._error_callback = error_callback
        self._left = len(futures)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._callbacks_thread = 0
        """The thread that runs the callback, which need not wait for its end; 0: none does."""
        self._value: T | None = None
        self._error: BaseException | None = None
        for future in futures:
            future.add_done_callback(self._note_end)
        if not futures:  # of a map without items, for which `multiprocessing` calls no callback
            self._value = join([])
            self._is_over.set()

    def _note_end(self, future: concurrent.futures.Future[Any]) -> None:
        error = concurrent.futures.CancelledError() if future.cancelled() else future.exception()
        with self._lock:
            self._left -= 1
            if error is not None and self._error is None:
                self._error = error
            is_last = not self._left
        if is_last:
            self._end()

    def _end(self) -> None:
        if self._error is None:
            self._value = self._join([future.result() for future in self._futures])
        self._futures = ()
        self._callbacks_thread = threading.get_ident()
        try:  # before the waiters are woken, as in `multiprocessing`: they use what the callback has collected
            if self._error is None and self._callback is not None:
                self._callback(self._value)  # type: ignore[arg-type]
            elif self._error is not None and self._error_callback is not None:
                self._error_callback(self._error)
        finally:
            self._is_over.set()
            self._callbacks_thread = 0

    def end_inherited(self, error: BaseException) -> None:
        """Let `get` raise the error in a forked child; the callbacks are the parent's."""
        if not self._is_over.is_set():
            self._error, self._is_over = error, threading.Event()
            self._is_over.set()

    def get(self, timeout: float | None = None) -> T:
        """Return the value, or raise the error.  Raises multiprocessing.TimeoutError after `timeout` seconds."""
        self.wait(timeout)
        if not self._has_ended():
            raise multiprocessing.TimeoutError
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, at most `timeout` seconds."""
        if not self._has_ended():
            self._is_over.wait(timeout)

    def _has_ended(self) -> bool:
        return self._is_over.is_set() or self._callbacks_thread == threading.get_ident()

    def ready(self) -> bool:
        """Return whether the call has ended."""
        return self._is_over.is_set()

    def successful(self) -> bool:
        """Return whether the call has raised nothing.  Raises ValueError if it has not ended."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None


class PoolIterator(Generic[T]):
    """The values of `imap` and `imap_unordered`, each as soon as it has arrived."""

    def __init__(self, ordered: bool) -> None:
        self._waiting: deque[concurrent.futures.Future[Any]] | None = deque() if ordered else None
        """The futures that were not read, in order: of chunks, whose values are `Together`, or of single items."""
        self._ended: queue.SimpleQueue[concurrent.futures.Future[Any] | None] = queue.SimpleQueue()
        """Without an order: the futures that have ended; None: `close` was called."""
        self._left = 0
        self._is_open = True
        self._grown = threading.Condition()
        self._chunk: deque[T] = deque()

    def add(self, future: concurrent.futures.Future[Any]) -> None:
        """Add the future of the next chunk or item."""
        with self._grown:
            self._left += 1
            if self._waiting is not None:
                self._waiting.append(future)
            self._grown.notify_all()
        if self._waiting is None:
            future.add_done_callback(self._ended.put)

    def close(self) -> None:
        """Note that all futures were added."""
        with self._grown:
            self._is_open = False
            self._grown.notify_all()
        self._ended.put(None)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """Return the next value.  Raises multiprocessing.TimeoutError after `timeout` seconds.

        After the error of an item the iteration continues after the item's chunk.
        """
        end_s = end_of(timeout)
        while not self._chunk:
            future = self._next_future(end_s)
            with self._grown:
                self._left -= 1
            self._chunk.extend(self._values_of(future))
        return self._chunk.popleft()

    def _next_future(self, end_s: float | None) -> concurrent.futures.Future[Any]:
        """Return the next future when it has ended."""
        if self._waiting is not None:
            with self._grown:
                if not self._grown.wait_for(lambda: self._waiting or not self._is_open, left_s(end_s)):
                    raise multiprocessing.TimeoutError
                if not self._waiting:
                    raise StopIteration
                future = self._waiting[0]
            concurrent.futures.wait([future], left_s(end_s))
            if not future.done():
                raise multiprocessing.TimeoutError
            return self._waiting.popleft()
        while self._is_open or self._left:
            try:
                if (ended := self._ended.get(timeout=left_s(end_s))) is not None:
                    return ended
            except queue.Empty:
                raise multiprocessing.TimeoutError from None
        raise StopIteration

    def _values_of(self, future: concurrent.futures.Future[Any]) -> Iterable[T]:
        """Return the values of a future, or raise its error."""
        error = None if future.cancelled() else future.exception()
        if error is not None:
            raise error
        found = future.result()
        if type(found) is not Together:
            return (found,)
        if not found.has_apart:
            return found
        return self._of_parts(found)

    def _of_parts(self, found: Together) -> list[T]:
        """Return the values up to the first that stands apart; what follows is taken later."""
        if self._waiting is None:
            for value in found:
                if type(value) is Apart:
                    self.add(value.future)
            return [value for value in found if type(value) is not Apart]
        later: list[concurrent.futures.Future[Any]] = []
        for value in found:
            if type(value) is Apart:
                later.append(value.future)
            else:
                later.append(concurrent.futures.Future())
                later[-1].set_result(value)
        with self._grown:
            self._left += len(later)
            self._waiting.extendleft(reversed(later))
        return []


class Pool:
    """Calls functions on the engines of a farm: ``with Pool(4) as pool: pool.map(f, range(100))``.

    Args:
        processes: the number of engines of a farm that the pool starts, and stops at its end (None: one for each core);
            or a `TaskClient` or a `Farm`: the pool uses this farm and does not stop it.
        initializer, initargs: a function, and its arguments, that each engine calls before its first call.
        maxtasksperchild: number of tasks (one per chunk) after which an engine is replaced.
        context: unused, as engines are fresh processes whatever the start method.
        rules: rules of a `Task` for each chunk: retries, time_limit, resources, environment, priority …

    If an engine is lost, its chunk runs again, at most `retries` times (2); ``multiprocessing.Pool`` would wait for
    ever. `TaskClient` has a lazy map, and more ways to inspect tasks.

    Raises ValueError for a number of processes below 1, TypeError for what is neither a whole number nor a client nor
    a farm, and FarmNotRunning for a farm that was stopped.
    """

    def __init__(
        self,
        processes: int | TaskClient | Farm | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Context | None = None,
        **rules: Any,
    ) -> None:
        check_context("context", context)
        processes = workers_or_client("processes", processes)
        if isinstance(processes, int) and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        check_rules(rules, "a Pool", ("processes", "initializer", "initargs", "maxtasksperchild"))
        self._executor = _Calls(
            processes, None, initializer, tuple(initargs), max_tasks_per_child=maxtasksperchild, **rules
        )
        self._feeders: list[threading.Thread] = []
        """Threads that read the iterators of `imap`."""
        self._state = RUN

    def __repr__(self) -> str:
        return f"<ipytaskfarm.Pool state={self._state} pool_size={self._executor._max_workers}>"

    def __del__(self) -> None:
        if getattr(self, "_state", None) == RUN:  # not there: the constructor has raised
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, stacklevel=2, source=self)

    @property
    def _processes(self) -> int:
        """Return the number of engines; programs look at this name of ``multiprocessing.Pool``."""
        return self._executor._max_workers

    @property
    def client(self) -> TaskClient:
        """Return the client that submits the calls."""
        return self._executor.client

    def __reduce__(self) -> Any:
        raise errors.UnpickleableException("a Pool cannot travel; inside a task use `current_task().submit`")

    # -- one call

    def apply(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: dict[str, Any] | None = None) -> T:
        """Call ``func(*args, **kwds)`` on an engine, and return its value."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> PoolResult[T]:
        """Submit ``func(*args, **kwds)`` and return its `PoolResult`."""
        self._must_run()
        return PoolResult([self._executor.submit(func, *args, **(kwds or {}))], _only, callback, error_callback)

    # -- many calls

    def map(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None) -> list[T]:
        """Return ``[func(x) for x in iterable]``, computed by the engines; an error is raised when all calls have
        ended.
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> PoolResult[list[T]]:
        """Submit the calls of `map` and return their `PoolResult`."""
        return self._map_async(func, list(iterable), False, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """Return ``[func(*items) for items in iterable]``, computed by the engines."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> PoolResult[list[T]]:
        """Submit the calls of `starmap` and return their `PoolResult`."""
        return self._map_async(func, [tuple(items) for items in iterable], True, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., T],
        items: list[Any],
        star: bool,
        chunksize: int | None,
        callback: Callable[[list[T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> PoolResult[list[T]]:
        self._must_run()
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (self._executor._max_workers * CHUNKS_PER_WORKER)))
        shared = self._executor.submit_items(func, items, star, chunksize)
        if shared is not None:
            return PoolResult([whole(future) for future in shared], _flat, callback, error_callback)
        calls = items if star else [(item,) for item in items]
        return PoolResult(self._submitted(func, calls, chunksize), _flat, callback, error_callback)

    def imap(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> PoolIterator[T]:
        """Return an iterator over the values of `map`, in order."""
        return self._iterator(func, iterable, chunksize, ordered=True)

    def imap_unordered(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> PoolIterator[T]:
        """Return an iterator over the values of `map`, in the order in which they arrive."""
        return self._iterator(func, iterable, chunksize, ordered=False)

    def _iterator(
        self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> PoolIterator[T]:
        self._must_run()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        values: PoolIterator[T] = PoolIterator(ordered)
        left = iter(iterable)
        if isinstance(iterable, Sized):
            self._feed(values, func, left, chunksize, None)
            return values
        ahead = threading.Semaphore(TASKS_AHEAD * self._executor._max_workers)
        feeder = threading.Thread(
            target=self._feed, args=(values, func, left, chunksize, ahead), name="ipytaskfarm pool", daemon=True
        )
        self._feeders = [each for each in self._feeders if each.is_alive()]
        self._feeders.append(feeder)
        feeder.start()
        return values

    def _feed(
        self,
        values: PoolIterator[T],
        func: Callable[[Any], T],
        left: Iterator[Any],
        chunksize: int,
        ahead: threading.Semaphore | None,
    ) -> None:
        """Submit the items of `imap`, and add their futures.

        ahead: taken for each task that has not ended, so that an endless iterator is read no further than necessary.
        """
        try:
            for future in self._futures_of(func, left, chunksize):
                values.add(future)
                if ahead is not None:
                    future.add_done_callback(lambda _: ahead.release())
                    ahead.acquire()
        except BaseException as error:  # of the iterable: it is raised in its turn, behind the values before it
            if ahead is None and not isinstance(error, Exception):
                raise  # Ctrl-C: this is the caller's thread
            failed: concurrent.futures.Future[Any] = concurrent.futures.Future()
            failed.set_exception(error)
            values.add(failed)
        finally:
            values.close()

    def _futures_of(
        self, func: Callable[[Any], Any], left: Iterator[Any], chunksize: int
    ) -> Iterator[concurrent.futures.Future[Any]]:
        """Submit items as the futures are asked for."""
        shared = self._executor.submit_items(func, _of_whole_chunks(left, chunksize), False, chunksize)
        if shared is not None:
            yield from shared
        while shared is None and (chunk := [(item,) for item in itertools.islice(left, chunksize)]):
            yield _together(self._executor.submit_chunk(func, chunk))

    def _submitted(
        self, func: Callable[..., T], calls: Iterable[tuple[Any, ...]], chunksize: int
    ) -> list[concurrent.futures.Future[list[T]]]:
        left = iter(calls)
        chunks = iter(lambda: list(itertools.islice(left, chunksize)), [])
        return [self._executor.submit_chunk(func, chunk) for chunk in chunks]

    # -- shutdown

    def _must_run(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def close(self) -> None:
        """Refuse new calls; running ones go on."""
        if self._state == RUN:
            self._state = CLOSE

    def terminate(self) -> None:
        """Abort all calls and end the pool."""
        self._state = TERMINATE
        self._executor.terminate_workers()

    def join(self) -> None:
        """Wait until all calls have ended.  Raises ValueError before `close` or `terminate`."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state == CLOSE:
            for feeder in self._feeders:
                feeder.join()
        self._executor.shutdown()

    def __enter__(self) -> Pool:
        self._must_run()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()


class _Calls(Executor):
    """The executor of a pool."""

    def _unsent(self, error: BaseException) -> BaseException:
        """Return the error of a ``multiprocessing.Pool``, with ours as its cause."""
        unsent: Exception = MaybeEncodingError(error, "the value of the call")
        unsent.__cause__ = error
        return unsent

    def end_at_exit(self) -> None:
        """Abort what still runs at the interpreter's exit, as a ``multiprocessing.Pool`` does."""
        self.terminate_workers()


def _of_whole_chunks(items: Iterator[T], chunksize: int) -> Iterator[T]:
    """Yield items; when their iterator raises, those of the unfinished chunk are left out, as in `multiprocessing`."""
    while chunk := list(itertools.islice(items, chunksize)):
        yield from chunk


def _together(chunk: concurrent.futures.Future[list[Any]]) -> concurrent.futures.Future[Together]:
    """Return a future of the values of a chunk that was submitted as one call."""
    found: concurrent.futures.Future[Together] = concurrent.futures.Future()

    def ended(_: object) -> None:
        if chunk.cancelled():
            found.cancel()
            found.set_running_or_notify_cancel()
        elif (error := chunk.exception()) is not None:
            found.set_exception(error)
        else:
            found.set_result(Together(chunk.result()))

    chunk.add_done_callback(ended)
    return found


def _only(values: list[T]) -> T:
    (value,) = values
    return value


def _flat(chunks: list[list[T]]) -> list[T]:
    return list(itertools.chain.from_iterable(chunks))
