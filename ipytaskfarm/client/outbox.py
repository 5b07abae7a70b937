"""Hold the tasks that were submitted and are not yet on the controller's disk, and the ids to give to new tasks.

The module does no IO and has neither a lock nor a clock: `session.Session` owns one `Outbox` and calls it under the
session's lock.

Tasks gather in *chunks*.  A chunk is sent as one message, and dropped when the controller has accepted all of its
tasks.  Sending a chunk twice is harmless, because the controller recognises the ids.  Chunks are always sent in the
order of submission, also after a refusal (`Full`) and to a new controller process: within a block of ids the controller
ignores an id lower than one that it has seen.
"""

from __future__ import annotations

from collections import deque

import msgspec

from ..core import errors
from ..core.messages import Full, IdBlock, Submit
from ..core.messages.payload import StringWork
from ..core.messages.task_types import LARGE_CODE_SENT, SENT_AGAIN_BYTES, Function, JobSpec, Needs, Packed, Submission
from ..core.text import text_of
from ..transport.reliable_session import CLIENT_MESSAGE_BYTES
from ..transport.wire import encode_message

CHUNK_TASKS = 1_000
CHUNK_BYTES = 192 * 1024
"""Bytes at which a chunk is closed: less than a packet of the transport, so few chunks are split."""

LIMIT_BYTES = 256 * 1024 * 1024
"""Bytes of unaccepted tasks at which `run` waits."""

FULL_RETRY_S = 1.0

_TASK_BYTES = 150
"""Estimated bytes of a submission without its payload."""


class SubmitChunk:
    """Hold consecutive tasks of one block of ids, and the functions and jobs that they refer to."""

    __slots__ = ("number", "block", "tasks", "functions", "jobs", "size_bytes")

    def __init__(self, number: int, block: int) -> None:
        self.number = number
        """1, 2, 3 … in the order of submission."""
        self.block = block
        """The first id of the block."""
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
    """Hold ids for new tasks, chunks that are not sent yet, and chunks that are sent but not accepted."""

    def __init__(self) -> None:
        self.next_id = 0
        self.last_id = -1
        self._block = 0
        self._ask_at = -1
        self._waiting_blocks: deque[tuple[int, int]] = deque()
        self._used_blocks: list[tuple[int, int]] = []
        self.want_ids = False
        """Whether the IO thread should ask for a block of ids."""
        self.asked_ids = False
        """Whether a block of ids was asked for and has not arrived."""
        self._chunks = 0
        """Number of chunks that were begun."""
        self._open: SubmitChunk | None = None
        self._unsent: deque[SubmitChunk] = deque()
        self._sent: deque[SubmitChunk] = deque()
        self._large_sent: dict[str, None] = {}
        """The large functions that were sent last, and are not sent again."""
        self.size_bytes = 0
        self.full_why: str | None = None
        """The controller's message when its disk is full; None: it accepts tasks."""
        self._full_until_s = 0.0
        self._probe: SubmitChunk | None = None
        """While the disk is full: the only chunk that is sent, to find out whether it is still full."""

    # Ids

    def has_id(self) -> bool:
        """Return whether there is an id for a new task; otherwise ask for one more block."""
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
        """Add a block of ids from the controller."""
        self.asked_ids = False
        self.want_ids = False
        self._waiting_blocks.append((block.first, block.last))

    def was_submitted(self, task_id: int) -> bool:
        """Return whether this session submitted a task with this id."""
        if self._block <= task_id <= self.last_id:
            return task_id < self.next_id
        return any(first <= task_id <= last for first, last in self._used_blocks)

    def is_free(self, task_id: int) -> bool:
        """Return whether this id is this session's own, for a task that it has not submitted yet."""
        in_block = self.next_id <= task_id <= self.last_id
        return in_block or any(first <= task_id <= last for first, last in self._waiting_blocks)

    # Submitting

    def add(self, packed: Packed, submitted_s: float, job: JobSpec | None = None, needs: Needs | None = None) -> int:
        """Queue a task under the next id, and return this id. `has_id` must have returned True.

        A chunk's items take as many ids more, and the block must have them.

        needs: its dependencies, which count in the place of those in `packed`.
        """
        chunk = self._open
        if chunk is not None and chunk.tasks:
            latest = chunk.tasks[-1]
            if latest.id + latest.items >= self.next_id:
                self.next_id = chunk.last + 1  # an earlier call was interrupted half-way, see below
        task_id = self.next_id
        payload, items = packed.payload, packed.items
        if task_id <= self._ask_at <= task_id + items:
            self.want_ids = True
        size = len(payload) + _TASK_BYTES
        if chunk is not None and size > CHUNK_BYTES:
            self._close()  # a large task is a chunk of its own, so that messages stay bounded
            chunk = None
        if chunk is None:
            self._chunks += 1
            chunk = self._open = SubmitChunk(self._chunks, self._block)
        for code in packed.functions:
            size += self._take_function(chunk, code)
        if job is not None:
            chunk.jobs[job.id] = job
        # Ctrl-C may interrupt between any two lines. The controller expects the ids of a block without a gap. So the
        # task is queued before the id is counted: an extra task is better than an id that is used twice or never.
        chunk.tasks.append(
            Submission(
                task_id,
                payload,
                submitted_s,
                packed.function,
                packed.rules,
                packed.blobs,
                needs,
                items,
                None,
                packed.cache,
            )
        )
        self.next_id = task_id + 1 + items
        chunk.size_bytes += size
        self.size_bytes += size
        if chunk.size_bytes >= CHUNK_BYTES or len(chunk.tasks) >= CHUNK_TASKS:
            self._close()
        return task_id

    def _take_function(self, chunk: SubmitChunk, code: Function) -> int:
        # Small code is sent with every chunk that uses it: the controller drops a function with its last task, and may
        # not have it any more.
        if code.digest in chunk.functions:
            return 0
        size = len(code.code)
        if size > SENT_AGAIN_BYTES:
            if code.digest in self._large_sent:
                return 0
            self._large_sent[code.digest] = None
            if len(self._large_sent) > LARGE_CODE_SENT:
                del self._large_sent[next(iter(self._large_sent))]
        chunk.functions[code.digest] = code
        return size

    def forget_functions(self) -> None:
        """Send large functions again from now on: the controller may have dropped functions."""
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
        """Return whether all submitted tasks were accepted."""
        return not self._sent and not self.has_unsent()

    def has_unsent(self) -> bool:
        """Return whether there are tasks that were not sent."""
        return bool(self._unsent) or (self._open is not None and bool(self._open.tasks))

    def mark(self) -> int:
        """Close the open chunk, and return the number of the last chunk.  Later tasks go into another chunk."""
        self._close()
        return self._chunks if self._open is None else self._open.number - 1

    def sent_upto(self) -> int:
        """Return the highest number up to which all chunks were sent."""
        if self._unsent:
            return self._unsent[0].number - 1
        return self._chunks if self._open is None else self._open.number - 1

    def can_send(self) -> bool:
        """Return whether a chunk may be sent now.  While the disk is full, `next_deadline` tells when to try again."""
        return self.full_why is None and self.has_unsent()

    def oldest_id(self) -> int:
        """Return the lowest id that was not accepted, or the next free id when all tasks were accepted."""
        for chunks in (self._sent, self._unsent):
            if chunks:
                return chunks[0].first
        return self._open.first if self._open is not None and self._open.tasks else self.next_id

    def next_to_send(self, now_s: float) -> SubmitChunk | None:
        """Return the next chunk and count it as sent; None when there is no chunk, or when it may not be sent yet."""
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
        """Return a message that failed to encode without the parts that cannot be encoded; later sends leave them out
        too.

        A task that cannot be encoded is replaced by one that raises the reason, because its id was given out already.
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
        """Return when to send again after a refusal; None: no retry is due."""
        return self._full_until_s if self.full_why is not None and self._probe is None else None

    def accepted(self, blocks: list[tuple[int, int]]) -> bool:
        """Drop the chunks that the controller has accepted; return whether there were any.

        blocks: (first id of the block, last accepted id) pairs.
        """
        upto = dict(blocks)
        before = len(self._sent)
        # The controller accepts tasks in order, so only the oldest chunk has to be checked.
        while self._sent and upto.get(self._sent[0].block, -1) >= self._sent[0].last:
            chunk = self._sent.popleft()
            self.size_bytes -= chunk.size_bytes
            if chunk is self._probe:
                self._probe = None
                self.full_why = None
        return len(self._sent) < before

    def full(self, refused: Full, now_s: float) -> None:
        """Queue the chunk with the first refused id, and all chunks behind it, to be sent again after
        `FULL_RETRY_S`.
        """
        back: list[SubmitChunk] = []
        found = False
        for chunk in self._sent:
            found = found or chunk.first <= refused.first_id <= chunk.last
            if found:
                back.append(chunk)
        if not found:
            return  # this chunk is already queued again: an earlier refusal included it
        for _ in back:
            self._sent.pop()
        self._unsent.extendleft(reversed(back))
        self._probe = None
        self.full_why = refused.why
        self._full_until_s = now_s + FULL_RETRY_S

    def new_epoch(self) -> None:
        """Queue all unaccepted chunks again, because a new controller process knows only the accepted tasks."""
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self.forget_functions()
        self._probe = None
        self.full_why = None
        if self.asked_ids:
            self.asked_ids = False
            self.want_ids = True

    def unaccepted_blobs(self) -> set[str]:
        """Return the digests of blobs that unaccepted tasks need; the controller does not know of this need yet."""
        chunks = [*self._sent, *self._unsent, *([self._open] if self._open else [])]
        return {digest for chunk in chunks for task in chunk.tasks if task.blobs for digest in task.blobs}

    def unaccepted_ids(self) -> set[int]:
        """Return the ids of all unaccepted tasks."""
        chunks = [*self._sent, *self._unsent, *([self._open] if self._open else [])]
        return {task.id for chunk in chunks for task in chunk.tasks}


def _unsound(part: Submission | Function | JobSpec) -> str:
    """Return why a part cannot be encoded; "" if it can."""
    try:
        encode_message(part, "client")
    except Exception as error:
        return f"{type(error).__name__}: {text_of(error)}"
    return ""


PAYLOAD_BYTES_MAX = CLIENT_MESSAGE_BYTES - 4 * 1024 * 1024
"""Most bytes of a task with the functions that it needs: both must fit into one message, with the task's rules."""


def check_size(what: str, size: int) -> None:
    if size > PAYLOAD_BYTES_MAX:
        raise errors.ResultTooLarge(
            f"{what} of {size:,} bytes cannot travel, the limit is {PAYLOAD_BYTES_MAX:,}: "
            "pass large data in a file, or in pieces"
        )


def refusal_because(why: str) -> errors.TaskFarmError:
    """Return the reason why nothing is accepted now as an error."""
    if "stopping" in why:
        return errors.FarmNotRunning(why)
    return errors.StoreFull(f"{why}; what was submitted is kept here and sent again")
