"""Futures in a forked child: only threads of the parent resolve them, so the child ends those that it has inherited.

Callbacks of users are not called: they are the parent's, which calls them when the tasks end.
"""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Iterable
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

_PACKAGE = __name__.partition(".")[0]


@runtime_checkable
class Inherits(Protocol):
    """What waits for futures without being one."""

    def end_inherited(self, error: BaseException) -> None:
        """Let all that wait for it, in this child, raise the error."""


def end_inherited(futures: Iterable[concurrent.futures.Future[Any]], error: BaseException) -> None:
    """Let all that wait for these futures raise an error, unless they have ended; also for what depends on them."""
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
