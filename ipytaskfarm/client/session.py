"""`Session`: the connection to one farm, shared by all clients of a process; its methods may be called from any thread.

A caller's thread puts tasks into the outbox, or waits for an event that the IO thread sets.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from ..core import errors, messages as m
from ..core.messages.pages import ask_in_pages, of_kind
from ..core.messages.task_types import Final, JobSpec, Packed
from ..storage.blobs import fetch_from, fetch_no_more
from ..system.deadlines import end_of, left_s
from ..system.farm_paths import ConnectionInfo, dialled, endpoint, remedy
from ..system.user_code import depth_of_user
from .arrivals import Waiter, WakeFlag, unheard_of
from .ids import not_registered
from .io import READER, IoThread, reentrant
from .large_values import BlobDownloads, BlobUploads
from .map_items import ItemEnds
from .outbox import LIMIT_BYTES, check_size, refusal_because
from .packing import with_ids
from .questions import EnginesHere, PendingQuestion, check_question
from .results import error_named
from .wait_notices import WaitNotices, say, say_interrupted

TICK_S = 0.25
"""Seconds between two checks of a waiting caller whether the session still works."""

ANSWER_LEAST_S = 1.0
"""Seconds that a question for a wait may take, however short the wait: with a timeout of 0 it looks once."""

FETCH_AHEAD = 64
"""Largest number of results in one question, for a caller that fetches one result after the other."""

FETCH_AHEAD_BYTES = 64 * 1024
"""Results above this mean size are fetched one by one."""


_R = TypeVar("_R")


class Session:
    """One connection to one farm, shared by all clients of the process.  Made by `sessions.connect`.

    Args:
        read_info: reads the connection file.
        name: the name of this process, for tables of clients.
    """

    def __init__(self, read_info: Callable[[], ConnectionInfo], name: str) -> None:
        io = IoThread(read_info, name)
        self.io = io
        self._outbox = io.outbox
        self.arrivals = io.arrivals
        self.farm = io.farm
        if io.blobs is None and io.info.role != READER:
            io.blobs = BlobUploads(self)
        if io.folder_of_blobs is not None:
            io.folder_of_blobs.sees_file = EnginesHere(self.ask, lambda: io.thread).see
        self.blobs = io.blobs
        """The store for large values; None: they are sent inside messages."""
        self.users = 0
        """Number of clients that are not closed."""
        self.raw_ids: set[int] = set()
        """MapTasks submitted here: a result without a body (its engine was lost) does not tell that it is one's."""
        self._fetched_last = -2
        self._item_ends = ItemEnds(io.arrivals)
        self._fetch_ahead = 1
        self._forked = False
        self.at_close: list[Callable[[], None]] = []
        """Functions that are called when the session was closed."""
        self.at_fork: list[Callable[[BaseException], None]] = []
        """Functions that are called in a forked child, with the error that every call raises there."""
        self._downloads = BlobDownloads(self) if io.folder_of_blobs is None else None
        if self._downloads is not None:
            fetch_from(self._downloads.fetch)

    # -- life

    @property
    def _lock(self) -> threading.RLock:
        """Return the lock of all that is shared with the IO thread; see `IoThread.lock`."""
        return self.io.lock

    @property
    def fatal(self) -> BaseException | None:
        """Return why the session cannot be used any more; every call raises this error."""
        return self.io.fatal

    @property
    def info(self) -> ConnectionInfo:
        """Return the contents of the connection file when the session was made."""
        return self.io.info

    @property
    def session_id(self) -> str:
        """Return the id under which the controller knows this session."""
        return self.io.session_id

    def start(self, timeout_s: float, patient: bool = False) -> None:
        """Connect.  Raises FarmNotRunning after timeout_s seconds, StoreFull if its store has no room, or the error
        with which the controller refuses.

        patient: wait longer, while the farm's supervisor says that it starts the controller again.
        """
        try:
            if self.io.connect(timeout_s, patient):
                return
        except BaseException:  # Ctrl-C
            self.close(0.0)
            raise
        fatal, returns, no_room = self.fatal, self.io.comes_back(), self.io.no_room
        self.close(0.0)
        if fatal is not None:
            raise fatal.with_traceback(None)
        if no_room:
            raise errors.StoreFull(no_room)
        raise errors.FarmNotRunning(
            f"farm {self.farm!r} does not answer at {endpoint(dialled(self.info), self.info.port)} within "
            f"{round(timeout_s, 1):g} s ({self.io.problem}); {returns or remedy(self.info)}"
        )

    def close(self, flush_s: float = 10.0, why: errors.ConnectionError | None = None) -> str:
        """End the session, after waiting up to flush_s seconds until all submitted tasks are accepted.

        Later calls raise `why` (None: an error that says that this client was closed).  Returns a sentence about the
        tasks that were lost, or "".
        """
        if self._forked:
            return ""  # all of it is the parent's
        if self._downloads is not None:
            fetch_no_more(self._downloads.fetch)
        lost = ""
        try:
            self._drain(time.monotonic() + flush_s)
        except KeyboardInterrupt:
            pass  # the user does not want to wait; the report about lost tasks follows
        with self._lock:
            ids = sorted(self._outbox.unaccepted_ids())
            if ids:
                which = f"{len(ids)} tasks (ids {ids[0]} to {ids[-1]}) were" if ids[1:] else f"task {ids[0]} was"
                full = f": {full_why}" if (full_why := self._full_why()) else ""
                lost = f"{which} submitted but not accepted by farm {self.farm!r}, and lost{full}"
        self.io.stop(why or errors.ConnectionError(f"this client of farm {self.farm!r} was closed: make a new one"))
        for action in self.at_close:
            action()
        if self.io.folder_of_blobs is not None:
            self.io.folder_of_blobs.sees_file = None  # it may outlive the session
        if self._downloads is not None:
            self._downloads.close()
        return lost

    def _drain(self, deadline: float) -> None:
        """Wait like `flush`, but keep waiting while the disk is full, and raise nothing."""
        self.io.ring()
        with self._lock:
            while not self._outbox.is_empty and self.fatal is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self.io.changed.wait(min(left, TICK_S))

    def _check_role(self, what: str) -> None:
        """Raise SecurityError for a read-only key; otherwise the controller would close the connection."""
        if self.info.role == READER:
            raise errors.SecurityError(
                f"this client of farm {self.farm!r} may look and cannot {what}: its connection file is for readers "
                "(`ipytaskfarm keys add --client` makes another)"
            )

    def after_fork(self) -> None:
        """Make every call raise in a forked child: nothing works there, and the parent's locks may be held."""
        self._forked = True
        if self._downloads is not None:
            fetch_no_more(self._downloads.fetch)
        whose = f"this client of farm {self.farm!r} belongs to the process that this one was forked from"
        error = errors.ConnectionError(f"{whose}: make a new TaskClient() here")
        self.io.after_fork(error)
        for action in self.at_fork:
            action(error)

    # -- submitting

    def submit(self, packed: Packed, job: JobSpec | None = None, ids: Sequence[int] = ()) -> int:
        """Queue a task and return its id. The first call waits for ids, and any call waits while the outbox is full.

        ids: the ids of the job's tasks by position, which replace the positions in the task's dependencies.

        Returns -1 for a chunk that has more items than there are ids in a row: the caller looks at `items_room`.
        """
        needs = packed.needs
        if needs is not None and ids:
            needs = with_ids(needs, ids)
        items = packed.items
        size = len(packed.payload)
        if packed.functions:
            size += sum([len(function.code) for function in packed.functions])
        check_size("a task", size)
        now_s = time.time()
        io = self.io
        lock = io.held
        if lock._is_owned():  # type: ignore[attr-defined]  # as `io.lock` does, which takes longer
            raise RuntimeError(reentrant())
        with lock:
            outbox = self._outbox
            if (
                outbox.next_id > outbox.last_id and not outbox.has_id()
            ) or outbox.size_bytes > LIMIT_BYTES or io.fatal is not None or io.gone_since_s is not None:  # fmt: skip
                self._wait_for_room()
            if items and outbox.next_id + items > outbox.last_id:
                return -1
            task_id = outbox.add(packed, now_s, job, needs)
            if items:
                self.arrivals.chunks.add(task_id, items)
            self.arrivals.submitted.add(task_id)
            if packed.raw:
                self.raw_ids.add(task_id)
            if io.idle:
                io.idle = False
                io.ring()
        return task_id

    def items_room(self) -> int:
        """Return how many items a chunk may have that is submitted next.  Waits for ids, and room in the outbox."""
        with self._lock:
            if not self._outbox.has_id():
                self._wait_for_room()
            return self._outbox.last_id - self._outbox.next_id

    def _wait_for_room(self) -> None:
        """Wait until there is an id and room in the outbox.  The lock is held."""
        self._check_role("submit tasks")
        while True:
            self.io.check()
            full_why = self._full_why()
            too_much = self._outbox.size_bytes > LIMIT_BYTES
            if full_why and (too_much or (self.io.no_room and not self._outbox.has_id())):
                raise refusal_because(full_why)
            if self._outbox.has_id() and not too_much and self.io.gone_since_s is None:
                return
            self.io.ring()
            self.io.changed.wait(TICK_S)

    def accepted(self, task_id: int) -> Final | None:
        """Wait until a task of this session is on disk; return its final state if it has ended already.

        `flush` does not raise the task's refusal again.
        """
        with self._lock:
            self._wait_accepted(task_id, None)
            self.arrivals.refused = [final for final in self.arrivals.refused if final.id != task_id]
            return self.arrivals.finals.get(task_id)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until all tasks that were submitted until now are on disk; raise the error of a refused task."""
        with self._lock:
            self._wait_accepted(self._outbox.next_id - 1, end_of(timeout_s))
            refused, self.arrivals.refused = self.arrivals.refused, []
        self.warn()
        for final in refused:
            if final.failure is not None:
                raise error_named(final.failure.etype, f"task {final.id}: {final.failure.value}")

    def _wait_accepted(self, task_id: int, end_s: float | None) -> None:
        """Wait until the tasks up to this one are on disk.  The lock is held."""
        self.io.ring()
        while self._outbox.oldest_id() <= task_id:
            self.io.check()
            if why := self._full_why():
                raise refusal_because(why)
            left = left_s(end_s)
            if left == 0:
                raise TimeoutError("tasks were not accepted in time")
            self.io.changed.wait(TICK_S if left is None else min(TICK_S, left))

    def forget_results(self, ids: list[int] | None) -> None:
        """Drop results that were cleared (None: of all ended tasks)."""
        with self._lock:
            self.arrivals.forget(ids)
            self._outbox.forget_functions()
            if ids is None:
                self.raw_ids &= self.arrivals.submitted
            else:
                self.raw_ids.difference_update(ids)

    # -- waiting

    def unfinished(self) -> set[int]:
        """Return the ids submitted by this process that have not ended."""
        with self._lock:
            return set(self.arrivals.submitted)

    def watch(
        self, ids: Iterable[int], chunks: Mapping[int, int] = MappingProxyType({}), end_s: float | None = None
    ) -> None:
        """Ask the controller to report the end of these tasks.

        Args:
            chunks: those of another client's map among them -> number of items.
            end_s: the end of the wait for which this is asked (monotonic clock); None: no limit.

        Raises IndexError for ids that were never issued, TimeoutError if the farm does not answer in time.
        """
        wanted = set(ids)
        with self._lock:
            arrivals = self.arrivals
            arrivals.follow(chunks)
            foreign = wanted - arrivals.finals.keys() - arrivals.submitted - arrivals.watched
            foreign = {i for i in foreign if arrivals.chunks.of(i) is None}
            # Other tasks of this session have ended, and have left the cache or were cleared.
            foreign = {i for i in foreign if not self._outbox.was_submitted(i)}
            # The controller has issued these ids, so it would wait for their tasks.
            free = min(filter(self._outbox.is_free, foreign), default=None)
            if free is not None:
                raise IndexError(f"task ID not registered: {free} (no task was submitted under it)")
            arrivals.watched |= foreign
        if not foreign:
            return
        reply = self.ask_for(m.WatchTasks(sorted(foreign)), m.Watched, _answer_s(end_s))
        if reply.unknown:
            raise not_registered([min(reply.unknown)])

    def adopt(self, ids: Iterable[int]) -> None:
        """Count ids that the controller made for this session (for retries) as submitted here."""
        new = set(ids)
        self.watch(new)
        with self._lock:
            self.arrivals.submitted |= new & self.arrivals.watched

    def wait(
        self,
        ids: set[int],
        timeout_s: float | None = None,
        on_tick: Callable[[], None] | None = None,
        first: bool = False,
        tell: Callable[[str], None] = say,
        go_on_text: str = "",
        kept: list[Final] | None = None,
    ) -> bool:
        """Wait until all (or the first) of these watched tasks have ended; return False after `timeout_s` seconds.

        Args:
            ids: ids for which `watch` was called.
            timeout_s: seconds; None: no limit.
            on_tick: called a few times a second.
            first: return when any one has ended.
            tell: called once with the reason when none of the tasks can run.
            go_on_text: a notice after Ctrl-C, instead of the ids that go on.
            kept: gets kept results that arrive; the wait is over with the first one (`CacheKey.value_first`).
        """
        deadline = end_of(timeout_s)
        with self._lock:
            waiter = self.arrivals.wait_for(ids, eager=first)
            waiter.kept = kept
            if first and len(waiter.remaining) < len(ids) and not all(map(self.arrivals.is_live, ids)):
                self.arrivals.end_wait(waiter)
                return True
        try:
            return self.wait_event(waiter.event, deadline, waiter, on_tick, WaitNotices(self, waiter, tell))
        except KeyboardInterrupt as interrupt:
            say_interrupted(waiter.remaining, interrupt, go_on_text)
            raise
        finally:
            self.arrivals.end_wait(waiter)
            self.warn()

    def warn(self) -> None:
        """Show the notices of the controller as warnings."""
        while self.io.notices:
            warnings.warn(f"ipytaskfarm: {self.io.notices.pop(0)}", UserWarning, stacklevel=depth_of_user())

    def as_completed(self, ids: list[int], timeout_s: float | None) -> Iterator[int]:
        """Yield each of these watched tasks as soon as it has ended.  Raises TimeoutError when timeout_s is over."""
        deadline = end_of(timeout_s)
        with self._lock:
            waiter = self.arrivals.wait_for(set(ids), eager=True)
            waiting = set(ids)
            ended = self.arrivals.ended_of(waiting)
        left = len(ids)
        notices = WaitNotices(self, waiter, say)
        try:
            while True:
                yield from ended
                left -= len(ended)
                if not left:
                    return
                if not self._next_end(waiter, deadline, notices):
                    raise TimeoutError(f"{left} of {len(ids)} tasks have not ended within {timeout_s:g} s")
                with self._lock:
                    ended, waiter.ended = self.arrivals.ended_of(waiting, waiter.ended), []
                    waiter.event.clear()
        finally:
            self.arrivals.end_wait(waiter)

    def _next_end(self, waiter: Waiter, deadline: float | None, notices: WaitNotices) -> bool:
        try:
            return self.wait_event(waiter.event, deadline, waiter, None, notices)
        except KeyboardInterrupt as interrupt:
            say_interrupted(waiter.remaining, interrupt)
            raise

    def on_end(self, task_id: int, then: Callable[[Final], object], items: Callable[[Final], object] | None) -> None:
        """Call `then` with the final state of a task (perhaps without its result): now, or later in the IO thread.

        items: of a chunk, is called with the ends of its items that come before its own."""
        with self._lock:
            final = self.arrivals.finals.get(task_id)
            if final is None and self.fatal is not None:
                final = unheard_of(task_id, self.fatal)
            if final is None and self.arrivals.is_live(task_id):
                self.arrivals.on_end.setdefault(task_id, []).append(then)
                if items is not None:
                    self.arrivals.on_item_end[task_id] = items
                return
        if final is None:
            final = self.fetch(task_id)
        if final is not None:
            then(final)

    def begin_wait(self, ids: Iterable[int], on_wake: Callable[[], None]) -> tuple[Waiter, list[int]]:
        """Return a waiter for the unfinished tasks among `ids`, and the others; the IO thread calls `on_wake`.

        The caller ends the wait with `arrivals.end_wait`.
        """
        with self._lock:
            waiter = self.arrivals.wait_for(set(ids), eager=True, on_wake=on_wake)
            open_ids = waiter.open_ids()
            return waiter, [i for i in ids if i not in open_ids]

    def ended_since(self, waiter: Waiter) -> list[int]:
        """Return the tasks of a waiter that have ended since the last call.  Raises if the session has failed."""
        with self._lock:
            self.io.check()
            self._check_full(waiter)
            ended, waiter.ended = waiter.ended, []
        return ended

    def wait_event(
        self,
        event: WakeFlag,
        deadline: float | None,
        waiter: Waiter | None = None,
        on_tick: Callable[[], None] | None = None,
        notices: WaitNotices | None = None,
    ) -> bool:
        """Wait for an event that the IO thread sets; return False after the deadline.  Raises if the session fails."""
        if threading.current_thread() is self.io.thread and not event.is_set():
            raise RuntimeError(reentrant())  # __del__, where the thread that would set the event drops a value
        if not event.is_set():
            self.io.hurry()
        while True:
            left = TICK_S if deadline is None else min(TICK_S, max(0.0, deadline - time.monotonic()))
            if event.wait(left) and self.fatal is None:
                return True
            with self._lock:
                self.io.check()
                self._check_full(waiter)
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if on_tick is not None:
                on_tick()
            if notices is not None:
                notices.tick()

    def _full_why(self) -> str:
        """Return why the farm accepts nothing now, as it has said; "" if it does."""
        return self._outbox.full_why or self.io.no_room

    def _check_full(self, waiter: Waiter | None) -> None:
        if waiter is None or not (why := self._full_why()):
            return
        # Tasks are accepted in order, so no task from the oldest unaccepted one on is accepted.
        last = max(waiter.remaining & self.arrivals.submitted, default=-1)
        if last >= self._outbox.oldest_id():
            raise refusal_because(why)

    # -- questions and commands

    def ask_for(self, question: m.Question, expected: type[_R], timeout_s: float | None = None) -> _R:
        """Ask the controller for a reply of this type.  Raises TypeError for a reply of another type, else as `ask`."""
        return of_kind(self.ask(question, timeout_s), expected, question)

    def ask(self, question: m.Question, timeout_s: float | None = None) -> m.Reply:
        """Ask the controller and wait for the answer, in pages if it is about many tasks.

        Raises the error that a `Refusal` names, and TimeoutError after `timeout_s` for one page."""
        return ask_in_pages(question, lambda page: self.answer(self.begin(page), timeout_s))

    def begin(self, question: m.Question) -> PendingQuestion:
        """Ask the controller; the caller waits with `answer`, or calls `forget`.  Raises as `check_question`."""
        check_question(question)
        return self.io.ask(lambda n: m.AskQuestion(n, question))

    def answer(self, asked: PendingQuestion, timeout_s: float | None = None) -> m.Reply:
        """Wait for the answer to a question.  Raises the error that a `Refusal` names, and TimeoutError."""
        try:
            if not self.wait_event(asked.event, end_of(timeout_s)):
                what = asked.message.question if isinstance(asked.message, m.AskQuestion) else asked.message
                raise TimeoutError(f"farm {self.farm!r} did not answer {type(what).__name__} within {timeout_s:g} s")
        finally:
            self.forget(asked)
        if asked.error is not None:
            raise asked.error
        assert asked.reply is not None
        if isinstance(asked.reply, m.Refusal):
            raise error_named(asked.reply.etype, asked.reply.text)
        return asked.reply

    def command(
        self,
        engines: list[int] | None,
        verb: str,
        body: bytes,
        on_done: Callable[[], None] | None = None,
        text: str = "",
        blobs: tuple[str, ...] = (),
        keep: m.Keep | None = None,
        on_answer: Callable[[m.CommandAnswer], None] | None = None,
    ) -> PendingQuestion:
        """Send a MultiEngine command; the caller waits for its event and then calls `forget`.

        Args:
            engines: engine ids; None: all engines that exist when the command arrives.
            on_done: called in the IO thread when all answers have arrived, or will never arrive.
            text: what `queue_status` shows of the command.
            blobs: digests that the body needs until the command is answered.
            keep: how the command is kept for the engines' replacements.
            on_answer: called in the IO thread with each engine's answer.
        """
        self._check_role("run anything on engines")
        check_size(verb, len(body))
        asked = self.io.ask(lambda n: m.SendCommand(n, engines, verb, body, text, keep), on_done, on_answer)
        asked.blobs = blobs
        return asked

    def wait_for_answer(self, asked: PendingQuestion, timeout_s: float | None = None) -> bool:
        """Wait until all engines have answered a command; return False after `timeout_s` seconds."""
        return asked.answered or self.wait_event(asked.event, end_of(timeout_s))

    def forget(self, asked: PendingQuestion) -> None:
        """Drop a question; its answer will be ignored."""
        self.io.forget(asked)

    def fetch(self, task_id: int, end_s: float | None = None) -> Final | None:
        """Return the full final state of a task, from the cache or from the controller; None: it has not ended.

        end_s: the end of the wait for which this is asked (monotonic clock); None: no limit.

        Raises IndexError for an id that was never issued, or was cleared, TimeoutError.
        """
        final = self._item_ends.held(task_id)
        if final is not None and final.body is not None:
            return final
        # Results that did not fit into the answer are requested when a caller wants them.
        question = m.FetchResults(self._with_next(task_id))
        reply = of_kind(self.answer(self.begin(question), _answer_s(end_s)), m.Fetched, question)
        size = sum(len(f.body or b"") for f in reply.finals)
        is_small = size <= FETCH_AHEAD_BYTES * len(reply.finals)
        self._fetch_ahead = min(2 * self._fetch_ahead, FETCH_AHEAD) if is_small else 1
        found = self._item_ends.found(reply.finals, task_id)
        if found is not None:
            return found
        if task_id in reply.unknown:
            raise not_registered([task_id])
        return None

    def _with_next(self, task_id: int) -> list[int]:
        """Return the id, and the next ids if the caller loops over results: one question fetches them all."""
        if task_id != self._fetched_last + 1:
            self._fetch_ahead = 1
        ids = [task_id]
        with self._lock:
            for i in range(task_id + 1, task_id + self._fetch_ahead):
                final = self.arrivals.finals.get(i)
                if final.body is not None if final else (self.arrivals.is_live(i) or not self._outbox.was_submitted(i)):
                    break
                ids.append(i)
        self._fetched_last = ids[-1]
        return ids


def _answer_s(end_s: float | None) -> float | None:
    left = left_s(end_s)
    return None if left is None else max(left, ANSWER_LEAST_S)
