"""The flight recorder: the run in progress and the finished runs of an engine, readable after the engine's death.

One file per engine, mapped by the engine and by its agent, in the agent's private folder::

    agent    rec = Recorder.create(path, engine="<session>.<counter>", engine_id=3)
    engine   rec = Recorder.open(path)

    engine   rec.begin(task, attempt, deadline_ns)         this attempt runs now
             rec.end_with(record, task, attempt)           its result, and at the same instant its end
             rec.leave()                                   the engine has left it
             rec.idle()                                    it runs no more, and there is no result
             rec.begin_command(); rec.end_command()        a MultiEngine command runs
             rec.wanted() -> Want | None                   in the signal handler: is the present run to be interrupted?
             rec.words.begin(run), .write(text), .flush()  what the run prints, see `last_words`
             rec.concurrent.begin(run); .end(row)          a coroutine task runs, beside others, see `concurrent_runs`
             rec.mark_delivered()                          the interrupt was raised

    agent    rec.read(limit) -> [Record(cursor, task, attempt, data), ...]     records that were not read yet
             rec.release(cursor)                           all records up to there are acknowledged; their room is free
             rec.current() -> Current | None               (run, began_ns, deadline_ns) of the task that runs
             rec.want((task, attempt), cause); rec.was_delivered()
             rec.unread                                    is there a record to read
             rec.close(); Recorder.remove(path)
    another agent, later:  Recorder.open(path), and it reads all that was not released

A process may be killed between any two of its instructions. So data is first written to a place that no reader looks
at, and then made visible by one aligned store of 8 bytes:

- The ring of results: first the record, then the ring's head.
- Fields that belong together (the current run; the run to interrupt) exist twice in the file. A counter says which copy
  is valid. The other copy is written, then the counter is raised.
- The current run stores the ring's head at its beginning. Once the head has moved, the run has ended. So the result of
  a run and its end become visible at the same instant.

The file survives its processes without an fsync. After a loss of power it is what the disk had of it: results are
recognised by their checksums, but the current run may be any later one. So the engine *marks*, on the disk, up to which
place of its hand-outs it may begin runs (`mark_begun`, see `engine.begun_marks`).

The file's blocks are allocated when it is made, because a store into a mapped hole on a full disk is a SIGBUS.

A record that is larger than a quarter of the ring, or that finds the ring full, is written to a *spill* file beside it.
The ring gets a reference of a few bytes, for which it keeps a reserve. When even the reserve is full, `end_with` waits
for the agent, and so the engine waits for its controller.

On processors that reorder stores (not x86), the head of a living engine may be seen before its record. The checksum
shows this, and the reader tries again.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from ..core.messages.task_types import RunKey
from .concurrent_runs import CONCURRENT_BYTES, ConcurrentRuns
from .files import sync_folder, write_if_room
from .last_words import WORDS_BYTES, LastWords
from .odd_files import open_file, remove_entry

RING_BYTES = 2 << 20
ABORT, TIME_LIMIT = 1, 2
"""The causes of an interrupt."""

# The file: a page of 8-byte slots, the ring, the concurrent runs, the last words. Slots that different processes write
# are 64 bytes apart.
_HEADER_BYTES = 4096
_MAGIC = int.from_bytes(b"ipytfrc\x03", "big")  # the last byte is the layout's version
_SLOT_MAGIC, _SLOT_RING, _SLOT_ENGINE_ID, _SLOT_NAME_BYTES = 0, 1, 2, 3
_NAME_AT, _NAME_MAX = 64, 192
_SLOT_HEAD, _SLOT_TAIL = 32, 40
_SLOT_RUN, _SLOT_WANT, _SLOT_DELIVERED = 48, 56, 64
_SLOT_ITEMS = 72  # of a chunk: index of the first item that runs, and above 32 bits that behind the last
_RUN_AT = (640, 704)  # state, task, attempt, began_ns, deadline_ns, the ring's head when it began
_RUN = struct.Struct("=6Q")
_WANT_AT = (768, 832)  # task, attempt, cause
_WANT = struct.Struct("=3Q")
_IDLE, _TASK, _COMMAND = 0, 1, 2
_SLOT_LEFT, _SLOT_MARK = 73, 74  # the run left last; number of a hand-out, place in it: no run behind that has begun
_SLOT_BOOT_BYTES, _SLOT_IS_MARKED, _BOOT_AT, _BOOT_MAX = 4, 5, 1024, 128
_MS_SYNC = 4
_msync = ctypes.CDLL(None, use_errno=True).msync
_msync.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_BEHIND_BYTES = CONCURRENT_BYTES + WORDS_BYTES
"""The size of the parts behind the ring."""

# A record: these 24 bytes, then the data, padded to 8. length _PAD: there is no further record before the ring's end.
# length | _SPILLED: the data is the length of a spill file.
_RECORD = struct.Struct("=IIQQ")  # length, checksum, task, attempt
_RECORD_BYTES = _RECORD.size
_PAD = 0xFFFFFFFF
_SPILLED = 0x80000000
_PAD_RECORD = struct.Struct("=I")
_REFERENCE = struct.Struct("=Q")

_POLL_S, _FULL_POLL_S = 0.001, 0.05
_TRIES = 200

_lives = 0
"""Increased in each forked child. Comparing it costs a tenth of asking for the pid."""


def _begin_life() -> None:
    global _lives
    _lives += 1


os.register_at_fork(after_in_child=_begin_life)

_FORKED = "a forked child of the engine came back into the runner: only the engine itself may record"


class RecorderDamaged(Exception):
    """The file has a content that no engine writes.

    All runs that were handed to that engine may have run. The error does not leave the agent.
    """


class Current(NamedTuple):
    """The task that runs now. Times are in nanoseconds of the machine's monotonic clock; deadline 0 means none."""

    run: RunKey
    began_ns: int
    deadline_ns: int


class Want(NamedTuple):
    """A request to interrupt the present run."""

    task: int
    attempt: int
    cause: int
    """`ABORT` or `TIME_LIMIT`."""


class Record(NamedTuple):
    """The record of a finished run. `cursor` is the position after it, for `release`."""

    cursor: int
    task: int
    attempt: int
    data: bytes


class Recorder:
    """The flight recorder of one engine: the engine writes results, one agent reads them. See the module's docstring.

    The engine's methods belong to its main thread. Conditions outside the process do not make them raise. In a forked
    child of the engine they raise RuntimeError, so that two processes cannot record one run.
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._map = mapped
        slots = memoryview(mapped)[:_HEADER_BYTES].cast("Q")
        self._slots = slots
        self._ring = slots[_SLOT_RING]
        behind = _HEADER_BYTES + self._ring
        if slots[_SLOT_MAGIC] != _MAGIC or len(mapped) != behind + _BEHIND_BYTES or self._ring % 8:
            raise RecorderDamaged(f"{path} is no flight recorder of this version")
        self.engine_id: int = slots[_SLOT_ENGINE_ID]
        self.concurrent = ConcurrentRuns(memoryview(mapped)[behind : behind + CONCURRENT_BYTES])
        """The coroutine tasks that run now, if any."""
        self.words = LastWords(memoryview(mapped)[behind + CONCURRENT_BYTES :])
        """What the present run has written."""
        name = mapped[_NAME_AT : _NAME_AT + min(slots[_SLOT_NAME_BYTES], _NAME_MAX)]
        self.engine = name.decode("utf-8", "replace")
        """The engine's incarnation."""
        self._life = _lives
        # The engine's own copies of these numbers spare it reading them back.
        self._head: int = slots[_SLOT_HEAD]
        boot = mapped[_BOOT_AT : _BOOT_AT + min(slots[_SLOT_BOOT_BYTES], _BOOT_MAX)]
        self.boot = boot.decode("utf-8", "replace")
        """The boot of the machine in which the file was made."""
        self.size = len(mapped)
        """The bytes of the file. Reading beyond the end of a file that was cut would end this process (SIGBUS)."""
        self.file_number = os.stat(path).st_ino
        """The number of the file, by which one that was put in its place is recognised."""
        self.is_marked = bool(slots[_SLOT_IS_MARKED])
        """Whether the engine marks how far it may have come, for after a loss of power."""
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        self._run_serial: int = slots[_SLOT_RUN]
        self._run: RunKey | None = None
        self._want_seen = 0
        self._room_until = slots[_SLOT_TAIL] + self._ring
        self._reserve = max(4096, self._ring // 16)
        self.on_full: Callable[[bool], object] = bool
        """Called when a record begins to wait for room on the disk (True), and when it has been written (False)."""
        # The agent's own numbers.
        self._cursor: int = slots[_SLOT_TAIL]
        self._released: int = self._cursor
        self._spilled: deque[int] = deque()
        """Where the references stand that were read and not released, in order."""

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        engine: str,
        engine_id: int,
        ring_bytes: int = RING_BYTES,
        *,
        boot: str = "",
        is_marked: bool = False,
    ) -> Recorder:
        """Make the file (0600, all its blocks allocated) for a new engine.

        Raises:
            OSError: the file exists, or there is no room.
            ValueError: the ring is too small or too large, or the name too long.
        """
        name, boot_name = engine.encode(), boot.encode()[:_BOOT_MAX]
        if ring_bytes < 16_384 or ring_bytes % 4096 or ring_bytes > 1 << 30 or len(name) > _NAME_MAX:
            raise ValueError(f"a ring of {ring_bytes} bytes for {engine!r}: 16 KiB to 1 GiB, whole pages, a short name")
        path = Path(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size = _HEADER_BYTES + ring_bytes + _BEHIND_BYTES
            os.posix_fallocate(descriptor, 0, size)
            mapped = mmap.mmap(descriptor, size)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        mapped[_NAME_AT : _NAME_AT + len(name)] = name
        mapped[_BOOT_AT : _BOOT_AT + len(boot_name)] = boot_name
        with memoryview(mapped)[:_HEADER_BYTES].cast("Q") as slots:
            slots[_SLOT_BOOT_BYTES] = len(boot_name)
            slots[_SLOT_IS_MARKED] = is_marked
            slots[_SLOT_RING] = ring_bytes
            slots[_SLOT_ENGINE_ID] = engine_id
            slots[_SLOT_NAME_BYTES] = len(name)
            slots[_SLOT_MAGIC] = _MAGIC
        if is_marked:
            mapped.flush(0, _HEADER_BYTES)
            sync_folder(path.parent)
        return cls(path, mapped)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recorder:
        """Open an existing file: an engine its own, or a restarted agent one that it found.

        Raises:
            OSError: the file does not exist, or is a link.
            RecorderDamaged: the file was not written by an engine.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size < _HEADER_BYTES + 16_384:
                raise RecorderDamaged(f"{path} is too short for a flight recorder: {size} bytes")
            return cls(Path(path), mmap.mmap(descriptor, size))
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Unmap the file. The file stays."""
        if not self._map.closed:
            self._slots.release()
            self.concurrent.close()
            self.words.close()
            self._map.close()

    @staticmethod
    def remove(path: str | os.PathLike[str]) -> None:
        """Delete a dead engine's file and its spill files. Unread records are lost. A missing file is no error."""
        path = Path(path)
        # The file is deleted first: spill files without it are litter, but it without its spill files would be damaged.
        remove_entry(path)
        for spill in path.parent.glob(f"{glob.escape(path.name)}.spill-*"):
            remove_entry(spill)

    # ---------------------------------------------------------------------------------- the engine's side

    def begin(self, task: int, attempt: int, deadline_ns: int = 0) -> None:
        """Record that this attempt runs from now on. `deadline_ns` is a time of the monotonic clock; 0 for none."""
        self._slots[_SLOT_ITEMS] = 0
        self._set_run(_TASK, task, attempt, deadline_ns)
        self._run = (task, attempt)

    @property
    def has_unacknowledged(self) -> bool:
        """Return whether a result was recorded that the controller may not have on disk."""
        return bool(self._slots[_SLOT_TAIL] != self._head)

    def mark_begun(self, number: int, place: int) -> None:
        """Note, on the disk, that no run behind this place of the hand-outs has begun. Any thread may call this."""
        # In this order: between the two stores, more may have begun than has, never less.
        self._slots[_SLOT_MARK] = number
        self._slots[_SLOT_MARK + 1] = place
        # A disk that fails promises nothing for after a reboot either. `mmap.flush` would hold the GIL meanwhile.
        _msync(self._address, _HEADER_BYTES, _MS_SYNC)

    def begin_items(self, first: int, end: int) -> None:
        """Note that the items first..end-1 of the running chunk begin, and that all before them have ended."""
        self._slots[_SLOT_ITEMS] = end << 32 | first

    def end_with(self, record: bytes, task: int, attempt: int) -> None:
        """Record the end of this attempt; its record is in the ring when this returns. Wait while there is no room.

        Raises:
            OSError: a large record's file cannot be written, for another reason than a full disk.
        """
        if self._life != _lives:
            raise RuntimeError(_FORKED)
        self._run = None
        length = len(record)
        size = (_RECORD_BYTES + length + 7) & ~7
        start = self._start(size)
        if length * 4 > self._ring or not self._has_room(start + size + self._reserve):
            self._spill(record, task, attempt)
        else:
            self._write(start, length, record, task, attempt)

    def leave(self) -> None:
        """Record that the engine itself has ended the run that it began last: a task may call `end_with` too."""
        self._slots[_SLOT_LEFT] = self._run_serial

    def idle(self) -> None:
        """Record that nothing runs. Not needed after `end_with`."""
        self._run = None
        self._set_run(_IDLE, 0, 0, 0)

    @property
    def released(self) -> int:
        """Return the position up to which the agent has released the ring: it has read everything before that."""
        return self._slots[_SLOT_TAIL]

    def begin_command(self) -> None:
        """Record that a MultiEngine command (or a cell of the kernel's own) runs from now on."""
        self._set_run(_COMMAND, 0, 0, 0)

    end_command = idle

    def wanted(self) -> Want | None:
        """Return the agent's request to interrupt the present run; None if there is none, or if it was delivered
        already.
        """
        slots = self._slots
        serial = slots[_SLOT_WANT]
        run = self._run
        if run is None or serial == slots[_SLOT_DELIVERED]:
            return None
        task, attempt, cause = _WANT.unpack_from(self._map, _WANT_AT[serial & 1])
        if (task, attempt) != run or slots[_SLOT_WANT] != serial:
            return None  # the agent sends its signal again
        self._want_seen = serial
        return Want(task, attempt, cause)

    def mark_delivered(self) -> None:
        """Record that the request that `wanted` returned last is delivered, so that it is not delivered twice."""
        self._slots[_SLOT_DELIVERED] = self._want_seen

    def _set_run(self, state: int, task: int, attempt: int, deadline_ns: int) -> None:
        if self._life != _lives:
            raise RuntimeError(_FORKED)
        serial = self._run_serial + 1
        _RUN.pack_into(
            self._map, _RUN_AT[serial & 1], state, task, attempt, time.monotonic_ns(), deadline_ns, self._head
        )
        self._slots[_SLOT_RUN] = self._run_serial = serial

    def _start(self, size: int) -> int:
        """Return the position of the next record of this size. A record does not cross the ring's end."""
        left = self._ring - self._head % self._ring
        return self._head if size <= left else self._head + left

    def _has_room(self, until: int) -> bool:
        if until > self._room_until:
            self._room_until = self._slots[_SLOT_TAIL] + self._ring
        return until <= self._room_until

    def _write(self, start: int, length: int, data: bytes, task: int, attempt: int) -> None:
        ring = self._ring
        mapped = self._map
        if start != self._head:
            # Not visible before the record: the head moves over both at once.
            _PAD_RECORD.pack_into(mapped, _HEADER_BYTES + self._head % ring, _PAD)
        at = _HEADER_BYTES + start % ring
        _RECORD.pack_into(mapped, at, length, crc32(data, (task + attempt) & 0xFFFFFFFF), task, attempt)
        at += _RECORD_BYTES
        mapped[at : at + len(data)] = data
        self._slots[_SLOT_HEAD] = self._head = start + ((_RECORD_BYTES + len(data) + 7) & ~7)

    def _spill(self, record: bytes, task: int, attempt: int) -> None:
        """Write the record into a file of its own, and a reference to it into the ring."""
        size = _RECORD_BYTES + _REFERENCE.size
        start = self._start(size)
        while not self._has_room(start + size):
            time.sleep(_POLL_S)
        if not write_if_room(self._spill_path(start), record):
            self.on_full(True)
            while not write_if_room(self._spill_path(start), record):
                time.sleep(_FULL_POLL_S)
            self.on_full(False)
        self._write(start, _REFERENCE.size | _SPILLED, _REFERENCE.pack(len(record)), task, attempt)

    def _spill_path(self, start: int) -> str:
        # Positions only grow, so no name is used twice.
        return f"{self.path}.spill-{start}"

    # ---------------------------------------------------------------------------------- the agent's side

    @property
    def unread(self) -> bool:
        """Return whether there is a record to `read`."""
        return bool(self._slots[_SLOT_HEAD] != self._cursor)

    def read(self, limit: int = 256, bytes_max: int = 1 << 20) -> list[Record]:
        """Return the next finished runs that this object has not read yet.

        It returns at most `limit` records, and no further ones once they have `bytes_max` bytes together.

        Raises:
            RecorderDamaged: the next record is damaged. The records before it have been returned by earlier calls.
        """
        found: list[Record] = []
        size = 0
        mapped, ring, cursor = self._map, self._ring, self._cursor
        head = self._slots[_SLOT_HEAD]
        if not cursor <= head <= self._slots[_SLOT_TAIL] + ring:
            raise RecorderDamaged(f"{self.path}: the head of the ring, {head}, is out of bounds")
        while cursor < head and len(found) < limit and size < bytes_max:
            offset = cursor % ring
            if _PAD_RECORD.unpack_from(mapped, _HEADER_BYTES + offset)[0] == _PAD:
                self._cursor = cursor = cursor + ring - offset
                continue
            try:
                record = self._parse(cursor, head) or self._read_one(head)
            except RecorderDamaged:
                if found:
                    break
                raise
            found.append(record)
            size += len(record.data)
            self._cursor = cursor = record.cursor
        return found

    def _read_one(self, head: int) -> Record:
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_POLL_S)
            record = self._parse(self._cursor, head)
            if record is not None:
                return record
        raise RecorderDamaged(f"{self.path}: no record at {self._cursor} of {head}")

    def _parse(self, start: int, head: int) -> Record | None:
        """Return the record that begins at this position; None if there is none (yet)."""
        offset = start % self._ring
        room = min(self._ring - offset, head - start) - _RECORD_BYTES
        if room < 0:
            return None
        at = _HEADER_BYTES + offset
        length, checksum, task, attempt = _RECORD.unpack_from(self._map, at)
        spilled, length = length & _SPILLED, length & ~_SPILLED
        if length > room:
            return None
        at += _RECORD_BYTES
        data = self._map[at : at + length]
        if crc32(data, (task + attempt) & 0xFFFFFFFF) != checksum:
            return None
        if spilled:
            data = self._read_spill(start, data)
            self._spilled.append(start)
        return Record(start + ((_RECORD_BYTES + length + 7) & ~7), task, attempt, data)

    def _read_spill(self, start: int, reference: bytes) -> bytes:
        path = self._spill_path(start)
        try:
            file = open_file(path)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            raise RecorderDamaged(f"{path} is gone, and was never released: {error.strerror}") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            if len(reference) != _REFERENCE.size or size != _REFERENCE.unpack(reference)[0]:
                raise RecorderDamaged(f"{path} has another length than was written: {size} bytes")
            return file.read()

    def is_intact(self) -> bool:
        """Return whether the numbers in the header are such as an engine and this agent write."""
        slots = self._slots
        head, tail = slots[_SLOT_HEAD], slots[_SLOT_TAIL]
        known = slots[_SLOT_MAGIC] == _MAGIC and slots[_SLOT_RING] == self._ring
        return bool(known and tail == self._released and self._cursor <= head <= tail + self._ring)

    def release(self, cursor: int) -> None:
        """Free the room of all records up to this `Record.cursor`, which have been acknowledged."""
        tail = self._slots[_SLOT_TAIL]
        if not tail <= cursor <= self._cursor:
            raise ValueError(f"cursor {cursor} is not between {tail} (released) and {self._cursor} (read)")
        # First the tail. If the agent is killed in between, a spill file remains until `remove`. In the other order, a
        # reference would point to no file.
        self._slots[_SLOT_TAIL] = self._released = cursor
        while self._spilled and self._spilled[0] < cursor:
            remove_entry(self._spill_path(self._spilled.popleft()))

    def current(self) -> Current | None:
        """Return the task that runs now, or ran when its engine died; None if none does, or its result
        is in the ring.
        """
        state, task, attempt, began_ns, deadline_ns = self._read_run()
        return Current((task, attempt), began_ns, deadline_ns) if state == _TASK else None

    def lingering(self) -> RunKey | None:
        """Return the task whose end is in the ring although the engine has not left it; None if there is none."""
        serial = self._slots[_SLOT_RUN]
        state, task, attempt, _, _, head = _RUN.unpack_from(self._map, _RUN_AT[serial & 1])
        lingers = state == _TASK and self._slots[_SLOT_HEAD] != head and self._slots[_SLOT_LEFT] != serial
        return (task, attempt) if lingers and self._slots[_SLOT_RUN] == serial else None

    def begun_upto(self) -> tuple[int, int] | None:
        """Return (number of a hand-out, place in it) up to which runs may have begun; None if the engine did not mark
        it.
        """
        return (self._slots[_SLOT_MARK], self._slots[_SLOT_MARK + 1]) if self.is_marked else None

    def items(self) -> tuple[int, int]:
        """Return which items of the running chunk have begun: (first, index behind the last)."""
        packed = int(self._slots[_SLOT_ITEMS])
        return packed & 0xFFFFFFFF, packed >> 32

    @property
    def runs_command(self) -> bool:
        """Return whether a MultiEngine command runs, or ran when the engine died."""
        return self._read_run()[0] == _COMMAND

    def _read_run(self) -> tuple[int, int, int, int, int]:
        slots = self._slots
        while True:
            serial = slots[_SLOT_RUN]
            state, task, attempt, began_ns, deadline_ns, head = _RUN.unpack_from(self._map, _RUN_AT[serial & 1])
            ended = state == _TASK and slots[_SLOT_HEAD] != head
            # If it is unchanged, this copy was not overwritten meanwhile. A dead engine changes nothing, a living one
            # rarely.
            if slots[_SLOT_RUN] == serial:
                return (_IDLE if ended else state, task, attempt, began_ns, deadline_ns)

    def want(self, run: RunKey, cause: int = ABORT) -> None:
        """Request an interrupt of this run.

        The caller then signals the engine until `was_delivered`, or until `current` changes.

        A request that is repeated after its delivery is delivered again.
        """
        serial = self._slots[_SLOT_WANT] + 1
        _WANT.pack_into(self._map, _WANT_AT[serial & 1], *run, cause)
        self._slots[_SLOT_WANT] = serial

    def was_delivered(self) -> bool:
        """Return whether the engine has raised the interrupt that was requested last."""
        return bool(self._slots[_SLOT_WANT] == self._slots[_SLOT_DELIVERED])
