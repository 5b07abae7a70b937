"""What was handed in and is not known to be on disk yet, and the ids it is handed in under.

No IO, no lock, no clock of its own: `session.Session` owns one and calls it under its lock.

Tasks gather in *chunks*.  A chunk is handed to the wire as one message and dropped whole once all of
it is accepted; sending one twice is harmless, because the controller knows by its ids what it has.
The order of hand-in is the order of sending, also after a refusal (`Full`) or a new controller:
within a block of ids the controller takes a lower id that comes late for one it has seen.
"""

from __future__ import annotations

from collections import deque

import msgspec

from ..core.messages import Full, IdBlock, Submit
from ..core.messages.dependencies import Needs
from ..core.messages.payload import StringWork
from ..core.messages.task_types import Function, JobSpec, Rules, Submission
from ..core.text import text_of
from ..transport.wire import encode_message

CHUNK_TASKS = 1_000
CHUNK_BYTES = 192 * 1024
"""A chunk is closed when it holds this much: less than a packet of the wire, so that few have to be cut."""

LIMIT_BYTES = 256 * 1024 * 1024
"""`run` waits when so much is not accepted."""

FULL_RETRY_S = 1.0

_TASK_BYTES = 150
"""What a task costs beside its payload."""

_SMALL_FUNCTION_BYTES = 16 * 1024


class SubmitChunk:
    """Tasks of one block of ids, in order, and the functions they need."""

    __slots__ = ("number", "block", "tasks", "functions", "jobs", "size_bytes")

    def __init__(self, number: int, block: int) -> None:
        self.number = number
        """1, 2, 3 … in the order of hand-in."""
        self.block = block
        """First id of the block."""
        self.tasks: list[Submission] = []
        self.functions: dict[str, Function] = {}
        self.jobs: dict[str, JobSpec] = {}
        self.size_bytes = 0

    @property
    def first(self) -> int:
        return self.tasks[0].id

    @property
    def last(self) -> int:
        """Return the last id that is taken, by a task or by an item of a chunk."""
        return self.tasks[-1].id + self.tasks[-1].items


class Outbox:
    """Ids to draw from, chunks to be sent, chunks sent and not accepted."""

    def __init__(self) -> None:
        self.next_id = 0
        self.last_id = -1
        self._block = 0
        self._ask_at = -1
        self._waiting_blocks: deque[tuple[int, int]] = deque()
        self._used_blocks: list[tuple[int, int]] = []
        self.want_ids = False
        """A block should be asked for."""
        self.asked_ids = False
        """A block was asked for and has not come."""
        self._chunks = 0
        """So many were begun."""
        self._open: SubmitChunk | None = None
        self._unsent: deque[SubmitChunk] = deque()
        self._sent: deque[SubmitChunk] = deque()
        self._large_sent: set[str] = set()
        self.size_bytes = 0
        self.full_why: str | None = None
        """The controller's disk is full, in its words."""
        self._full_until_s = 0.0
        self._probe: SubmitChunk | None = None
        """While the disk is full, the one chunk that is sent to ask whether it still is."""

    # Ids

    def has_id(self) -> bool:
        """Return whether an id can be drawn; if not, one block more is wanted."""
        if self.next_id <= self.last_id:
            return True
        if not self._waiting_blocks:
            self.want_ids = True
            return False
        if self.last_id >= 0:
            self._used_blocks.append((self._block, self.last_id))
        self._close()
        first, last = self._waiting_blocks.popleft()
        self._block = self.next_id = first
        self.last_id = last
        self._ask_at = first + (last - first + 1) // 2
        return True

    def block_came(self, block: IdBlock) -> None:
        """The controller gave ids."""
        self.asked_ids = False
        self.want_ids = False
        self._waiting_blocks.append((block.first, block.last))

    def was_handed_in(self, task_id: int) -> bool:
        """Return whether this session gave out this id."""
        if self._block <= task_id <= self.last_id:
            return task_id < self.next_id
        return any(first <= task_id <= last for first, last in self._used_blocks)

    # Handing in

    def add(
        self,
        payload: bytes,
        submitted_s: float,
        function: str | None,
        rules: Rules | None,
        functions: tuple[Function, ...] = (),
        blobs: tuple[str, ...] = (),
        job: JobSpec | None = None,
        needs: Needs | None = None,
        items: int = 0,
    ) -> int:
        """Take the next id (`has_id` was true) and queue the task; returns the id.

        items: how many ids more are taken, for the items of a chunk; there must be as many in the block."""
        chunk = self._open
        if chunk is not None and chunk.tasks and chunk.last >= self.next_id:
            self.next_id = chunk.last + 1  # an earlier call was interrupted half-way, see below
        task_id = self.next_id
        if task_id <= self._ask_at <= task_id + items:
            self.want_ids = True
        size = len(payload) + _TASK_BYTES
        if chunk is not None and size > CHUNK_BYTES:
            self._close()  # a large task travels alone: no message may grow without bound
            chunk = None
        if chunk is None:
            self._chunks += 1
            chunk = self._open = SubmitChunk(self._chunks, self._block)
        for code in functions:
            size += self._take_function(chunk, code)
        if job is not None:
            chunk.jobs[job.id] = job
        # Ctrl-C may come between any two lines. The controller takes the ids of a block without a gap, so the task is
        # queued first and the id counted then; both an id twice and an id never would be worse than a task too many.
        chunk.tasks.append(Submission(task_id, payload, submitted_s, function, rules, blobs, needs, items))
        self.next_id = task_id + 1 + items
        chunk.size_bytes += size
        self.size_bytes += size
        if chunk.size_bytes >= CHUNK_BYTES or len(chunk.tasks) >= CHUNK_TASKS:
            self._close()
        return task_id

    def _take_function(self, chunk: SubmitChunk, code: Function) -> int:
        # Small code goes with every chunk that uses it: the controller may have forgotten it, since
        # clearing the last task of a function clears the function.
        if code.digest in chunk.functions:
            return 0
        size = len(code.code)
        if size > _SMALL_FUNCTION_BYTES:
            if code.digest in self._large_sent:
                return 0
            self._large_sent.add(code.digest)
        chunk.functions[code.digest] = code
        return size

    def forget_functions(self) -> None:
        """Results were cleared, and perhaps functions with them: send the large ones again too."""
        self._large_sent.clear()

    def _close(self) -> None:
        chunk = self._open
        if chunk is not None and chunk.tasks:
            self.next_id = max(self.next_id, chunk.last + 1)
            self._unsent.append(chunk)
            self._open = None

    # Sending

    @property
    def is_empty(self) -> bool:
        """Everything handed in was accepted."""
        return not self._sent and not self.has_unsent()

    def has_unsent(self) -> bool:
        """There is something to send, were there room."""
        return bool(self._unsent) or (self._open is not None and bool(self._open.tasks))

    def mark(self) -> int:
        """Return the number of the last chunk until now; what is added later goes into another one."""
        self._close()
        return self._chunks if self._open is None else self._open.number - 1

    def sent_upto(self) -> int:
        """Return the number of the last chunk that is sent, with all before it."""
        if self._unsent:
            return self._unsent[0].number - 1
        return self._chunks if self._open is None else self._open.number - 1

    def can_send(self) -> bool:
        """Something may be sent now (a probe of a full disk has a time of its own: `next_deadline`)."""
        return self.full_why is None and self.has_unsent()

    def oldest_id(self) -> int:
        """Return the lowest id that is not known to be on disk; beyond all ids when everything is."""
        for chunks in (self._sent, self._unsent):
            if chunks:
                return chunks[0].first
        return self._open.first if self._open is not None and self._open.tasks else self.next_id

    def next_to_send(self, now_s: float) -> SubmitChunk | None:
        """Return the next chunk, on its way from now on; None: nothing, or not now."""
        if self.full_why is not None and (self._probe is not None or now_s < self._full_until_s):
            return None
        if not self._unsent:
            self._close()
            if not self._unsent:
                return None
        chunk = self._unsent.popleft()
        self._sent.append(chunk)
        if self.full_why is not None:
            self._probe = chunk
        return chunk

    def only_sound(self, message: Submit) -> Submit:
        """Return a message that could not be encoded, without what is to blame; it is sent so again, too, if need be.

        In the place of a task that cannot be encoded stands one that raises the reason: its id was given out.
        """
        tasks = message.tasks
        for position, task in enumerate(tasks):
            if why := _unsound(task):
                code = f"raise ValueError({f'this task could not be sent: {why}'!r})"
                payload = msgspec.msgpack.encode(StringWork(code))
                tasks[position] = Submission(task.id, payload, task.submitted_s, items=task.items)
        functions = [function for function in message.functions if not _unsound(function)]
        jobs = [job for job in message.jobs if not _unsound(job)]
        for chunk in self._sent:
            if chunk.tasks is tasks:
                chunk.functions = {function.digest: function for function in functions}
                chunk.jobs = {job.id: job for job in jobs}
        return Submit(tasks, functions, jobs)

    def next_deadline(self) -> float | None:
        """When to send again although nothing happened."""
        return self._full_until_s if self.full_why is not None and self._probe is None else None

    def accepted(self, blocks: list[tuple[int, int]]) -> bool:
        """Drop what is on disk; True if that was anything."""
        upto = dict(blocks)
        before = len(self._sent)
        # Acceptance is in order, so the oldest chunk is always the next one to go.
        while self._sent and upto.get(self._sent[0].block, -1) >= self._sent[0].last:
            chunk = self._sent.popleft()
            self.size_bytes -= chunk.size_bytes
            if chunk is self._probe:
                self._probe = None
                self.full_why = None
        return len(self._sent) < before

    def full(self, refused: Full, now_s: float) -> None:
        """Nothing from that id on was taken: that chunk and all behind it are to be sent again, later."""
        back: list[SubmitChunk] = []
        found = False
        for chunk in self._sent:
            found = found or chunk.first <= refused.first_id <= chunk.last
            if found:
                back.append(chunk)
        if not found:
            return  # of a chunk that came back already, with the one before it
        for _ in back:
            self._sent.pop()
        self._unsent.extendleft(reversed(back))
        self._probe = None
        self.full_why = refused.why
        self._full_until_s = now_s + FULL_RETRY_S

    def new_epoch(self) -> None:
        """Another controller process: it has what was accepted, the rest is to be sent again."""
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._probe = None
        self.full_why = None
        if self.asked_ids:
            self.asked_ids = False
            self.want_ids = True

    def unaccepted_blobs(self) -> set[str]:
        """Digests that only this outbox knows to be needed."""
        chunks = [*self._sent, *self._unsent, *([self._open] if self._open else [])]
        return {digest for chunk in chunks for task in chunk.tasks if task.blobs for digest in task.blobs}

    def unaccepted_ids(self) -> set[int]:
        """Ids of which the controller may know nothing."""
        chunks = [*self._sent, *self._unsent, *([self._open] if self._open else [])]
        return {task.id for chunk in chunks for task in chunk.tasks}


def _unsound(part: Submission | Function | JobSpec) -> str:
    """Why this cannot be encoded; "": it can."""
    try:
        encode_message(part)
    except Exception as error:
        return f"{type(error).__name__}: {text_of(error)}"
    return ""
