"""`remote` and `parallel`: decorators that make functions run on the engines of a view; its executor and lazy maps."""

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
from ipytaskfarm.adapters.ipyparallel.interfaces import CallsFunctions, PartsCall
from ipytaskfarm.client.engine_maps import can_slice
from ipytaskfarm.core.signatures import signature_of


def name_of(function: Any) -> str:
    """Return a name for a function, as results show it."""
    return str(getattr(function, "__name__", None) or getattr(function, "name", None) or function)


class RemoteFunction:
    """A function that runs on the engines of a view: ``f(x)`` is ``view.apply(f, x)``."""

    _shown_as = "RemoteFunction"

    def __init__(
        self, view: CallsFunctions, function: Callable[..., Any], block: bool | None = None, **flags: Any
    ) -> None:
        """Wrap a function.

        block: whether a call waits; None: as the view's calls do. flags: flags of the view during a call.
        """
        self.view = view
        self.func = function
        self.block = block
        self.flags = flags
        self.__name__ = name_of(function)
        if function.__doc__:
            self.__doc__ = f"{self._shown_as} wrapping:\n{function.__doc__}"
        try:
            self.__signature__ = signature_of(function)
        except (TypeError, ValueError):
            pass  # some builtins have none

    def _blocks(self) -> bool:
        return self.view.block if self.block is None else self.block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.view.temp_flags(block=self._blocks(), **self.flags):
            return self.view.apply(self.func, *args, **kwargs)


class PartsFunction(RemoteFunction):
    """A function that is called with parts of sequences: ``f(seq)``; ``f.map(seq)`` calls it with each item.

    It is ipyparallel's ``ParallelFunction``.
    """

    _shown_as = "ParallelFunction"

    def __init__(
        self,
        view: CallsFunctions,
        function: Callable[..., Any],
        dist: str = "b",
        block: bool | None = None,
        chunksize: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        label: Any = None,
        **flags: Any,
    ) -> None:
        """Wrap a function.

        Args:
            dist: "b": parts are blocks; "r": round robin.
            chunksize: number of items in a task of a load-balanced view.
            ordered: whether iteration over the result keeps the order; of a load-balanced view.
            return_exceptions: return errors among the values.
            label: a name for the calls.

        The other arguments are those of `RemoteFunction`.
        """
        super().__init__(view, function, block, **flags)
        self.dist = dist
        if chunksize is not None and chunksize < 0:
            raise ValueError(f"chunksize must be 0 or more, not {chunksize}: there would be no items")
        self.chunksize = chunksize
        self.ordered = ordered
        self.return_exceptions = return_exceptions
        self.label = label

    def __call__(self, *sequences: Iterable[Any]) -> Any:
        """Call the function with parts of the sequences.  Raises ValueError for sequences of unequal length."""
        found = [_with_length(sequence) for sequence in sequences]
        lengths = [len(sequence) for sequence in found]
        if len(set(lengths)) > 1:
            raise ValueError(f"all sequences must have equal length, but have {lengths}")
        return self._run(found, mapping=False)

    def map(self, *sequences: Iterable[Any]) -> Any:
        """Call the function with each item of the sequences, up to the end of the shortest."""
        if not sequences:
            raise TypeError("must have some sequences to map onto!")
        found = [_with_length(sequence) for sequence in sequences]
        shortest = min(len(sequence) for sequence in found)
        return self._run([sequence[:shortest] for sequence in found], mapping=True)

    def _run(self, sequences: list[Any], mapping: bool) -> Any:
        if not len(sequences[0]):
            return []
        with self.view.temp_flags(**self.flags):
            call = PartsCall(
                self.func,
                sequences,
                dist=self.dist,
                mapping=mapping,
                block=self._blocks(),
                return_exceptions=self.return_exceptions,
                label=self.label,
                chunksize=self.chunksize,
                ordered=self.ordered,
            )
            return self.view.call_parts(call)


def _with_length(sequence: Iterable[Any]) -> Any:
    return sequence if hasattr(sequence, "__len__") and can_slice(sequence) else list(sequence)


def remote(
    view: CallsFunctions, block: bool | None = None, **flags: Any
) -> Callable[[Callable[..., Any]], RemoteFunction]:
    """Return a decorator that makes a `RemoteFunction`."""
    return lambda function: RemoteFunction(view, function, block, **flags)


def parallel(
    view: CallsFunctions, dist: str = "b", block: bool | None = None, ordered: bool = True, **flags: Any
) -> Callable[[Callable[..., Any]], PartsFunction]:
    """Return a decorator that makes a `PartsFunction`."""
    return lambda function: PartsFunction(view, function, dist, block, ordered=ordered, **flags)


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
