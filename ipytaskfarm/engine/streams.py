"""``sys.stdout`` and ``sys.stderr`` of an engine.

They write to the sink of the present run and behave like other streams.

Before a write, the stream checks whether the descriptor has received other text in the meantime (from a child, C code,
`os.write`, or the stream's own `buffer`) and takes that text first, so that all output is in the order in which it was
written. The check is one `lseek`, which releases the GIL and costs as much as a print. If a write follows another too
quickly for anything to be written to the descriptor in between, there is no check (`DescriptorTap.quick_s`, measured
when the engine starts).
"""

from __future__ import annotations

import codecs
import io
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from ipykernel.iostream import OutStream

from ..system.last_words import LastWords
from .descriptors import ERRORS, STDERR_FD, STDOUT_FD, DescriptorTap
from .sinks import SINK, Sink, keep_words

_SETTINGS = ("encoding", "errors", "newline", "line_buffering", "write_through")

Drain = Callable[[Sink], bool]
"""Moves the text that came to the descriptors into the sink; returns False if the descriptor was redirected."""
Write = Callable[[str], int]

_forked = False


def _after_fork_in_child() -> None:
    global _forked
    _forked = True
    keep_words(None)
    for stream in TaskStream.all:
        stream.leave_parent()


def forget_parent() -> None:
    """Treat this process as the original one. An engine, which is itself a forked child, calls this once."""
    global _forked
    _forked = False
    os.register_at_fork(after_in_child=_after_fork_in_child)


class TaskStream(OutStream):
    """``sys.stdout`` or ``sys.stderr`` of an engine."""

    all: list[TaskStream] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, session: Any, pub_thread: Any, name: str, **kwargs: Any) -> None:
        kwargs["watchfd"] = False
        super().__init__(session, pub_thread, name, **kwargs)
        self._fd = STDOUT_FD if name == "stdout" else STDERR_FD
        self._tap: DescriptorTap | None = None
        self._words: LastWords | None = None
        self._drain: Drain = lambda sink: True
        self.buffer = StreamBuffer(self._fd, name)
        TaskStream.all.append(self)

    def attach(self, tap: DescriptorTap, drain: Drain, words: LastWords) -> None:
        """Check the descriptor before each write from now on."""
        self._tap, self._drain = tap, drain
        make = _stdout_writer if self.name == "stdout" else _stderr_writer
        self._words = words
        self.write = make(tap, self._slowly, words)  # type: ignore[assignment]

    def leave_parent(self) -> None:
        """Direct all writes of a forked child to the descriptor, also those by `write` methods looked up earlier."""
        if self._tap is not None:
            self._tap.mark = -1

    def write(self, string: str) -> int:
        return self._slowly(string)

    def _slowly(self, string: str) -> int:
        """Write text in all cases that the fast path does not cover."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string).__name__}")
        if _forked:
            # ipykernel would use the parent's sockets, or an open TCP port. The descriptor is caught in any case.
            _write_all(self._fd, string.encode("utf-8", ERRORS))
            return len(string)
        sink = SINK.get()
        if sink is None:
            super().write(string)
        elif sink.ended or self._drain(sink):
            sink.write(self.name, str(string))
        else:
            _write_all(self._fd, string.encode("utf-8", ERRORS))
        return len(string)

    def writelines(self, sequence: Iterable[str]) -> None:  # type: ignore[override]
        for string in sequence:
            self.write(string)

    def flush(self) -> None:
        if _forked:
            return
        if SINK.get() is not None:
            if self._words is not None:
                self._words.flush()
            return
        super().flush()

    def close(self) -> None:
        """Do nothing but flush: the next task needs the stream, as do logging handlers and wrappers at their end."""
        self.flush()

    @property
    def closed(self) -> bool:
        return False

    def detach(self) -> StreamBuffer:  # type: ignore[override]
        """Return the buffer, for ``io.TextIOWrapper(sys.stdout.detach(), …)``. The stream itself goes on working."""
        return self.buffer

    def fileno(self) -> int:
        return self._fd

    # -- the interface of text streams

    mode = "w"

    def reconfigure(self, **settings: Any) -> None:
        """Record the settings until the task ends. Text is kept as text, so an encoding does not change it.

        Arguments: encoding, errors, newline, line_buffering, write_through, as in `io.TextIOWrapper`.
        """
        for name, value in settings.items():
            if name not in _SETTINGS:
                raise TypeError(f"reconfigure() got an unexpected keyword argument {name!r}")
            if name == "encoding" and value is not None:
                codecs.lookup(value)
            if name == "errors" and value is not None:
                codecs.lookup_error(value)
        sink = SINK.get()
        if sink is not None:
            known = sink.settings = sink.settings or {}
            known.update((f"{self.name}.{name}", value) for name, value in settings.items() if value is not None)

    def _setting(self, name: str, usual: Any) -> Any:
        sink = SINK.get()
        return usual if sink is None or sink.settings is None else sink.settings.get(f"{self.name}.{name}", usual)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return str(self._setting("encoding", "utf-8"))

    @property
    def errors(self) -> str:  # type: ignore[override]
        return str(self._setting("errors", ERRORS))

    @property
    def newlines(self) -> None:  # type: ignore[override]
        return None

    @property
    def line_buffering(self) -> bool:
        return bool(self._setting("line_buffering", self.name == "stderr"))

    @property
    def write_through(self) -> bool:
        return bool(self._setting("write_through", False))


def _stdout_writer(tap: DescriptorTap, slowly: Write, words: LastWords) -> Write:
    get, lseek, clock, fd, quick_s = SINK.get, os.lseek, time.perf_counter, tap.number, tap.quick_s
    keep, store = words.append, words.flush

    def write(string: str) -> int:
        sink = get()
        if sink is None or (text := sink.stdout) is None or type(string) is not str:
            return slowly(string)
        now = clock()
        if now - tap.written_s > quick_s:
            try:
                if lseek(fd, 0, 2) != tap.mark:
                    return slowly(string)
            except OSError:  # a pipe, or closed
                return slowly(string)
            now = clock()
        tap.written_s = now
        length = len(string)
        room = text.room - length
        if room >= 0:
            text.append(string)
            text.room = room
        elif text.room >= 0:
            text.write(string)
            tap.written_s = clock()
        else:  # the run is over, or its output is to be cleared
            return slowly(string)
        keep(string)
        if string[-1:] == "\n":
            store()
        return length

    return write


def _stderr_writer(tap: DescriptorTap, slowly: Write, words: LastWords) -> Write:
    """Return the write function for stderr. One function for both streams would cost 20 ns more per write."""
    get, lseek, clock, fd, quick_s = SINK.get, os.lseek, time.perf_counter, tap.number, tap.quick_s
    keep, store = words.append, words.flush

    def write(string: str) -> int:
        sink = get()
        if sink is None or (text := sink.stderr) is None or type(string) is not str:
            return slowly(string)
        now = clock()
        if now - tap.written_s > quick_s:
            try:
                if lseek(fd, 0, 2) != tap.mark:
                    return slowly(string)
            except OSError:  # a pipe, or closed
                return slowly(string)
            now = clock()
        tap.written_s = now
        length = len(string)
        room = text.room - length
        if room >= 0:
            text.append(string)
            text.room = room
        elif text.room >= 0:
            text.write(string)
            tap.written_s = clock()
        else:  # the run is over, or its output is to be cleared
            return slowly(string)
        keep(string)
        if string[-1:] == "\n":
            store()
        return length

    return write


class StreamBuffer(io.BufferedIOBase):
    """``sys.stdout.buffer``: it writes to the descriptor, where bytes stay in order with all other output."""

    mode = "wb"

    def __init__(self, fd: int, name: str) -> None:
        super().__init__()
        self._fd = fd
        self.name = f"<{name}>"
        self.raw = self

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        sink = SINK.get()
        if sink is not None and sink.ended and not _forked:
            sink.write(self.name, str(view, "utf-8", ERRORS))  # late output goes to the log
        else:
            _write_all(self._fd, view)
        return view.nbytes

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Do nothing: there is no buffered data."""

    def close(self) -> None:
        """Do nothing: a TextIOWrapper around the buffer closes it when the wrapper is collected."""

    @property
    def closed(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def detach(self) -> NoReturn:
        raise io.UnsupportedOperation("an engine's streams cannot be taken apart")


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(fd, view) :]


def follow_threads() -> None:
    """Let threads inherit the sink of the thread that starts them."""
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
