"""Room on the disk: that which cleared tasks have left in a store's file is given back, and the log's is made ahead.

A commit that makes the log longer waits twice as long as one that overwrites: the file system writes the file's new
length and its new blocks into its own journal. SQLite begins a log again after each checkpoint and overwrites the old
one, but the first log of each life grows with every commit. So zeros are written behind its end, some at once. They
mean nothing to SQLite: it reads a log up to the first page that does not continue the running hash of the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

INCREMENTAL = 2
"""The value of SQLite's ``auto_vacuum`` with which a file can give pages back a few at a time.

A file is made with it, or gets it by a VACUUM."""

IN_STEPS = f"PRAGMA auto_vacuum = {INCREMENTAL};"
"""Makes an empty file one that can give room back in steps, and before a VACUUM also another one."""

PAGE_BYTES = 4096


def size_bytes(path: Path) -> int:
    """Return the bytes of a store's file and its log on the disk."""
    sizes = 0
    for name in (path, f"{path}-wal"):
        with contextlib.suppress(FileNotFoundError):
            sizes += os.stat(name).st_size
    return sizes


def free_bytes(folder: Path) -> int:
    """Return the free bytes of a folder's disk for an ordinary user."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


INODES_MIN = 256
"""With fewer free inodes a disk has no room for the files of results that are on their way."""


def has_inodes(folder: Path) -> bool:
    """Return whether a folder's disk has room for further files; also if it does not count them."""
    disk = os.statvfs(folder)
    return not disk.f_files or disk.f_favail >= INODES_MIN


def used_bytes(one: Callable[[str], Any]) -> int:
    """Return the bytes used in a store's file, without its free pages. `one` returns the first value of a statement."""
    pages = one("PRAGMA page_count") - one("PRAGMA freelist_count")
    return int(pages * one("PRAGMA page_size"))


def give_back(one: Callable[[str], Any], script: Callable[[str], object], pages: int) -> bool | None:
    """Give up to this many free pages back, and return whether any are left.  A checkpoint makes the file smaller then.

    After the last ones the log is emptied too, unless somebody reads just then.
    None: the file cannot do that, because an earlier version has made it, and it was never compacted.

    Args:
        one: returns the first value of a statement.
        script: executes statements to their ends. `execute` of a connection would end after the first page.
        pages: how many.
    """
    if one("PRAGMA auto_vacuum") != INCREMENTAL:
        return None
    script(f"PRAGMA incremental_vacuum({pages})")
    left = bool(one("PRAGMA freelist_count"))
    if not left:
        patience_ms = one("PRAGMA busy_timeout")
        one("PRAGMA busy_timeout = 0")
        one("PRAGMA wal_checkpoint(TRUNCATE)")
        one(f"PRAGMA busy_timeout = {patience_ms}")
    return left


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
