"""Interrupts the task that runs, and no other.

The agent writes (task, attempt) into the recorder's `want` and sends a signal that the farm has chosen to the engine.
It repeats the signal every 20 ms until the interrupt was delivered or another run is current. The handler raises only
if that run is current, if it has not raised for this run yet, and if the interrupted frame is not one of the runner's
own.

Another way was measured: to look up the running task in another process and then send SIGINT. It hit the wrong task in
15,656 of 21,791 attempts; the way above hit it in none. `PyThreadState_SetAsyncExc` does not wake a sleep. SIGINT is
not used for it: ipykernel exchanges its handler around each message, and tasks send it to themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Final, Protocol

from ..core.errors import TaskCancelled, TimeLimitExceeded
from ..core.messages.task_types import RunKey
from ..system.flight_recorder import TIME_LIMIT, Recorder
from .surroundings import Handlers

SIGNAL: Final = signal.SIGRTMIN + 5


LIMIT_MAX_S = 1e9
"""The longest time limit: the recorder has 64 bits for nanoseconds."""


class TimeLimitReached(TaskCancelled):
    """Raised inside a task that is over its time limit.  Whoever waits for the task gets `TimeLimitExceeded`.

    That is an OSError, which ``Process.join``, the code of loggers and formatters, and programs that try again swallow.
    """


class Company(Protocol):
    """The coroutine tasks in progress, see `coroutines`."""

    def __len__(self) -> int: ...
    def interrupt(self, frame: FrameType | None) -> None: ...


class Interrupts:
    """Knows what may be interrupted at present, and interrupts it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.current: RunKey | None = None
        """The run in progress. The runner sets it while user code runs, in a frame of `protected` code."""
        self.protected: set[CodeType] = set()
        self.time_limit_s: float | None = None
        """The current run's, for the error's text."""
        self.awaiting: asyncio.Task[Any] | None = None
        """The current run, if it is a coroutine in the kernel's loop."""
        self.raised: BaseException | None = None
        """What was raised in the current run; None: nothing."""
        self.company: Company | None = None
        """The coroutine tasks, each of which may be interrupted while any of them is in progress."""
        self._forking = False
        self._lost: tuple[RunKey, int] | None = None
        self._cause = 0

    def install(self) -> None:
        """Install the handler. Called once, in the main thread."""
        Handlers.hold(SIGNAL, self._handle)
        signal.signal(signal.SIGINT, self._sigint)
        # The hooks that Python calls around a fork swallow exceptions and stop half-way with their locks held. These
        # are registered last, so that they are called first before a fork and last after it.
        os.register_at_fork(before=self._pause, after_in_parent=self._resume, after_in_child=self._leave)
        self._usual_hook = sys.unraisablehook
        sys.unraisablehook = self._unraisable

    def begin(self, time_limit_s: float | None) -> None:
        """Prepare for another run."""
        self.raised = self._lost = None
        self.time_limit_s = time_limit_s

    def again(self) -> None:
        """Send the signal again if the exception that it raised was swallowed. Called by the lane's thread."""
        if self._lost is not None:
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._forking:
            return
        if self.company:
            self.company.interrupt(frame)
            return
        if self.current is None or self.raised is not None:
            return
        cause = self._wanted()
        if not cause:
            return
        task = self.awaiting
        in_task = task is None or asyncio.current_task(task.get_loop()) is task
        if in_task and frame is not None and frame.f_code in self.protected:
            return  # the agent sends it again
        if in_task:
            raise self._deliver(cause)
        # The loop itself was interrupted, or a callback of other code: the coroutine is cancelled instead. The
        # interrupt counts as delivered only when the loop gets to it. If the coroutine continues first, and never
        # returns to the loop, the next signal finds it in its own frames.
        assert task is not None
        task.get_loop().call_soon_threadsafe(self._cancel, self.current, cause)

    def _sigint(self, signum: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt in a plain task, as in every Python program.  Otherwise do nothing.

        Engines are not in the session of a terminal, so it is the task that asks for it: `_thread.interrupt_main` in a
        timer's thread is a usual way to limit a call.  It is not SIG_IGN, which children would inherit.
        """
        if self.current is None or self.awaiting is not None or self.company or self._forking or frame is None:
            return
        if frame.f_code in self.protected or str(frame.f_globals.get("__name__")).startswith("ipytaskfarm."):
            return  # between two calls of the user's code
        raise KeyboardInterrupt

    def _cancel(self, run: RunKey, cause: int) -> None:
        """Cancel the coroutine of `run` if it is still to be interrupted. This is a callback of the loop."""
        if self.current == run and self.raised is None and self.awaiting is not None:
            self._deliver(cause)
            self.awaiting.cancel()

    def _deliver(self, cause: int) -> BaseException:
        """Record that the current run is interrupted now, and return the exception to raise in it."""
        self._recorder.mark_delivered()
        self._lost = None
        self._cause = cause
        self.raised = error_of(cause, self.time_limit_s)
        return self.raised

    def _wanted(self) -> int:
        """Return the cause for which the current run is to be interrupted; 0 for none."""
        if self._lost is not None and self._lost[0] == self.current:
            return self._lost[1]
        want = self._recorder.wanted()
        return want.cause if want is not None and (want.task, want.attempt) == self.current else 0

    def _unraisable(self, unraisable: Any) -> None:
        """Handle Python's report of an exception in a ``__del__`` or a callback, which Python does not propagate."""
        if self.raised is not None and unraisable.exc_value is self.raised and self.current is not None:
            self.raised = None
            self._lost = (self.current, self._cause)
        else:
            self._usual_hook(unraisable)

    def _pause(self) -> None:
        self._forking = True

    def _resume(self) -> None:
        self._forking = False

    def _leave(self) -> None:
        """Disable interrupts in a forked child, which this signal must not interrupt."""
        self.current = None
        self.company = None
        self._forking = False


def deadline_ns(limit_s: float | None) -> int:
    """Return when (monotonic clock) a run that begins now is over its time limit; 0 if it has none."""
    return time.monotonic_ns() + int(min(limit_s, LIMIT_MAX_S) * 1e9) if limit_s else 0


def error_of(cause: int, limit_s: float | None) -> BaseException:
    """Return the exception to raise in a run that is interrupted for this cause."""
    if cause == TIME_LIMIT:
        return TimeLimitReached(f"the task ran longer than its time_limit of {limit_s} s" if limit_s else "time limit")
    return TaskCancelled("the task was aborted")


def told(raised: BaseException | None) -> BaseException | None:
    """Return the error of a run in which this was raised, as those get it who wait for the run."""
    if not isinstance(raised, TimeLimitReached):
        return raised
    error = TimeLimitExceeded(*raised.args).with_traceback(raised.__traceback__)
    error.__cause__, error.__context__ = raised.__cause__, raised.__context__
    error.__suppress_context__ = raised.__suppress_context__
    for note in getattr(raised, "__notes__", ()):
        error.add_note(note)
    return error


def cancelled() -> asyncio.CancelledError:
    """Return the error of a coroutine that was cancelled before it began."""
    return asyncio.CancelledError("the task was cancelled before it began")


COMMAND_SIGNAL: Final = signal.SIGRTMIN + 7


class CommandInterrupts:
    """Knows which command may be interrupted at present, and interrupts it.

    The lane's thread notes which command is meant and sends a signal to the main thread. The handler raises only while
    that command's own code runs. SIGINT itself is not used, because ipykernel exchanges its handler around each
    message.
    """

    def __init__(self) -> None:
        self._current: object | None = None
        """The command whose code runs."""
        self._wanted: object | None = None
        """The command that is to be interrupted."""
        self._awaiting: asyncio.Task[Any] | None = None
        """The current command, if it is a coroutine in the kernel's loop."""
        Handlers.hold(COMMAND_SIGNAL, self._handle)

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
            signal.pthread_kill(threading.main_thread().ident or 0, COMMAND_SIGNAL)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._wanted is not None and self._wanted is self._current and self._awaiting is None:
            self._wanted = None
            raise KeyboardInterrupt("the command was interrupted")
