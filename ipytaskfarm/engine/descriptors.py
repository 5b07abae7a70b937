"""The descriptors 1 and 2: what C code and children write there goes to files, which are read back.

Descriptor 1 is a file in memory, 2 the engine's log, both opened for appending.  ipykernel's pipes with a thread each
were not taken: they stamp what they read with the last parent they saw, later, and cost two threads.

A child that outlives its task holds the files that it was born with.  `DescriptorTap.part_from_children` leaves them to
it, so that what it writes later is nobody's, and not the next task's.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import fcntl
import functools
import inspect
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from io import FileIO, TextIOWrapper, UnsupportedOperation
from typing import Any, NoReturn

from .sinks import LIMIT_CHARS, BoundedText

STDOUT_FD, STDERR_FD = 1, 2
ERRORS = "backslashreplace"
"""What becomes of characters that cannot be encoded, and of bytes that cannot be decoded: they stay readable."""
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_MOVED_BYTES_MAX = 1024 * 1024
"""How much of its end a log keeps when it gets a new file."""
MEMORY_BYTES_MAX = 1 << 20
_BASE = 1 << 24
"""Where the file in memory begins, behind a hole: shorter is only what somebody has truncated who opened /dev/stdout,
or another file, where a task has led the descriptor."""
QUICK_S_MAX = 600e-9
FORMER_MAX = 16
"""Files of earlier tasks' children that are still read."""
_dup2: Callable[[int, int], int] = inspect.unwrap(os.dup2)
"""What we do ourselves is no change that a task made, see `watched`."""


class DescriptorTap:
    """Reads back what was written to a descriptor that is a file opened for appending.

    Args:
        number: 1 or 2.  A copy of it is kept, so that user code may redirect the number itself.
        path: of the log; None: it is a file in memory, of which nothing needs to stay.
    """

    def __init__(self, number: int, path: str | None) -> None:
        self.number = number
        self.path = path
        self.fd = os.dup(number)
        _locked(self.fd)
        self.mark = os.lseek(self.fd, 0, os.SEEK_END)
        self.partial: BoundedText | None = None
        """What `shrink` has taken out of the file already."""
        self.written_s = 0.0
        """When Python last wrote to the stream of this descriptor; …"""
        self.quick_s = _quickest_write_s()
        """… within this time nothing else can have been written to it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(ERRORS)
        self._lock = threading.Lock()

    def is_there(self) -> bool:
        """Return whether the descriptor still is the file."""
        try:
            return os.path.samestat(os.fstat(self.number), os.fstat(self.fd))
        except OSError:
            return False

    def put_back(self) -> bool:
        """Make the descriptor the file again, wherever a task has led it; gives whether it had."""
        if self.is_there():
            return False
        _dup2(self.fd, self.number)
        return True

    def take(self, final: bool = True) -> str:
        """Return what was written since the last call, its middle left out if it was long.

        final: a character of which only the first bytes have come is not waited for.  A file in memory is emptied.
        """
        with self._lock:
            text = self.partial or BoundedText()
            self.partial = None
            self._read_into(text)
            if final:
                text.write(self._decoder.decode(b"", True))
                self._decoder.reset()
                if self.mark > (_BASE if self.path is None else LOG_BYTES_MAX):
                    self._empty()
            return text.text()

    def shrink(self) -> None:
        """Keep the file small while something writes to it without end.  Called by another thread than `take`.

        What is written between the read and the truncation is lost without being counted.
        """
        most = MEMORY_BYTES_MAX if self.path is None else LOG_BYTES_MAX
        begin = self.mark
        if begin < 0 or os.lseek(self.fd, 0, os.SEEK_END) - begin <= most:
            return
        with self._lock:
            begin = self.mark
            if self.partial is None:
                self.partial = BoundedText()
            self._read_into(self.partial)
            os.ftruncate(self.fd, begin)
            self.mark = begin

    def append(self, text: str) -> None:
        """Write to the file what is nobody's output."""
        with self._lock:
            if os.lseek(self.fd, 0, os.SEEK_END) != self.mark:
                self.partial = self.partial or BoundedText()
                self._read_into(self.partial)
            with contextlib.suppress(OSError):  # a full disk must not fail a print
                os.write(self.fd, text.encode("utf-8", ERRORS))
            self.mark = os.lseek(self.fd, 0, os.SEEK_END)

    def moved(self) -> bool:
        """Return whether there is something to take, or the descriptor leads elsewhere."""
        try:
            return os.lseek(self.number, 0, os.SEEK_END) != self.mark or self.partial is not None
        except OSError:
            return True

    def part_from_children(self) -> int | None:
        """Give the descriptor another file if somebody else still holds this one open.

        Whether somebody does is told by a lock: it belongs to the opened file that children inherit, and goes with its
        last holder.  The descriptor is opened afresh, and if the lock can be had then, nobody is left.

        Returns: None, or a descriptor by which the former file is read on.
        """
        with self._lock:
            again = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            self._stand_on(again)
            if _locked(again):
                return None
            former = os.dup(again)
            fresh = _memory() if self.path is None else _moved_log(self.path, former)
            self._stand_on(fresh)
            _locked(fresh)
            self.mark = os.lseek(fresh, 0, os.SEEK_END)
            return former

    def _stand_on(self, fd: int) -> None:
        _dup2(fd, self.number)
        os.close(self.fd)
        self.fd = fd

    def _empty(self) -> None:
        base = _BASE if self.path is None else 0
        os.ftruncate(self.fd, base)
        self.mark = base

    def _read_into(self, text: BoundedText) -> None:
        end = os.lseek(self.fd, 0, os.SEEK_END)
        truncated = end < self.mark
        if truncated:  # somebody opened /dev/stdout to write
            self.mark = 0
        size = end - self.mark
        decode = self._decoder.decode
        if size > 2 * LIMIT_CHARS:
            text.write(decode(os.pread(self.fd, LIMIT_CHARS, self.mark)))
            text.skip(size - 2 * LIMIT_CHARS)
            self._decoder.reset()
            text.write(decode(os.pread(self.fd, LIMIT_CHARS, end - LIMIT_CHARS)))
        elif size > 0:
            text.write(decode(os.pread(self.fd, size, self.mark)))
        self.mark = end
        if truncated and self.path is None:
            self._empty()  # long again, so that the next time is noticed too


def _locked(fd: int) -> bool:
    """Lock an opened file; False: somebody else has."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _quickest_write_s() -> float:
    """Less than a write to a file in memory ever takes here."""
    memory = _memory()
    quickest = QUICK_S_MAX
    for _ in range(100):
        begun = time.perf_counter()
        os.write(memory, b"x")
        quickest = min(quickest, time.perf_counter() - begun)
    os.close(memory)
    return quickest * 0.9


class FormerFiles:
    """Files that children of earlier tasks may still write to: read now and then, for the log."""

    def __init__(self) -> None:
        self._files: deque[list[int]] = deque()
        self._lock = threading.Lock()

    def add(self, fd: int) -> None:
        """Read this one from its present end on."""
        with self._lock:
            self._files.append([fd, os.lseek(fd, 0, os.SEEK_END)])
            if len(self._files) > FORMER_MAX:
                os.close(self._files.popleft()[0])

    def take(self) -> str:
        """Return what has come to them; they are emptied."""
        if not self._files:
            return ""
        found = []
        with self._lock:
            for entry in self._files:
                fd, mark = entry
                size = os.lseek(fd, 0, os.SEEK_END) - mark
                if size > 0:
                    found.append(os.pread(fd, min(size, LIMIT_CHARS), mark).decode("utf-8", ERRORS))
                    os.ftruncate(fd, 0)
                    entry[1] = 0
        return "".join(found)


def follow_children(started: Callable[[], None]) -> None:
    """Have `started` called whenever this process starts a child.

    An audit hook would tell as much, and cost 0.1 us at each import, compile, exec and open of every task.
    """
    import _posixsubprocess
    import posix

    def following(start: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(start)
        def call(*args: Any, **kwargs: Any) -> Any:
            started()
            return start(*args, **kwargs)

        return call

    os.register_at_fork(before=started)
    usual: Any = _posixsubprocess.fork_exec
    start = following(usual)
    # By its C name in multiprocessing, by one of its own in subprocess, if that was imported already.
    for module in filter(None, (_posixsubprocess, sys.modules.get("subprocess"))):
        for name, value in list(vars(module).items()):
            if value is usual:
                setattr(module, name, start)
    for name in ("system", "posix_spawn", "posix_spawnp"):
        start = following(getattr(os, name))
        setattr(os, name, start)
        setattr(posix, name, start)


def follow_writes(writes: Callable[[], None]) -> None:
    """Have `writes` called before `os.write` and `os.writev` write to the descriptors 1 and 2."""
    import posix

    def following(usual: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        @functools.wraps(usual)
        def write(fd: int, data: Any, /) -> int:
            if fd in (STDOUT_FD, STDERR_FD):
                writes()
            return usual(fd, data)

        return write

    os.write = posix.write = following(os.write)
    os.writev = posix.writev = following(os.writev)


class _Unseekable(FileIO):
    """A descriptor as a terminal or pipe is: though a file is behind it, nobody may go back in it."""

    def seekable(self) -> bool:
        return False

    def truncate(self, size: int | None = None, /) -> NoReturn:
        raise UnsupportedOperation("truncate")


class OriginalStream(TextIOWrapper):
    """``sys.__stdout__`` or ``sys.__stderr__``: straight to a descriptor, which it leaves open, and itself too."""

    def __init__(self, fd: int) -> None:
        super().__init__(_Unseekable(fd, "w", closefd=False), errors=ERRORS, write_through=True)
        self.mode = "w"  # type: ignore[misc]

    def close(self) -> None:
        self.flush()

    def detach(self) -> NoReturn:
        raise UnsupportedOperation("an engine's streams cannot be taken apart")


def catch_descriptors(output: str) -> None:
    """Put a file in memory under descriptor 1 and the engine's log under descriptor 2, /dev/null under 0."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    log = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    memory = _memory()
    os.dup2(log, STDERR_FD)
    os.dup2(memory, STDOUT_FD)
    for fd in (log, memory):
        os.close(fd)
    # C's stdout would keep what a task printed until a later one fills its buffer, or be flushed after each at 0.5 us.
    libc = ctypes.PyDLL(None)
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 2, 0)  # 2: _IONBF
    sys.stdout = sys.__stdout__ = OriginalStream(STDOUT_FD)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = OriginalStream(STDERR_FD)  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = TextIOWrapper(FileIO(0, closefd=False))  # type: ignore[misc]


def _memory() -> int:
    """Return a file in memory, opened for appending."""
    memory = os.memfd_create("ipytaskfarm-stdout")
    # O_APPEND cannot be asked of memfd_create; reopened, it sticks to the open file that children inherit.
    appending = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.close(memory)
    os.ftruncate(appending, _BASE)
    return appending


def _moved_log(path: str, former: int) -> int:
    """Return a new file in the log's place, with the end of what stood there."""
    beside = f"{path}.new"
    log = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    end = os.lseek(former, 0, os.SEEK_END)
    size = min(end, LOG_MOVED_BYTES_MAX)
    os.write(log, os.pread(former, size, end - size))
    os.rename(beside, path)
    return log
