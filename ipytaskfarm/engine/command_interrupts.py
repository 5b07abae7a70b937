"""Interrupts the command that runs: ``mec.interrupt()`` raises KeyboardInterrupt in it.

The lane's thread notes which command is meant and sends a signal to the main thread. The handler raises only while that
command's own code runs. SIGINT itself is not used, because ipykernel exchanges its handler around each message.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

from .surroundings import Handlers

SIGNAL: Final = signal.SIGRTMIN + 7


class CommandInterrupts:
    """Knows which command may be interrupted at present, and interrupts it."""

    def __init__(self) -> None:
        self._current: object | None = None
        """The command whose code runs."""
        self._wanted: object | None = None
        """The command that is to be interrupted."""
        self._awaiting: asyncio.Task[Any] | None = None
        """The current command, if it is a coroutine in the kernel's loop."""
        Handlers.hold(SIGNAL, self._handle)

    @contextlib.contextmanager
    def during(self, command: object) -> Iterator[None]:
        """Let a command be interrupted during the block."""
        self._current = command
        try:
            yield
        finally:
            self._current = None

    def begin_awaiting(self, command: object, task: asyncio.Task[Any]) -> None:
        """Let a command be interrupted that continues in the loop; it ends with the task."""
        self._current, self._awaiting = command, task
        task.add_done_callback(self._end_awaiting)

    def _end_awaiting(self, task: asyncio.Task[Any]) -> None:
        self._current = self._awaiting = None

    def request(self) -> None:
        """Interrupt the command that runs now, if one does. Called by the lane's thread."""
        self._wanted = self._current
        self.again()

    def again(self) -> None:
        """Send the signal if an interrupt is due. Called by the lane's thread, also some time later."""
        if self._wanted is None:
            return
        if self._wanted is not self._current:
            self._wanted = None
            return
        task = self._awaiting
        if task is not None:
            self._wanted = None
            task.get_loop().call_soon_threadsafe(task.cancel)
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._wanted is not None and self._wanted is self._current and self._awaiting is None:
            self._wanted = None
            raise KeyboardInterrupt("the command was interrupted")
