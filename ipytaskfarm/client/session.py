"""`Session`: what the clients of a process share of one farm, and the callers' side of its IO thread.

A caller's thread puts things into the outbox, or waits for an event that the IO thread sets.  Everything here may
be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from ..core import errors
from ..core.messages import (
    AskQuestion,
    Fetched,
    FetchResults,
    MarkTasksDone,
    Question,
    Refusal,
    Reply,
    SendCommand,
    SetSticky,
    Watched,
    WatchTasks,
)
from ..core.messages.dependencies import Needs
from ..core.messages.task_types import Final, JobSpec, Packed
from ..storage.blobs import fetch_from, fetch_no_more
from ..system.farm_paths import ConnectionInfo
from ..transport.wire import MAX_MESSAGE_BYTES
from .arrivals import Waiter
from .fetching import BlobDownloads
from .io import READER, IoThread, PendingQuestion
from .outbox import LIMIT_BYTES
from .results import error_named
from .wait_notices import WaitNotices, say_interrupted

GONE_S = 10.0
"""A farm whose connection file has been missing for so long was stopped; until then it may be restarting."""

NOTICE_S = 5.0
"""After so long without a connection a waiting caller is told so, once."""

TICK_S = 0.25
"""How often a waiting caller looks whether waiting still makes sense."""

PAYLOAD_BYTES_MAX = MAX_MESSAGE_BYTES // 2 - 1024 * 1024
"""Of a task, and of the functions that come with it: together they must fit into one message."""

FETCH_AHEAD = 64
"""Most results fetched at once, by who fetches one after the other."""

FETCH_AHEAD_BYTES = 64 * 1024
"""Larger results are fetched singly."""


class Session(IoThread):
    """One connection to one farm, shared by all clients of the process.  Made by `sessions.connect`."""

    def __init__(self, read_info: Callable[[], ConnectionInfo], name: str) -> None:
        super().__init__(read_info, name)
        self.users = 0
        """Clients that are not closed."""
        self.raw_ids: set[int] = set()
        """MapTasks handed in here: one that leaves no result body (its engine was lost) does not say so itself."""
        self._fetched_last = -2
        self._fetch_ahead = 1
        self._forked = False
        self._fetching = BlobDownloads(self) if self.blobs is None else None
        if self._fetching is not None:
            fetch_from(self._fetching.fetch)

    # ----------------------------------------------------------------------------------------------
    # Life

    def start(self, timeout_s: float) -> None:
        """Connect.  FarmNotRunning after timeout_s; what the controller refuses with, at once."""
        self._thread.start()
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while not self._welcomed and self.fatal is None and time.monotonic() < deadline:
                self._changed.wait(max(0.0, deadline - time.monotonic()))
            welcomed, fatal = self._welcomed, self.fatal
        if welcomed:
            return
        self.close(0.0)
        if fatal is not None:
            raise fatal.with_traceback(None)
        raise errors.FarmNotRunning(
            f"farm {self.farm!r} does not answer at {self.info.host}:{self.info.port} within {timeout_s:g} s "
            f"({self._link.problem}); start it: ipytaskfarm start --farm {self.farm}"
        )

    def close(self, flush_s: float = 10.0) -> str:
        """End the session; wait up to flush_s for what is not accepted.  Returns what was lost, in words, or ""."""
        if self._forked:
            return ""  # all of it is the parent's
        if self._fetching is not None:
            fetch_no_more(self._fetching.fetch)
        lost = ""
        try:
            self._drain(time.monotonic() + flush_s)
        except KeyboardInterrupt:
            pass  # whoever presses it again does not want to wait; what is lost is said all the same
        with self._lock:
            ids = sorted(self._outbox.unaccepted_ids())
            self._stopping = True
            if ids:
                which = f"{len(ids)} tasks (ids {ids[0]} to {ids[-1]}) were" if ids[1:] else f"task {ids[0]} was"
                why = f": {self._outbox.full_why}" if self._outbox.full_why else ""
                lost = f"{which} handed in but not accepted by farm {self.farm!r}, and lost{why}"
        self._ring()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(3.0)
        self._fail(errors.ConnectionError(f"this client of farm {self.farm!r} was closed: make a new one"))
        if self._fetching is not None:
            self._fetching.close()
        return lost

    def _drain(self, deadline: float) -> None:
        """As `flush`, but going on while the disk is full, and without complaint."""
        self._ring()
        with self._lock:
            while not self._outbox.is_empty and self.fatal is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, TICK_S))

    def _must_be_allowed(self, what: str) -> None:
        """What a read-only key does not allow is said here, not by the end of the connection."""
        if self.info.role == READER:
            raise errors.SecurityError(
                f"this client of farm {self.farm!r} may look and cannot {what}: its connection file is for readers "
                "(`ipytaskfarm keys add --client` makes another)"
            )

    def after_fork(self) -> None:
        """In a forked child: nothing of this works here, and no lock of the parent's may be touched."""
        self._forked = True
        if self._fetching is not None:
            fetch_no_more(self._fetching.fetch)
        self._lock = threading.Lock()
        self._bell_lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.fatal = errors.ConnectionError(
            f"this client of farm {self.farm!r} belongs to the process that this one was forked from: "
            "make a new TaskClient() here"
        )

    # ----------------------------------------------------------------------------------------------
    # Handing in

    def hand_in(self, packed: Packed, job: JobSpec | None = None, ids: Sequence[int] = ()) -> int:
        """Queue a task and return its id.  Waits for ids the first time, and when the outbox is full.

        ids: of its job's tasks, by position: it may wait for some of them."""
        payload, function, rules, functions, raw, blobs, needs = packed
        if needs is not None and ids:
            needs = _resolved(needs, ids)
        size = len(payload) if not functions else len(payload) + sum([len(f.code) for f in functions])
        _check_size("a task", size)
        now_s = time.time()
        with self._lock:
            outbox = self._outbox
            if (
                outbox.next_id > outbox.last_id and not outbox.has_id()
            ) or outbox.size_bytes > LIMIT_BYTES or self.fatal is not None:  # fmt: skip
                self._wait_for_room()
            task_id = outbox.add(payload, now_s, function, rules, functions, blobs, job, needs)
            self.arrivals.handed_in.add(task_id)
            if raw:
                self.raw_ids.add(task_id)
            if self._idle:
                self._idle = False
                self._ring()
        return task_id

    def _wait_for_room(self) -> None:
        """Called with the lock held: until there is an id and room in the outbox."""
        self._must_be_allowed("hand in tasks")
        while True:
            self.check()
            full_why = self._outbox.full_why
            too_much = self._outbox.size_bytes > LIMIT_BYTES
            if too_much and full_why is not None:
                raise _refusal(full_why)
            if self._outbox.has_id() and not too_much:
                return
            self._ring()
            self._changed.wait(TICK_S)

    def accepted(self, task_id: int) -> Final | None:
        """Wait until this task, handed in here, is on disk; its end, if it has ended already.  Its refusal is not
        raised by `flush` again."""
        with self._lock:
            self._ring()
            while self._outbox.oldest_id() <= task_id:
                self.check()
                if self._outbox.full_why is not None:
                    raise _refusal(self._outbox.full_why)
                self._changed.wait(TICK_S)
            self.arrivals.refused = [final for final in self.arrivals.refused if final.id != task_id]
            return self.arrivals.finals.get(task_id)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until all that was handed in until now is on disk; raise what was refused."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            last = self._outbox.next_id - 1
            self._ring()
            while self._outbox.oldest_id() <= last:
                self.check()
                if self._outbox.full_why is not None:
                    raise _refusal(self._outbox.full_why)
                self._wait_changed(deadline, "tasks were not accepted in time")
            refused, self.arrivals.refused = self.arrivals.refused, []
        self.warn()
        for final in refused:
            if final.failure is not None:
                raise error_named(final.failure.etype, f"task {final.id}: {final.failure.value}")

    def _wait_changed(self, deadline: float | None, complaint: str) -> None:
        left = TICK_S if deadline is None else min(TICK_S, deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError(complaint)
        self._changed.wait(left)

    def forget_results(self, ids: list[int] | None) -> None:
        """These were cleared (None: all that had ended)."""
        with self._lock:
            self.arrivals.forget(ids)
            self._outbox.forget_functions()
            if ids is None:
                self.raw_ids &= self.arrivals.handed_in
            else:
                self.raw_ids.difference_update(ids)

    # ----------------------------------------------------------------------------------------------
    # Waiting

    def unfinished(self) -> set[int]:
        """Ids handed in by this process that have not ended."""
        with self._lock:
            return set(self.arrivals.handed_in)

    def watch(self, ids: Iterable[int]) -> None:
        """Make sure that we hear of the end of these; IndexError for ids that were never given out."""
        wanted = set(ids)
        with self._lock:
            arrivals = self.arrivals
            strange = wanted - arrivals.finals.keys() - arrivals.handed_in - arrivals.watched
            # Ours that are not live have ended, and were dropped from the cache or cleared.
            strange = {i for i in strange if not self._outbox.was_handed_in(i)}
            arrivals.watched |= strange
        if not strange:
            return
        reply = self.ask(WatchTasks(sorted(strange)))
        unknown = sorted(reply.unknown) if isinstance(reply, Watched) else []
        if unknown:
            raise IndexError(f"task ID not registered: {unknown[0]} (never issued, or cleared)")

    def adopt(self, ids: Iterable[int]) -> None:
        """Ids that the controller made for this session (retries) count as handed in."""
        new = set(ids)
        self.watch(new)
        with self._lock:
            self.arrivals.handed_in |= new & self.arrivals.watched

    def wait(
        self,
        ids: set[int],
        timeout_s: float | None = None,
        on_tick: Callable[[int, int], None] | None = None,
        first: bool = False,
    ) -> bool:
        """Wait until all (or the first) of these, watched already, have ended; False when timeout_s is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            waiter = self.arrivals.wait_for(ids, eager=first)
            if first and len(waiter.remaining) < len(ids):
                return True
        try:
            return self.wait_event(waiter.event, deadline, waiter, on_tick, WaitNotices(self, waiter))
        except KeyboardInterrupt:
            say_interrupted(waiter.remaining)
            raise
        finally:
            with self._lock:
                self.arrivals.end_wait(waiter)
            self.warn()

    def warn(self) -> None:
        """Show what the controller wants users to know."""
        while self.notices:
            warnings.warn(f"ipytaskfarm: {self.notices.pop(0)}", UserWarning, stacklevel=4)

    def as_completed(self, ids: list[int], timeout_s: float | None) -> Iterator[int]:
        """These, watched already, each as soon as it has ended; TimeoutError when timeout_s is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            waiter = self.arrivals.wait_for(set(ids), eager=True)
            ended = [i for i in ids if i not in waiter.remaining]
        left = len(ids)
        patience = WaitNotices(self, waiter)
        try:
            while True:
                yield from ended
                left -= len(ended)
                if not left:
                    return
                if not self._next_end(waiter, deadline, patience):
                    raise TimeoutError(f"{left} of {len(ids)} tasks have not ended within {timeout_s:g} s")
                with self._lock:
                    ended, waiter.ended = waiter.ended, []
                    waiter.event.clear()
        finally:
            with self._lock:
                self.arrivals.end_wait(waiter)

    def _next_end(self, waiter: Waiter, deadline: float | None, patience: WaitNotices) -> bool:
        try:
            return self.wait_event(waiter.event, deadline, waiter, None, patience)
        except KeyboardInterrupt:
            say_interrupted(waiter.remaining)
            raise

    def follow_accumulator(self, key: str) -> None:
        """Remember for it which tasks succeed from now on."""
        with self._lock:
            self.arrivals.followers[key] = []

    def take_accumulated(self, key: str) -> list[Final]:
        """Tasks that have succeeded since the last call, and perhaps added to it."""
        with self._lock:
            found, self.arrivals.followers[key] = self.arrivals.followers[key], []
        return found

    def on_end(self, task_id: int, then: Callable[[Final], object]) -> None:
        """Call `then` with the end of a task (without its result, perhaps): now, or in the IO thread."""
        with self._lock:
            final = self.arrivals.finals.get(task_id)
            if final is None and self.arrivals.is_live(task_id):
                self.arrivals.on_end.setdefault(task_id, []).append(then)
                return
        if final is None:
            final = self.fetch(task_id)
        if final is not None:
            then(final)

    async def ended(self, task_id: int) -> None:
        """Wait in an asyncio loop until this task, watched already, has ended."""
        loop = asyncio.get_running_loop()
        bell = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                loop.call_soon_threadsafe(bell.set)

        with self._lock:
            waiter = self.arrivals.wait_for({task_id}, on_wake=wake)
        try:
            while waiter.remaining:
                with self._lock:
                    self.check()
                    self._check_full(waiter)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(bell.wait(), TICK_S)
                bell.clear()
        finally:
            with self._lock:
                self.arrivals.end_wait(waiter)

    def wait_event(
        self,
        event: threading.Event,
        deadline: float | None,
        waiter: Waiter | None = None,
        on_tick: Callable[[int, int], None] | None = None,
        patience: WaitNotices | None = None,
    ) -> bool:
        """Wait for an event that the IO thread sets, looking up now and then whether that still makes sense."""
        if not event.is_set():
            self._ring()
        while True:
            left = TICK_S if deadline is None else min(TICK_S, max(0.0, deadline - time.monotonic()))
            if event.wait(left) and self.fatal is None:
                return True
            with self._lock:
                self.check()
                self._check_full(waiter)
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if on_tick is not None and waiter is not None:
                on_tick(len(waiter.remaining), waiter.failed)
            if patience is not None:
                patience.tick()

    def _check_full(self, waiter: Waiter | None) -> None:
        why = self._outbox.full_why
        if why is None or waiter is None:
            return
        # What was handed in at or after the oldest that is not accepted is not accepted either.
        last = max(waiter.remaining & self.arrivals.handed_in, default=-1)
        if last >= self._outbox.oldest_id():
            raise _refusal(why)

    def check(self) -> None:
        """Raise if nothing will come any more; say so, once, if nothing has come for a while."""
        if self.fatal is not None:
            # Raised by many, again and again: without this it would gather all their frames.
            raise self.fatal.with_traceback(None)
        if self._down_since_s is None:
            return
        now_s = time.monotonic()
        if self._gone_since_s is not None and now_s - self._gone_since_s > GONE_S:
            raise errors.FarmNotRunning(
                f"farm {self.farm!r} was stopped; what it accepted is in its store: "
                f"ipytaskfarm start --farm {self.farm}"
            )
        if not self._noticed and now_s - self._down_since_s > NOTICE_S:
            self._noticed = True
            print(f"ipytaskfarm: farm {self.farm!r} does not answer; waiting for it to come back", file=sys.stderr)

    # ----------------------------------------------------------------------------------------------
    # Questions and commands

    def ask(self, question: Question, timeout_s: float | None = None) -> Reply:
        """Ask the controller and wait for the answer; a Refusal is raised as the error that it names."""
        return self.answer(self.begin(question), timeout_s)

    def begin(self, question: Question) -> PendingQuestion:
        """Ask the controller; the caller waits with `answer`, or calls `forget`."""
        if isinstance(question, SetSticky | MarkTasksDone):
            _check_size(type(question).__name__, len(question.body))
        return self._begin(lambda n: AskQuestion(n, question))

    def answer(self, asked: PendingQuestion, timeout_s: float | None = None) -> Reply:
        """Wait for the answer to a question; a Refusal is raised as the error that it names."""
        try:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            if not self.wait_event(asked.event, deadline):
                kind = type(
                    asked.message.question if isinstance(asked.message, AskQuestion) else asked.message
                ).__name__
                raise TimeoutError(f"farm {self.farm!r} did not answer {kind} within {timeout_s:g} s")
        finally:
            self.forget(asked)
        if asked.error is not None:
            raise asked.error
        assert asked.reply is not None
        if isinstance(asked.reply, Refusal):
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
    ) -> PendingQuestion:
        """Send a MultiEngine command; the caller waits for its event and then calls `forget`.

        text: what `queue_status` shows of it.  blobs: those that the body needs until it was answered."""
        self._must_be_allowed("run anything on engines")
        _check_size(verb, len(body))
        asked = self._begin(lambda n: SendCommand(n, engines, verb, body, text), on_done)
        asked.blobs = blobs
        return asked

    def _begin(
        self, make: Callable[[int], AskQuestion | SendCommand], on_done: Callable[[], None] | None = None
    ) -> PendingQuestion:
        with self._lock:
            self.check()
            n = self._next_n
            self._next_n += 1
            asked = PendingQuestion(make(n), self._outbox.mark(), on_done)
            self._asked[n] = asked
            self._questions.append(asked)
        self._ring()
        return asked

    def wait_for_answer(self, asked: PendingQuestion, timeout_s: float | None = None) -> bool:
        """Wait until a command was answered by all engines; False when timeout_s is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        return asked.answered or self.wait_event(asked.event, deadline)

    def wait_gone(self, timeout_s: float) -> None:
        """Wait until the farm has said that it is gone, by its connection file; TimeoutError when it has not."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._read_info()
            except (errors.FarmNotRunning, OSError):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"farm {self.farm!r} has not ended within {timeout_s:g} s")
            time.sleep(0.02)

    def forget(self, asked: PendingQuestion) -> None:
        """Nobody wants that answer any longer."""
        with self._lock:
            self._asked.pop(asked.message.n, None)

    def fetch(self, task_id: int) -> Final | None:
        """The final state in full, from the cache or from the controller; None: not final; IndexError: not there."""
        final = self.arrivals.finals.get(task_id)
        if final is not None and final.body is not None:
            return final
        reply = self.ask(FetchResults(self._with_next(task_id)))
        if not isinstance(reply, Fetched):
            raise errors.ConnectionError(f"an answer that does not fit Fetch: {type(reply).__name__}")
        found = {f.id: f for f in reply.finals}
        size = sum(len(f.body or b"") for f in reply.finals)
        self._fetch_ahead = min(2 * self._fetch_ahead, FETCH_AHEAD) if size <= FETCH_AHEAD_BYTES * len(found) else 1
        if task_id in found:
            return found[task_id]
        if task_id in reply.unknown:
            raise IndexError(f"task ID not registered: {task_id} (never issued, or cleared)")
        return None

    def _with_next(self, task_id: int) -> list[int]:
        """The id, and those that a loop over results will want next, once it looks like such a loop."""
        if task_id != self._fetched_last + 1:
            self._fetch_ahead = 1
        ids = [task_id]
        with self._lock:
            for i in range(task_id + 1, task_id + self._fetch_ahead):
                final = self.arrivals.finals.get(i)
                if final is None and (self.arrivals.is_live(i) or not self._outbox.was_handed_in(i)):
                    break
                if final is not None and final.body is not None:
                    break
                ids.append(i)
        self._fetched_last = ids[-1]
        return ids


def _resolved(needs: Needs, ids: Sequence[int]) -> Needs:
    """With ids in the places of positions, which are -1, -2, …"""
    after = tuple(i if i >= 0 else ids[-1 - i] for i in needs.after)
    inputs = tuple((name, i if i >= 0 else ids[-1 - i]) for name, i in needs.inputs)
    return msgspec.structs.replace(needs, after=after, inputs=inputs)


def _check_size(what: str, size: int) -> None:
    if size > PAYLOAD_BYTES_MAX:
        raise errors.ResultTooLarge(
            f"{what} of {size:,} bytes cannot travel, the limit is {PAYLOAD_BYTES_MAX:,}: "
            "hand large data over in a file, or in pieces"
        )


def _refusal(why: str) -> errors.TaskFarmError:
    """Why nothing is accepted now, as an error."""
    if "stopping" in why:
        return errors.FarmNotRunning(why)
    return errors.StoreFull(f"{why}; what was handed in is kept here and sent again")
