"""Reads pieces of blobs, in a thread, for agents and clients that do not see the farm's folder.

Nothing more is read for a peer while `AHEAD_BYTES` are on their way to it. So the number of its questions affects
neither the controller's memory nor the delay of its other messages.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from ..core.messages import Answer
from ..core.messages.blob_chunks import DIGEST_BYTES, PIECE_BYTES, BlobPiece
from ..core.text import text_of
from ..core.turn_shares import GroupedOrder
from ..storage.blobs import Blobs

AHEAD_BYTES = 8 * PIECE_BYTES
"""The largest number of bytes that are read for one peer and not acknowledged."""

BEGUN_MAX = 32
"""The largest number of pieces that are read before others have their turn."""
PIECE_S = 0.001
"""About what a piece takes (seconds), for the shares of peers."""

WAITING_MAX = 1000
"""The largest number of questions of one peer, far more than an honest peer has. Further ones are not answered."""


class ReadPiece(NamedTuple):
    """A piece of a blob to read, for question `n` of a client; None for an agent."""

    session: str
    n: int | None
    digest: bytes
    offset: int
    key: str = ""
    """The title of the session's key."""


class BlobReader:
    """Answers `ReadPiece` requests, those of each peer in order."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._waiting: dict[str, deque[ReadPiece]] = {}
        self._order = GroupedOrder()
        """Which session's piece is read next: keys have equal shares, and so have the sessions of one key."""
        self._under_way: Counter[str] = Counter()
        self._begun = 0
        """The number of pieces in `_under_way`."""
        self._to_read: queue.SimpleQueue[ReadPiece | None] = queue.SimpleQueue()
        self._read: deque[tuple[ReadPiece, BlobPiece]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._was_asked = False
        """Whether there was any question: until then no turn of the controller looks for answers."""
        # It is started now, because later there may be no room for a thread.
        self._thread = threading.Thread(target=self._serve, name="reader of blobs", daemon=True)
        self._thread.start()

    def fd(self) -> int:
        """Return a descriptor that is readable when there are answers."""
        return self._bell

    def ask(self, load: ReadPiece) -> None:
        """Queue a question."""
        self._was_asked = True
        waiting = self._waiting.setdefault(load.session, deque())
        if len(waiting) < WAITING_MAX:
            waiting.append(load)
            self._order.wait(load.key, load.session)

    def answers(self) -> list[tuple[str, Answer | BlobPiece]]:
        """Return (session, answer) for each piece that was read. Never blocks."""
        found: list[tuple[str, Answer | BlobPiece]] = []
        if not self._was_asked:
            return found
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        while self._read:
            load, piece = self._read.popleft()
            self._under_way[load.session] -= 1
            self._begun -= 1
            found.append((load.session, piece if load.n is None else Answer(load.n, piece)))
        self._under_way += Counter()  # drops the entries with zero
        return found

    def go_on(self, backlog_bytes: Callable[[str], int]) -> None:
        """Read further pieces for peers that have received the earlier ones. Called once a turn.

        `backlog_bytes` returns how many bytes are on their way to a session.
        """
        full: list[str] = []
        while self._begun < BEGUN_MAX and (session := self._order.pop()) is not None:
            if AHEAD_BYTES - backlog_bytes(session) <= self._under_way[session] * PIECE_BYTES:
                full.append(session)
                continue
            load = self._waiting[session].popleft()
            self._begin(load)
            self._order.charge(session, PIECE_S)
            if self._waiting[session]:
                self._order.wait(load.key, session)
            else:
                del self._waiting[session]
                self._order.forget(session)
        for session in full:
            self._order.wait(self._waiting[session][0].key, session)

    def _begin(self, load: ReadPiece) -> None:
        self._under_way[load.session] += 1
        self._begun += 1
        self._to_read.put(load)

    def _serve(self) -> None:
        while (load := self._to_read.get()) is not None:
            try:
                piece = self._piece(load)
            except Exception as error:  # an offset beyond the file: an error of that answer, not of the thread
                piece = BlobPiece(load.digest, load.offset, error=f"the controller cannot read it: {text_of(error)}")
            self._read.append((load, piece))
            os.eventfd_write(self._bell, 1)

    def _piece(self, load: ReadPiece) -> BlobPiece:
        error = "its task was cleared"
        if len(load.digest) == DIGEST_BYTES:
            try:
                return BlobPiece(load.digest, load.offset, *self._blobs.read(load.digest, load.offset, PIECE_BYTES))
            except FileNotFoundError:
                pass
            except OSError as problem:
                error = f"the controller cannot read it: {problem}"
        return BlobPiece(load.digest, load.offset, error=error)

    def close(self) -> None:
        """End the thread."""
        self._to_read.put(None)
        self._thread.join()
        os.close(self._bell)
