"""A count of a store's commits, in a file beside it: so that a store which lacks some of them is noticed.

SQLite drops a damaged log from the damage on without a word: one wrong bit can take thousands of results with it that
were acknowledged. So after each turn with a commit a few bytes are written beside the store: where the log stands, with
SQLite's running hash of it, and how many tasks and results the store has. The next controller compares. The bytes
follow the acknowledgements of the turn, which do not wait for them: what was acknowledged in the last 50 µs before a
kill may be missing in the count.

The bytes are synced with each checkpoint and not with each commit. After a loss of power the count may therefore be
older than the store; that is no damage.
"""

from __future__ import annotations

import contextlib
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from ..system.odd_files import set_aside_unless_file

_RECORD = struct.Struct("<8sQQIIIIQQ")
_CHECK = struct.Struct("<I")
_MAGIC = b"iptfcnt\x01"
_SLOT_BYTES = 128
"""Two records stand in the file, and the older one is overwritten: a torn one is recognised by its checksum."""

# The head of SQLite's wal-index: https://www.sqlite.org/walformat.html#the_wal_index_file_format
_INDEX = struct.Struct("=IIIBBHIIII")
_SALT_AT = 32


class LogPlace(NamedTuple):
    """A place in a store's log."""

    generation: int = 0
    """Grows by one whenever the log starts again (SQLite's salt-1). 0: there is no log that can be read."""
    frames: int = 0
    """How many pages the log has."""
    hash: tuple[int, int] = (0, 0)
    """The running hash of all of them."""


class Count(NamedTuple):
    """What a store had after a commit."""

    epoch: int
    log: LogPlace
    tasks: int
    """The number of tasks that were not cleared."""
    ends: int
    """The number of ends of them."""


class Missing(NamedTuple):
    """What a store lacks."""

    results: int
    tasks: int

    def __str__(self) -> str:
        parts = [(self.results, "result"), (self.tasks, "task")]
        named = [f"{count:,} {what}{'s' if count != 1 else ''}" for count, what in parts if count]
        are = "is" if len(named) == 1 and 1 in self else "are"
        if not named:
            return "the last commits are missing: some tasks may run again that have run"
        return f"{' and '.join(named)} that had been acknowledged {are} missing"


def missing(recorded: Count | None, found: Count, log_bytes: int) -> Missing | None:
    """Return what a store lacks of what was counted; None if it lacks nothing.

    Args:
        recorded: the last count. None: nobody has counted.
        found: what the store has when it is opened.
        log_bytes: the size of the log, whether it can be read or not.
    """
    if recorded is None or recorded.epoch < found.epoch:
        return None
    less = Missing(max(0, recorded.ends - found.ends), max(0, recorded.tasks - found.tasks))
    if recorded.epoch > found.epoch:
        return less
    if found.log.generation == recorded.log.generation != 0:
        # More is there if the controller was killed between a commit and its count.
        same = found.log.frames > recorded.log.frames or found.log == recorded.log
        return None if same else less
    if found.log.generation and recorded.log.generation:
        later = (found.log.generation - recorded.log.generation) & 0xFFFFFFFF
        return None if later < 1 << 31 else less
    if log_bytes and recorded.log.frames:
        return less  # there is a log, and its head is damaged
    # The log was moved into the file, by us or by another program, or it was deleted.
    return less if any(less) else None


def log_place(index: int) -> LogPlace:
    """Return the place up to which a log is valid, from the descriptor of its ``-shm`` file."""
    head = os.pread(index, 48, 0)
    if len(head) < 48:
        return LogPlace()
    _, _, _, is_init, _, _, frames, _, *hashes = _INDEX.unpack_from(head)
    generation = int.from_bytes(head[_SALT_AT : _SALT_AT + 4], "big")
    return LogPlace(generation, frames, (hashes[0], hashes[1])) if is_init and frames else LogPlace()


def read(path: Path) -> Count | None:
    """Return the last count of a file; None if there is none that can be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.pread(file, 2 * _SLOT_BYTES, 0)
    except OSError:
        return None
    finally:
        os.close(file)
    found = [_decode(data[at : at + _SLOT_BYTES]) for at in (0, _SLOT_BYTES)]
    return max((record for record in found if record is not None), default=(0, None))[1]


def _decode(data: bytes) -> tuple[int, Count] | None:
    if len(data) < _RECORD.size + _CHECK.size:
        return None
    magic, serial, epoch, generation, frames, hash_0, hash_1, tasks, ends = _RECORD.unpack_from(data)
    if magic != _MAGIC or _CHECK.unpack_from(data, _RECORD.size)[0] != crc32(data[: _RECORD.size]):
        return None
    return serial, Count(epoch, LogPlace(generation, frames, (hash_0, hash_1)), tasks, ends)


@lru_cache(1024)
def _effect(sql: str) -> tuple[int, int]:
    """Return by how much each row that a statement changes changes the numbers of tasks and of ends."""
    verb, _, table = sql.split(None, 3)[:3]
    by = {"INSERT": 1, "DELETE": -1}.get(verb, 0)
    return by * (table == "tasks"), by * (table == "finals")


class CommitCount:
    """Counts the commits of an open store. One thread uses it."""

    def __init__(self, path: Path, index: Path) -> None:
        """Open the files; `index` is the store's ``-shm`` file.

        Raises:
            OSError: a file cannot be opened.
        """
        set_aside_unless_file(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        # Closing any descriptor of this file would release SQLite's locks on it: `close` comes after SQLite's.
        self._index = -1
        self._index = os.open(index, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        data = os.pread(self._file, 2 * _SLOT_BYTES, 0)
        serials = [found[0] for at in (0, _SLOT_BYTES) if (found := _decode(data[at : at + _SLOT_BYTES])) is not None]
        self._serial = max(serials, default=0)
        self.tasks = self.ends = 0
        self._new_tasks = self._new_ends = 0
        self.is_behind = False
        """Whether there were commits since the count was written."""
        self._log = self._moved = LogPlace()
        """Where the log stood at the last count, and at the last checkpoint."""

    @property
    def frames(self) -> int:
        """Return how many pages the log had at the last count."""
        return self._log.frames

    @property
    def new_pages(self) -> int:
        """Return how many pages the log had at the last count that were not there at the last checkpoint."""
        same = self._log.generation == self._moved.generation
        return self._log.frames - (self._moved.frames if same else 0)

    def begin(self) -> None:
        """Forget what was noted of a transaction that was not committed."""
        self._new_tasks = self._new_ends = 0

    def note(self, sql: str, changed: int) -> None:
        """Note how many rows a statement has changed."""
        tasks, ends = _effect(sql)
        self.add(tasks * changed, ends * changed)

    def add(self, tasks: int, ends: int) -> None:
        """Note how many tasks and ends a statement has added."""
        self._new_tasks += tasks
        self._new_ends += ends

    def keep(self) -> None:
        """Count what was noted of a transaction that was committed."""
        self.tasks += self._new_tasks
        self.ends += self._new_ends
        self.begin()
        self.is_behind = True

    def lower(self, epoch: int) -> None:
        """Write the lower numbers that a transaction leaves, if it does, before it is committed.

        Otherwise what the transaction removes would be missing after a kill between the commit and its count, if
        anybody has moved the log into the file before the next start.
        """
        if self._new_tasks < 0 or self._new_ends < 0:
            self._put(epoch, self.tasks + min(0, self._new_tasks), self.ends + min(0, self._new_ends), sync=False)
            self.is_behind = True  # the transaction may fail

    def write(self, epoch: int, *, sync: bool = False) -> None:
        """Write the count after commits, or with `sync` after a checkpoint."""
        self.is_behind = False
        self._put(epoch, self.tasks, self.ends, sync)

    def _put(self, epoch: int, tasks: int, ends: int, sync: bool) -> None:
        # Nothing depends on it before the next damage, so an error of the disk is left to the store.
        self._serial += 1
        log = self._log = log_place(self._index)
        record = _RECORD.pack(_MAGIC, self._serial, epoch, log.generation, log.frames, *log.hash, tasks, ends)
        try:  # not `suppress`, which costs as much as the record
            os.pwrite(self._file, record + _CHECK.pack(crc32(record)), self._serial % 2 * _SLOT_BYTES)
            if sync:
                self._moved = log
                os.fdatasync(self._file)
        except OSError:
            pass

    def place(self) -> LogPlace:
        """Return the place up to which the log is valid."""
        return log_place(self._index)

    def close(self) -> None:
        """Close the files, after SQLite has closed its own."""
        for file in (self._index, self._file):
            if file >= 0:
                os.close(file)
        self._index = self._file = -1

    def __del__(self) -> None:  # of a store that is dropped without being closed
        with contextlib.suppress(AttributeError):
            self.close()
