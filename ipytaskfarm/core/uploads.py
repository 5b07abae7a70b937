"""Uploads of large values: which piece is sent next, and who may begin one. Neither files nor sockets are used here.

A value travels in pieces of `PIECE_BYTES` under its digest (`core.messages.blob_chunks`). The sender has a
`PieceOrder`, which needs nothing of the receiver but its answers: so it does not matter whether a piece was lost, came
twice, or met another controller. The receiver has `UploadPlaces`, by which no peer takes the memory or the disk that
belong to all.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from .messages.blob_chunks import PIECE_BYTES, PIECES_AHEAD, BlobWritten

SMALL_BYTES = 256 << 10
"""A value of at most this size is sent at once. Larger ones are offered first: another client may have sent them."""

RESTARTS_MAX = 32
"""How often the pieces of one upload may begin again, before its place or elsewhere."""


class PieceOrder:
    """Which pieces of one value are sent, and when the receiver has all of it.

    Call `next_piece` and send what it returns, until it returns None; then give `handle_answer` the answers in
    the order of sending.
    """

    def __init__(self, size: int) -> None:
        """Begin; `size` is that of the value in bytes, at least 1."""
        self._size = size
        self._at = 0
        """The offset of the next piece."""
        self._open: deque[int] = deque()
        """For each open question: the number of bytes that the receiver has if it takes the piece."""
        self._is_offered = size <= SMALL_BYTES
        self._is_off = False
        """Whether the receiver expects another piece than the open ones: nothing is sent until all are answered."""
        self._restarts = 0
        self.is_complete = False
        self.is_put_off = False
        """Whether the receiver has no place now: the caller pauses before it sends the next piece."""

    def next_piece(self) -> tuple[int, int] | None:
        """Return (offset, length) of the next piece to send, with length 0 for the offer; None: nothing can be sent."""
        if self.is_complete or self._is_off or len(self._open) >= PIECES_AHEAD:
            return None
        if not self._is_offered:
            if self._open:
                return None
            self._open.append(self._at)
            return self._at, 0
        length = min(PIECE_BYTES, self._size - self._at)
        if not length:
            return None
        offset = self._at
        self._at += length
        self._open.append(self._at)
        return offset, length

    def handle_answer(self, answer: BlobWritten) -> str:
        """Take the answer to the oldest open question. Return why the value cannot be sent, or ""."""
        expected = self._open.popleft()
        if answer.later:
            self.is_put_off = self._is_off = True
            self._at, self._is_offered = 0, self._size <= SMALL_BYTES
        elif answer.error:
            return answer.error
        elif not 0 <= answer.upto <= self._size:
            return f"the controller says that it has {answer.upto:,} of {self._size:,} bytes"
        elif answer.upto == self._size:
            self.is_complete = True
        elif not self._is_offered:
            self._at, self._is_offered = answer.upto, True
        elif answer.upto != expected:
            self._restarts += not self._is_off
            self._at, self._is_off = answer.upto, True
        self._is_off = self._is_off and bool(self._open)
        return "" if self._restarts <= RESTARTS_MAX else f"it began {RESTARTS_MAX} times anew, and never ended"

    def resume(self) -> None:
        """Record that the pause is over that `is_put_off` asked for."""
        self.is_put_off = False


class NoPlace(NamedTuple):
    """Why an upload may not begin."""

    why: str
    later: bool
    """Whether it may begin when others have ended."""


class UploadPlaces:
    """How many uploads each session and each key has begun and not ended, and how many bytes are still to come.

    One session, and all sessions of one key, may together fill half of the room; so whatever one of them announces,
    others can begin.
    """

    def __init__(self, per_session: int = 8, per_key: int = 64, in_all: int = 128) -> None:
        """Create it with the largest numbers of unfinished uploads. Each has an open file and up to a piece of memory.

        An honest client has no more than four at a time (`client.large_values.AT_ONCE`).
        """
        self._per_session, self._per_key, self._in_all = per_session, per_key, in_all
        self._sessions: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self._session_bytes: Counter[str] = Counter()
        self._key_bytes: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Return the number of unfinished uploads."""
        return self._sessions.total()

    @property
    def missing_bytes(self) -> int:
        """Return the number of bytes that are still to come."""
        return self._session_bytes.total()

    def why_not(self, key: str, session: str, size: int, room_bytes: int) -> NoPlace | None:
        """Return why a session may not begin an upload of this size; None: it may.

        Args:
            key: the key of the session.
            session: the session.
            size: the size of the value in bytes.
            room_bytes: how many bytes may still be written to the disk.
        """
        if size > room_bytes // 2:
            return NoPlace(
                f"a value of {size:,} bytes is more than half of what the disk of the farm's store has left "
                f"({max(0, room_bytes):,} bytes): make room there",
                later=False,
            )
        for what, count, most in (
            ("session", self._sessions[session], self._per_session),
            ("key", self._keys[key], self._per_key),
            ("farm", self.count, self._in_all),
        ):
            if count >= most:
                return NoPlace(f"this {what} has {count} unfinished uploads, and {most} are the most", later=True)
        for what, missing, most in (
            ("session", self._session_bytes[session], room_bytes // 2),
            ("key", self._key_bytes[key], room_bytes // 2),
            ("farm", self.missing_bytes, room_bytes),
        ):
            if missing + size > most:
                text = f"this {what} has {missing:,} bytes of uploads to come, and there is room for {most:,}"
                return NoPlace(text, later=True)
        return None

    def begin(self, key: str, session: str, size: int) -> None:
        """Record that an upload begins."""
        self._sessions[session] += 1
        self._keys[key] += 1
        self._add(key, session, size)

    def came(self, key: str, session: str, count: int) -> None:
        """Record that this number of bytes of an upload is written."""
        self._add(key, session, -count)

    def end(self, key: str, session: str, missing: int) -> None:
        """Record that an upload has ended, of which this number of bytes had not come."""
        self._sessions[session] -= 1
        self._keys[key] -= 1
        self._add(key, session, -missing)
        for counter, name in (
            (self._sessions, session),
            (self._session_bytes, session),
            (self._keys, key),
            (self._key_bytes, key),
        ):
            if not counter[name]:
                del counter[name]

    def _add(self, key: str, session: str, count: int) -> None:
        self._session_bytes[session] += count
        self._key_bytes[key] += count
