"""Clients as the scheduler knows them, the ids of tasks that were given to them, and counts of their open questions."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field

from ..limits import COUNTS
from ..messages import Refusal, Retried
from ..messages.task_types import Final
from ..saves import SaveAccepted, SaveBlock, SaveLeft
from .decision import Decision

FIRST_BLOCK = 16
"""How many ids a client's first block has."""


@dataclass(slots=True)
class Block:
    """A range of task ids that was given to a client."""

    first: int
    last: int
    next: int
    """The next id expected: ids of a block arrive in order."""
    session: str
    """"" if the client has ended, or the controller gave the ids itself."""


@dataclass(slots=True)
class ClientEntry:
    """One session of a client."""

    session: str
    name: str = ""
    connected: bool = False
    blocks: list[Block] = field(default_factory=list)
    next_block: int = FIRST_BLOCK
    """How many ids the next block has."""
    started: int = 0
    """How many of the client's tasks have been started."""
    finals: list[Final] = field(default_factory=list)
    """Ends of tasks that the client is told at the end of the turn."""
    accepted: dict[int, int] = field(default_factory=dict)
    """First id of a block -> the last id accepted in this turn."""
    watching: set[int] = field(default_factory=set)
    """Tasks of other clients that the client watches."""

    def block_of(self, task_id: int) -> Block | None:
        """Return the client's block that has this id."""
        for block in reversed(self.blocks):
            if block.first <= task_id <= block.last:
                return block
        return None


@dataclass(slots=True)
class TaskIds:
    """The ids of tasks that were given to clients."""

    blocks: list[Block] = field(default_factory=list)
    """All blocks by first id."""
    next: int = 0
    of_session: dict[str, list[Block]] = field(default_factory=dict)
    """Session -> its blocks."""

    def add(self, block: Block) -> None:
        """Register a block, which is the last one."""
        self.blocks.append(block)
        if block.session:
            self.of_session.setdefault(block.session, []).append(block)

    def take(self, session: str, count: int, out: Decision) -> Block:
        """Give a session this many ids that were never given before."""
        block = Block(self.next, self.next + count - 1, self.next, session)
        self.next += count
        self.add(block)
        out.saves.append(SaveBlock(block.first, block.last, session))
        return block

    def give(self, count: int, out: Decision) -> range:
        """Return ids for this number of tasks that the controller accepts in this turn, for no client.

        The blocks of such ids are one, as far as no client is given ids in between: there may be millions."""
        ids = range(self.next, self.next + count)
        block = self.blocks[-1] if self.blocks else None
        if block is None or block.session or block.next != self.next:
            block = Block(self.next, self.next, self.next, "")
            self.add(block)
        block.last, block.next = ids[-1], ids.stop
        self.next = ids.stop
        out.saves += [SaveBlock(block.first, block.last, ""), SaveAccepted(block.first, block.last)]
        return ids

    def take_back(self, session: str, out: Decision) -> None:
        """Record that a session has ended. Its unused ids are given again, unless later ids were given to others."""
        for block in self.of_session.pop(session, ()):
            block.session = ""
            out.saves.append(SaveLeft(block.first, block.last))
        while self.blocks and not self.blocks[-1].session:
            block = self.blocks[-1]
            if block.next <= block.last:
                block.last = block.next - 1
                self.next = block.next
                out.saves.append(SaveLeft(block.first, block.last))
            if block.next > block.first:
                return
            self.blocks.pop()

    def block_of(self, task_id: int) -> Block | None:
        """Return the block that has this id."""
        index = bisect_right(self.blocks, task_id, key=lambda block: block.first) - 1
        return self.blocks[index] if index >= 0 else None


@dataclass(slots=True)
class ClientRegistry:
    """The clients, and the records about them."""

    by_session: dict[str, ClientEntry] = field(default_factory=dict)
    ids: TaskIds = field(default_factory=TaskIds)
    watchers: dict[int, list[str]] = field(default_factory=dict)
    """Task -> sessions that watch it."""
    watches: int = 0
    """The sum of `ClientEntry.watching` over all clients."""
    to_tell: dict[str, ClientEntry] = field(default_factory=dict)
    """Clients that are told of ends or acceptances at the end of the turn."""
    retrying: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """(session, number of its question) -> tasks that are read from the store, to be submitted again."""
    retried: dict[str, Retried] = field(default_factory=dict)
    """"session n" of a `RetryTasks` -> the answer.  A client that repeats the question gets the same answer."""

    def of(self, session: str) -> ClientEntry:
        """Return the client of a session; it is made if it is new."""
        client = self.by_session.get(session)
        if client is None:
            client = self.by_session[session] = ClientEntry(session)
            # The client may have been here before, and have ids that it has not used yet.
            client.blocks = list(self.ids.of_session.get(session, ()))
        return client

    def will_submit(self, task_id: int) -> bool:
        """Return whether this id was given to a client that is connected and has not handed the task in yet."""
        block = self.ids.block_of(task_id)
        client = self.by_session.get(block.session) if block is not None else None
        return block is not None and block.next <= task_id <= block.last and client is not None and client.connected


@dataclass(slots=True)
class OpenQuestions:
    """The questions of one kind that wait for something: there is a limit for one client, and one for all."""

    by_session: Counter[str] = field(default_factory=Counter)
    total: int = 0

    def why_not(self, session: str) -> Refusal | None:
        """Return the refusal for a client that has asked too much; None if one more question may wait."""
        most = COUNTS.open_questions if self.total < COUNTS.open_questions_in_all else COUNTS.own_questions
        if self.by_session[session] < most:
            return None
        limits = f"{COUNTS.open_questions:,} of one client and {COUNTS.open_questions_in_all:,} of all"
        return Refusal("TaskError", f"too many such questions wait for answers ({limits} are the most): wait for some")

    def begin(self, session: str) -> None:
        """Count a question that waits."""
        self.by_session[session] += 1
        self.total += 1

    def end(self, session: str, count: int = 1) -> None:
        """Count questions that wait no longer."""
        left = self.by_session[session] - count
        if left > 0:
            self.by_session[session] = left
        else:
            del self.by_session[session]
        self.total -= count
