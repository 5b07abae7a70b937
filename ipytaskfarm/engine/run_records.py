"""Runs in progress, items of chunks that wait, and the records of ended runs for the flight recorder."""

from __future__ import annotations

import _thread
import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..core.errors import InputsLost, TaskRejectError, TimeLimitExceeded
from ..core.messages import Run
from ..core.messages.payload import CallWork, FailureBody, ResultBody, StringWork
from ..core.messages.running_task import ItemsLeft
from ..core.messages.task_types import (
    Deferral,
    Ended,
    FailureSummary,
    FrozenRun,
    ItemEnd,
    ItemsEnded,
    LostInputs,
    RunKey,
)
from ..core.states import DEFERS, LOSES_INPUTS, Reason
from ..core.text import encoded, text_of
from ..serialization.pack import pack
from ..serialization.shared_values import take_added
from ..storage.blobs import BlobWriter
from ..system.process import own_bytes
from .current import Deferred, details_of
from .edited_modules import EDITED
from .edits import differs_from
from .failures import brief, described
from .map_chunks import ChunkCalls, pack_values
from .plain import source_of
from .sinks import Sink

if TYPE_CHECKING:
    from .child_processes import Brought
    from .current import CurrentTask
    from .map_chunks import ChunkCalls, ItemNames


class RunningAttempt:
    """One run in progress."""

    __slots__ = (
        "run", "work", "sink", "started_s", "begun", "unready", "current", "brought", "reaches", "chunk", "item",
        "raised", "row", "task", "is_open", "frozen",
    )  # fmt: skip

    def __init__(self, run: Run) -> None:
        self.run = run
        self.work: StringWork | CallWork | None = None
        self.sink = Sink()
        self.started_s = time.time()
        self.begun = 0.0
        self.unready = False
        """Its environment could not be set up."""
        self.current: CurrentTask | None = None
        self.brought: Brought | None = None
        """What its arguments brought by value."""
        self.reaches = False
        """Its code looks as if it changed what belongs to the whole process."""
        self.chunk: ChunkCalls | None = None
        """The calls of a chunk of a map."""
        self.item: tuple[ItemNames, int] | None = None
        """Of a run of one item of a map: its names, and its index among them."""
        self.raised: BaseException | None = None
        """What the farm has raised in it: it was aborted, or is over its time limit."""
        self.row = 0
        """Of a coroutine that runs beside others: its row in the flight recorder."""
        self.task: asyncio.Task[None] | None = None
        """Of a coroutine that runs beside others: the loop's task."""
        self.is_open = False
        """Of a coroutine that runs beside others: whether the user's code runs, so that it may be interrupted."""

        self.frozen: FrozenRun | None = None
        """Set if its failure has frozen the engine."""

    @property
    def key(self) -> RunKey:
        """Return the run's key."""
        return self.run.task, self.run.attempt

    def outcome(self) -> Reason:
        """Return the reason of a run that failed."""
        if isinstance(self.raised, TimeLimitExceeded):
            return Reason.TIME_LIMIT
        return Reason.ABORTED if self.raised is not None else Reason.ERROR


class RunRecords:
    """Composes the records of one engine's runs."""

    def __init__(self, pid: int, writer: BlobWriter | None) -> None:
        """Create it; `writer` writes large values, None if they travel inside messages."""
        self._pid = pid
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()

    def record(self, attempt: RunningAttempt, run_s: float, value: bytes | None, error: BaseException | None) -> bytes:
        """Return the bytes for the recorder about a run's end.

        A result is composed even if the run's objects raise errors.
        """
        try:
            return self._compose(attempt, run_s, value, error)
        except BaseException as first:  # an exception's own class may do anything
            problem = first
        reason: str = Reason.ERROR
        if error is not None:
            failure = brief(error, problem)
            reason = self.outcome(attempt, error)
        elif isinstance(problem, (OverflowError, MemoryError)):  # msgpack's own limit is 4 GiB
            size = len(value) if value is not None else 0
            failure = FailureSummary("ResultTooLarge", f"a result of {size} bytes cannot be sent: {text_of(problem)}")
            reason = Reason.TOO_LARGE
        else:
            failure = brief(problem, problem)
        run = attempt.run
        body = self._encoder.encode(ResultBody(None, FailureBody(failure.etype, failure.value)))
        word = None
        if error is not None:
            try:
                word = details_of(error, reason)
            except Exception:  # perhaps the reason why `_compose` has failed: then this is an error like others
                reason = Reason.ERROR
        ended = Ended(
            run.task, run.attempt, reason, attempt.started_s, run_s, failure, body, detail=word, frozen=attempt.frozen
        )
        return encoded(self._encoder.encode, ended)

    def _compose(
        self, attempt: RunningAttempt, run_s: float, value: bytes | None, error: BaseException | None
    ) -> bytes:
        run, sink = attempt.run, attempt.sink
        failure: FailureSummary | None = None
        body_failure = None
        outcome = ""
        if attempt.chunk is not None:
            if error is not None and attempt.raised is not None:
                attempt.chunk.interrupted(attempt.raised)
                value, error = pack_values(attempt.chunk, self._writer), None
            if error is None:
                return self._compose_chunk(attempt, attempt.chunk, run_s, value)
        if error is not None and attempt.item is not None:
            names, index = attempt.item
            names.note_on(error, index)
        word: Deferral | LostInputs | None = None
        if error is not None and attempt.raised is not None:
            # whatever it was turned into on its way: a CancelledError, an error in a clean-up
            error = attempt.raised
        if error is not None:
            outcome = self.outcome(attempt, error)
            word = details_of(error, outcome)
            failure, body_failure = described(error, *source_of(attempt.work))
        kind, outdated = "names", ""
        if isinstance(attempt.work, CallWork):
            kind = "raw" if attempt.work.raw else "call"
            if attempt.work.content or EDITED.kept_old:
                outdated = differs_from(attempt.work.content)
        body = ResultBody(
            value,
            body_failure,
            sink.stdout.text() if sink.stdout is not None else "",
            sink.stderr.text() if sink.stderr is not None else "",
            sink.outputs if sink.outputs is not None else [],
            attempt.current.calls.progress if attempt.current is not None else None,
            (take_added() or None) if error is None else None,
            kind,
        )
        packed = self.pack_body(body)
        blobs = self._writer.taken() if self._writer is not None else ()
        memory = own_bytes(self._pid) if run.measured else 0
        ended = Ended(
            run.task, run.attempt, outcome, attempt.started_s, run_s, failure, packed, blobs, memory, word,
            attempt.frozen, outdated,
        )  # fmt: skip
        return self._encoder.encode(ended) if failure is None else encoded(self._encoder.encode, ended)

    def _compose_chunk(self, attempt: RunningAttempt, chunk: ChunkCalls, run_s: float, value: bytes | None) -> bytes:
        """Return the record of a chunk that has ended, perhaps early.

        What failed, was slow or has written something is told as if it had run alone."""
        run, sink = attempt.run, attempt.sink
        told = chunk.told(sink.item_outputs(), run_s, self.pack_body, self._writer)
        if len(told) > len(chunk.failed):
            value = pack(chunk.values, "value", self._writer)
        body = ResultBody(value, accumulated=take_added() or None, kind="call")
        packed_body = self.pack_body(body)
        blobs = self._writer.taken() if self._writer is not None else ()
        memory = own_bytes(self._pid) if run.measured else 0
        how = ItemsEnded(len(chunk.values), told)
        ended = Ended(
            run.task, run.attempt, "", attempt.started_s, run_s, None, packed_body, blobs, memory, how, attempt.frozen
        )
        return self._encoder.encode(ended) if not told else encoded(self._encoder.encode, ended)

    def pack_body(self, body: ResultBody) -> bytes:
        """Return an encoded result. Text in it that is not UTF-8 is escaped.

        If displays or progress cannot be encoded at all, they are left out: a run that has succeeded stays a success.
        """
        try:
            return self._encoder.encode(body)
        except Exception:
            pass
        try:
            return encoded(self._encoder.encode, body)
        except Exception:
            bare = msgspec.structs.replace(body, outputs=[], progress=None)
            return encoded(self._encoder.encode, bare)

    def outcome(self, attempt: RunningAttempt, error: BaseException) -> str:
        """Return the outcome of a run that has ended with an error, as in `Ended`."""
        kind = type(error)  # isinstance would use the error's own class, which may raise
        if issubclass(kind, TaskRejectError):
            return Reason.REJECTED
        if issubclass(kind, Deferred):
            return DEFERS
        if issubclass(kind, InputsLost):
            return LOSES_INPUTS
        if attempt.unready and attempt.raised is None:
            return Reason.ENVIRONMENT
        return attempt.outcome()


WAITS_S = 0.5
"""An item that has run for this many seconds waits, if it was busy for less than this share of them."""
BUSY = 0.1
LONG_S = 5.0
"""An item that computes is left with its engine after this many seconds: perhaps it waits in a loop."""


class ItemWatch:
    """What an engine's lane has seen of the item that runs.

    Items of one chunk run one after another. If one waits for another one, or for something that only happens when a
    value of an earlier one has arrived, it would wait for ever. So while an item waits, the values before it are sent,
    and the items behind it go to other engines. See docs/decisions/0087.

    send: sends a message to the agent; any thread may call it. encode: encodes the result of an item.
    """

    def __init__(self, engine: str, send: Callable[[ItemsLeft], None], encode: Callable[[ResultBody], bytes]) -> None:
        self._engine = engine
        self._send = send
        self._encode = encode
        self._seen: tuple[RunKey, int] | None = None
        """The chunk's run, and the item that ran at the last look."""
        self._since_s = self._busy_s = 0.0

    def look(self, attempt: RunningAttempt, chunk: ChunkCalls) -> None:
        """Look at the item that runs.  The lane's thread calls this 20 times a second."""
        if chunk.is_left:
            return
        now_s, busy_s = time.monotonic(), main_busy_s()
        seen = attempt.key, len(chunk.values)
        if seen != self._seen:
            self._seen, self._since_s, self._busy_s = seen, now_s, busy_s
            return
        run_s = now_s - self._since_s
        waits = run_s >= WAITS_S and busy_s - self._busy_s < BUSY * run_s
        if waits or run_s >= LONG_S:
            values = chunk.leave_rest()
            # Values have code of their own, which may wait for anything: the lane's thread must not.
            _thread.start_new_thread(self._tell, (attempt, chunk, values))

    def _tell(self, attempt: RunningAttempt, chunk: ChunkCalls, values: list[Any]) -> None:
        told: list[ItemEnd] = []
        try:
            chunk.tell_before(values, attempt.sink.item_outputs(), self._encode, told)
        except Exception:  # of the others, the chunk's end tells
            pass
        self._send(ItemsLeft(self._engine, attempt.key, len(values), told))


def main_busy_s() -> float:
    """Return the seconds for which the main thread has computed, or has waited for a core to do so."""
    try:
        computed_ns, queued_ns, _ = Path(f"/proc/self/task/{os.getpid()}/schedstat").read_text().split()
        return (int(computed_ns) + int(queued_ns)) / 1e9
    except (OSError, ValueError):  # not every kernel tells
        ident = threading.main_thread().ident
        assert ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(ident))
