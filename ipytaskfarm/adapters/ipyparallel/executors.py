"""``view.executor``, and the iterator of ``view.imap``."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from ipytaskfarm.adapters.ipyparallel.async_results import AsyncResult
from ipytaskfarm.adapters.ipyparallel.interfaces import CallsFunctions


class LazyMapIterator:
    """The values of a map that reads its inputs as it goes; `cancel` ends that."""

    def __init__(self, calls: Iterator[AsyncResult], ahead: int | None, ordered: bool, return_exceptions: bool) -> None:
        """Submit the first calls.

        Args:
            calls: submits a call each time it is asked for the next.
            ahead: number of calls whose values were not taken yet; None: all.
            ordered: whether the values come in order.
            return_exceptions: yield errors instead of raising them.
        """
        self._calls = calls
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self._lock = threading.Lock()
        self._is_over = False
        self._on_end: list[Callable[[LazyMapIterator], object]] = []
        self._waiting: deque[AsyncResult] = deque()
        self._submit(ahead)

    def _submit(self, count: int | None) -> None:
        with self._lock:
            if self._is_over:
                return
            before = len(self._waiting)
            self._waiting.extend(itertools.islice(self._calls, count))
            self._is_over = count is None or len(self._waiting) - before < count
        if self._is_over:
            self.cancel()

    def submit_all(self) -> None:
        """Submit the rest of the calls."""
        self._submit(None)

    def on_end(self, function: Callable[[LazyMapIterator], object]) -> None:
        """Call a function when no more calls are submitted, perhaps at once."""
        self._on_end.append(function)
        if self._is_over:
            function(self)

    def cancel(self) -> None:
        """Submit no more calls; the values of those that were submitted can still be read."""
        self._is_over = True
        for function in self._on_end:
            function(self)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._waiting:
            raise StopIteration
        if self._ordered:
            call = self._waiting.popleft()
            concurrent.futures.wait([call])
        else:
            done, _ = concurrent.futures.wait(self._waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            call = next(each for each in self._waiting if each in done)
            self._waiting.remove(call)
        self._submit(1)
        return call.get(return_exceptions=self._return_exceptions)


class ViewExecutor(concurrent.futures.Executor):
    """A view as a ``concurrent.futures.Executor``: ``view.executor``."""

    def __init__(self, view: CallsFunctions) -> None:
        self.view = view
        self._pid = os.getpid()

    @property
    def _max_workers(self) -> int:
        return len(self.view)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Do what ``view.apply_async`` does."""
        return self.view.apply_async(fn, *args, **kwargs)

    def map(self, func: Any, *iterables: Iterable[Any], **options: Any) -> Any:  # type: ignore[override]
        """Do what ``view.imap`` does."""
        if "timeout" in options:
            warnings.warn("timeout unsupported in ViewExecutor.map", stacklevel=2)
            options.pop("timeout")
        return self.view.imap(func, *iterables, **options)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> Literal[False]:
        """Wait for all calls of the view; after a Ctrl-C abort those that have not begun, and wait for none."""
        is_over = isinstance(error, KeyboardInterrupt)
        self.shutdown(wait=not is_over, cancel_futures=is_over)
        return False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for all calls of the view; the engines go on.

        Args:
            wait: False: return at once.
            cancel_futures: abort the calls that have not begun.

        A forked child does not wait: the calls are its parent's.
        """
        if os.getpid() != self._pid:
            return
        if cancel_futures:
            self.view.abort_waiting()
        if wait:
            self.view.wait_for_maps()
            self.view.wait()
