"""`AsyncResult` and its kinds: the results of calls that may still run."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from datetime import UTC, datetime
from typing import Any, Self

from ipytaskfarm.adapters.ipyparallel import display
from ipytaskfarm.adapters.ipyparallel.errors import raise_together
from ipytaskfarm.adapters.ipyparallel.interfaces import AbortsCalls
from ipytaskfarm.adapters.ipyparallel.messages import MessageFuture, Metadata
from ipytaskfarm.core import errors

Split = set["AsyncResult"]


def as_seconds(timeout: float | None) -> float | None:
    """Return a timeout of ipyparallel in seconds; negative ones are none."""
    return None if timeout is None or timeout < 0 else timeout


_OF_IPYTHON = {"pyin": "execute_input", "pyout": "execute_result", "pyerr": "error"}
"""Metadata in ``IPython.parallel`` -> the same of ipyparallel."""


class AsyncResult(concurrent.futures.Future[Any]):
    """The result of a call on one or more engines: ``get``, ``wait``, ``ready``, iteration, and metadata as attributes.

    It is a ``concurrent.futures.Future`` too.  Metadata (``stdout``, ``engine_id``, ``started`` …) are one value for a
    call on one engine, and else a list with a value for each engine.
    """

    def __init__(
        self,
        client: AbortsCalls,
        children: MessageFuture | Sequence[MessageFuture],
        fname: str = "unknown",
        targets: list[int] | None = None,
        return_exceptions: bool = False,
        chunk_sizes: dict[str, int] | None = None,
    ) -> None:
        """Wait for calls.

        Args:
            children: the calls; for one that is not in a list, the result is its value and not a list.
            return_exceptions: whether errors are returned among the values.
            chunk_sizes: message id -> number of items of a map in the call.
        """
        super().__init__()
        self._single_result = isinstance(children, MessageFuture)
        self._children: list[MessageFuture] = [children] if isinstance(children, MessageFuture) else list(children)
        self._client = client
        self._fname = fname
        self._targets = targets
        self._return_exceptions = return_exceptions
        self._chunk_sizes = chunk_sizes or {}
        self._success: bool | None = None
        self.msg_ids = [child.msg_id for child in self._children]
        self._left = len(self._children)
        self._counting = threading.Lock()
        for child in self._children:
            child.add_done_callback(self._note_end)
        if not self._children:
            self._resolve()

    # -- the end

    def _note_end(self, child: concurrent.futures.Future[Any]) -> None:
        with self._counting:
            self._left -= 1
            is_last = not self._left
        if is_last:
            self._resolve()

    def _resolve(self) -> None:
        failed = [error for error in (child.exception() for child in self._children) if error is not None]
        self._success = not failed or self._return_exceptions
        try:
            if failed and not self._return_exceptions:
                self._raise(failed)
            self.set_result(self._joined([child.outcome() for child in self._children]))
        except Exception as error:
            self._success = False
            self.set_exception(error)

    def _raise(self, failed: list[BaseException]) -> None:
        if self._single_result:
            raise failed[0]
        raise_together(failed, self._fname)

    def _joined(self, values: list[Any]) -> Any:
        """Return the result, from the values of the calls."""
        return values[0] if self._single_result else values

    def __repr__(self) -> str:
        state = "pending" if not self.done() else "finished" if self._success else "failed"
        return f"<{type(self).__name__}({self._fname}): {state}>"

    # -- waiting

    def get(
        self, timeout: float | None = None, return_exceptions: bool | None = None, return_when: str | None = None
    ) -> Any:
        """Return the result.

        Args:
            timeout: seconds, then TimeoutError; None: no limit.
            return_exceptions: return errors among the values; None: as the call was made.
            return_when: FIRST_EXCEPTION: raise the first error without waiting for the other engines.

        Raises RemoteError for an error on one engine, CompositeError for errors of a call on several ones.
        """
        if return_when == FIRST_COMPLETED:
            text = "Ignoring unsupported AsyncResult.get(return_when=FIRST_COMPLETED)"
            warnings.warn(text, UserWarning, stacklevel=2)
        if return_exceptions is None:
            return_exceptions = self._return_exceptions
        if return_when == FIRST_EXCEPTION:
            done, pending = self._wait_split(timeout, return_when)
            for part in done if pending else ():
                if not part._success:
                    return part.get(return_exceptions=return_exceptions)
        if not self.wait(timeout):
            raise TimeoutError("Result not ready.")
        if return_exceptions and not self._success:
            return self._joined([child.outcome() for child in self._children])
        return self.result()

    def wait(self, timeout: float | None = -1, return_when: str | None = None) -> Any:
        """Wait until the result is there; return whether it is.

        Args:
            timeout: seconds; -1 or None: no limit.
            return_when: a constant of ``concurrent.futures.wait``; then the result is a pair of sets (done, pending)
                of `AsyncResult`s, one for each engine.
        """
        if return_when is not None:
            return self._wait_split(timeout, return_when)
        if self.done():
            return True
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            self.exception(as_seconds(timeout))
        return self.done()

    def _wait_split(self, timeout: float | None, return_when: str) -> tuple[Split, Split]:
        parts: Sequence[concurrent.futures.Future[Any]] = self.split()
        found: Any = concurrent.futures.wait(parts, as_seconds(timeout), return_when)
        return found.done, found.not_done

    def ready(self) -> bool:
        """Return whether the result is there."""
        return self.done()

    def successful(self) -> bool:
        """Return whether the call has raised nothing.  Raises RuntimeError if it has not ended."""
        if not self.ready():
            raise RuntimeError("Cannot check successful() if not done.")
        return bool(self._success)

    def wait_for_output(self, timeout: float | None = -1) -> bool:
        """Wait for the output, which comes with the result; return whether it is there."""
        return bool(self.wait(timeout))

    def wait_for_send(self, timeout: float | None = -1) -> bool:
        """Return True: values are copied before a call returns, so they may be changed at once."""
        return True

    sent = True

    def abort(self) -> None:
        """Abort the calls that have not begun; reading them raises TaskAborted.  Raises RuntimeError if all ended."""
        if self.ready():
            raise RuntimeError("Can't abort, I am already done!")
        self._client.abort(self.msg_ids)

    def split(self) -> tuple[AsyncResult, ...]:
        """Return a result for each engine's call; for a single call, this result."""
        if len(self._children) == 1:
            return (self,)
        targets: list[Any] = self._targets or [None] * len(self._children)
        return tuple(
            AsyncResult(self._client, self._part(child), self._fname, [target], self._return_exceptions)
            for target, child in zip(targets, self._children, strict=True)
        )

    def _part(self, child: MessageFuture) -> MessageFuture | list[MessageFuture]:
        return child

    @classmethod
    def join(cls, *async_results: Self) -> Self:
        """Return one result for the calls of several ones, as the inverse of `split`."""
        if not async_results:
            raise ValueError("Must specify at least one AsyncResult to join")
        first, *others = async_results
        if not others:
            return first
        children = [child for each in async_results for child in each._children]
        targets = [target for each in async_results for target in each._targets or ()]
        return cls(first._client, children, first._fname, targets, first._return_exceptions)

    # -- values

    @property
    def r(self) -> Any:
        """Return ``get()``."""
        return self.get()

    def get_dict(self, timeout: float | None = -1) -> dict[int, Any]:
        """Return the values by the ids of their engines.

        Raises ValueError if an engine ran several of the calls, as those of a map.
        """
        values = self.get(as_seconds(timeout))
        values = [values] if self._single_result else values
        engines = [child.metadata["engine_id"] for child in self._children]
        for engine in engines:
            if engines.count(engine) > 1:
                raise ValueError(f"Cannot build dict, {engines.count(engine)} jobs ran on engine #{engine}")
        if len(values) != len(engines):
            text = f"{len(engines)} engines returned {len(values)} items of a map: `get()` has them in order"
            raise ValueError(f"Cannot build dict, {text}")
        return dict(zip(engines, values, strict=True))

    @property
    def result_dict(self) -> dict[int, Any]:
        """Return ``get_dict()``."""
        return self.get_dict()

    def __iter__(self) -> Iterator[Any]:
        if self._single_result:
            raise TypeError("AsyncResults with a single result are not iterable.")
        return self._iterated()

    def _iterated(self) -> Iterator[Any]:
        if self.done():
            yield from self.get()
            return
        for child in self._children:
            yield self._value_of(child)

    def _value_of(self, child: MessageFuture) -> Any:
        error = child.exception()
        if error is not None and not self._return_exceptions:
            raise_together([error], self._fname)
        return child.outcome()

    def __len__(self) -> int:
        return sum(self._chunk_sizes.get(msg_id, 1) for msg_id in self.msg_ids)

    # -- metadata

    @property
    def metadata(self) -> Any:
        """Return what is known of the call: a dict, or a list of them."""
        found: list[Metadata] = [child.metadata for child in self._children]
        return found[0] if self._single_result else found

    def __getitem__(self, key: int | slice | str) -> Any:
        """Return values for an int or a slice, and metadata for a name."""
        if isinstance(key, int | slice):
            if not self.ready():
                raise TimeoutError("Result not ready.")
            return self.get()[key]
        if not isinstance(key, str):
            raise TypeError(f"Invalid key type {type(key)!r}, must be 'int','slice', or 'str'")
        values = [child.metadata[key] for child in self._children]
        return values[0] if self._single_result else values

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            with contextlib.suppress(KeyError):
                return self[_OF_IPYTHON.get(name, name)]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *Metadata()})

    @property
    def progress(self) -> int:
        """Return how many of the ``len(self)`` calls have ended."""
        return sum(self._chunk_sizes.get(child.msg_id, 1) for child in self._children if child.done())

    @property
    def elapsed(self) -> float:
        """Return the seconds since the call was submitted, at most until its end."""
        if self.ready():
            return self.wall_time
        submitted: datetime = min(child.metadata["submitted"] for child in self._children)
        return (datetime.now(UTC) - submitted).total_seconds()

    @property
    def serial_time(self) -> float:
        """Return the sum of the seconds that the calls ran.  Raises TimeoutError before their end."""
        self._must_be_ready()
        ran = [(child.metadata["started"], child.metadata["completed"]) for child in self._children]
        return sum(
            [float((end - begin).total_seconds()) for begin, end in ran if begin is not None and end is not None]
        )

    @property
    def wall_time(self) -> float:
        """Return the seconds from the submission to the arrival of the result.  Raises TimeoutError before its end."""
        self._must_be_ready()
        return self.timedelta(self["submitted"], self["received"])

    def _must_be_ready(self) -> None:
        if not self.ready():
            raise TimeoutError("result not ready")

    def timedelta(
        self,
        start: Any,
        end: Any,
        start_key: Callable[[Any], datetime] = min,
        end_key: Callable[[Any], datetime] = max,
    ) -> float:
        """Return the seconds between two times of the metadata, each one time or a list, of which a key picks one."""
        begin: datetime = start if isinstance(start, datetime) else start_key(start)
        over: datetime = end if isinstance(end, datetime) else end_key(end)
        return (over - begin).total_seconds()

    # -- display

    def wait_interactive(
        self, interval: float = 0.1, timeout: float | None = -1, *, return_when: str = ALL_COMPLETED
    ) -> None:
        """Wait, and show the progress.

        Args:
            interval: seconds between two looks.
            timeout: seconds; -1: no limit.
            return_when: a constant of ``concurrent.futures.wait``.
        """
        limit_s = as_seconds(timeout)
        end_s = None if limit_s is None else time.monotonic() + limit_s
        with display.progress_of(len(self), lambda: self.progress, self._fname) as shown:
            while not self._is_enough(return_when) and (end_s is None or time.monotonic() < end_s):
                self.wait(interval)
                shown.tick()

    def _is_enough(self, return_when: str) -> bool:
        if self.done():
            return True
        if return_when == FIRST_COMPLETED:
            return any(child.done() for child in self._children)
        if return_when == FIRST_EXCEPTION:
            return any(child.done() and child.exception() is not None for child in self._children)
        if return_when != ALL_COMPLETED:
            raise ValueError(f"Unrecognized return_when={return_when!r}")
        return False

    def display_outputs(self, groupby: str = "type", result_only: bool = False) -> None:
        """Show the output of the call.

        Args:
            groupby: "type": all stdout, then all stderr, then the displays; "engine": everything of an engine together;
                "order": like "type", with the first display of each engine together, then the second …
            result_only: show the values of expressions alone.
        """
        self._must_be_ready()
        display.show_outputs(self._children, self._single_result, groupby, result_only)

    def stream_output(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager in which the output of the call is shown as it arrives."""
        return display.streaming(self._children)


class AsyncMapResult(AsyncResult):
    """The result of a map: iterable at any time, in order or, with ``ordered=False``, as the values arrive."""

    def __init__(
        self,
        client: AbortsCalls,
        children: Sequence[MessageFuture],
        join: Callable[[list[Any]], Any],
        fname: str = "",
        ordered: bool = True,
        return_exceptions: bool = False,
        chunk_sizes: dict[str, int] | None = None,
    ) -> None:
        """Wait for a map, whose calls return lists.

        join: joins these lists. ordered: whether iteration keeps the order. The others: see `AsyncResult`.
        """
        self._join = join
        self.ordered = ordered
        super().__init__(client, children, fname, None, return_exceptions, chunk_sizes)

    def _joined(self, values: list[Any]) -> Any:
        if any(isinstance(value, BaseException) for value in values):
            return [item for value in values for item in ([value] if isinstance(value, BaseException) else value)]
        return self._join(values)

    def _part(self, child: MessageFuture) -> MessageFuture | list[MessageFuture]:
        return [child]

    @classmethod
    def join(cls, *async_results: Any) -> Any:
        """Return one `AsyncResult` for the calls of several ones."""
        return AsyncResult.join(*async_results)

    def _iterated(self) -> Iterator[Any]:
        if self.done():
            yield from self.get()
            return
        ended = self._children if self.ordered else concurrent.futures.as_completed(self._children)
        for child in ended:
            assert isinstance(child, MessageFuture)
            value = self._value_of(child)
            yield from [value] if isinstance(value, BaseException) else value


class AsyncHubResult(AsyncResult):
    """The result of a call that another client has made, perhaps in another process."""


def error_if_lost(msg_id: str) -> KeyError:
    """Return the error for a message id that is unknown here."""
    error = KeyError(f"No Future or result for msg_id: {msg_id}")
    error.__cause__ = errors.KernelError(
        "the farm keeps tasks; commands of direct views are known in the process that sent them, as long as their "
        "result is in use"
    )
    return error
