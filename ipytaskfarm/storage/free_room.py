"""The room that cleared tasks have left in a store's file: how it is given back to the disk."""

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


class LogFile:
    """The file of a store's write-ahead log, whose length says whether a checkpoint is due.

    When the log begins anew after a checkpoint, SQLite cuts the file to its ``journal_size_limit``, or to what the
    first transaction needs. So a file that is longer has a log that is as long."""

    def __init__(self, path: Path) -> None:
        self._path = f"{path}-wal"
        self._moved_bytes = 0
        """The length at the last checkpoint.  Readers may keep the log from beginning anew then."""

    def has_grown(self, by_bytes: int) -> bool:
        """Return whether the log has grown by more than this since the last checkpoint."""
        try:
            now_bytes = os.stat(self._path).st_size
        except FileNotFoundError:
            return False
        if now_bytes < self._moved_bytes:
            self._moved_bytes = 0
        return now_bytes > self._moved_bytes + by_bytes

    def note_checkpoint(self) -> None:
        """Note that as much of the log as possible was moved into the store's file."""
        with contextlib.suppress(FileNotFoundError):
            self._moved_bytes = os.stat(self._path).st_size


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
