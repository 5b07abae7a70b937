"""Catches output that is written to the descriptors 1 and 2 by C code and children, through files that are read back.

Descriptor 1 is a file that is emptied when it was read, 2 the engine's log; both are opened for appending, and the
agent can read both after the engine's death. ipykernel's pipes with a reading thread each were not used: they attribute
the text to the last parent message, late, and cost two threads.

A child that outlives its task keeps the files that it was started with. `DescriptorTap.part_from_children` leaves these
files to the child, so that its later output is not taken for the output of the next task.
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
"""The error handler for characters that cannot be encoded and bytes that cannot be decoded: they stay readable."""
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_MOVED_BYTES_MAX = 1024 * 1024
"""How much of its end a log keeps when it is moved to a new file."""
MEMORY_BYTES_MAX = 1 << 20
_BASE = 1 << 24
"""Where the file in memory begins, behind a hole. The file is shorter only if somebody has opened /dev/stdout and
truncated it, or if a task has redirected the descriptor to another file."""
QUICK_S_MAX = 600e-9
FORMER_MAX = 16
"""The number of files of earlier tasks' children that are still read."""
_dup2: Callable[[int, int], int] = inspect.unwrap(os.dup2)
"""The farm's own calls are not counted as changes by a task, see `watched`."""


class DescriptorTap:
    """Reads back what was written to a descriptor that is a file opened for appending.

    Args:
        number: 1 or 2. A copy of the descriptor is kept, so that user code may redirect the number itself.
        path: the path of the file; "" for a file in memory.
        marked: called with the number and the position up to which the file was read.
        is_log: whether the file is kept when it was read; otherwise it is emptied.
    """

    def __init__(self, number: int, path: str, marked: Callable[[int, int], None], is_log: bool = True) -> None:
        self.number = number
        self.path = path
        self._marked = marked
        self._is_log = is_log
        self.fd = os.dup(number)
        _locked(self.fd)
        self.mark = 0
        self._set_mark(os.lseek(self.fd, 0, os.SEEK_END))
        self.partial: BoundedText | None = None
        """What `shrink` has taken out of the file already."""
        self.written_s = 0.0
        """When Python last wrote to the stream of this descriptor; …"""
        self.quick_s = _quickest_write_s()
        """… within this time nothing else can have been written to it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(ERRORS)
        self._lock = threading.RLock()
        """A finalizer that prints may run in the thread that holds it."""

    def is_there(self) -> bool:
        """Return whether the descriptor still refers to the file."""
        try:
            here, ours = os.fstat(self.number), os.fstat(self.fd)
        except OSError:
            return False
        return os.path.samestat(here, ours)

    def put_back(self) -> bool:
        """Make the descriptor refer to the file again. Return whether it had been redirected."""
        if self.is_there():
            return False
        _dup2(self.fd, self.number)
        return True

    def take(self, final: bool = True) -> BoundedText:
        """Return the text that was written since the last call; the middle of a long text is left out.

        final: whether the output is complete. Then an incomplete character at the end is not waited for, and a file in
        memory is emptied.
        """
        with self._lock:
            text = self.partial or BoundedText()
            self.partial = None
            self._read_into(text)
            if final:
                text.write(self._decoder.decode(b"", True))
                self._decoder.reset()
                if self.mark > (LOG_BYTES_MAX if self._is_log else _BASE):
                    self._empty()
            return text

    def shrink(self) -> None:
        """Keep the file small while something writes to it without end. Called by another thread than `take`.

        Text that is written between the read and the truncation is lost and not counted.
        """
        most = LOG_BYTES_MAX if self._is_log else MEMORY_BYTES_MAX
        begin = self.mark
        if begin < 0 or os.lseek(self.fd, 0, os.SEEK_END) - begin <= most:
            return
        with self._lock:
            begin = self.mark
            if self.partial is None:
                self.partial = BoundedText()
            self._read_into(self.partial)
            os.ftruncate(self.fd, begin)
            self._set_mark(begin)

    def append(self, text: str) -> None:
        """Write text to the file that does not belong to any run's output."""
        with self._lock:
            if os.lseek(self.fd, 0, os.SEEK_END) != self.mark:
                self.partial = self.partial or BoundedText()
                self._read_into(self.partial)
            with contextlib.suppress(OSError):  # a full disk must not make a print fail
                os.write(self.fd, text.encode("utf-8", ERRORS))
            self._set_mark(os.lseek(self.fd, 0, os.SEEK_END))

    def moved(self) -> bool:
        """Return whether there is something to take, or the descriptor was redirected."""
        try:
            return os.lseek(self.number, 0, os.SEEK_END) != self.mark or self.partial is not None
        except OSError:
            return True

    def part_from_children(self) -> int | None:
        """Give the descriptor a new file if another process still has the present file open.

        A lock shows whether that is so: it belongs to the open file that children inherit, and ends with the last
        holder. The descriptor is opened again; if the lock can be taken then, there is no other holder.

        Returns:
            A descriptor for reading the former file further; None if no other process has it open.
        """
        with self._lock:
            again = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            self._stand_on(again)
            if _locked(again):
                return None
            former = os.dup(again)
            try:
                fresh = _moved_log(self.path, former) if self._is_log else _fresh_file(self.path)
            except OSError:
                os.close(former)
                raise
            self._stand_on(fresh)
            _locked(fresh)
            self._set_mark(os.lseek(fresh, 0, os.SEEK_END))
            return former

    def _set_mark(self, position: int) -> None:
        self.mark = position
        self._marked(self.number, position)

    def _stand_on(self, fd: int) -> None:
        _dup2(fd, self.number)
        os.close(self.fd)
        self.fd = fd

    def _empty(self) -> None:
        base = 0 if self._is_log else _BASE
        os.ftruncate(self.fd, base)
        self._set_mark(base)

    def _read_into(self, text: BoundedText) -> None:
        end = os.lseek(self.fd, 0, os.SEEK_END)
        truncated = end < self.mark
        if truncated:  # somebody opened /dev/stdout for writing
            self._set_mark(0)
        size = end - self.mark
        decode = self._decoder.decode
        if size > 2 * LIMIT_CHARS:
            text.write(decode(os.pread(self.fd, LIMIT_CHARS, self.mark)))
            text.skip(size - 2 * LIMIT_CHARS)
            self._decoder.reset()
            text.write(decode(os.pread(self.fd, LIMIT_CHARS, end - LIMIT_CHARS)))
        elif size > 0:
            text.write(decode(os.pread(self.fd, size, self.mark)))
        self._set_mark(end)
        if truncated and not self._is_log:
            self._empty()  # long again, so that the next truncation is noticed too


def _locked(fd: int) -> bool:
    """Lock an open file. Return False if another holder has locked it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _quickest_write_s() -> float:
    """Return a time in seconds that is shorter than any write to a file in memory on this machine."""
    memory = _memory()
    quickest = QUICK_S_MAX
    for _ in range(100):
        begun = time.perf_counter()
        os.write(memory, b"x")
        quickest = min(quickest, time.perf_counter() - begun)
    os.close(memory)
    return quickest * 0.9


class FormerFiles:
    """Files that children of earlier tasks may still write to. They are read from time to time, for the log."""

    def __init__(self) -> None:
        self._files: deque[list[int]] = deque()
        self._lock = threading.Lock()

    def add(self, fd: int) -> None:
        """Start to read a file, from its present end."""
        with self._lock:
            self._files.append([fd, os.lseek(fd, 0, os.SEEK_END)])
            if len(self._files) > FORMER_MAX:
                os.close(self._files.popleft()[0])

    def take(self) -> str:
        """Return the text that was written to the files, and empty them."""
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
    """Call `started` whenever this process starts a child.

    An audit hook would report the same, but cost 0.1 µs at each import, compile, exec and open of every task.
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
    # multiprocessing uses the C name; subprocess uses a name of its own, if it was imported already.
    for module in filter(None, (_posixsubprocess, sys.modules.get("subprocess"))):
        for name, value in list(vars(module).items()):
            if value is usual:
                setattr(module, name, start)
    for name in ("system", "posix_spawn", "posix_spawnp"):
        start = following(getattr(os, name))
        setattr(os, name, start)
        setattr(posix, name, start)


def follow_writes(writes: Callable[[], None]) -> None:
    """Make `os.write` and `os.writev` call `writes` before they write to the descriptors 1 and 2."""
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
    """A descriptor that behaves like a terminal or pipe: it refuses to seek, although it is a file."""

    def seekable(self) -> bool:
        return False

    def truncate(self, size: int | None = None, /) -> NoReturn:
        raise UnsupportedOperation("truncate")


class OriginalStream(TextIOWrapper):
    """``sys.__stdout__`` or ``sys.__stderr__``: it writes directly to a descriptor. Closing it leaves both open."""

    def __init__(self, fd: int) -> None:
        super().__init__(_Unseekable(fd, "w", closefd=False), errors=ERRORS, write_through=True)
        self.mode = "w"  # type: ignore[misc]

    def close(self) -> None:
        self.flush()

    def detach(self) -> NoReturn:
        raise UnsupportedOperation("an engine's streams cannot be taken apart")


def catch_descriptors(output: str, stdout: str) -> None:
    """Redirect descriptor 1 to the file `stdout`, descriptor 2 to the engine's log `output`, and 0 to /dev/null."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    log = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    memory = _fresh_file(stdout)
    os.dup2(log, STDERR_FD)
    os.dup2(memory, STDOUT_FD)
    for fd in (log, memory):
        os.close(fd)
    # Buffered, C's stdout would keep what a task printed until a later task fills the buffer; a flush costs 0.5 µs per
    # task.
    libc = ctypes.PyDLL(None)
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 2, 0)  # 2: _IONBF
    sys.stdout = sys.__stdout__ = OriginalStream(STDOUT_FD)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = OriginalStream(STDERR_FD)  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = TextIOWrapper(FileIO(0, closefd=False))  # type: ignore[misc]


def _fresh_file(path: str) -> int:
    """Return a new file for descriptor 1, opened for appending; "": in memory.

    A file in the agent's folder can be read after the engine's death. In the place of an earlier one it is put by its
    name alone: children go on with theirs.
    """
    if not path:
        return _memory()
    beside = f"{path}.new"
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(beside, flags, 0o600)
    os.ftruncate(file, _BASE)
    os.rename(beside, path)
    return file


def _memory() -> int:
    """Return a file in memory, opened for appending."""
    memory = os.memfd_create("ipytaskfarm-stdout")
    # memfd_create does not take O_APPEND. After reopening, the flag belongs to the open file, which children inherit.
    appending = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.close(memory)
    os.ftruncate(appending, _BASE)
    return appending


def _moved_log(path: str, former: int) -> int:
    """Return a new file in the log's place that begins with the end of the former log."""
    beside = f"{path}.new"
    log = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    end = os.lseek(former, 0, os.SEEK_END)
    size = min(end, LOG_MOVED_BYTES_MAX)
    os.write(log, os.pread(former, size, end - size))
    os.rename(beside, path)
    return log
