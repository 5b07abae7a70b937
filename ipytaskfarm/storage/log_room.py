"""Room for the store's log, made ahead.

A commit that makes the log longer waits twice as long as one that overwrites: the file system writes the file's new
length and its new blocks into its own journal. SQLite begins a log again after each checkpoint and overwrites the old
one, but the first log of each life grows with every commit. So zeros are written behind its end, some at once.

They mean nothing to SQLite: it reads a log up to the first page that does not continue the running hash of the others.
"""

from __future__ import annotations

import os
from pathlib import Path

from .free_room import PAGE_BYTES, free_bytes

STEP_BYTES = 512 << 10
"""So much is made at once: one commit of forty waits a little longer for it."""
FREE_BYTES = 256 << 20
"""With less on the disk, no room is taken before it is needed."""
_HEAD_BYTES, _FRAME_BYTES = 32, PAGE_BYTES + 24


def log_bytes(frames: int) -> int:
    """Return the size of a log with this number of pages."""
    return _HEAD_BYTES + frames * _FRAME_BYTES


class LogRoom:
    """The room of one store's log."""

    def __init__(self, store: Path, most_bytes: int) -> None:
        """Create it; `most_bytes` is the size that the log usually reaches."""
        self._log = f"{store}-wal"
        self._most_bytes = most_bytes
        self.enough_for = 0
        """A log with more pages than this needs room."""

    def make(self, frames: int) -> None:
        """Make room behind a log that has this number of pages.

        Only within a transaction: then nobody else writes to the log. Room is a matter of speed, so errors of the disk
        are left to the commit.
        """
        used = log_bytes(frames)
        until = min(used + STEP_BYTES, self._most_bytes)
        try:
            if until > used and free_bytes(Path(self._log).parent) > FREE_BYTES:
                self._extend(until)
        except OSError:
            pass
        self.enough_for = (until if until < self._most_bytes else 1 << 62) // _FRAME_BYTES - 8

    def _extend(self, until: int) -> None:
        log = os.open(self._log, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(log).st_size
            if size < until:
                os.pwrite(log, bytes(until - size), size)
        finally:
            os.close(log)
