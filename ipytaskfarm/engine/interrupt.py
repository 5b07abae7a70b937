"""Interrupting the task that runs, and no other.

The agent writes (task, attempt) into the recorder's `want` and sends a signal of our own to the engine, again every
20 ms until it was delivered or another run is current.  The one handler raises only if that very run is current here,
if it was not raised yet, and if the interrupted frame is not one of the runner's own.

Tried: "look what runs, then send SIGINT" from another process hit the wrong task in 15,656 of 21,791 tries, this
recipe in none.  `PyThreadState_SetAsyncExc` does not wake a sleep.  SIGINT itself is ipykernel's, whose hooks swap its
handler around each message.
"""

from __future__ import annotations

import asyncio
import signal
from types import CodeType, FrameType
from typing import Any, Final

from ..core.errors import TaskCancelled, TimeLimitExceeded
from ..core.messages import RunKey
from ..core.states import Reason
from ..doors.recorder import TIME_LIMIT, Recorder

SIGNAL: Final = signal.SIGRTMIN + 5


class Interrupts:
    """Says what may be interrupted now, and does it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.current: RunKey | None = None
        """Set by the runner while user code runs, in a frame of `protected` code alone."""
        self.protected: set[CodeType] = set()
        self.time_limit_s: float | None = None
        """The current run's, for the error's text."""
        self.awaiting: asyncio.Task[Any] | None = None
        """The current run, if it is a coroutine in the kernel's loop."""
        self.raised: BaseException | None = None
        """What was raised in the current run; None: nothing."""

    def install(self) -> None:
        """Install the handler; in the main thread, once."""
        signal.signal(SIGNAL, self._handle)

    def outcome(self) -> Reason:
        """How a run that failed is to be called."""
        if isinstance(self.raised, TimeLimitExceeded):
            return Reason.TIME_LIMIT
        return Reason.ABORTED if self.raised is not None else Reason.ERROR

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.current is None or self.raised is not None:
            return
        want = self._recorder.wanted()
        if want is None or (want.task, want.attempt) != self.current:
            return
        task = self.awaiting
        if task is None or asyncio.current_task(task.get_loop()) is task:
            if frame is not None and frame.f_code in self.protected:
                return  # the agent sends it again
            self._recorder.mark_delivered()
            self.raised = self._error(want.cause)
            raise self.raised
        # The loop itself was interrupted, or a callback of somebody else: the coroutine is cancelled instead.
        self._recorder.mark_delivered()
        self.raised = self._error(want.cause)
        task.get_loop().call_soon_threadsafe(task.cancel)

    def _error(self, cause: int) -> BaseException:
        if cause == TIME_LIMIT:
            limit = self.time_limit_s
            return TimeLimitExceeded(f"the task ran longer than its time_limit of {limit} s" if limit else "time limit")
        return TaskCancelled("the task was aborted")
