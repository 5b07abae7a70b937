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
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.pool import (  # type: ignore[attr-defined]  # typeshed leaves MaybeEncodingError out
    CLOSE,
    RUN,
    TERMINATE,
    MaybeEncodingError,
)
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ipytaskfarm.adapters.executor import Executor
from ipytaskfarm.adapters.executor_map import Apart, Together, whole
from ipytaskfarm.core import errors

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient

T = TypeVar("T")

CHUNKS_PER_WORKER = 4
"""Number of chunks per worker for a `map` without a chunk size, as in ``multiprocessing``."""


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
            callback: called with the value, in a thread of the client.
            error_callback: called with the first error instead.
        """
        self._futures = futures
        self._join = join
        self._callback = callback
        self._error_callback = error_callback
        self._left = len(futures)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        for future in futures:
            future.add_done_callback(self._note_end)
        if not futures:
            self._end()

    def _note_end(self, future: concurrent.futures.Future[Any]) -> None:
        error = concurrent.futures.CancelledError() if future.cancelled() else _as_pools(future.exception())
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
        self._is_over.set()
        if self._error is None and self._callback is not None:
            self._callback(self._value)  # type: ignore[arg-type]
        elif self._error is not None and self._error_callback is not None:
            self._error_callback(self._error)

    def get(self, timeout: float | None = None) -> T:
        """Return the value, or raise the error.  Raises multiprocessing.TimeoutError after `timeout` seconds."""
        if not self._is_over.wait(timeout):
            raise multiprocessing.TimeoutError
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, at most `timeout` seconds."""
        self._is_over.wait(timeout)

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

    def __init__(self, futures: Sequence[concurrent.futures.Future[Any]], ordered: bool) -> None:
        """Wait for futures of chunks, whose values are `Together`, or of single items."""
        self._left = len(futures)
        self._waiting = deque(futures) if ordered else None
        self._ended: queue.SimpleQueue[concurrent.futures.Future[Any]] = queue.SimpleQueue()
        self._chunk: deque[T] = deque()
        if not ordered:
            for future in futures:
                future.add_done_callback(self._ended.put)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """Return the next value.  Raises multiprocessing.TimeoutError after `timeout` seconds.

        After the error of an item the iteration continues after the item's chunk.
        """
        while not self._chunk:
            if not self._left:
                raise StopIteration
            self._chunk.extend(self._take(timeout))
        return self._chunk.popleft()

    def _take(self, timeout: float | None) -> Iterable[T]:
        try:
            if self._waiting is None:
                future = self._ended.get(timeout=timeout)
            else:
                future = self._waiting[0]
                concurrent.futures.wait([future], timeout)
                if not future.done():
                    raise multiprocessing.TimeoutError
                self._waiting.popleft()
        except queue.Empty:
            raise multiprocessing.TimeoutError from None
        self._left -= 1
        error = None if future.cancelled() else _as_pools(future.exception())
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
            apart = [value.future for value in found if type(value) is Apart]
            self._left += len(apart)
            for future in apart:
                future.add_done_callback(self._ended.put)
            return [value for value in found if type(value) is not Apart]
        later: list[concurrent.futures.Future[Any]] = []
        for value in found:
            if type(value) is Apart:
                later.append(value.future)
            else:
                later.append(concurrent.futures.Future())
                later[-1].set_result(value)
        self._left += len(later)
        self._waiting.extendleft(reversed(later))
        return []


class Pool:
    """Calls functions on the engines of a farm: ``with Pool(4) as pool: pool.map(f, range(100))``.

    Args:
        processes: the number of engines of a farm that the pool starts, and stops at its end (None: one for each core);
            or
            a `TaskClient`, whose farm the pool uses and does not stop.
        initializer, initargs: a function, and its arguments, that each engine calls before its first call.
        maxtasksperchild: number of tasks (one per chunk) after which an engine is replaced.
        rules: rules of a `Task` for each chunk: retries, time_limit, resources, environment, priority …

    If an engine is lost, its chunk runs again, at most `retries` times (2); ``multiprocessing.Pool`` would wait for
    ever. `TaskClient` has a lazy map, and more ways to inspect tasks.

    Raises ValueError for a number of processes below 1.
    """

    def __init__(
        self,
        processes: int | TaskClient | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **rules: Any,
    ) -> None:
        if isinstance(processes, int) and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        self._executor = Executor(
            processes, initializer, tuple(initargs), max_tasks_per_child=maxtasksperchild, **rules
        )
        self._state = RUN

    def __repr__(self) -> str:
        return f"<ipytaskfarm.Pool state={self._state} pool_size={self._executor._max_workers}>"

    def __del__(self) -> None:
        if getattr(self, "_state", None) == RUN:  # not there: the constructor has raised
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, stacklevel=2, source=self)

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
        futures: list[concurrent.futures.Future[Any]] = []
        left = iter(iterable)
        shared = self._executor.submit_items(func, _of_whole_chunks(left, chunksize), False, chunksize)
        try:
            if shared is not None:
                futures.extend(shared)
            while shared is None and (chunk := [(item,) for item in itertools.islice(left, chunksize)]):
                futures.append(_together(self._executor.submit_chunk(func, chunk)))
        except Exception as error:  # of the iterable: it is raised in its turn, behind the values before it
            futures.append(concurrent.futures.Future())
            futures[-1].set_exception(error)
        return PoolIterator(futures, ordered)

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
        self._executor.shutdown()

    def __enter__(self) -> Pool:
        self._must_run()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()


def _as_pools(error: BaseException | None) -> BaseException | None:
    """Return the error that a ``multiprocessing.Pool`` would raise, with ours as its cause."""
    if not isinstance(error, errors.UnpickleableException) or isinstance(error.__cause__, errors.UnpickleableException):
        return error  # the second is of an argument, see `original_of`
    unsent: Exception = MaybeEncodingError(error, "the value of the call")
    unsent.__cause__ = error
    return unsent


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
