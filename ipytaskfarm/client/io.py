"""The IO thread of a session: only this thread uses the socket (`transport.peer`).

The thread uses no asyncio, so it works beside Jupyter's running event loop, in a plain script and under several
threads. It competes with the caller for the GIL, so it does little, and does it in batches: tasks that gathered in the
outbox are one message, and ended tasks arrive as one dict.  A submission wakes the thread only from a long sleep.
After sending tasks the thread sleeps for a few milliseconds, and further tasks do not wake it, so a loop of `run` calls
costs one message in this time, and not one per call. A caller that waits wakes it.

`session.Session` has the methods for callers, and owns an `IoThread`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

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
    SendCommand,
    Submit,
    Watched,
    WatchTasks,
)
from ..core.messages.pages import parts
from ..core.messages.task_types import KeptResults
from ..core.text import text_of
from ..storage.blobs import TOUCH_S, Blobs, BlobStore, use
from ..system.farm_paths import ConnectionInfo
from ..system.supervision import comes_back
from ..transport.peer import Link, Lost, NewEpoch, ReceivedMessage, Refused, Resumed
from .arrivals import Arrivals
from .outbox import Outbox
from .questions import NOBODY, PendingQuestion, refused_by_controller
from .results import error_named

NAP_S, LONG_NAP_S = 0.001, 0.003
"""Seconds for which submitted tasks gather after a message was sent; the longer ones after one with many tasks."""

MANY_TASKS = 16
"""A loop that does little else than submit makes more tasks than this in a nap."""

SOON_S = 0.002
"""If the next task comes within so many seconds after a message was sent, more are expected."""

WINDOW_BYTES = 16 * 1024 * 1024
"""Unacknowledged bytes above which nothing more is given to the link, because the link keeps a copy of them."""

READER = "reader"
"""The role of a connection file that allows its user to read only."""

GONE_S = 10.0
"""Seconds without a connection file after which the farm counts as stopped; until then it may be restarting."""

COMES_BACK_S = 1.0
"""Seconds after which a farm's supervisor is asked again whether the farm comes back."""

NOTICE_S = 5.0
"""Seconds without a connection after which a waiting caller is told so, once."""


def reentrant() -> str:
    """Return why a call is refused that came in the midst of another one of the same thread."""
    return (
        "a signal handler, __del__ or a callback has called a client of the farm while its thread was inside another "
        "call of it: let it set a flag or fill a queue.SimpleQueue for code that calls the client, or start a thread"
    )


class IoThread:
    """The connection to a controller, its thread, and the state that this thread and the callers share.

    A `Session` has one.  `lock` guards all of the state; `arrivals.finals`, `fatal` and `idle` may be read without it.
    """

    def __init__(self, read_info: Callable[[], ConnectionInfo], name: str) -> None:
        self.read_info = read_info
        self.held = threading.RLock()
        """`lock` without its check."""
        self.changed = threading.Condition(self.held)
        """Notified when ids arrive, tasks are accepted, or the connection changes."""
        self.outbox = Outbox()
        self.arrivals = Arrivals()
        self._to_send: deque[PendingQuestion] = deque()
        self._asked: dict[int, PendingQuestion] = {}
        """Unanswered questions and commands, sent or not, by number."""
        self._next_number = 1
        self.idle = False
        """Whether the thread sleeps until `ring`."""
        self._naps = True
        """Whether further tasks are expected soon after some were sent: they gather for `NAP_S`."""
        self._stopping = False
        self._welcomed = False
        self.down_since_s: float | None = time.monotonic()
        """Time at which the connection was lost; None: it is up."""
        self.gone_since_s: float | None = None
        """Time at which the connection file disappeared: the farm was stopped, or is about to start again."""
        self._noticed = False
        self._returns = ""
        """How the farm comes back whose controller has ended, as its supervisor said before the last attempt to
        connect.
        """
        self.fatal: BaseException | None = None
        """Why the session cannot be used any more; every call raises it."""
        self.info = read_info()
        self.farm = self.info.farm
        self.folder = Path(self.info.folder) if self.info.folder and self.info.node == socket.gethostname() else None
        """The farm's folder; None: it is on another host."""
        self.folder_of_blobs = Blobs.find(self.info.blobs, self.info.incarnation)
        """The farm's folder of large values; None: it cannot be seen from here."""
        self.blobs: BlobStore | None = self.folder_of_blobs
        """The store for large values; None: they are sent inside messages."""
        if self.folder_of_blobs is not None:
            use(self.folder_of_blobs)
        self._touched_s = time.monotonic()
        self.output_listeners: list[Callable[[Output], None]] = []
        """Functions that this thread calls with the output of running tasks."""
        self.notices: list[str] = []
        """Notices of the controller for users; a caller's thread shows them as warnings."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bell_lock = threading.RLock()
        self.session_id = os.urandom(12).hex()
        self._link = Link(self._read_again, "client", self.session_id, name, farm=self.info.incarnation)
        self.thread = threading.Thread(target=self._run, name=f"ipytaskfarm client of {self.farm}", daemon=True)

    @property
    def lock(self) -> threading.RLock:
        """Return the lock; raise RuntimeError in the thread that holds it.

        A signal handler, or ``__del__``, runs between any two lines.  If it calls the client while its thread is in the
        midst of a change of the session, it could wait only for itself, and the change must not be mixed with another
        one.  The check is not in ``__enter__``: Ctrl-C between the lines of that method would leave the lock held.
        """
        if self.held._is_owned():  # type: ignore[attr-defined]
            raise RuntimeError(reentrant())
        return self.held

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a client of farm {self.farm!r}, and a job that it gave, cannot be pickled: they are a connection of this "
            "process. Keep names and ids: TaskClient(…).job(name), .get_task_result(id)"
        )

    # ----------------------------------------------------------------------------------------------
    # Called by callers' threads

    def connect(self, timeout_s: float, patient: bool) -> bool:
        """Start the thread, and wait until the controller has welcomed the session; return False after `timeout_s`
        seconds.

        Then `fatal` is the reason if the controller refused the session, and `problem` the last error of the socket.

        patient: wait longer, while the farm's supervisor says that it starts the controller again.
        """
        self.thread.start()
        began_s = time.monotonic()
        deadline = began_s + timeout_s
        while not self._await_welcome(min(deadline, time.monotonic() + COMES_BACK_S)):
            now_s = time.monotonic()
            returns = self.comes_back() if patient and self.fatal is None else ""
            if returns:
                deadline = now_s + timeout_s  # all of it, for the time when the controller lives
            elif self.fatal is not None or now_s >= deadline:
                return False
            if now_s - began_s > timeout_s:
                self._notice(returns)
        return True

    def _await_welcome(self, deadline: float) -> bool:
        with self.lock:
            while not self._welcomed and self.fatal is None and time.monotonic() < deadline:
                self.changed.wait(max(0.0, deadline - time.monotonic()))
            return self._welcomed

    def comes_back(self) -> str:
        """Return how a farm without a controller comes back; "" if the controller lives, or nobody starts it again."""
        return comes_back(self.folder, self.read_info)

    @property
    def problem(self) -> str:
        """Return in words why there is no connection."""
        return str(self._link.problem)

    def ring(self) -> None:
        """Wake the thread."""
        # The lock is needed: the number of a closed descriptor may already belong to another file.
        with self._bell_lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def hurry(self) -> None:
        """Wake the thread if something waits to be sent: a caller waits for what comes of it."""
        with self.lock:
            waits = self._can_send()
        if waits:
            self.ring()

    def ask(
        self,
        make: Callable[[int], AskQuestion | SendCommand],
        on_done: Callable[[], None] | None = None,
        on_answer: Callable[[CommandAnswer], None] | None = None,
    ) -> PendingQuestion:
        """Send a question or a command behind all tasks that were submitted before it.

        Args:
            make: makes the message for a number.
            on_done: called in the IO thread when the answer has arrived, or will never arrive.
            on_answer: called in the IO thread with each engine's answer to a command.
        """
        with self.lock:
            self.check()
            number = self._next_number
            self._next_number += 1
            asked = PendingQuestion(make(number), self.outbox.mark(), on_done)
            asked.on_answer = on_answer
            self._asked[number] = asked
            self._to_send.append(asked)
        self.ring()
        return asked

    def forget(self, asked: PendingQuestion) -> None:
        """Drop a question; its answer will be ignored."""
        with self.lock:
            self._asked.pop(asked.message.n, None)

    def check(self) -> None:
        """Raise `fatal`, or FarmNotRunning if the farm was stopped and nobody starts it again; print once that the farm
        does not answer.
        """
        if self.fatal is not None:
            # Many callers raise this object: with_traceback keeps it from collecting their frames.
            raise self.fatal.with_traceback(None)
        if self.down_since_s is None:
            return
        now_s = time.monotonic()
        if self.gone_since_s is not None and now_s - self.gone_since_s > GONE_S and not self._returns:
            raise errors.FarmNotRunning(
                f"farm {self.farm!r} was stopped; what it accepted is in its store: "
                f"ipytaskfarm start --farm {self.farm}"
            )
        if now_s - self.down_since_s > NOTICE_S:
            self._notice(self._returns or self.no_room)

    @property
    def no_room(self) -> str:
        """Return why the controller takes nothing, if it has said that its store has no room; else ""."""
        return self._link.problem if self._link.waits_for_room else ""

    def _notice(self, returns: str) -> None:
        """Print that the farm does not answer, once while it does not, and how it comes back."""
        if not self._noticed and sys.stderr is not None:
            self._noticed = True
            why = f": {returns}" if returns else ""
            print(f"ipytaskfarm: farm {self.farm!r} does not answer{why}; waiting for it", file=sys.stderr, flush=True)

    def stop(self, error: BaseException) -> None:
        """End the thread; waiting calls and later calls raise this error."""
        with self.lock:
            self._stopping = True
        self.ring()
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join(3.0)
        self._fail(error)

    def after_fork(self, error: BaseException) -> None:
        """Make every call in a forked child raise this error, and replace the locks, because the thread does not run
        there.
        """
        self.held = threading.RLock()
        self._bell_lock = threading.RLock()
        self.changed = threading.Condition(self.held)
        self.fatal = error

    # ----------------------------------------------------------------------------------------------
    # The thread

    def _read_again(self) -> ConnectionInfo:
        """Read the connection file again; `Link` asks for this before each attempt to connect."""
        self._returns = self.comes_back()
        try:
            info = self.read_info()
        except (errors.FarmNotRunning, OSError):
            if self.gone_since_s is None:
                self.gone_since_s = time.monotonic()
            raise
        self.gone_since_s = None
        return info

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._bell, select.POLLIN)
        for fd in self._link.fds():
            poller.register(fd, select.POLLIN)
        readable = True
        try:
            while not self._stopping and self.fatal is None:
                now_s = time.monotonic()
                with self.lock:
                    messages, sent = self._gather(now_s)
                for message in messages:
                    self._send(message)
                events = self._link.step(now_s, readable)
                if events:
                    self._take(events)
                if now_s - self._touched_s > TOUCH_S:
                    self._touched_s = now_s
                    self._touch_blobs()
                readable = self._sleep(poller, sent)
        except BaseException as error:  # the last resort: every caller must be woken, or it would wait for ever
            traceback.print_exc()
            self._fail(errors.ConnectionError(f"the client's IO thread ended by a bug: {error!r}"))
        finally:
            self._link.close()
            with self._bell_lock:
                os.close(self._bell)
                self._bell = -1

    def _send(self, message: Submit | AskQuestion | SendCommand | NeedIds) -> None:
        """Give a message to the link; a message that cannot be encoded fails, and the thread goes on."""
        try:
            self._link.send(message)
        except Exception as error:
            if isinstance(message, Submit) and isinstance(error, errors.ResultTooLarge) and len(message.tasks) > 1:
                half = len(message.tasks) // 2  # small tasks may have large rules, or many edges
                self._send(Submit(message.tasks[:half], message.functions, message.jobs))
                self._send(Submit(message.tasks[half:]))
            elif isinstance(message, Submit):
                # The controller expects the ids of a block without a gap: a task that raises the reason takes the
                # place.
                with self.lock:
                    sound = self.outbox.only_sound(message)
                self._link.send(sound)
            elif isinstance(message, AskQuestion | SendCommand):
                self._not_sent(message, error)
            else:
                raise

    def _not_sent(self, message: AskQuestion | SendCommand, error: Exception) -> None:
        with self.lock:
            asked = self._asked.pop(message.n, None)
        if asked is not None:
            what = message.question if isinstance(message, AskQuestion) else message
            kind = type(error) if isinstance(error, errors.TaskFarmError) else ValueError
            asked.error = kind(f"{type(what).__name__} cannot be sent: {text_of(error)}")
            asked.answered = True
            asked.done()

    def _touch_blobs(self) -> None:
        """Keep blobs from being deleted that unaccepted tasks and unanswered commands need."""
        with self.lock:
            digests = self.outbox.unaccepted_blobs()
            digests.update(digest for asked in self._asked.values() for digest in asked.blobs)
        if self.blobs is not None and digests:
            with contextlib.suppress(OSError):  # the use of a missing value reports it
                self.blobs.touch(map(bytes.fromhex, digests))

    def _sleep(self, poller: select.poll, sent: int) -> bool:
        """Wait until there is something to do, after this number of tasks was sent, and return whether the link is
        readable.
        """
        now_s = time.monotonic()
        deadline_s = self._link.next_deadline()
        with self.lock:
            again_s = self.outbox.next_deadline()
            if again_s is not None and self._link.is_up:
                deadline_s = min(deadline_s, again_s)
            if sent and self._naps:
                deadline_s = min(deadline_s, now_s + (LONG_NAP_S if sent > MANY_TASKS else NAP_S))
            else:
                if self._can_send():
                    return False
                self.idle = True
        # Rounded up: after a wake-up too early the thread would spin until the deadline.
        timeout_s = min(max(deadline_s - now_s, 0.0), 5.0)
        ready = [fd for fd, _ in poller.poll(int(timeout_s * 1000) + 1 if timeout_s else 0)]
        if self._bell in ready:
            os.eventfd_read(self._bell)
        self.idle = False
        if sent:
            self._learn_from(ready, time.monotonic() - now_s)
        return any(fd != self._bell for fd in ready)

    def _learn_from(self, ready: list[int], slept_s: float) -> None:
        """Decide whether the next tasks are waited for, after a sleep that followed sent ones.

        In a loop of `run` the next task comes at once. With one task at a time, a nap would only wake the thread.
        """
        if self._bell in ready:
            self._naps = slept_s < SOON_S
        elif not ready and self._naps:
            with self.lock:
                self._naps = self._can_send()

    def _can_send(self) -> bool:
        if not self._welcomed or not self._link.is_up:
            return False
        outbox = self.outbox
        if self._may_ask() or self._wants_ids():
            return True
        return outbox.can_send() and self._link.unacked_bytes < WINDOW_BYTES

    def _wants_ids(self) -> bool:
        """Return whether a block of ids should be asked for.  A reader, who may not submit tasks, gets none."""
        return self.outbox.want_ids and not self.outbox.asked_ids and self.info.role != READER

    def _may_ask(self) -> bool:
        """Return whether the next question may be sent.

        A question stays behind the tasks before it, unless the disk is full.
        """
        outbox = self.outbox
        return bool(self._to_send) and (outbox.full_why is not None or self._to_send[0].after <= outbox.sent_upto())

    def _gather(self, now_s: float) -> tuple[list[Any], int]:
        """Return the messages to send now, and the number of tasks in them.  The lock is held."""
        messages: list[Any] = []
        if not self._welcomed or not self._link.is_up:
            return messages, 0
        outbox = self.outbox
        if self._wants_ids():
            outbox.asked_ids = True
            messages.append(NeedIds())
        tasks = 0
        room = WINDOW_BYTES - self._link.unacked_bytes
        while True:
            while self._may_ask():
                messages.append(self._to_send.popleft().message)
            chunk = outbox.next_to_send(now_s) if room > 0 else None
            if chunk is None:
                return messages, tasks
            room -= chunk.size_bytes
            messages.append(Submit(chunk.tasks, list(chunk.functions.values()), list(chunk.jobs.values())))
            tasks += len(chunk.tasks)

    def _take(self, events: list[Any]) -> None:
        """Apply the events of the link under one lock, then wake waiting callers."""
        done: list[PendingQuestion] = []
        with self.lock:
            for event in events:
                if isinstance(event, ReceivedMessage):
                    self._receive(event.message, done)
                elif isinstance(event, NewEpoch):
                    self._new_epoch()
                elif isinstance(event, Resumed):
                    self.down_since_s = None
                    self._noticed = False
                elif isinstance(event, Lost):
                    if self.down_since_s is None:
                        self.down_since_s = time.monotonic()
                elif isinstance(event, Refused) and not event.refuse.later:
                    self.fatal = error_named(event.refuse.etype, event.refuse.text)
            self.changed.notify_all()
        for asked in done:
            asked.done()
        if self.fatal is not None:
            self._fail(self.fatal)

    def _receive(self, message: Any, done: list[PendingQuestion]) -> None:
        if isinstance(message, Finals):
            self.arrivals.take(message.finals)
        elif isinstance(message, Accepted):
            self.outbox.accepted(message.blocks)
        elif isinstance(message, KeptResults):
            self.arrivals.found(message.finals)
        elif isinstance(message, Answer):
            asked = self._asked.pop(message.n, None)
            if isinstance(message.reply, Fetched):
                self.arrivals.take(message.reply.finals)
            elif isinstance(message.reply, Watched) and message.reply.unknown:
                # Tasks in the outbox are not lost: the controller just does not have them yet.
                self.arrivals.unknown(set(message.reply.unknown) - self.outbox.unaccepted_ids())
            if asked is not None:
                asked.reply = message.reply
                asked.answered = True
                done.append(asked)
        elif isinstance(message, CommandAnswer):
            asked = self._asked.get(message.n)
            if asked is None:
                return
            is_last = self._answered(asked, message)
            if asked.on_answer is not None and message.engine_id != NOBODY:
                asked.on_answer(message)
            if is_last:
                del self._asked[message.n]
                asked.answered = True
                done.append(asked)
        elif isinstance(message, Output):
            for take in tuple(self.output_listeners):  # callers of waits add and remove theirs meanwhile
                take(message)
        elif isinstance(message, Notice):
            self.notices.append(message.text)
        elif isinstance(message, Reopened):
            self.arrivals.reopened(message.ids)
        elif isinstance(message, IdBlock):
            self.outbox.block_came(message)
        elif isinstance(message, Full):
            self.outbox.full(message, time.monotonic())

    @staticmethod
    def _answered(asked: PendingQuestion, answer: CommandAnswer) -> bool:
        """Record an answer to a command; return whether it was the last."""
        if answer.engine_id == NOBODY and answer.ok:
            # The first answer to a command for all engines is the list of these engines.
            asked.expected = set(msgspec.msgpack.decode(answer.body, type=list[int]))
        else:
            asked.answers[answer.engine_id] = answer
        if not answer.ok and refused_by_controller(answer) is not None:
            return True
        return asked.expected is not None and asked.expected <= asked.answers.keys()

    def _new_epoch(self) -> None:
        """Send everything again that is not on the controller's disk, because a new process knows nothing else of this
        session.
        """
        self._welcomed = True
        self.down_since_s = None
        self._noticed = False
        self.outbox.new_epoch()
        self._to_send = deque(self._asked.values())
        # The old process may have accepted, and even finished, tasks that are unaccepted here. So all ids are watched;
        # the ids of unaccepted tasks are watched only after these tasks were sent.
        live = self.arrivals.submitted | self.arrivals.watched
        unaccepted = self.outbox.unaccepted_ids() & live
        for asked in self._watches(live - unaccepted, after=0):
            self._to_send.appendleft(asked)
        self._to_send.extend(self._watches(unaccepted, after=self.outbox.mark()))

    def _watches(self, wanted: set[int], after: int) -> Iterator[PendingQuestion]:
        for question in parts(WatchTasks(sorted(wanted))) if wanted else ():
            yield PendingQuestion(AskQuestion(self._next_number, question), after)
            self._next_number += 1

    def _fail(self, error: BaseException) -> None:
        """End the session with this error, and wake all waiting callers."""
        with self.lock:
            if self.fatal is None:
                self.fatal = error
            waiting = list(self._asked.values())
            self._asked.clear()
            self.arrivals.wake_all()
            self.arrivals.end_all(error)
            self.changed.notify_all()
        for asked in waiting:
            asked.done()
