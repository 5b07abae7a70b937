"""Whose output is whose.

Three ways lead out of a task, and each is caught by other means:

- Python's ``sys.stdout``/``sys.stderr`` are a `TaskStream`, which looks at a context variable: the `Sink` of what
  runs.  Threads a task starts inherit it, so a late print stays with its own task.  No sink: the kernel's own
  way, to whoever is attached.
- What C code and children write to the descriptors 1 and 2 goes to files (a memfd, and the engine's log), read
  back after the task by a `DescriptorTap`.  ipykernel's pipes with a thread each were not taken: they stamp what
  they read with the last parent they saw, later, and cost two threads.
- Rich displays are caught where IPython would publish them (`kernel.TaskDisplay`, `kernel.TaskDisplayHook`).

A silent task pays less than 2 µs for all of it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from contextvars import ContextVar
from io import FileIO, TextIOWrapper
from typing import Any

from ipykernel.iostream import OutStream

LIMIT_CHARS = 64 * 1024
"""What is kept of a stream: this much of its beginning and this much of its end."""
LOOK_CHARS = 16 * 1024
"""What somebody who looks on is shown of a stream at once."""
DISPLAYS_MAX = 100
DISPLAYS_BYTES_MAX = 16 * 1024 * 1024
LOG_BYTES_MAX = 10 * 1024 * 1024
STDOUT_FD, STDERR_FD = 1, 2

SINK: ContextVar[Sink | None] = ContextVar("ipytaskfarm_sink", default=None)
"""Where output of this context goes; None: nowhere special (a console's cell, a thread of nobody)."""

_tail_lock = threading.Lock()
_forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = True


def forget_parent() -> None:
    """Count this process as the original one: called once by an engine, which is itself a forked child."""
    global _forked
    _forked = False
    os.register_at_fork(after_in_child=_after_fork_in_child)


class BoundedText:
    """The head and the tail of a text of any length."""

    __slots__ = ("head", "room", "tail", "tail_chars", "dropped")

    def __init__(self) -> None:
        self.head: list[str] = []
        self.room = LIMIT_CHARS
        self.tail: deque[str] | None = None
        self.tail_chars = 0
        self.dropped = 0

    def write(self, text: str) -> None:
        if len(text) <= self.room:
            self.head.append(text)
            self.room -= len(text)
            return
        # Only what overflows takes the lock: threads that print into one task meet here.
        with _tail_lock:
            if self.room > 0:
                self.head.append(text[: self.room])
                text = text[self.room :]
                self.room = 0
            self._overflow(text)

    def _overflow(self, text: str) -> None:
        tail = self.tail
        if tail is None:
            tail = self.tail = deque()
        if len(text) > LIMIT_CHARS:
            self.dropped += len(text) - LIMIT_CHARS
            text = text[-LIMIT_CHARS:]
        tail.append(text)
        self.tail_chars += len(text)
        while self.tail_chars - len(tail[0]) >= LIMIT_CHARS:
            gone = len(tail.popleft())
            self.tail_chars -= gone
            self.dropped += gone

    def skip(self, chars: int) -> None:
        """Count text that nobody kept."""
        self.dropped += chars

    def since(self, chars: int, limit: int) -> tuple[int, str]:
        """(characters until now, what was written beyond that many), its beginning left out if it is too long."""
        with _tail_lock:
            head = "".join(self.head)
            tail = "".join(self.tail or ())
        total = len(head) + self.dropped + len(tail)
        if chars > total:  # it was cleared, and written to again
            chars = 0
        if total == chars:
            return total, ""
        new = head[chars:] + tail if chars < len(head) else tail[max(0, chars - len(head) - self.dropped) :]
        missed = total - chars - len(new) + max(0, len(new) - limit)
        note = f"[... {missed} characters left out ...]\n" if missed else ""
        return total, note + new[-limit:]

    def text(self) -> str:
        if self.tail is None and not self.dropped:
            return "".join(self.head)
        with _tail_lock:
            tail = "".join(self.tail or ())
            over = max(0, len(tail) - LIMIT_CHARS)
            left_out = self.dropped + over
            between = f"\n[... {left_out} characters left out ...]\n" if left_out else ""
            return "".join([*self.head, between, tail[over:]])


class Sink:
    """The output of one run: made before it, read after it.  `write` may come from any of the run's threads."""

    __slots__ = ("stdout", "stderr", "outputs", "_bytes", "_dropped", "ended", "keeps_history", "_clear_next")

    def __init__(self, keeps_history: bool = False) -> None:
        self.stdout: BoundedText | None = None
        self.stderr: BoundedText | None = None
        self.outputs: list[dict[str, Any]] | None = None
        self._bytes = 0
        self._dropped = 0
        self.ended = False
        self.keeps_history = keeps_history
        """A MultiEngine command: it counts in In and Out, a task does not."""
        self._clear_next = False

    def write(self, name: str, text: str) -> None:
        if self.ended:
            _late(text)
            return
        if self._clear_next:
            self.clear()
        stream = self.stdout if name == "stdout" else self.stderr
        if stream is None:
            stream = BoundedText()
            if name == "stdout":
                self.stdout = stream
            else:
                self.stderr = stream
        stream.write(text)

    def display(self, content: dict[str, Any], update: bool = False) -> None:
        """Keep ``{"data", "metadata"}``; with a display_id of an earlier one in "transient": in its place."""
        if self.ended:
            return
        if self._clear_next:
            self.clear()
        output = {"data": content["data"], "metadata": content.get("metadata") or {}}
        display_id = (content.get("transient") or {}).get("display_id")
        if display_id is not None:
            output["display_id"] = display_id
        outputs = self.outputs
        if outputs is None:
            outputs = self.outputs = []
        if update:
            for place, earlier in enumerate(outputs):
                if earlier.get("display_id") == display_id:
                    outputs[place] = output
            return
        size = sum(len(value) for value in output["data"].values() if isinstance(value, str | bytes))
        if len(outputs) >= DISPLAYS_MAX or self._bytes + size > DISPLAYS_BYTES_MAX:
            self._dropped += 1
            return
        self._bytes += size
        outputs.append(output)

    def clear(self, wait: bool = False) -> None:
        """What ``clear_output`` asks for: forget all so far, now or when something new comes."""
        self._clear_next = wait
        if not wait:
            self.stdout = self.stderr = self.outputs = None
            self._bytes = self._dropped = 0

    def close(self) -> None:
        """The run is over: what its threads print from now on goes to the engine's log."""
        self.ended = True
        if self._dropped:
            note = f"\n[{self._dropped} displays left out: too many or too large]\n"
            self.stderr = self.stderr or BoundedText()
            self.stderr.write(note)


def _late(text: str) -> None:
    """Output that comes when its run is over."""
    if _capture is not None:
        _capture.log(text)


_capture: Capture | None = None


class TaskStream(OutStream):
    """``sys.stdout`` or ``sys.stderr`` of an engine."""

    def __init__(self, session: Any, pub_thread: Any, name: str, **kwargs: Any) -> None:
        kwargs["watchfd"] = False
        super().__init__(session, pub_thread, name, **kwargs)
        self._fd = STDOUT_FD if name == "stdout" else STDERR_FD

    def write(self, string: str) -> int:
        if _forked:
            # ipykernel would use the parent's sockets, or an open TCP port; the descriptor is caught anyway.
            os.write(self._fd, string.encode("utf-8", "replace"))
            return len(string)
        sink = SINK.get()
        if sink is None:
            super().write(string)
            return len(string)
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string).__name__}")
        sink.write(self.name, string)
        return len(string)

    def writelines(self, sequence: Any) -> None:
        for string in sequence:
            self.write(string)

    def flush(self) -> None:
        if _forked or SINK.get() is not None:
            return
        super().flush()

    def fileno(self) -> int:
        return self._fd


def follow_threads() -> None:
    """Let threads inherit the sink of the one who starts them."""
    start = threading.Thread.start

    def start_with_sink(self: threading.Thread) -> None:
        sink = SINK.get()
        if sink is not None:
            run = self.run

            def run_with_sink() -> None:
                SINK.set(sink)
                try:
                    run()
                finally:
                    vars(self).pop("run", None)  # it refers to the thread, which refers to it

            vars(self)["run"] = run_with_sink
        start(self)

    threading.Thread.start = start_with_sink  # type: ignore[method-assign]


class DescriptorTap:
    """Reads back what was written to a descriptor that is a file opened for appending.

    Args:
        fd: 1 or 2.  A copy of it is kept, so that user code may redirect the number itself.
        keep_bytes: how much of what was read may stay in the file (a log); 0: nothing (a memfd).
    """

    def __init__(self, fd: int, keep_bytes: int) -> None:
        self.fd = os.dup(fd)
        self.keep_bytes = keep_bytes
        self.mark = os.lseek(self.fd, 0, os.SEEK_END)
        self.partial: BoundedText | None = None
        """What `shrink` has taken out of the file already."""
        self._lock = threading.Lock()

    def take(self) -> str:
        """What was written since the last call, its middle left out if it was long."""
        with self._lock:
            text = self.partial or BoundedText()
            self.partial = None
            self._read_into(text)
            if self.mark > self.keep_bytes:
                os.ftruncate(self.fd, 0)
                self.mark = 0
            return text.text()

    def shrink(self, above_bytes: int) -> None:
        """Keep the file small while something writes to it without end.  Called by another thread than `take`.

        What is written between the read and the truncation is lost without being counted.
        """
        if os.lseek(self.fd, 0, os.SEEK_END) - self.mark <= above_bytes:
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
            try:
                os.write(self.fd, text.encode("utf-8", "replace"))
            except OSError:
                pass  # a full disk must not fail a print
            self.mark = os.lseek(self.fd, 0, os.SEEK_END)

    def _read_into(self, text: BoundedText) -> None:
        end = os.lseek(self.fd, 0, os.SEEK_END)
        if end < self.mark:  # somebody truncated it
            self.mark = 0
        size = end - self.mark
        if size > 2 * LIMIT_CHARS:
            text.write(os.pread(self.fd, LIMIT_CHARS, self.mark).decode("utf-8", "replace"))
            text.skip(size - 2 * LIMIT_CHARS)
            text.write(os.pread(self.fd, LIMIT_CHARS, end - LIMIT_CHARS).decode("utf-8", "replace"))
        elif size > 0:
            text.write(os.pread(self.fd, size, self.mark).decode("utf-8", "replace"))
        self.mark = end


class Capture:
    """Everything that catches output in this process."""

    def __init__(self) -> None:
        self.stdout_tap = DescriptorTap(STDOUT_FD, 0)
        self.stderr_tap = DescriptorTap(STDERR_FD, LOG_BYTES_MAX)
        self._out_fd, self._err_fd = self.stdout_tap.fd, self.stderr_tap.fd
        # The lane's thread takes what stands in the descriptors while a run goes on; its end must not come in between.
        self._lock = threading.Lock()
        global _capture
        _capture = self

    def log(self, text: str) -> None:
        """Append to the engine's log."""
        self.stderr_tap.append(text)

    def settle(self, to_console: bool) -> None:
        """Take what stands in the descriptors and belongs to no run.

        Args:
            to_console: a console's cell wrote it, which should see it; else it goes to the log.
        """
        if not self._moved():
            return
        stdout, stderr = self.stdout_tap.take(), self.stderr_tap.take()
        if to_console:
            for text, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
                if text:
                    stream.write(text)
        elif stdout:
            self.log(stdout)  # stderr stands there already

    def end(self, sink: Sink) -> None:
        """Close `sink` with what was written to the descriptors meanwhile."""
        with self._lock:
            self._take_into(sink)
            sink.close()

    def look(self, sink: Sink, stdout: int, stderr: int) -> tuple[str, str, tuple[int, int]]:
        """What a run that goes on has written beyond so many characters; called by the lane's thread.
        Gives stdout, stderr, and how many characters of them that makes."""
        with self._lock:
            if not sink.ended:
                self._take_into(sink)
        seen_out, out = sink.stdout.since(stdout, LOOK_CHARS) if sink.stdout is not None else (0, "")
        seen_err, err = sink.stderr.since(stderr, LOOK_CHARS) if sink.stderr is not None else (0, "")
        return out, err, (seen_out, seen_err)

    def _take_into(self, sink: Sink) -> None:
        if self._moved():
            for tap, name in ((self.stdout_tap, "stdout"), (self.stderr_tap, "stderr")):
                text = tap.take()
                if text:
                    sink.write(name, text)

    def _moved(self) -> bool:
        out, err = self.stdout_tap, self.stderr_tap
        return (
            os.lseek(self._out_fd, 0, os.SEEK_END) != out.mark
            or os.lseek(self._err_fd, 0, os.SEEK_END) != err.mark
            or out.partial is not None
            or err.partial is not None
        )

    def shrink(self) -> None:
        """Called by the lane's thread while something runs."""
        self.stdout_tap.shrink(1 << 20)
        self.stderr_tap.shrink(LOG_BYTES_MAX)


def catch_descriptors(output: str) -> None:
    """Put a memfd under descriptor 1 and the engine's log under descriptor 2, /dev/null under 0."""
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    log = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.dup2(log, STDERR_FD)
    memory = os.memfd_create("ipytaskfarm-stdout")
    # O_APPEND cannot be asked of memfd_create; reopened, it sticks to the open file that children inherit.
    appending = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    os.dup2(appending, STDOUT_FD)
    for fd in (log, memory, appending):
        os.close(fd)
    # C's stdout would keep what a task printed until a later one fills its buffer, or be flushed after each at 0.5 us.
    libc = ctypes.PyDLL(None)
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 2, 0)  # 2: _IONBF
    sys.stdout = sys.__stdout__ = _text(STDOUT_FD)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(STDERR_FD)  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = TextIOWrapper(FileIO(0, closefd=False))  # type: ignore[misc]


def _text(fd: int) -> TextIOWrapper:
    """A stream on a descriptor, which it leaves open."""
    return TextIOWrapper(FileIO(fd, "w", closefd=False), errors="backslashreplace", write_through=True)
