"""The IO thread of a session: it alone touches the socket (`transport.peer`).

There is no asyncio in it, so it is at home beside Jupyter's running event loop, in a plain script and under
several threads.  It competes with the caller for the interpreter, so it does little, and that in batches: what
gathered in the outbox is one message, what ended arrives as one dict.  Handing in wakes it only if it is asleep
for long; after sending it naps for a millisecond without being woken, so that a loop of `run` calls costs one
message per millisecond and not one per call.

`session.Session` is this with the callers' side.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from ..core import errors
from ..core.messages import (
    Accepted,
    Answer,
    AskQuestion,
    CommandAnswer,
    Fetched,
    Finals,
    Full,
    IdBlock,
    NeedIds,
    Notice,
    Output,
    Reopened,
    Reply,
    SendCommand,
    Submit,
    Watched,
    WatchTasks,
)
from ..core.messages.payload import FailureBody
from ..core.text import text_of
from ..storage.blobs import TOUCH_S, Blobs, use
from ..system.farm_paths import ConnectionInfo
from ..transport.peer import Link, Lost, NewEpoch, ReceivedMessage, Refused, Resumed
from .arrivals import Arrivals
from .outbox import Outbox
from .results import error_named

if TYPE_CHECKING:
    from .streams import Stream

NAP_S = 0.001
"""How long what is handed in may gather, after a message was sent."""

WINDOW_BYTES = 16 * 1024 * 1024
"""No more is given to the wire while so much is unacknowledged there: it would be kept twice."""

NOBODY = -1
"""The engine id of an answer to a command that is about no engine in particular."""

WATCH_IDS = 50_000
"""Ids in one `WatchTasks`."""


class PendingQuestion:
    """A question or a command under way, and its answer or answers."""

    __slots__ = ("message", "after", "event", "reply", "expected", "answers", "answered", "on_done", "blobs", "error")

    def __init__(
        self, message: AskQuestion | SendCommand, after: int, on_done: Callable[[], None] | None = None
    ) -> None:
        self.message = message
        self.after = after
        """The last chunk of tasks handed in before it: it must not overtake that one."""
        self.event = threading.Event()
        self.reply: Reply | None = None
        engines = message.engines if isinstance(message, SendCommand) else None
        self.expected: set[int] | None = None if engines is None else set(engines)
        """Who will answer a command; None: not known yet."""
        self.answers: dict[int, CommandAnswer] = {}
        self.answered = False
        self.on_done = on_done
        self.blobs: tuple[str, ...] = ()
        """Digests that a command needs."""
        self.error: Exception | None = None
        """Why it could not be sent."""

    def done(self) -> None:
        """Wake who waits, because the answer is there or because none will come."""
        self.event.set()
        if self.on_done is not None:
            self.on_done()


def refused_by_controller(answer: CommandAnswer) -> errors.TaskFarmError | None:
    """The error of an answer that is not an engine's: nothing was run anywhere."""
    try:
        failure = msgspec.msgpack.decode(answer.body, type=FailureBody)
    except (msgspec.MsgspecError, ValueError):
        return None  # an engine's, and its own fault: `commands.error_of_answer` says so
    if answer.engine_id != NOBODY and (failure.etype != "InvalidEngineID" or failure.pickled or failure.traceback):
        return None
    error = error_named(failure.etype, failure.value)
    return error if isinstance(error, errors.TaskFarmError) else errors.KernelError(failure.value)


READER = "reader"
"""The role of a connection file that allows to look and to change nothing."""


class IoThread:
    """The connection, and what its thread and the callers share.  All of it is guarded by `_lock`."""

    def __init__(self, read_info: Callable[[], ConnectionInfo], name: str) -> None:
        self._read_info = read_info
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        """Ids came, something was accepted, the connection changed."""
        self._outbox = Outbox()
        self.arrivals = Arrivals()
        self._questions: deque[PendingQuestion] = deque()
        """To be sent."""
        self._asked: dict[int, PendingQuestion] = {}
        """Not answered yet."""
        self._next_n = 1
        self._idle = False
        self._stopping = False
        self._welcomed = False
        self._down_since_s: float | None = time.monotonic()
        self._gone_since_s: float | None = None
        self._noticed = False
        self.fatal: BaseException | None = None
        """Why nothing works any more; raised by every call."""
        self.info = read_info()
        self.farm = self.info.farm
        self.blobs = Blobs.find(self.info.blobs, self.info.incarnation)
        """Where large values go; None: the farm's folder is not to be seen from here, and they travel inside."""
        if self.blobs is not None:
            use(self.blobs)
        self._touched_s = time.monotonic()
        self.streams: list[Stream] = []
        self.notices: list[str] = []
        """What the controller wants its users to know, to be shown as warnings by a caller's thread."""
        """Who wants to see what tasks print."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bell_lock = threading.Lock()
        session_id = os.urandom(12).hex()
        self.session_id = session_id
        self._link = Link(self._read_again, "client", session_id, name, farm=self.info.incarnation)
        self._thread = threading.Thread(target=self._run, name=f"ipytaskfarm client of {self.farm}", daemon=True)

    def _ring(self) -> None:
        # Locked: a descriptor that is closed meanwhile may be another file's by the time it is written to.
        with self._bell_lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _read_again(self) -> ConnectionInfo:
        """What Link reads before each connection attempt."""
        try:
            info = self._read_info()
        except (errors.FarmNotRunning, OSError):
            if self._gone_since_s is None:
                self._gone_since_s = time.monotonic()
            raise
        self._gone_since_s = None
        return info

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        for fd in self._link.fds():
            poller.register(fd, select.POLLIN)
        try:
            while not self._stopping and self.fatal is None:
                now_s = time.monotonic()
                with self._lock:
                    messages, sent = self._gather(now_s)
                for message in messages:
                    self._send(message)
                events = self._link.step(now_s)
                if events:
                    self._take(events)
                if now_s - self._touched_s > TOUCH_S:
                    self._touched_s = now_s
                    self._touch_blobs()
                self._sleep(poller, sent)
        except BaseException as error:  # the last resort: every caller must hear of it, or it would wait for ever
            traceback.print_exc()
            self._fail(errors.ConnectionError(f"the client's IO thread ended by a bug: {error!r}"))
        finally:
            self._link.close()
            with self._bell_lock:
                os.close(self._bell)
                self._bell = -1

    def _send(self, message: Submit | AskQuestion | SendCommand | NeedIds) -> None:
        """Give a message to the link.  One that cannot be encoded is a fault of its own, and ends nothing else."""
        try:
            self._link.send(message)
        except Exception as error:
            if isinstance(message, Submit):
                # The controller takes the ids of a block without a gap: a task that says why stands for each bad one.
                with self._lock:
                    sound = self._outbox.only_sound(message)
                self._link.send(sound)
            elif isinstance(message, AskQuestion | SendCommand):
                self._not_sent(message, error)
            else:
                raise

    def _not_sent(self, message: AskQuestion | SendCommand, error: Exception) -> None:
        with self._lock:
            asked = self._asked.pop(message.n, None)
        if asked is not None:
            what = message.question if isinstance(message, AskQuestion) else message
            kind = type(error) if isinstance(error, errors.TaskFarmError) else ValueError
            asked.error = kind(f"{type(what).__name__} cannot be sent: {text_of(error)}")
            asked.answered = True
            asked.done()

    def _touch_blobs(self) -> None:
        """What is not accepted yet, or not answered, is needed all the same."""
        with self._lock:
            digests = self._outbox.unaccepted_blobs()
            digests.update(digest for asked in self._asked.values() for digest in asked.blobs)
        if self.blobs is not None and digests:
            with contextlib.suppress(OSError):  # whoever wants a value that is gone is told so
                self.blobs.touch(map(bytes.fromhex, digests))

    def _sleep(self, poller: select.poll, sent: bool) -> None:
        now_s = time.monotonic()
        deadline_s = self._link.next_deadline()
        with self._lock:
            again_s = self._outbox.next_deadline()
            if again_s is not None and self._link.is_up:
                deadline_s = min(deadline_s, again_s)
            if sent:
                deadline_s = min(deadline_s, now_s + NAP_S)
            else:
                if self._can_send():
                    return
                self._idle = True
        # Rounded up: waking a little early would turn the last millisecond into a busy loop.
        timeout_s = min(max(deadline_s - now_s, 0.0), 5.0)
        if any(fd == self._bell for fd, _ in poller.poll(int(timeout_s * 1000) + 1 if timeout_s else 0)):
            os.eventfd_read(self._bell)
        self._idle = False

    def _can_send(self) -> bool:
        if not self._welcomed or not self._link.is_up:
            return False
        outbox = self._outbox
        if self._may_ask() or (outbox.want_ids and not outbox.asked_ids):
            return True
        return outbox.can_send() and self._link.unacked_bytes < WINDOW_BYTES

    def _may_ask(self) -> bool:
        """Questions and commands keep their place among the tasks; but a full disk does not hold them up."""
        outbox = self._outbox
        return bool(self._questions) and (outbox.full_why is not None or self._questions[0].after <= outbox.sent_upto())

    def _gather(self, now_s: float) -> tuple[list[Any], bool]:
        """With the lock held: what to send now, and whether there are tasks in it (more may be on their way)."""
        messages: list[Any] = []
        if not self._welcomed or not self._link.is_up:
            return messages, False
        outbox = self._outbox
        if outbox.want_ids and not outbox.asked_ids and self.info.role != READER:
            outbox.asked_ids = True
            messages.append(NeedIds())
        tasks = False
        room = WINDOW_BYTES - self._link.unacked_bytes
        while True:
            while self._may_ask():
                messages.append(self._questions.popleft().message)
            chunk = outbox.next_to_send(now_s) if room > 0 else None
            if chunk is None:
                return messages, tasks
            room -= chunk.size_bytes
            messages.append(Submit(chunk.tasks, list(chunk.functions.values()), list(chunk.jobs.values())))
            tasks = True

    def _take(self, events: list[Any]) -> None:
        """What the link brought: all of it under one lock, then one wake-up."""
        done: list[PendingQuestion] = []
        with self._lock:
            for event in events:
                if isinstance(event, ReceivedMessage):
                    self._receive(event.message, done)
                elif isinstance(event, NewEpoch):
                    self._new_epoch()
                elif isinstance(event, Resumed):
                    self._down_since_s = None
                    self._noticed = False
                elif isinstance(event, Lost):
                    if self._down_since_s is None:
                        self._down_since_s = time.monotonic()
                elif isinstance(event, Refused) and not event.refuse.later:
                    self.fatal = error_named(event.refuse.etype, event.refuse.text)
            self._changed.notify_all()
        for asked in done:
            asked.done()
        if self.fatal is not None:
            self._fail(self.fatal)

    def _receive(self, message: Any, done: list[PendingQuestion]) -> None:
        if isinstance(message, Finals):
            self.arrivals.take(message.finals)
        elif isinstance(message, Accepted):
            self._outbox.accepted(message.blocks)
        elif isinstance(message, Answer):
            asked = self._asked.pop(message.n, None)
            if isinstance(message.reply, Fetched):
                self.arrivals.take(message.reply.finals)
            elif isinstance(message.reply, Watched) and message.reply.unknown:
                # What is still in the outbox is not lost, the controller has just not got it yet.
                self.arrivals.unknown(set(message.reply.unknown) - self._outbox.unaccepted_ids())
            if asked is not None:
                asked.reply = message.reply
                asked.answered = True
                done.append(asked)
        elif isinstance(message, CommandAnswer):
            asked = self._asked.get(message.n)
            if asked is not None and self._answered(asked, message):
                del self._asked[message.n]
                asked.answered = True
                done.append(asked)
        elif isinstance(message, Output):
            for stream in self.streams:
                stream.take(message)
        elif isinstance(message, Notice):
            self.notices.append(message.text)
        elif isinstance(message, Reopened):
            self.arrivals.reopened(message.ids)
        elif isinstance(message, IdBlock):
            self._outbox.block_came(message)
        elif isinstance(message, Full):
            self._outbox.full(message, time.monotonic())

    @staticmethod
    def _answered(asked: PendingQuestion, answer: CommandAnswer) -> bool:
        """Note one answer to a command; True when it was the last."""
        if answer.engine_id == NOBODY and answer.ok:
            # A command to all engines is first answered with who they are.
            asked.expected = set(msgspec.msgpack.decode(answer.body, type=list[int]))
        else:
            asked.answers[answer.engine_id] = answer
        if not answer.ok and refused_by_controller(answer) is not None:
            return True
        return asked.expected is not None and asked.expected <= asked.answers.keys()

    def _new_epoch(self) -> None:
        """A controller process that knows nothing of this session but what is on disk: tell it the rest."""
        self._welcomed = True
        self._down_since_s = None
        self._noticed = False
        self._outbox.new_epoch()
        self._questions = deque(self._asked.values())
        # It may have accepted, and even finished, what we think it has not: so all of them, but those it may not have
        # yet only behind the tasks themselves.
        live = self.arrivals.handed_in | self.arrivals.watched
        unaccepted = self._outbox.unaccepted_ids() & live
        for asked in self._watches(live - unaccepted, after=0):
            self._questions.appendleft(asked)
        self._questions.extend(self._watches(unaccepted, after=self._outbox.mark()))

    def _watches(self, wanted: set[int], after: int) -> Iterator[PendingQuestion]:
        ids = sorted(wanted)
        for at in range(0, len(ids), WATCH_IDS):
            yield PendingQuestion(AskQuestion(self._next_n, WatchTasks(ids[at : at + WATCH_IDS])), after)
            self._next_n += 1

    def _fail(self, error: BaseException) -> None:
        """Nothing works any more: tell all who wait."""
        with self._lock:
            if self.fatal is None:
                self.fatal = error
            waiting = list(self._asked.values())
            self._asked.clear()
            self.arrivals.wake_all()
            self.arrivals.end_all(f"{type(error).__name__}: {error}")
            self._changed.notify_all()
        for asked in waiting:
            asked.done()
