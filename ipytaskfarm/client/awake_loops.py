"""Keep the asyncio loop of a notebook awake while a task is awaited in it, for the stop button.

ipykernel's handler of SIGINT asks the loop to cancel the cell, and does not wake it (7.4, ``_cancel_on_sigint``).  A
loop with nothing to do but to wait for a task would sleep until the task's end, and see the stop button only then.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from weakref import WeakKeyDictionary

from ..display.ipython import notebook_shell

EVERY_S = 0.25
"""Seconds until the stop button has an effect, at most."""


class AwakeLoop:
    """Wakes one loop a few times a second from `begin` to `end`, or inside ``with``; all waits share one timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waits = 0
        self._is_set = False

    def begin(self) -> None:
        """Begin a wait."""
        self._waits += 1
        self._set()

    def end(self) -> None:
        """End a wait."""
        self._waits -= 1

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()

    def _set(self) -> None:
        if self._waits and not self._is_set:
            self._is_set = True
            self._loop.call_later(EVERY_S, self._wake)

    def _wake(self) -> None:
        self._is_set = False
        self._set()


_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, AwakeLoop] = WeakKeyDictionary()


def awake_loop() -> AwakeLoop | None:
    """Return what keeps the running loop awake; None: this is no notebook, and Ctrl-C raises in the loop."""
    if notebook_shell() is None:
        return None
    loop = asyncio.get_running_loop()
    return _loops.get(loop) or _loops.setdefault(loop, AwakeLoop(loop))
