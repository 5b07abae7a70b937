"""Transfer of hand-outs to the engines and of results to the controller, without loss and in order.

A message that must arrive is kept here, or in a flight recorder, until the controller has acknowledged it, that is, has
it on disk. Within an epoch the transport repeats lost packets. A restarted controller (a new epoch) knows none of them,
and `Relay.restate` sends all kept messages again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Set
from enum import Enum
from typing import TYPE_CHECKING, Any, cast, get_type_hints

import msgspec

from ..core.errors import ResultTooLarge
from ..core.messages import AgentMessage, AgentState, CommandDone, EngineDown, HandOut, Results, Returned
from ..core.messages.payload import FailureBody, ResultBody
from ..core.messages.running_task import ItemsLeft
from ..core.messages.task_types import Ended, FailureSummary, Incarnation, RunKey
from ..core.states import Reason
from ..core.text import text_of
from ..system.flight_recorder import Record, Recorder, RecorderDamaged
from ..transport.message_parts import COUNTED_BYTES
from ..transport.reliable_session import MAX_MESSAGE_BYTES
from ..transport.wire import READABLE

if TYPE_CHECKING:
    from ..transport.peer import Link

log = logging.getLogger(__name__)

READ_MAX = 1000
"""The most records that are taken from a ring at once."""
MESSAGE_BYTES = COUNTED_BYTES - (64 << 10)
"""Results are gathered into messages of at most this size; a larger result is sent alone. So a message that the
controller refuses for its many values has one result."""
ANSWER_BYTES_MAX = MAX_MESSAGE_BYTES - 4096
"""The most bytes of a command's answer, without the names sent with it."""
UNRUNG_S = 0.1
"""How long results wait for the bell. An engine with other work lets its results gather for as long."""
UNACKED_BYTES_MAX = 16 << 20
"""Beyond this, results stay in the recorders, so that a slow or absent controller costs no memory here."""


class RunProgress(Enum):
    """The progress of a run that was handed to an engine.

    It is forgotten when the controller has acknowledged the answer.
    """

    OPEN = "no answer yet"
    ENDED = "its end was sent"
    RETURNED = "given back unrun"
    KNOWN = "the controller has its end (kept only where it is not known what was handed out)"


_OPEN, _ENDED = RunProgress.OPEN, RunProgress.ENDED
"""Access to a member of an enumeration takes long, compared with the code that is run for each task."""


class Account:
    """The runs that one engine was given, and those among them that it has answered."""

    def __init__(self, engine: Incarnation, recorder: Recorder, former: bool = False) -> None:
        """Create it; `former` says that the engine is a dead one of a former agent, so that its runs are not known."""
        self.engine = engine
        self.recorder = recorder
        self.former = former
        self.open_runs = 0
        self.ended_runs = 0
        self.has_more = False
        """Whether the last `read` stopped at its limit, so that there may be more."""
        self.damaged = False
        """Whether the recorder cannot be read: then every open run may have run."""
        self.spoiled = ""
        """What a task has done to the recorder although it can be read, so that the engine must end; "": nothing."""
        self._runs: dict[RunKey, RunProgress] = {}

    def hand(self, runs: Iterable[RunKey]) -> None:
        """Record runs that are sent to the engine."""
        before = len(self._runs)
        self._runs.update(dict.fromkeys(runs, _OPEN))
        self.open_runs += len(self._runs) - before

    def is_open(self, run: RunKey) -> bool:
        """Return whether a run was given to the engine and not answered."""
        return self._runs.get(run, _OPEN if self.former else None) is _OPEN

    def read(self) -> list[tuple[list[msgspec.Raw], Receipt]]:
        """Return the next ended runs of the ring, still encoded, in the order of their ends; empty if there are no
        more.
        """
        portions: list[tuple[list[msgspec.Raw], Receipt]] = []
        while not portions and not self.damaged and self.recorder.unread:
            try:
                records = self.recorder.read(READ_MAX, MESSAGE_BYTES)
                self.has_more = len(records) == READ_MAX or sum(len(r.data) for r in records) >= MESSAGE_BYTES
                portions = self._portions(records)
            except RecorderDamaged as error:
                log.error("engine %s: %s", self.engine, error)
                self.damaged = True
        return portions

    def _portions(self, records: list[Record]) -> list[tuple[list[msgspec.Raw], Receipt]]:
        portions: list[tuple[list[msgspec.Raw], Receipt]] = []
        ended: list[msgspec.Raw] = []
        runs: list[RunKey] = []
        size, cursor = 0, 0
        known, absent = self._runs, _OPEN if self.former else None
        for record_end, task, attempt, record in records:
            run = (task, attempt)
            if known.get(run, absent) is not _OPEN:
                continue  # a run ends once
            known[run] = _ENDED
            self.ended_runs += 1
            try:
                sound = checked(record, run)
            except RecordUnreadable as error:
                sound = self._replaced(run, str(error))
            if ended and size + len(sound) > MESSAGE_BYTES:
                portions.append((ended, Receipt(self, cursor, runs)))
                ended, runs, size = [], [], 0
            ended.append(msgspec.Raw(sound))
            runs.append(run)
            size += len(sound)
            cursor = record_end
        if ended:
            portions.append((ended, Receipt(self, records[-1][0], runs)))
        if not self.former:
            self.open_runs -= sum(len(portion) for portion, _ in portions)
        return portions

    def _replaced(self, run: RunKey, why: str) -> bytes:
        """Return what the controller is told instead of a record that cannot be read."""
        log.error("engine %s: the record of attempt %d of task %d cannot be read: %s", self.engine, run[1], run[0], why)
        self.spoiled = self.spoiled or f"the record of the end of task {run[0]} in its flight recorder was spoiled"
        return failed(run, why, time.time())

    def give_back(self, runs: Iterable[RunKey]) -> list[RunKey]:
        """Record runs that the engine returns unrun, and return those that were open."""
        was_open = [run for run in runs if self.is_open(run)]
        for run in was_open:
            self._runs[run] = RunProgress.RETURNED
        self.open_runs -= len(was_open)
        return was_open

    def forget(self, runs: Iterable[RunKey]) -> None:
        """Forget runs whose answers the controller has on disk."""
        for run in runs:
            if self.former:
                self._runs[run] = RunProgress.KNOWN
            else:
                self._runs.pop(run, None)

    def rewind(self) -> None:
        """Prepare to read everything again that was not acknowledged."""
        if self.damaged:
            return
        self.recorder.close()
        try:
            self.recorder = Recorder.open(self.recorder.path)
        except (OSError, RecorderDamaged) as error:
            log.error("engine %s: %s", self.engine, error)
            self.damaged = True
            return
        for run, what in self._runs.items():
            if what is _ENDED:
                self._runs[run] = _OPEN
                self.open_runs += not self.former

    def unacknowledged(self) -> list[RunKey]:
        """Return the runs for which the controller may lack the answer, in the order in which they were handed out.

        That includes answers under way: a restarted controller must not assume that a run never arrived here while its
        result is in the next message.
        """
        return list(self._runs)

    def running(self) -> RunKey | None:
        """Return the run that a dead engine was executing.  Valid only after `read` has returned nothing."""
        current = None if self.damaged else self.recorder.current()
        return current.run if current is not None and self.is_open(current.run) else None

    def concurrent_runs(self) -> list[RunKey]:
        """Return the coroutine tasks that a dead engine was executing, like `running`."""
        if self.damaged:
            return []
        return [each.run for each in self.recorder.concurrent.read() if self.is_open(each.run)]


class Receipt:
    """The token of results: the link returns it when the controller has them on disk."""

    __slots__ = ("account", "cursor", "runs")

    def __init__(self, account: Account, cursor: int, runs: list[RunKey]) -> None:
        self.account = account
        self.cursor = cursor
        self.runs = runs

    def settle(self) -> None:
        """Free the results' room in the engine's ring."""
        if not self.account.damaged:
            self.account.recorder.release(self.cursor)
        self.account.forget(self.runs)


class Forwarded:
    """The token of an engine's message that may be lost with a controller."""

    __slots__ = ("engine", "size")

    def __init__(self, engine: Incarnation) -> None:
        self.engine = engine
        self.size = 0


class Kept:
    """A message that is sent again in each new epoch until it is acknowledged."""

    __slots__ = ("account", "message", "number", "size")

    def __init__(self, number: int, message: Returned | ItemsLeft | CommandDone | EngineDown, account: Account) -> None:
        self.number = number
        self.message = message
        self.account = account
        self.size = 0


class Relay:
    """Exchanges messages with the controller through the agent's one `Link`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._introduced = False
        self._kept: dict[int, Kept] = {}
        self._number = 0
        self.lost_acked: list[Incarnation] = []
        """Engines whose loss the controller has on disk; the caller removes them."""
        self._traffic = EngineTraffic()

    @property
    def full_engines(self) -> Set[Incarnation]:
        """Return the engines of which nothing more may be forwarded now."""
        return self._traffic.full

    @property
    def is_up(self) -> bool:
        """Return whether the controller is connected and has this agent's state."""
        return self._introduced and self._link.is_up

    @property
    def delivered(self) -> bool:
        """Return whether all kept messages were acknowledged."""
        return not self._kept

    def say(self, message: AgentMessage) -> str:
        """Send a message that may be lost with a controller, or that `AgentState` repeats.

        Returns the reason why it can never be sent, or "".
        """
        if self._introduced:
            return self._send(message)
        return ""

    def forward(self, engine: Incarnation, message: AgentMessage) -> str:
        """Send a message of an engine that may be lost with a controller, like `say`."""
        if self._introduced:
            return self._send_of(engine, message, Forwarded(engine))
        return ""

    def _send_of(self, engine: Incarnation, message: AgentMessage, token: Forwarded | Kept) -> str:
        """Do the same as `_send`, and count the message as the engine's."""
        before = self._link.unacked_bytes
        why = self._send(message, token)
        if not why:
            token.size = self._link.unacked_bytes - before
            self._traffic.sent(engine, token.size)
        return why

    def _send(self, message: AgentMessage, token: object | None = None) -> str:
        """Give a message to the link. Return the reason why it can never be sent, or ""; such a message is dropped."""
        try:
            self._link.send(message, token)
        except Exception as error:
            log.error("%s cannot be sent: %s", type(message).__name__, text_of(error))
            return text_of(error)
        return ""

    def keep(self, message: Returned | ItemsLeft | CommandDone | EngineDown, account: Account) -> None:
        """Send a message that must arrive."""
        if isinstance(message, CommandDone) and len(message.body) > ANSWER_BYTES_MAX:
            message = _unanswered(message)
        self._number += 1
        kept = self._kept[self._number] = Kept(self._number, message, account)
        if self._introduced and (why := self._send_of(account.engine, message, kept)):
            del self._kept[kept.number]
            if isinstance(message, CommandDone) and message.ok:
                self.keep(_failed(message, "KernelError", f"the answer cannot be sent: {why}"), account)

    def collect(self, account: Account, is_dead: bool = False) -> bool:
        """Send the results in an engine's ring, and return whether all were sent.

        `is_dead` says to read until the ring is empty; a living engine could add results forever, a few for each
        message.
        """
        while self.is_up and self._link.unacked_bytes < UNACKED_BYTES_MAX:
            portions = account.read()
            if not portions:
                return True
            for ended, receipt in portions:
                self._send_results(account, ended, receipt)
            if not is_dead and not account.has_more:
                return True
        return False

    def _send_results(self, account: Account, ended: list[msgspec.Raw], receipt: Receipt) -> None:
        try:
            # Raw records in place of `Ended`: the encoder copies them as they are.
            self._link.send(Results(account.engine, cast(list[Ended], ended)), receipt)
        except ResultTooLarge as error:
            # Only a single result can be too large, because it is sent alone.
            self._link.send(Results(account.engine, [_too_large(ended[0], error)]), receipt)

    def give_back(self, account: Account, message: Returned) -> None:
        """Report the runs that an engine returned unrun."""
        runs = account.give_back(message.runs)
        if runs:
            self.keep(Returned(account.engine, runs, message.why), account)

    def hand_out(self, account: Account, message: HandOut) -> memoryview:
        """Record a hand-out, and return its batch, which is forwarded without being decoded."""
        account.hand(message.runs)
        return memoryview(message.batch)

    def acked(self, token: object) -> None:
        """Record that the controller has the message with this token on disk."""
        if isinstance(token, Receipt):
            token.settle()
        elif isinstance(token, Forwarded):
            self._traffic.arrived(token.engine, token.size)
        elif isinstance(token, Kept):
            del self._kept[token.number]
            self._traffic.arrived(token.account.engine, token.size)
            if isinstance(token.message, Returned):
                token.account.forget(token.message.runs)
            elif isinstance(token.message, EngineDown):
                self.lost_acked.append(token.message.engine)

    def restate(self, state: AgentState, accounts: Iterable[Account]) -> None:
        """Send the agent's state and all unacknowledged messages, in a new epoch.

        Losses are not repeated here: each has to follow the results of its engine, see `EngineProcesses.report_losses`.
        """
        self._introduced = True
        self._traffic.begin()
        self._link.send(state)
        for account in accounts:
            account.rewind()
            self.collect(account)
        for number, kept in list(self._kept.items()):
            if isinstance(kept.message, EngineDown):
                del self._kept[number]
            else:
                self._send_of(kept.account.engine, kept.message, kept)


class UnrungResults:
    """Notices results that have waited for too long: a ring was lost, or the engine's code does not let it ring."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def are_due(self, found: bool, now_s: float) -> bool:
        """Return whether results must be read now. `found`: whether there are any that were not read."""
        if not found:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= UNRUNG_S

    def read(self) -> None:
        """Note that all results were read."""
        self._since_s = None


def _unanswered(answer: CommandDone) -> CommandDone:
    """Return the refusal for an answer that is larger than a message may be."""
    text = (
        f"the answer has {len(answer.body):,} bytes, more than the {ANSWER_BYTES_MAX:,} that one may have from a "
        "machine that does not see the farm's folder: pull it in pieces, or write it to a file"
    )
    return _failed(answer, "ResultTooLarge", text)


def _failed(answer: CommandDone, etype: str, text: str) -> CommandDone:
    body = msgspec.msgpack.encode(FailureBody(etype, text))
    return CommandDone(answer.engine, answer.session, answer.n, False, body)


def _too_large(record: msgspec.Raw, error: ResultTooLarge) -> Ended:
    """Return the end of a run whose result is larger than a message may be."""
    ended = msgspec.msgpack.decode(record, type=Ended)
    failure = FailureSummary("ResultTooLarge", str(error))
    # Without its details: these may be what is too large, as the ends of thousands of items.
    return Ended(ended.task, ended.attempt, Reason.TOO_LARGE.value, ended.started_s, ended.run_s, failure)


MESSAGES_MAX, BYTES_MAX = 128, 256 << 10
"""An engine with so much on its way is not read. One message may be larger."""


class EngineTraffic:
    """How many messages and bytes of each engine the controller has not acknowledged.

    All engines of a node share the agent's one session, in which messages keep their order, and one engine's messages
    must not delay those of others. So each engine may have a few in it. An engine with more is not read until the
    controller has handled some.
    """

    def __init__(self) -> None:
        self._under_way: dict[Incarnation, tuple[int, int]] = {}
        self._full: set[Incarnation] = set()

    @property
    def full(self) -> Set[Incarnation]:
        """Return the engines that must wait."""
        return self._full

    def sent(self, engine: Incarnation, size: int) -> None:
        """Note that a message of an engine was sent to the controller."""
        self._set(engine, 1, size)

    def arrived(self, engine: Incarnation, size: int) -> None:
        """Note that the controller has handled a message."""
        if engine in self._under_way:
            self._set(engine, -1, -size)

    def begin(self) -> None:
        """Forget everything: in a new epoch nothing is on its way."""
        self._under_way.clear()
        self._full.clear()

    def _set(self, engine: Incarnation, messages: int, size: int) -> None:
        before = self._under_way.get(engine, (0, 0))
        count, total = before[0] + messages, before[1] + size
        if count <= 0:
            self._under_way.pop(engine, None)
        else:
            self._under_way[engine] = count, total
        if count >= MESSAGES_MAX or total >= BYTES_MAX:
            self._full.add(engine)
        else:
            self._full.discard(engine)


class RecordUnreadable(Exception):
    """A record is none of its run. The text says why. The error does not leave the agent."""


def _without_body() -> type[Any]:
    """Return a type like `Ended` whose body, which may be large, is not copied when a record is read."""
    types = get_type_hints(Ended)
    fields: list[Any] = []
    required = len(Ended.__struct_fields__) - len(Ended.__struct_defaults__)
    for index, name in enumerate(Ended.__struct_fields__):
        kind = memoryview if name == "body" else types[name]
        fields.append((name, kind) if index < required else (name, kind, Ended.__struct_defaults__[index - required]))
    return msgspec.defstruct("EndedRecord", fields, array_like=True, gc=False, frozen=True)


_decode = msgspec.msgpack.Decoder(_without_body()).decode
_encode = msgspec.msgpack.Encoder().encode
_WHOLE = 0x90 | len(Ended.__struct_fields__)
"""The first byte of a record that has all fields, and nothing behind them."""


def checked(record: bytes, run: RunKey) -> bytes:
    """Return a record in the form in which the controller can read it.

    Tasks run in engines, and may write anything. The controller refuses an agent that sends what cannot be read.

    Raises:
        RecordUnreadable: it is no record of this run.
    """
    try:
        ended = _decode(record)
    except READABLE as error:
        raise RecordUnreadable(str(error)) from None
    if (ended.task, ended.attempt) != run:
        raise RecordUnreadable(f"it is of attempt {ended.attempt} of task {ended.task}")
    if record[0] == _WHOLE and ended.failure is None and ended.detail is None and ended.frozen is None:
        return record
    # Written anew: what stands in the record beside the known fields is skipped here, but may be too deep for others.
    return _encode(ended)


def failed(run: RunKey, why: str, now_s: float) -> bytes:
    """Return the record that replaces an unreadable one: the run has failed. `now_s` is the wall clock's time."""
    text = (
        f"the engine's record of the end of this run cannot be read ({why:.300}), so the run counts as failed and its "
        "engine is replaced: code that ran on it has written into the engine's own objects or files"
    )
    body = _encode(ResultBody(None, FailureBody("TaskError", text)))
    return _encode(Ended(*run, Reason.ERROR.value, now_s, 0.0, FailureSummary("TaskError", text), body))
