"""Attributes output to the run that writes it.

Output leaves a task in three ways, and each is caught by other means:

- Python's ``sys.stdout`` and ``sys.stderr`` are `TaskStream` objects (`streams`). They read a context variable: the
  `Sink` of the present run. Threads that a task starts inherit it, so a late print stays with its own task. Without a
  sink, the output goes the kernel's usual way, to attached consoles.
- Output of C code and children on the descriptors 1 and 2 goes to files (`descriptors`): a file in memory and the
  engine's log. It is taken before the next Python write to that stream, and at the end of the task.
- Rich displays are caught where IPython would publish them (`kernel.TaskDisplay`, `kernel.TaskDisplayHook`).

For a silent task all of this takes less than 2 µs.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from functools import partial
from typing import Any

import msgspec

from ..core.messages import OutputQuery, OutputText
from ..system.last_words import LastWords
from .descriptors import STDERR_FD, STDOUT_FD, DescriptorTap, FormerFiles, follow_children, follow_writes
from .sinks import SINK, Sink, keep_words, send_late_output_to
from .streams import TaskStream

LOOK_CHARS = 16 * 1024
"""The number of characters of a stream that one look at a run in progress returns."""


LOOK_BYTES = 1024 * 1024
"""The number of bytes of displays that one look returns; a larger display comes with the result."""


class Capture:
    """All parts that catch output in this process."""

    def __init__(self, log: str, stdout: str, words: LastWords) -> None:
        """Create it; `log` is the path of the engine's log, which is descriptor 2 already."""
        self.stdout_tap = DescriptorTap(STDOUT_FD, stdout, words.mark, is_log=False)
        self.stderr_tap = DescriptorTap(STDERR_FD, log, words.mark)
        self._taps = (self.stdout_tap, "stdout"), (self.stderr_tap, "stderr")
        self._former = FormerFiles()
        self._pid = os.getpid()
        self._has_children = False
        """A child was started since the descriptors got their files."""
        # The lane's thread reads the descriptors while a run is in progress. The end of the run must not come in
        # between.
        self._lock = threading.RLock()
        self._streams = sys.stdout, sys.stderr
        self._wrappers: dict[int, object] = {}
        send_late_output_to(self.log)
        keep_words(words)
        follow_children(self._child_started)
        follow_writes(self._writes)
        for tap, name in self._taps:
            for stream in TaskStream.all:
                if stream.name == name:
                    stream.attach(tap, partial(self._drain, tap, name), words)

    def log(self, text: str) -> None:
        """Append text to the engine's log."""
        self.stderr_tap.append(text)

    def _child_started(self) -> None:
        self._has_children = True
        sink = SINK.get()
        if sink is not None and not sink.ended:
            # ``> /dev/stdout`` in a shell empties the present file.
            for tap, name in self._taps:
                self._drain(tap, name, sink)
            sink.note_writer()

    def _writes(self) -> None:
        """Record the running item as the one that writes; called before `os.write` writes to a descriptor."""
        sink = SINK.get()
        if sink is None or sink.values is None or sink.ended or sink.writer == len(sink.values):
            return
        if os.getpid() != self._pid:  # a forked child: its parent reads the files
            return
        for tap, name in self._taps:
            self._drain(tap, name, sink)
        sink.note_writer()

    def end_items(self) -> bool:
        """Read the descriptors for the item that wrote to them, or else for the item that has just ended.

        Returns: whether there was text and its writer was not known.
        """
        sink = SINK.get()
        if sink is None or sink.values is None:
            return False
        unknown = sink.writer is None
        if unknown:
            sink.writer = len(sink.values) - 1
        found = self._moved()
        if found:
            with self._lock:
                self._take_into(sink)
        sink.writer = None
        return found and unknown

    def settle(self, to_console: bool) -> None:
        """Take the text from the descriptors that belongs to no run.

        to_console: whether a console's cell wrote it, which shows it then. Otherwise it goes to the log.
        """
        if self._has_children:
            self._part_from_children()
        self._log_former()
        if not self._moved():
            return
        self._put_back()
        stdout, stderr = self.stdout_tap.take().text(), self.stderr_tap.take().text()
        if to_console:
            for text, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
                if text:
                    stream.write(text)
        elif stdout:
            self.log(stdout)  # stderr is in the log already

    def end(self, sink: Sink) -> None:
        """Close `sink` with the text that was written to the descriptors in the meantime."""
        self._part_from_wrappers()
        with self._lock:
            self._take_into(sink)
            sink.close()
            if self._has_children:
                self._part_from_children()

    def leave_streams(self) -> None:
        """Forget the settings of the streams, before the streams are restored after a task or an item of a map."""
        sink = SINK.get()
        if sink is not None:
            sink.settings = None
        self._part_from_wrappers()

    def _part_from_wrappers(self) -> None:
        """Flush the objects that a task has put in place of the streams, and prevent them from closing
        the descriptors.
        """
        if sys.stdout is self._streams[0] and sys.stderr is self._streams[1]:
            return
        for stream in (sys.stdout, sys.stderr):
            if stream in self._streams or stream is None:
                continue
            with contextlib.suppress(Exception):  # any object may be there
                stream.flush()
                if isinstance(stream, io.TextIOWrapper) and stream.fileno() in (STDOUT_FD, STDERR_FD):
                    # When collected, it would close the descriptor, which belongs to others by then.
                    self._wrappers[id(stream)] = stream

    def look(self, sink: Sink, query: OutputQuery) -> OutputText:
        """Return what a run in progress has written and displayed since the last query.

        The lane's thread calls this.
        """
        with self._lock:
            if not sink.ended:
                self._take_into(sink)
        serial, displays = sink.displays_since(query.serial, LOOK_BYTES)
        packed = _packed(displays) if displays else b""
        if sink.values is not None:
            seen, items = sink.item_texts_since(query.stdout, query.stderr, LOOK_CHARS)
            of_items = msgspec.msgpack.encode(items) if items else b""
            return OutputText(query.n, query.run, "", "", seen, packed, serial, of_items)
        out_chars, out = sink.stdout.since(query.stdout, LOOK_CHARS) if sink.stdout is not None else (0, "")
        err_chars, err = sink.stderr.since(query.stderr, LOOK_CHARS) if sink.stderr is not None else (0, "")
        return OutputText(query.n, query.run, out, err, (out_chars, err_chars), packed, serial)

    def _take_into(self, sink: Sink) -> None:
        if self._moved():
            self._put_back()
            for tap, name in self._taps:
                text = tap.take()
                if text.chars():
                    sink.write_drained(name, text)

    def _drain(self, tap: DescriptorTap, name: str, sink: Sink) -> bool:
        """Take the text of a descriptor into the sink before Python writes more to the stream; see `streams.Drain`."""
        # If the lock is ours already, a finalizer or a signal's handler prints amid the reading of a descriptor.
        if not tap.moved() or self._lock._is_owned():  # type: ignore[attr-defined]
            return True
        if not tap.is_there():
            return False
        with self._lock:
            if not sink.ended:
                text = tap.take(final=False)
                if text.chars():
                    sink.write_drained(name, text)
        return True

    def _moved(self) -> bool:
        out, err = self.stdout_tap, self.stderr_tap
        try:
            return (
                os.lseek(STDOUT_FD, 0, os.SEEK_END) != out.mark
                or os.lseek(STDERR_FD, 0, os.SEEK_END) != err.mark
                or out.partial is not None
                or err.partial is not None
            )
        except OSError:  # a pipe, or closed: a task has redirected it
            return True

    def put_back(self) -> bool:
        """Make the descriptors 1 and 2 refer to the files again. Return whether one of them was redirected."""
        with self._lock:
            return self._put_back()

    def _put_back(self) -> bool:
        found = [tap.put_back() for tap, _ in self._taps]
        return any(found)

    def _part_from_children(self) -> None:
        """Leave the files to children that a task has started, so that their later output is not taken for the next
        task's.
        """
        self._has_children = False
        try:
            for tap, _ in self._taps:
                former = tap.part_from_children()
                if former is not None:
                    self._former.add(former)
        except OSError:  # a task keeps all the descriptors that a process may have, or the disk is full
            self._has_children = True

    def shrink(self) -> None:
        """Keep the files small. Called by the lane's thread while something runs."""
        for tap, _ in self._taps:
            tap.shrink()
        self._log_former()

    def _log_former(self) -> None:
        late = self._former.take()
        if late:
            self.log(late)


def nothing_new(query: OutputQuery) -> OutputText:
    """Return the answer about a run that is not in progress here."""
    return OutputText(query.n, query.run, seen=(query.stdout, query.stderr), serial=query.serial)


def _packed(displays: list[tuple[int, dict[str, Any]]]) -> bytes:
    try:
        return msgspec.msgpack.encode(displays)
    except Exception:  # a display that cannot be sent comes with the result, or not at all
        return b""
