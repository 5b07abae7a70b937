"""Whose output is whose.

Three ways lead out of a task, and each is caught by other means:

- Python's ``sys.stdout``/``sys.stderr`` are a `TaskStream` (`streams`), which looks at a context variable: the `Sink`
  of what runs.  Threads a task starts inherit it, so a late print stays with its own task.  No sink: the kernel's own
  way, to whoever is attached.
- What C code and children write to the descriptors 1 and 2 goes to files (`descriptors`): a file in memory and the
  engine's log.  It is taken in before the next Python write to that stream, and at the end of the task.
- Rich displays are caught where IPython would publish them (`kernel.TaskDisplay`, `kernel.TaskDisplayHook`).

A silent task pays less than 2 us for all of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from functools import partial

from .descriptors import STDERR_FD, STDOUT_FD, DescriptorTap, FormerFiles, follow_children, follow_writes
from .sinks import SINK, Sink, send_late_output_to
from .streams import TaskStream

LOOK_CHARS = 16 * 1024
"""What somebody who looks on is shown of a stream at once."""


class Capture:
    """Everything that catches output in this process."""

    def __init__(self, log: str) -> None:
        """log: the path of the engine's log, which is descriptor 2 already."""
        self.stdout_tap = DescriptorTap(STDOUT_FD, None)
        self.stderr_tap = DescriptorTap(STDERR_FD, log)
        self._taps = (self.stdout_tap, "stdout"), (self.stderr_tap, "stderr")
        self._former = FormerFiles()
        self._pid = os.getpid()
        self._has_children = False
        """A child was started since the descriptors got their files."""
        # The lane's thread takes what stands in the descriptors while a run goes on; its end must not come in between.
        self._lock = threading.Lock()
        self._streams = sys.stdout, sys.stderr
        self._wrappers: dict[int, object] = {}
        send_late_output_to(self.log)
        follow_children(self._child_started)
        follow_writes(self._writes)
        for tap, name in self._taps:
            for stream in TaskStream.all:
                if stream.name == name:
                    stream.attach(tap, partial(self._drain, tap, name))

    def log(self, text: str) -> None:
        """Append to the engine's log."""
        self.stderr_tap.append(text)

    def _child_started(self) -> None:
        self._has_children = True
        sink = SINK.get()
        if sink is not None and not sink.ended:
            # A shell's ``> /dev/stdout`` empties the file that stands there.
            for tap, name in self._taps:
                self._drain(tap, name, sink)
            sink.note_writer()

    def _writes(self) -> None:
        """The descriptors are about to be written to by `os.write`."""
        sink = SINK.get()
        if sink is None or sink.values is None or sink.ended or sink.writer == len(sink.values):
            return
        if os.getpid() != self._pid:  # a child that was forked: what it writes is caught, and nothing is its to take
            return
        for tap, name in self._taps:
            self._drain(tap, name, sink)
        sink.note_writer()

    def end_items(self) -> bool:
        """Give what stands in the descriptors to the item that wrote it, or to the one that has ended last.

        Returns: whether something stood there of which nobody knows who wrote it.
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
        """Take what stands in the descriptors and belongs to no run.

        Args:
            to_console: a console's cell wrote it, which should see it; else it goes to the log.
        """
        if self._has_children:
            self._part_from_children()
        self._log_former()
        if not self._moved():
            return
        self._put_back()
        stdout, stderr = self.stdout_tap.take(), self.stderr_tap.take()
        if to_console:
            for text, stream in ((stdout, sys.stdout), (stderr, sys.stderr)):
                if text:
                    stream.write(text)
        elif stdout:
            self.log(stdout)  # stderr stands there already

    def end(self, sink: Sink) -> None:
        """Close `sink` with what was written to the descriptors meanwhile."""
        self._part_from_wrappers()
        with self._lock:
            self._take_into(sink)
            sink.close()
            if self._has_children:
                self._part_from_children()

    def leave_streams(self) -> None:
        """Before a task's streams are put back, and those of an item of a map: forget what was asked of them."""
        sink = SINK.get()
        if sink is not None:
            sink.settings = None
        self._part_from_wrappers()

    def _part_from_wrappers(self) -> None:
        """Have what a task has put in place of the streams write what it still holds, and not close the descriptors."""
        if sys.stdout is self._streams[0] and sys.stderr is self._streams[1]:
            return
        for stream in (sys.stdout, sys.stderr):
            if stream in self._streams or stream is None:
                continue
            with contextlib.suppress(Exception):  # anything may stand there
                stream.flush()
                if isinstance(stream, io.TextIOWrapper) and stream.fileno() in (STDOUT_FD, STDERR_FD):
                    # Collected, it would close the descriptor: somebody else's then.
                    self._wrappers[id(stream)] = stream

    def look(self, sink: Sink, stdout: int, stderr: int) -> tuple[str, str, tuple[int, int]]:
        """Return what a run that goes on has written beyond so many characters; called by the lane's thread.
        Gives stdout, stderr, and how many characters of them that makes."""
        with self._lock:
            if not sink.ended:
                self._take_into(sink)
        seen_out, out = sink.stdout.since(stdout, LOOK_CHARS) if sink.stdout is not None else (0, "")
        seen_err, err = sink.stderr.since(stderr, LOOK_CHARS) if sink.stderr is not None else (0, "")
        return out, err, (seen_out, seen_err)

    def _take_into(self, sink: Sink) -> None:
        if self._moved():
            self._put_back()
            for tap, name in self._taps:
                text = tap.take()
                if text:
                    sink.write_drained(name, text)

    def _drain(self, tap: DescriptorTap, name: str, sink: Sink) -> bool:
        """Take what came to a descriptor into the sink before more is written to it by Python; see `streams.Drain`."""
        if not tap.moved():
            return True
        if not tap.is_there():
            return False
        with self._lock:
            if not sink.ended:
                text = tap.take(final=False)
                if text:
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
        except OSError:  # a pipe, or closed: a task has led it elsewhere
            return True

    def put_back(self) -> bool:
        """Make the descriptors 1 and 2 the files again; gives whether one was not."""
        with self._lock:
            return self._put_back()

    def _put_back(self) -> bool:
        found = [tap.put_back() for tap, _ in self._taps]
        return any(found)

    def _part_from_children(self) -> None:
        """Leave the files to children that a task has started: what they write from now on is not the next one's."""
        self._has_children = False
        for tap, _ in self._taps:
            former = tap.part_from_children()
            if former is not None:
                self._former.add(former)

    def shrink(self) -> None:
        """Called by the lane's thread while something runs."""
        for tap, _ in self._taps:
            tap.shrink()
        self._log_former()

    def _log_former(self) -> None:
        late = self._former.take()
        if late:
            self.log(late)
