"""The lane: it brings work from the agent to the kernel's main thread, and messages back.

The main thread reads the socket in its event loop, sorts what arrived into queues, and does a *slice* of work: 1.5 to
4 ms, commands before tasks; then come the loop's other events, then the next slice. A slice holds the kernel's own lock
for shell messages. So cells and tasks exclude each other, even during a top-level await.

The lane's thread sends, and it reads while the main thread runs something: it answers recalls even while a task runs. A
run belongs to the thread that removes it from `_held`. As long as the main thread reads, the thread only looks every
`TICK_MS` whether something is unread: waking it for each message costs more than the message.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

import msgspec
import zmq

from ..core.messages import (
    EngineCommand,
    FromEngine,
    Granted,
    LaneExit,
    OutputQuery,
    OutputText,
    Recall,
    Returned,
    Run,
    TaskBatch,
    ToEngine,
)
from ..core.messages.blob_chunks import BlobHere, BlobKept
from ..core.messages.engine_commands import CLEAR_QUEUE, INTERRUPT, PROFILE
from ..core.messages.running_task import TaskReply
from ..core.messages.task_types import RunKey
from ..core.text import encoded
from ..transport.frame_stream import FrameStream, StreamEnded
from .result_bell import FEW_RUNS

SLICE_S, LONG_SLICE_S = 0.0015, 0.004
"""The length of a slice with few runs in the lane, and with more."""
TICK_MS = 5
"""The interval at which the lane's thread looks for messages that the main thread, which read the last ones, does not
read."""
MAIN_READS_S = 0.05
"""The time after the main thread has read something in which the lane's thread leaves the reading to it."""
CHANCE_S = 0.001
"""How long the lane's thread leaves a message to a main thread that has nothing to do."""
LINGER_S = 1.0
OUT_BYTES_MAX, OUT_WAIT_S = 64 << 20, 1.0
"""When so many bytes wait for the agent, each further message waits for up to so many seconds."""
FRAME_BYTES_MAX = (1 << 32) - 1
FUNCTIONS_KEPT = 8192
"""The number of functions whose code an engine remembers. The controller relies on the same number and order."""
WATCH_MS = 50
"""The interval at which the lane's thread checks the descriptors' files while there is work."""

Step: TypeAlias = asyncio.Task[Any] | None
"""The result of starting a run: None if it has ended, else a task of the event loop that continues it."""


class QueuedRun(NamedTuple):
    """A run with the code of its function and of its environment."""

    run: Run
    code: bytes | None
    environment: bytes | None = None
    place: tuple[int, int] = (0, 0)
    """(number of its hand-out, place in it)"""
    newest_s: float = 0.0
    """When it, or another run of its hand-out, was submitted at the latest (wall clock)."""


def is_concurrent(job: QueuedRun) -> bool:
    """Return whether a run shares the engine with others, as a coroutine."""
    special = job.run.special
    return special is not None and special.concurrent


class Works(Protocol):
    """The part that does the work in the main thread."""

    def run(self, job: QueuedRun) -> Step: ...
    def command(self, command: EngineCommand) -> Step: ...
    def clear_queue(self, command: EngineCommand) -> None: ...
    def interrupt(self, command: EngineCommand) -> None: ...
    def profile(self, command: EngineCommand) -> None: ...
    def output(self, query: OutputQuery) -> OutputText: ...
    def granted(self, answer: Granted) -> None: ...
    def answered(self, reply: TaskReply) -> None: ...
    def arrived(self, answer: BlobHere | BlobKept) -> None: ...
    def expect(self, number: int, first: int, count: int) -> None: ...
    def in_company(self) -> bool: ...
    def begin_slice(self) -> None: ...
    def join_slice(self) -> None: ...
    def end_slice(self) -> None: ...
    def watch(self) -> None: ...
    def stop(self) -> None: ...


class EngineLane:
    """The engine's end of the lane.

    Args:
        path: the agent's socket file.
        engine: the engine's incarnation, by which the agent knows the connection.
        loop: the kernel's event loop, in the main thread.
        lock: the kernel's lock, which is held during each of its shell messages.
        works: the part that does the work.
    """

    def __init__(
        self,
        path: str,
        engine: str,
        loop: asyncio.AbstractEventLoop,
        lock: asyncio.Lock,
        works: Works,
    ) -> None:
        self._path = path
        self._stream: FrameStream | None = None
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._reading = threading.Lock()
        """Held by the thread that reads."""
        self._main_reads_until_s = 0.0
        self._slices = 0
        """The number of slices that were begun: if it stays the same, the main thread is busy with one run."""
        self._ticking = False
        """Whether the lane's thread looks again within `TICK_MS`: then nobody needs to wake it for a look."""
        self._engine = engine
        self._lock = lock
        self._works = works
        self._loop = loop
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outbox: deque[bytes] = deque()
        self._encode = msgspec.msgpack.Encoder().encode
        self._commands: deque[EngineCommand] = deque()
        self._order: deque[RunKey] = deque()
        self._held: dict[RunKey, QueuedRun] = {}
        self._functions: OrderedDict[str, bytes] = OrderedDict()
        self._scheduled = threading.Event()
        self._working = False
        self._watched = False
        """Whether `Works.watch` must be called once more, although nothing runs."""
        self._in_company = False
        """Whether coroutine tasks are in progress, which hold the kernel's lock together."""
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="Lane", daemon=True)

    def start(self) -> None:
        """Connect and begin to serve. Called in the main thread.

        A plain kernel, which Jupyter starts without an agent, has no socket, and needs no lane.

        Raises:
            OSError: the agent is gone.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self._path)
        except FileNotFoundError:
            sock.close()
            return
        self._stream = FrameStream(sock, FRAME_BYTES_MAX, math.inf)
        self._stream.send(self._engine.encode())
        self._loop.add_reader(sock.fileno(), self._on_readable)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of runs that wait."""
        return len(self._order)

    def send(self, message: FromEngine) -> None:
        """Queue a message to the agent. Any thread may call this.

        The message is encoded here, so that an encoding error (TypeError, OverflowError) is raised in the caller and
        not in the lane's thread. While the agent reads nothing, because much of this engine is on its way to the
        controller, the caller waits a little: so an endless loop of messages does not fill the memory.
        """
        until_s = math.inf
        while self._stream is not None and self._stream.out_bytes > OUT_BYTES_MAX:
            until_s = min(until_s, time.monotonic() + OUT_WAIT_S)
            if threading.current_thread() is self._thread or time.monotonic() >= until_s:
                break  # no longer: the caller may hold a lock for which the thread waits that sends
            time.sleep(TICK_MS / 1000)
        self._outbox.append(encoded(self._encode, message))
        # The main thread may wait for the answer.
        self._main_reads_until_s = 0.0
        os.eventfd_write(self._wake_fd, 1)

    def watch_soon(self) -> None:
        """Let `Works.watch` be called once more, also if nothing runs. Any thread may call this."""
        if not self._watched:
            self._watched = True
            os.eventfd_write(self._wake_fd, 1)

    def take_commands(self, session: str, numbers: Collection[int] | None = None) -> list[EngineCommand]:
        """Remove and return the waiting commands of a session, all or those with these numbers.

        Any thread may call this; the commands then belong to the caller.
        """
        taken = []
        for command in list(self._commands):
            if command.session == session and (numbers is None or command.n in numbers):
                try:
                    self._commands.remove(command)
                except ValueError:  # the other thread was quicker
                    continue
                taken.append(command)
        return taken

    def finish(self, timeout_s: float = 1.0) -> None:
        """Send what is queued, and close. Called in the main thread at the end of the process."""
        self._stopping = True
        os.eventfd_write(self._wake_fd, 1)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # -- the lane's thread

    def _serve(self) -> None:
        try:
            self._serve_socket()
        except BaseException:
            # A descriptor was closed, or memory is used up. An engine without its lane is useless and must not seem
            # alive.
            _die()

    def _serve_socket(self) -> None:
        stream = self._stream
        assert stream is not None
        fd = stream.sock.fileno()
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        watch_at_s = 0.0
        slices = -1
        while True:
            if self._ticking and self._working and slices == self._slices:
                self._main_reads_until_s = 0.0  # it has been busy with one run for a whole tick
            slices = self._slices
            self._ticking = time.monotonic() < self._main_reads_until_s
            if self._ticking:
                poller.register(fd, select.POLLOUT if stream.has_output else 0)
                timeout_ms: int | None = TICK_MS
            else:
                poller.register(fd, select.POLLIN | (select.POLLOUT if stream.has_output else 0))
                timeout_ms = WATCH_MS if self._working or self._watched else None
            ready = dict(poller.poll(timeout_ms))
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            stream.flush()
            while self._outbox:
                stream.send(self._outbox.popleft())
            if self._stopping:
                stream.close(LINGER_S)
                return
            self._read_for_main(fd)
            now_s = time.monotonic()
            if (self._working or self._watched) and now_s >= watch_at_s:
                self._watched = False
                watch_at_s = now_s + WATCH_MS / 1000
                self._guarded(self._works.watch)

    def _read_for_main(self, fd: int) -> None:
        """Read what the main thread does not read, because it runs something."""
        if not _has_input(fd):
            return
        if not self._working:
            time.sleep(CHANCE_S)
            if not _has_input(fd):
                return
        with self._reading:
            self._receive()
        if self._commands or self._order:
            self._working = True
            self._wake_loop()

    def _receive(self) -> None:
        """Take all messages that have arrived. The lock is held."""
        assert self._stream is not None
        while (frame := self._stream.receive()) is not None:
            self._guarded(self._read, frame)

    def _on_readable(self) -> None:
        """Read, and work at once. This is the loop's callback."""
        # Otherwise the lane's thread reads at this moment, and wakes the loop.
        if self._reading.acquire(blocking=False):
            try:
                self._main_reads_until_s = time.monotonic() + MAIN_READS_S
                self._receive()
            except BaseException:
                _die()
            finally:
                self._reading.release()
            if (self._commands or self._order) and not self._scheduled.is_set():
                self._scheduled.set()
                self._drain()

    def _read(self, frame: memoryview) -> None:
        try:
            message = self._decoder.decode(frame)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            message = _salvaged(frame)
        self._sort(message)

    @staticmethod
    def _guarded(call: Callable[..., None], *args: Any) -> None:
        """Call a function and log its error: one bad message, or one failing action, does not end the engine."""
        try:
            call(*args)
        except Exception:
            traceback.print_exc(file=sys.__stderr__)

    def _wake_loop(self) -> None:
        if self._scheduled.is_set():
            return
        self._scheduled.set()
        self._loop.call_soon_threadsafe(self._drain)

    def _sort(self, message: ToEngine) -> None:
        if isinstance(message, TaskBatch):
            self._take_batch(message)
        elif isinstance(message, EngineCommand):
            if message.verb == CLEAR_QUEUE:
                self._works.clear_queue(message)
            elif message.verb == INTERRUPT:
                self._works.interrupt(message)
            elif message.verb == PROFILE:
                self._works.profile(message)
            else:
                self._commands.append(message)
        elif isinstance(message, OutputQuery):
            self.send(self._works.output(message))
        elif isinstance(message, Granted):
            self._works.granted(message)
        elif isinstance(message, TaskReply):
            self._works.answered(message)
        elif isinstance(message, BlobHere | BlobKept):
            self._works.arrived(message)
        elif isinstance(message, Recall):
            self._give_back(message.runs, "recalled")
        elif isinstance(message, LaneExit):
            self._give_back(list(self._held), "stopping")
            self._loop.call_soon_threadsafe(self._when_free, self._works.stop)

    def _take_batch(self, batch: TaskBatch) -> None:
        functions = self._functions
        for function in batch.functions:
            functions[function.digest] = function.code
            functions.move_to_end(function.digest)
        unknown: list[RunKey] = []
        self._works.expect(batch.number, batch.first, len(batch.runs))
        for place, run in enumerate(batch.runs, batch.first):
            key = (run.task, run.attempt)
            # Looked up now and not when the run begins: by then other functions may have pushed it out.
            code = self._code(run.function)
            environment = self._code(run.environment)
            if (code is None and run.function is not None) or (environment is None and run.environment is not None):
                unknown.append(key)
                continue
            self._held[key] = QueuedRun(run, code, environment, (batch.number, place), batch.newest_s)
            self._order.append(key)
        while len(functions) > FUNCTIONS_KEPT:
            functions.popitem(last=False)
        if unknown:
            self.send(Returned(self._engine, unknown, "unknown function"))

    def _code(self, digest: str | None) -> bytes | None:
        code = self._functions.get(digest) if digest is not None else None
        if code is not None and digest is not None:
            self._functions.move_to_end(digest)
        return code

    def _give_back(self, keys: list[RunKey], why: str) -> None:
        back = [key for key in keys if self._held.pop(key, None) is not None]
        if back:
            self.send(Returned(self._engine, back, why))

    # -- the main thread

    # Nothing here is a coroutine: user code may cancel every task of the loop, even one that has not begun and
    # therefore cannot defend itself. Callbacks cannot be cancelled.

    def _drain(self) -> None:
        """Do one slice if no cell runs; otherwise when the cell has ended. This is the loop's callback."""
        if self._in_company:
            self._join_company()
        else:
            self._when_free(self._slice_locked)

    def _when_free(self, then: Callable[[], None]) -> None:
        """Call `then` with the lock held."""
        # An acquire without waiting does not suspend. A task for each slice would cost more than the smallest work.
        acquire = self._lock.acquire()
        at_once = False
        try:
            acquire.send(None)
        except StopIteration:
            at_once = True
        # not in the except clause: the StopIteration would become the context of all errors that users raise
        if at_once:
            then()
            return
        acquire.close()
        task = self._loop.create_task(self._lock.acquire())
        task.add_done_callback(lambda done: self._when_free(then) if done.cancelled() else then())

    def _slice_locked(self) -> None:
        """Do one slice.

        The lock is released at its end, or at the end of the loop's task that the slice has started.
        """
        self._scheduled.clear()
        self._slices += 1
        if not self._working:
            self._working = True
            # the thread may be waiting without a timeout, and now has to watch the descriptors
            if not self._ticking:
                os.eventfd_write(self._wake_fd, 1)
        step: Step = None
        try:
            self._works.begin_slice()
            step = self._slice()
        except BaseException:
            # Errors that users raise end their runs and do not get here. This is an error of the farm: its run would
            # never be reported.
            _die()
        if step is not None:
            step.add_done_callback(lambda done: self._end_slice())
        else:
            self._end_slice()

    def _join_company(self) -> None:
        """Begin more coroutine tasks beside those in progress, unless a command waits."""
        self._scheduled.clear()
        until = time.perf_counter() + SLICE_S
        order, held = self._order, self._held
        try:
            self._works.join_slice()
            while order and not self._commands and time.perf_counter() < until:
                job = held.get(order[0])
                if job is not None and not is_concurrent(job):
                    break
                job = held.pop(order.popleft(), None)
                if job is not None:
                    self._works.run(job)
        except BaseException:
            _die()
        first = held.get(order[0]) if order and not self._commands else None
        if first is not None and is_concurrent(first) and not self._scheduled.is_set():
            self._scheduled.set()
            self._loop.call_soon(self._drain)

    def company_over(self) -> None:
        """Give other work its turn: the last coroutine task has ended."""
        # Later, so that it never happens within a slice.
        self._loop.call_soon(self._leave_company)

    def _leave_company(self) -> None:
        if self._in_company and not self._works.in_company():
            self._in_company = False
            self._end_slice()

    def _end_slice(self) -> None:
        if self._works.in_company():  # they hold the lock until the last one has ended
            self._in_company = True
            if self._order and not self._scheduled.is_set():
                self._scheduled.set()
                self._loop.call_soon(self._drain)
            return
        self._works.end_slice()
        self._lock.release()
        if self._commands or self._order:
            if not self._scheduled.is_set():
                self._scheduled.set()
                self._loop.call_soon(self._drain)
        else:
            self._working = False

    def _slice(self) -> Step:
        until = time.perf_counter() + (SLICE_S if self.waiting < FEW_RUNS else LONG_SLICE_S)
        works, commands, order, held = self._works, self._commands, self._order, self._held
        while True:
            command = self._next_command() if commands else None
            if command is not None:
                step = works.command(command)
            elif order:
                job = held.pop(order.popleft(), None)
                if job is None:  # the run was recalled
                    continue
                step = works.run(job)
                if job.run.special is not None and works.in_company():
                    return None
            else:
                return None
            if step is not None:
                return step
            if time.perf_counter() >= until:
                return None

    def _next_command(self) -> EngineCommand | None:
        try:
            return self._commands.popleft()
        except IndexError:  # the other thread has taken it
            return None


def _has_input(fd: int) -> bool:
    """Return whether the socket has something to read.

    Raises:
        OSError: a task has closed it.
    """
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    events = poller.poll(0)
    if events and events[0][1] & select.POLLNVAL:
        raise OSError("the lane was closed")
    return bool(events)


def _die() -> NoReturn:
    """Log the error and end the process: the agent reports the engine as lost, and its runs are repeated elsewhere."""
    if not isinstance(sys.exception(), StreamEnded):  # if the agent has ended, its successor says so
        traceback.print_exc(file=sys.__stderr__)
    os._exit(70)


def _salvaged(frame: memoryview) -> TaskBatch:
    """Return the runs of a batch that cannot be decoded, each without its work: they fail with a message and are not
    lost.

    Raises:
        ValueError: the message is not a batch. It is dropped, and its sender asks again.
    """
    found = msgspec.msgpack.decode(frame, strict=False)
    if not isinstance(found, dict) or found.get("type") != TaskBatch.__name__:
        raise ValueError("a message of the agent cannot be read, and is dropped")
    return TaskBatch([Run(int(run[0]), int(run[1]), b"") for run in found["runs"]])


def publisher(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """Return the socket of a kernel's IOPub channel.

    It is made here because no other file of the engine uses ZeroMQ.
    """
    socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
    socket.linger = 1000
    return socket
