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
