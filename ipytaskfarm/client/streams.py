"""Show the output of running tasks during a wait: ``tc.barrier(ids, stream=True)``.

Each line begins with its task's id and goes to stdout or stderr of the waiting cell or terminal.  The number of lines
at once and per second is limited; of the lines beyond the limit only their number is shown.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from ..core.messages import Output, Outputs
from ..core.messages.task_types import Final, RunKey
from .results import decode_body

if TYPE_CHECKING:
    from .arrivals import Arrivals
    from .progress import ProgressDisplay
    from .questions import AsksController

LINES_AT_ONCE = 1_000
LINES_PER_S = 200
LINE_CHARS = 2_000
PARTIAL_S = 1.0
"""Seconds after which an unfinished line is shown."""
IDS_ASKED = 10_000
"""Number of tasks above which the controller is asked for the output of all tasks of the session."""
KEPT_CHARS = 64 * 1024
"""Characters of output beyond which a result keeps only the beginning and the end, so the rest cannot be
shown later.
"""


@dataclass
class SeenOutput:
    """How much of the output of one run was shown."""

    attempt: int = 1
    chars: tuple[int, int] = (0, 0)
    partial: list[str] = field(default_factory=lambda: ["", ""])
    since_s: float = 0.0


class Stream:
    """Shows the output of running tasks during one wait.

    Args:
        session: is asked for the output.
        arrivals: tells which tasks have ended.
        ids: the tasks.
        progress: a bar that moves aside for the lines.
    """

    def __init__(self, session: AsksController, arrivals: Arrivals, ids: set[int], progress: ProgressDisplay) -> None:
        self._session = session
        self._arrivals = arrivals
        self._open = set(ids)
        self._progress = progress
        self._seen: dict[int, SeenOutput] = {}
        self._arrived: list[Output] = []
        self._lock = threading.Lock()
        self._room = float(LINES_AT_ONCE)
        self._room_s = time.monotonic()
        self._left_out: dict[int, int] = {}

    def take(self, output: Output) -> None:
        """Store output; the IO thread calls this."""
        if output.run[0] in self._open:
            with self._lock:
                self._arrived.append(output)

    def tick(self) -> None:
        """Show the output that has arrived, and ask for more; the wait calls this a few times a second."""
        self._show()
        self._ask()

    def _show(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, []
        shown: list[tuple[bool, int, str]] = []
        for output in arrived:
            self._append(output, shown)
        ended = self._open - self._arrivals.live(self._open)
        self._open -= ended
        for task_id in sorted(ended):
            self._finish(task_id, self._arrivals.finals.get(task_id), shown)
        self._flush_old(shown)
        self._print(shown)

    def _ask(self) -> None:
        if not self._open:
            return
        ids = sorted(self._open) if len(self._open) <= IDS_ASKED else None
        seen = [(task_id, s.attempt, *s.chars) for task_id, s in self._seen.items()]
        try:
            self._session.ask(Outputs(ids, seen), timeout_s=1.0)
        except (TimeoutError, ConnectionError):
            return  # the session itself reports that the farm does not answer

    def _of(self, run: RunKey) -> SeenOutput:
        seen = self._seen.get(run[0])
        if seen is None or seen.attempt != run[1]:
            seen = self._seen[run[0]] = SeenOutput(run[1])
        return seen

    def _append(self, output: Output, shown: list[tuple[bool, int, str]]) -> None:
        seen = self._of(output.run)
        seen.chars = output.seen
        seen.since_s = time.monotonic()
        for which, text in enumerate((output.stdout, output.stderr)):
            self._split(seen, which, output.run[0], text, shown)

    def _split(self, seen: SeenOutput, which: int, task_id: int, text: str, shown: list[tuple[bool, int, str]]) -> None:
        *lines, seen.partial[which] = (seen.partial[which] + text).split("\n")
        shown += [(which == 1, task_id, line) for line in lines]

    def _finish(self, task_id: int, final: Final | None, shown: list[tuple[bool, int, str]]) -> None:
        """Add the rest of an ended task's output, from its result."""
        seen = self._seen.pop(task_id, None) or SeenOutput()
        if final is not None and final.body:
            if final.attempts != seen.attempt:
                seen = SeenOutput(final.attempts)
            body = decode_body(final)
            for which, text in enumerate((body.stdout, body.stderr)):
                if seen.chars[which] <= KEPT_CHARS:
                    self._split(seen, which, task_id, text[seen.chars[which] :], shown)
        shown += [(which == 1, task_id, rest) for which, rest in enumerate(seen.partial) if rest]

    def _flush_old(self, shown: list[tuple[bool, int, str]]) -> None:
        """Show old lines that have no end yet: a prompt, or a bar that is redrawn."""
        now_s = time.monotonic()
        for task_id, seen in self._seen.items():
            if now_s - seen.since_s > PARTIAL_S:
                shown += [(which == 1, task_id, rest) for which, rest in enumerate(seen.partial) if rest]
                seen.partial = ["", ""]

    def _print(self, shown: list[tuple[bool, int, str]]) -> None:
        now_s = time.monotonic()
        self._room = min(LINES_AT_ONCE, self._room + (now_s - self._room_s) * LINES_PER_S)
        self._room_s = now_s
        fits = shown[: int(self._room)]
        self._room -= len(fits)
        for _, task_id, _ in shown[len(fits) :]:
            self._left_out[task_id] = self._left_out.get(task_id, 0) + 1
        lines = [(sys.stderr if is_error else sys.stdout, _line(task_id, text)) for is_error, task_id, text in fits]
        if self._left_out and len(fits) == len(shown) and (self._room > 1 or not self._open):
            lines += [(sys.stderr, f"[{i}] … {n:,} lines not shown") for i, n in sorted(self._left_out.items())[:100]]
            self._left_out.clear()
        if lines:
            self._progress.beside(lambda: _write(lines))

    def close(self) -> None:
        """Show the rest of the output at the end of the wait."""
        self._show()
        if self._left_out:
            self._room = 0.0
            self._open.clear()
            self._print([])


def _line(task_id: int, text: str) -> str:
    text = text.removesuffix("\r").rpartition("\r")[2]  # the last state of a line that was redrawn
    if len(text) > LINE_CHARS:
        text = f"{text[:LINE_CHARS]} … {len(text) - LINE_CHARS:,} characters"
    return f"[{task_id}] {text}"


def _write(lines: list[tuple[TextIO, str]]) -> None:
    for stream, line in lines:
        stream.write(f"{line}\n")
    for stream in {id(stream): stream for stream, _ in lines}.values():
        stream.flush()
