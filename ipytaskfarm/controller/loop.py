"""The controller's loop: receive, decide, commit once, send.

There is one thread, and one turn at a time. Nothing leaves before its commit: the sends of a turn, including hand-outs
and acknowledgements, follow the commit of its saves. So whatever a peer was told is on disk. `KeptResults` are sent
earlier, because the cache has them on its disk. What nobody waits for comes last (`Store.settle`).
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ..core import messages as m
from ..core.errors import ResultTooLarge, StoreError, StoreFull
from ..core.messages.blob_chunks import ReadBlob, WriteBlob
from ..core.messages.running_task import Declined, TaskReply
from ..core.messages.tables import FarmState
from ..core.messages.task_types import KeptResults
from ..core.saves import SaveFinal
from ..core.scheduler.decision import Decision, Load, Now
from ..core.scheduler.events import Back, Event, Gone, Joined, ProcessGone, Revoked, Silent, StoreRoom, UnusedFunctions
from ..core.scheduler.failed_answers import AnswerFailed, MessageFailed
from ..core.scheduler.scheduler import Scheduler
from ..core.scheduler.state import SchedulerState
from ..core.states import ABORTS
from ..core.text import text_of
from ..core.validation import why_refused
from ..storage.event_log import EventLog
from ..storage.free_room import has_inodes
from ..storage.result_cache import ResultCache
from ..storage.store import Store
from ..system.machine import why_gone
from ..transport.hub import Hub
from ..transport.hub_session import Peer, PeerGone, PeerNewEpoch, PeerSilent, PeerUp
from . import replies
from .access import FarmAccess
from .blob_reading import BlobReader, ReadPiece
from .blob_receiving import BlobReceiver, WritePiece
from .cache_answers import CacheAnswers
from .direct_answers import DirectAnswers, is_direct
from .evaluators import Evaluators
from .payloads import Payloads, parts_of, singly, unsent
from .retention import BlobSweeper, Compaction, FunctionSweeper, Retention
from .view_answers import StoreQuestion, ViewAnswers

log = logging.getLogger(__name__)

IDLE_S = 1.0
"""The longest time between two turns, so that silence of peers is noticed."""

PUSH_BYTES = 16 * 2**20
"""If more bytes than this are on their way to a client, results go without bodies, and the client fetches these."""

KEPT_BYTES = 64 * 2**10
"""A larger kept result is sent once, after the commit."""

ROOM_CHECK_S = 1.0
FULL_RETRY_S = 1.0
"""How often a commit is tried again for which the store has no room."""
REMEMBERED_EVENTS = 10_000
CAREFUL_S = 30.0
"""How long events are handled one by one after a failure of a turn: all peers have come back by then."""


class ControllerLoop:
    """Owns sockets and store, and makes turns until the farm has stopped."""

    def __init__(
        self,
        scheduler: Scheduler,
        store: Store,
        hub: Hub,
        evaluator_folder: Path,
        *,
        found: str = "",
        min_free_bytes: int = 0,
        reader: BlobReader | None = None,
        receiver: BlobReceiver | None = None,
        blob_sweeper: BlobSweeper | None = None,
        function_sweeper: FunctionSweeper | None = None,
        retention: Retention | None = None,
        event_log: EventLog | None = None,
        access: FarmAccess | None = None,
        result_cache: ResultCache | None = None,
        watch_fds: dict[int, Callable[[], m.StopFarm | None]] | None = None,
        restored: Callable[[Now], SchedulerState] | None = None,
    ) -> None:
        """Create it. `restored` returns the farm's state as the store has it, for the beginning of a new epoch."""
        self._scheduler = scheduler
        self._store = store
        self._hub = hub
        self._restored = restored
        self._payloads = Payloads(store)
        self._view_answers = ViewAnswers(store.path, scheduler.farm)
        self._evaluator_folder = str(evaluator_folder)
        self._evaluators = Evaluators(self._code_of, self._evaluator_folder)
        self._watch_fds = watch_fds or {}
        self._reader = reader
        self._receiver = receiver
        self._blob_sweeper = blob_sweeper
        self._function_sweeper = function_sweeper
        self._retention = retention
        self._event_log = event_log
        self._cache_answers = CacheAnswers(store, result_cache or ResultCache.off())
        self._compaction = Compaction(store)
        self._access = access
        self._direct_answers = DirectAnswers(store, access, self.give_up, self._cache_answers)
        self._direct: list[tuple[Peer, Event]] = []
        """(who asks, question) of this turn that the scheduler has no part in, see `direct_answers`."""
        self._found = found
        self._started_s = time.time()
        self._min_free_bytes = min_free_bytes
        self._room_checked_s = 0.0
        self._harmed = False
        """Whether it is known that somebody has removed or replaced the store's file."""
        self._full_s = 0.0
        """How long commits have waited for room. This time does not pass for the scheduler: no peer was heard."""
        self._careful_until_s = 0.0
        """Until then (monotonic) each event has a turn of its own, because one of them has met a bug."""
        self._next: list[tuple[str, Event]] = []
        self.recent: deque[tuple[float, str, str]] = deque(maxlen=REMEMBERED_EVENTS)
        """(monotonic, session, what) of the last events, without payloads."""

    def run(self) -> None:
        """Make turns until the farm has stopped.

        Raises:
            StoreError: the store is broken.
            IllegalMove, or another exception: a bug in the farm that no peer's message has met.
        """
        try:
            while not self.turn():
                pass
            self._hub.flush(time.monotonic())
        finally:
            self._evaluators.close()
            self._view_answers.close()
            self._cache_answers.close()
            if self._reader is not None:
                self._reader.close()
            if self._receiver is not None:
                self._receiver.close()

    def turn(self) -> bool:
        """Make one turn, and return whether the farm has stopped."""
        ready = self._hub.poll(self._patience_s(), self._fds())
        now = self._now()
        careful = now.mono_s < self._careful_until_s
        try:
            finished = (self._one_by_one if careful else self._decide_and_act)(self._events(ready, now), now)
        except (AnswerFailed, MessageFailed) as failure:
            self._begin_epoch(failure)
            return False
        except Exception as error:
            if careful or isinstance(error, StoreError):
                raise
            # Any event of this turn may be the cause. It comes again.
            self._careful_until_s = now.mono_s + CAREFUL_S
            self._begin_epoch(error)
            return False
        self._hub.flush(time.monotonic())
        self._store.settle()
        return finished

    def _now(self) -> Now:
        return Now(time.monotonic() - self._full_s, time.time())

    def _one_by_one(self, heard: Iterator[tuple[str, Event]], now: Now) -> bool:
        """Make a turn of each event, so that one that meets a bug is known.

        Raises:
            AnswerFailed, MessageFailed: an event of a peer met a bug.
        """
        finished = self._decide_and_act(iter(()), now)  # what fails here is no event's fault
        for session, event in heard:
            try:
                finished = self._decide_and_act(iter([(session, event)]), now) or finished
            except (AnswerFailed, MessageFailed, StoreError):
                raise
            except Exception as error:
                if not session:
                    raise
                raise MessageFailed(session, type(event).__name__, error) from error
        return self._decide_and_act(iter(()), now) or finished  # with answers that the scheduler has no part in

    def _decide_and_act(self, heard: Iterator[tuple[str, Event]], now: Now) -> bool:
        """Handle events, commit once, and perform what was decided. Return whether the farm has stopped."""
        events: list[tuple[str, Event]] = []
        out = self._scheduler.turn(self._noted(heard, now, events), now)
        if self._event_log is not None:
            self._record(self._event_log, now, events, out)
        self._look_up_at_once(out, now)
        if out.saves:
            self._commit(out)
        self._perform(out)
        return out.finished

    def _record(self, event_log: EventLog, now: Now, events: list[tuple[str, Event]], out: Decision) -> None:
        """Write a turn into the event log. The recording ends at an error of its disk; the farm goes on."""
        try:
            event_log.note(now, events, out.saves)
        except OSError as error:
            self._end_recording(event_log, f"it cannot be written: {error}")

    def _end_recording(self, event_log: EventLog, why: str) -> None:
        log.warning("the recording of events ends here: %s", why)
        event_log.close()
        self._event_log = None

    def _begin_epoch(self, failure: Exception) -> None:
        """Throw the state away, of which a failure may have left anything, and begin as after a restart.

        Nothing of this turn was acknowledged. All peers say hello again: they send again what was not acknowledged, and
        report what they hold. A peer whose message failed is kept away for a while.

        Raises:
            Exception: the failure, if there is nothing from which the state could be restored.
        """
        if self._restored is None:
            raise failure
        log.error("the controller has a bug: it begins a new epoch from its store", exc_info=failure)
        now = self._now()
        before = self._scheduler.farm
        if isinstance(failure, AnswerFailed):
            before.failed_answers.note(failure, now.mono_s)
        elif isinstance(failure, MessageFailed):
            self._hub.pauses.begin(failure.session, before.failed_answers.pause_of_peer_s(failure), str(failure))
        self._store.begin_epoch()
        farm = self._restored(now)
        farm.failed_answers, farm.lifecycle.held = before.failed_answers, before.lifecycle.held
        self._scheduler = Scheduler(farm)
        self._payloads = Payloads(self._store)
        self._view_answers.begin_epoch(farm)
        self._evaluators.close()
        self._evaluators = Evaluators(self._code_of, self._evaluator_folder)
        self._next, self._direct = [], []
        self._compaction = Compaction(self._store)
        if before.lifecycle.stopping:
            self._next.append(("", m.AskQuestion(0, m.StopFarm(drain_s=0.0))))
        if self._event_log is not None:
            self._end_recording(self._event_log, "it has one epoch")
        self._hub.begin_epoch(farm.epoch)

    def _look_up_at_once(self, out: Decision, now: Now) -> None:
        """Look up tasks in the result cache before the commit: a hit costs one commit then, and not two.

        The scheduler handles what was found in a turn of its own."""
        # Results of other tasks may be among those that are about to be committed.
        inputs = any(each.inputs for look_up in out.look_ups for each in look_up.wanted)
        if not out.look_ups or inputs or out.cache_results or out.cache_mistakes:
            return
        events: list[tuple[str, Event]] = [("", self._cache_answers.look_up(each)) for each in out.look_ups]
        value_first = {each.task for look_up in out.look_ups for each in look_up.wanted if each.value_first}
        out.look_ups.clear()
        more = self._scheduler.turn(events, now)
        if self._event_log is not None:
            self._record(self._event_log, now, events, more)
        if value_first:
            self._send_kept_results(more, value_first)
        out.add(more)

    def _send_kept_results(self, out: Decision, wanted: set[int]) -> None:
        """Send these tasks' results before the commit. The values are on disk; that the tasks took them is not yet."""
        for session, message in out.sends:
            if type(message) is m.Finals:
                found = [f for f in message.finals if f.id in wanted and f.body and len(f.body) <= KEPT_BYTES]
                if found:
                    self._hub.send_now(session, KeptResults(found))

    # -- receiving

    def _patience_s(self) -> float:
        if self._next or self._compaction.under_way:
            return 0.0
        timer_s, answer_s = self._scheduler.next_deadline(), self._evaluators.next_deadline()
        timer_s = None if timer_s is None else timer_s + self._full_s
        soonest = timer_s if answer_s is None or (timer_s is not None and timer_s < answer_s) else answer_s
        return IDLE_S if soonest is None else min(IDLE_S, max(0.0, soonest - time.monotonic()))

    def _fds(self) -> list[int]:
        blob_fds = [each.fd() for each in (self._reader, self._receiver) if each is not None]
        others = (*self._evaluators.fds(), self._view_answers.fd(), *blob_fds)
        return [*self._watch_fds, *(fd for fd in others if fd is not None)]

    def _noted(
        self, heard: Iterator[tuple[str, Event]], now: Now, events: list[tuple[str, Event]]
    ) -> Iterator[tuple[str, Event]]:
        """Return the same events one by one: the time until the next one is asked for is the cost of an event."""
        for session, event in heard:
            self.recent.append((now.mono_s, session, type(event).__name__))
            if type(event) is m.AskQuestion and type(event.question) is m.Clear and self._function_sweeper is not None:
                self._function_sweeper.is_worth_it = True
            if self._event_log is not None:
                events.append((session, event))
            yield session, event

    def _events(self, ready: set[int], now: Now) -> Iterator[tuple[str, Event]]:
        later, self._next = self._next, []
        # First of all: the tasks that came until now are known to it, and later ones find that the code is gone.
        if self._function_sweeper is not None and (unused := self._function_sweeper.turn(now.mono_s)):
            yield "", UnusedFunctions(unused)
        yield from later
        for fd in ready & self._watch_fds.keys():
            stop = self._watch_fds[fd]()
            if stop is not None:
                yield "", m.AskQuestion(0, stop)
        for peer, heard in self._hub.receive():
            event = _event_of(peer, heard)
            if event is not None:
                if type(event) is m.EngineDown:
                    self._payloads.forget_engine(event.engine)
                if is_direct(event):
                    self._direct.append((peer, event))
                else:
                    if type(event) is Gone and self._receiver is not None:
                        self._receiver.session_ended(peer.session)
                    yield peer.session, event
        for answer in self._evaluators.answers():
            yield "", answer
        if now.mono_s - self._room_checked_s >= ROOM_CHECK_S:
            self._room_checked_s = now.mono_s
            yield "", StoreRoom(self._lack_of_room())
            yield from self._gone_agents()
            if self._retention is not None and (ids := self._retention.due(now.mono_s, now.wall_s)):
                yield "", m.AskQuestion(0, m.Clear(ids, chunks=True))
            if self._blob_sweeper is not None:
                self._blob_sweeper.turn(now.mono_s)
            self._cache_answers.note_uses()
            if self._access is not None:
                self._access.look_after_files()

    def _gone_agents(self) -> Iterator[tuple[str, Event]]:
        """Yield an event for each silent agent whose process is known to be gone. No other one has to be waited for."""
        for agent in list(self._scheduler.farm.agents.by_session.values()):  # the event may remove the agent
            if agent.reachable or agent.process is None or agent.gone:
                continue
            if why := why_gone(agent.process):
                yield agent.session, ProcessGone(why)

    def _lack_of_room(self) -> str | None:
        if harm := self._store.harm():
            text = (
                f"the file of the farm's store, {self._store.path}, {harm} while the farm runs, and what comes now "
                "would be lost with its controller: put the file back, or fetch the results and start the farm again"
            )
            if not self._harmed:
                log.error("%s", text)
            self._harmed = True
            return text
        self._harmed = False
        if self._min_free_bytes and not has_inodes(self._store.path.parent):
            return (
                "the disk that holds the farm's store has no room for further files, its inodes are used up: remove "
                "files, or clear results (`tc.clear()`)"
            )
        free = self._store.free_bytes()
        if free >= self._min_free_bytes:
            return None
        return (
            f"the disk that holds the farm's store has {free / 2**20:,.0f} MiB left, less than the "
            f"{self._min_free_bytes / 2**20:,.0f} MiB kept for results: make room, or clear results (`tc.clear()`)"
        )

    # -- the commit

    def _commit(self, out: Decision) -> None:
        """Commit all saves of a turn at once.

        On a full disk it waits for room: what was received is not acknowledged, and no decision is sent.

        Raises:
            StoreError: the controller was told to end meanwhile, or the store is broken.
        """
        told = False
        while True:
            try:
                fenced = self._store.commit(out.saves)
                break
            except StoreFull as error:
                # Submissions were refused long before (`StoreRoom`). These are mostly results, which agents keep.
                if not told:
                    log.error("%s", error)
                    told = True
                self._wait_for_room(error)
        if fenced:
            log.error("the store refused stale rows of tasks %s", fenced[:20])
        self._payloads.keep(out.saves)
        if self._function_sweeper is not None:
            self._function_sweeper.note(out.saves)
        self._payloads.forget(
            save.final.id
            for save in out.saves
            if type(save) is SaveFinal and (save.final.reason in ABORTS or not save.final.attempts)
        )

    def _wait_for_room(self, full: StoreFull) -> None:
        """Wait for a moment, and tell the peers why: agents keep their engines, users are told what to do."""
        began_s = time.monotonic()
        while (left_s := began_s + FULL_RETRY_S - time.monotonic()) > 0.0:
            for fd in self._hub.put_off(str(full), left_s, list(self._watch_fds)):
                if self._watch_fds[fd]() is not None:
                    raise StoreError(f"the controller was told to end, and there is {full}") from full
        self._full_s += time.monotonic() - began_s

    # -- sending

    def _perform(self, out: Decision) -> None:
        for note in out.notes:
            # Notes contain texts of users. Their further lines are indented, so that none looks like a line of this
            # log.
            log.info("%s", note.replace("\n", "\n    "))
        for session, message in out.sends:
            if session:
                self._send(session, self._completed(session, message))
        for session in out.given_up:
            self._hub.forget(session)
        if out.given_up:
            self._payloads.forget_agents(out.given_up)
        for assignment in out.assignments:
            self._hand_out(assignment.agent, self._payloads.hand_out(assignment))
        if out.cache_results:
            self._cache_answers.keep(out.cache_results)
        if out.cache_mistakes:
            self._cache_answers.forget_results(out.cache_mistakes)
        self._next.extend(("", self._cache_answers.look_up(each)) for each in out.look_ups)
        for load in out.loads:
            began_s = time.monotonic()
            session, reply = self._answer_from_store(load)
            if isinstance(reply, (m.Answer, TaskReply)):
                self._send(session, reply)
            else:
                self._next.append((session, reply))
            self._hub.charge_answer(session, time.monotonic() - began_s)
        for question in out.evaluations:
            self._evaluators.ask(question)
        if out.evaluations:
            self._next.extend(("", answer) for answer in self._evaluators.answers())
        direct, self._direct = self._direct, []
        for peer, event in direct:
            began_s = time.monotonic()
            try:
                self._answer_directly(peer, event)
            except StoreError:
                raise
            except Exception as error:  # of this question alone
                log.exception("a question cannot be answered")
                text = f"the controller cannot answer this: {type(error).__name__}: {text_of(error)}"
                if type(event) is m.AskQuestion:
                    self._send(peer.session, m.Answer(event.n, m.Refusal("KernelError", text)))
            self._hub.charge_answer(peer.session, time.monotonic() - began_s)
        for session, answer in (*self._view_answers.answers(), *self._compaction.step()):
            self._send(session, answer)
        if self._reader is not None:
            self._send_pieces(self._reader)
        for session, written in self._receiver.answers() if self._receiver is not None else ():
            self._send(session, written)

    def _answer_directly(self, peer: Peer, event: Event) -> None:
        session = peer.session
        n, question = (event.n, event.question) if type(event) is m.AskQuestion else (None, event)
        refusal = why_refused(question)
        if refusal is not None:
            if n is not None:
                self._send(session, m.Answer(n, refusal))
        elif isinstance(question, ReadBlob | WriteBlob):
            # A question without a number comes from an agent. One that was given up, or has not introduced itself, gets
            # no answer.
            if n is not None or session in self._scheduler.farm.agents.by_session:
                self._ask_for_blob(peer, n, question)
        elif n is not None and isinstance(question, StoreQuestion):
            answer = self._view_answers.ask(session, peer.title, n, question)
            if answer is not None:
                self._send(session, answer)
        elif n is not None and isinstance(question, m.CompactStore):
            self._compaction.ask(session, n)
        elif n is not None:
            self._send(session, self._direct_answers.answer(n, question))

    def _ask_for_blob(self, peer: Peer, n: int | None, question: ReadBlob | WriteBlob) -> None:
        if isinstance(question, WriteBlob):
            if self._receiver is not None:
                self._receiver.ask(WritePiece(peer.session, peer.title, n, question))
        elif self._reader is not None:
            self._reader.ask(ReadPiece(peer.session, n, question.digest, question.offset, peer.title))

    def _answer_from_store(self, load: Load) -> tuple[str, m.Answer | TaskReply] | tuple[str, Event]:
        """Return the message to send or the event to handle, see `replies.answer`.

        A broken store ends the controller; one question that the store cannot answer does not.
        """
        try:
            return replies.answer(self._store, load)
        except StoreError:
            raise
        except Exception as error:
            log.exception("%s cannot be answered", type(load).__name__)
            return replies.unanswered(load, f"the store cannot answer this: {type(error).__name__}: {text_of(error)}")

    def _hand_out(self, agent: str, message: m.HandOut) -> None:
        try:
            self._hub.send(agent, message)
        except ResultTooLarge as error:
            if len(message.runs) > 1:
                for alone in singly(message):
                    self._hand_out(agent, alone)
            else:
                self._next.append((agent, unsent(message, str(error), time.time())))
        except Exception as error:
            raise MessageFailed(agent, "HandOut", error) from error

    def _send_pieces(self, reader: BlobReader) -> None:
        for session, piece in reader.answers():
            self._hub.send(session, piece)
        reader.go_on(self._hub.backlog_bytes)

    def _send(self, session: str, message: m.Message) -> None:
        try:
            # The end of the task often follows at once, and both then wake the client once.
            self._hub.send(session, message, can_wait=type(message) is m.Accepted)
        except ResultTooLarge as error:
            smaller = list(parts_of(message)) if type(message) is m.Finals else [message]
            if smaller != [message]:
                for part in smaller:
                    self._send(session, part)
                return
            self._hub.send(session, _refused(session, message, f"{error}, or ask for less at once"))
        except Exception as error:
            if type(message) is not m.Answer:
                raise MessageFailed(session, type(message).__name__, error) from error
            log.exception("an answer cannot be sent")
            text = f"the answer cannot be sent: {type(error).__name__}: {text_of(error)}"
            self._hub.send(session, m.Answer(message.n, m.Refusal("KernelError", text)))

    def give_up(self, sessions: list[str], why: str = "its key was revoked") -> None:
        """Tell the scheduler that these sessions never come back."""
        self._next.extend((session, Revoked(why)) for session in sessions)

    def _completed(self, session: str, message: m.Message) -> m.Message:
        """Add the loop's own values to a farm's state; remove results' bodies if they are too much for a client."""
        if type(message) is m.Finals and self._is_much(session, message):
            return m.Finals([msgspec.structs.replace(f, body=None) if f.body else f for f in message.finals])
        if type(message) is m.Answer and type(message.reply) is FarmState:
            state = msgspec.structs.replace(
                message.reply,
                pid=os.getpid(),
                started_s=self._started_s,
                store_bytes=self._store.size_bytes(),
                found=self._found,
            )
            return m.Answer(message.n, state)
        return message

    def _is_much(self, session: str, message: m.Finals) -> bool:
        bodies_bytes = sum([len(final.body) for final in message.finals if final.body])
        return self._hub.backlog_bytes(session) + bodies_bytes > PUSH_BYTES

    def _code_of(self, digest: str) -> bytes | None:
        functions = self._payloads.functions([digest])
        return functions[0].code if functions else None


def _refused(session: str, message: m.Message, why: str) -> m.Message:
    """Return the refusal that replaces an answer which is too large to be sent."""
    if type(message) is m.Answer:
        return m.Answer(message.n, m.Refusal("ResultTooLarge", why))
    if type(message) is TaskReply:
        return TaskReply(message.engine, message.run, message.n, Declined("ResultTooLarge", why))
    raise MessageFailed(session, type(message).__name__, ResultTooLarge(why))


def _event_of(peer: Peer, heard: object) -> Event | None:
    """Translate the hub's events about peers into the scheduler's."""
    if isinstance(heard, PeerNewEpoch):
        return Joined(peer.role, peer.name)
    if isinstance(heard, PeerUp):
        return Back()
    if isinstance(heard, PeerSilent):
        return Silent()
    if isinstance(heard, PeerGone):
        return Gone(heard.said)
    return heard  # type: ignore[return-value]
