"""Runs coroutine tasks side by side in the kernel's event loop: as many as the controller hands out.

An engine runs one plain task at a time, or many coroutine tasks. While at least one of these is in progress (the
*company*), no plain task, no command and no cell of a console runs: the lane holds the kernel's lock for all of them.

Each coroutine has its own context, and so its own output, decimal context and numpy error state. What belongs to the
whole process (the working folder, `os.environ`, `sys.path` …) they share, as the coroutines of any program do; it is
put back when the last one of the company has ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from types import CoroutineType, FrameType
from typing import Any, Protocol

from ..core.messages import SetUp
from ..core.messages.task_types import RunKey
from ..serialization.pack import pack
from ..serialization.shared_values import add_apart
from ..storage.blobs import BlobWriter
from ..system.concurrent_runs import COMPANY
from .child_processes import LOKY_WORKERS, leave_fork
from .current import Deferred
from .interrupt import Interrupts, cancelled, deadline_ns, error_of, told
from .lane import QueuedRun
from .run_records import RunningAttempt, RunRecords
from .shared_parts import Parts
from .sinks import SINK

HERE: ContextVar[RunningAttempt | None] = ContextVar("HERE", default=None)
"""The coroutine task to which the present code belongs, its own asyncio tasks and threads included."""


class CallsFunction(Protocol):
    """Decodes a run's work and calls its function."""

    def __call__(self, attempt: RunningAttempt, job: QueuedRun) -> Any: ...


class Coroutines:
    """The coroutine tasks in progress on this engine."""

    def __init__(
        self,
        parts: Parts,
        interrupts: Interrupts,
        records: RunRecords,
        writer: BlobWriter | None,
        call: CallsFunction,
        finished: Callable[[float], None],
        over: Callable[[], None],
    ) -> None:
        """Create it.

        Args:
            call: decodes the work of a run and calls its function.
            finished: called when a result is in the recorder.
            over: called when the last one of the company has ended.
        """
        self._engine = parts.engine
        self._recorder = parts.recorder
        self._capture = parts.capture
        self._baseline = parts.baseline
        self._cells = parts.cells
        self._loops = parts.loops
        self._send = parts.send
        self._records = records
        self._writer = writer
        self._call = call
        self._finished = finished
        self._over = over
        self._pid = os.getpid()
        self._running: dict[RunKey, RunningAttempt] = {}
        self._by_row: dict[int, RunningAttempt] = {}
        interrupts.protected |= {Coroutines._guarded.__code__, Coroutines._live.__code__}
        interrupts.company = self
        self._protected = interrupts.protected

    def __len__(self) -> int:
        return len(self._running)

    def attempts(self) -> list[RunningAttempt]:
        """Return the runs in progress. Any thread may call this."""
        return list(self._running.values())

    def get(self, run: RunKey) -> RunningAttempt | None:
        """Return a run in progress. Any thread may call this."""
        return self._running.get(run)

    def begin(self, job: QueuedRun) -> None:
        """Begin a coroutine task. It continues in the event loop."""
        self._baseline.task_context().run(self._begin, job)

    def _begin(self, job: QueuedRun) -> None:
        run = job.run
        attempt = RunningAttempt(run)
        if not self._running:
            self._recorder.idle()
            self._recorder.words.begin(COMPANY)
            self._loops.show()
        SINK.set(attempt.sink)
        HERE.set(attempt)
        add_apart()
        attempt.row = self._recorder.concurrent.begin(attempt.key, deadline_ns(run.time_limit_s))
        self._running[attempt.key] = self._by_row[attempt.row] = attempt
        attempt.begun = time.perf_counter()
        attempt.is_open = True
        attempt.task = self._loops.loop.create_task(self._live(attempt, job))
        attempt.task.add_done_callback(partial(self._done, attempt))

    async def _live(self, attempt: RunningAttempt, job: QueuedRun) -> None:
        value, error = await self._guarded(attempt, self._value(attempt, job))
        self._end(attempt, value, error)

    async def _guarded(self, attempt: RunningAttempt, value: Awaitable[bytes]) -> tuple[bytes | None, Any]:
        try:
            packed = await value
            attempt.is_open = False
            return packed, None
        except BaseException as error:
            attempt.is_open = False
            return None, error

    async def _value(self, attempt: RunningAttempt, job: QueuedRun) -> bytes:
        value = self._call(attempt, job)
        if type(value) is CoroutineType:
            value = await value
        helpers = sys.modules.get("matplotlib._pylab_helpers")
        if helpers is not None and helpers.Gcf.figs and len(self._running) == 1:
            self._cells.flush_figures()
        packed = pack(value, "value", self._writer)
        if attempt.current is not None:
            attempt.current.calls.flush()
        return packed

    def _done(self, attempt: RunningAttempt, task: asyncio.Task[None]) -> None:
        """End a run whose loop's task ended otherwise: it was cancelled before it began."""
        if attempt.key in self._running:
            attempt.is_open = False
            self._end(attempt, None, cancelled() if task.cancelled() else task.exception())

    def _end(self, attempt: RunningAttempt, value: bytes | None, error: BaseException | None) -> None:
        run_s = time.perf_counter() - attempt.begun
        if os.getpid() != self._pid:
            leave_fork(error)
        self._capture.end(attempt.sink)
        if attempt.current is not None:
            if type(error) is Deferred:
                attempt.current.calls.flush()
            attempt.current.end(error is not None, attempt.raised is not None)
        attempt.raised = told(attempt.raised)
        record = self._records.record(attempt, run_s, value, error)
        self._recorder.end_with(record, *attempt.key)
        self._recorder.concurrent.end(attempt.row)
        del self._running[attempt.key], self._by_row[attempt.row]
        self._finished(run_s)
        if not self._running:
            self._end_company()

    def _end_company(self) -> None:
        self._baseline.disarm()
        self._baseline.restore(thoroughly=True)
        LOKY_WORKERS.end_unlike()
        if self._baseline.spoiled:
            self._send(SetUp(self._engine, "", self._baseline.spoiled))
        self._over()

    # -- interrupts

    def interrupt(self, frame: FrameType | None) -> None:
        """Handle the agent's signal: interrupt the runs for which there are requests.

        A coroutine that waits is cancelled by the loop. The one whose code was interrupted by the signal may never
        return to the loop, so the error is raised in it at once.
        """
        requests = self._recorder.concurrent.requests()
        if not requests:
            return
        here = HERE.get()
        raises = None
        for request in requests:
            attempt = self._by_row.get(request.row)
            if attempt is None or attempt is not here or not attempt.is_open or attempt.raised is not None:
                continue
            own = asyncio.current_task(self._loops.loop)
            if own is None or (frame is not None and frame.f_code in self._protected):
                continue
            self._recorder.concurrent.mark_delivered(request)
            attempt.raised = error_of(request.cause, attempt.run.time_limit_s)
            if own is attempt.task:
                raises = attempt.raised
            else:  # a KeyboardInterrupt in an asyncio task of the user's would end the kernel's loop
                raises = asyncio.CancelledError()
                self._loops.loop.call_soon_threadsafe(self._cancel, attempt)
        self._loops.loop.call_soon_threadsafe(self._cancel_requested)
        if raises is not None:
            raise raises

    def _cancel_requested(self) -> None:
        """Cancel the coroutines for which there are requests. This is a callback of the loop."""
        for request in self._recorder.concurrent.requests():
            attempt = self._by_row.get(request.row)
            if attempt is None or not attempt.is_open or attempt.raised is not None:
                continue
            self._recorder.concurrent.mark_delivered(request)
            attempt.raised = error_of(request.cause, attempt.run.time_limit_s)
            self._cancel(attempt)

    def _cancel(self, attempt: RunningAttempt) -> None:
        if attempt.task is not None and attempt.is_open:
            attempt.task.cancel()


def attempt_here() -> RunningAttempt | None:
    """Return the coroutine task to which the calling code belongs; None if it belongs to none."""
    return HERE.get()
