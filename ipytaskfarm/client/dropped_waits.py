"""Waits that asyncio drops before they have begun: ``asyncio.wait_for(future, 0)``, or one that is cancelled at once.

For a future of ours asyncio makes a coroutine that awaits it. If that is cancelled before its first step, nothing of
the future is ever called. But `asyncio.ensure_future` asks beforehand whether the object is a future of asyncio's own,
and this question is noticed. Then a look is taken at the time when the coroutine must have begun.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from types import CoroutineType, GeneratorType
from typing import Protocol

_ASKERS = ("ensure_future", "_ensure_future")
_WRAPPER = "_wrap_awaitable"
"""asyncio's coroutine that awaits an object."""


class Awaited(Protocol):
    """What is awaited."""

    waits_begun: int
    """How many waits have begun."""

    def done(self) -> bool:
        """Return whether it has ended."""

    def on_dropped_wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what a cancelled wait does."""


def expect_wait(awaited: Awaited) -> None:
    """Expect a wait to begin, if asyncio's `ensure_future` asks the getter that calls this."""
    asker = sys._getframe(3)  # the getter was called by `isfuture`, and that by the asker
    if asker.f_code.co_name not in _ASKERS or asker.f_globals.get("__name__") != asyncio.ensure_future.__module__:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return  # the loop that begins now begins the wait first
    # The coroutine's first step is put behind the first call, and before the second.
    loop.call_soon(loop.call_soon, _look, awaited, awaited.waits_begun, loop)


def _look(awaited: Awaited, begun: int, loop: asyncio.AbstractEventLoop) -> None:
    if awaited.waits_begun != begun or awaited.done():
        return
    waiting = (each for each in gc.get_referrers(awaited) if isinstance(each, CoroutineType | GeneratorType))
    if not any(each.__name__ == _WRAPPER for each in waiting):  # else a task factory lets it begin later
        awaited.on_dropped_wait(loop)
