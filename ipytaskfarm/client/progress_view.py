"""Format a progress display as text and as HTML.  The module is pure."""

from __future__ import annotations

import html
from dataclasses import dataclass

from ..display.colours import BARS, MUTED, TRACK
from ..system.live_pages import page_link
from .estimate import Tally, span

LINES_MAX = 8
LINE_CHARS = 240
STATES = ("succeeded", "failed", "running")
"""The parts of a bar, in this order."""


@dataclass(frozen=True)
class ProgressView:
    """The state of some work at one moment, as words and bars."""

    what: str
    """A plural noun: tasks, items, engines."""
    tally: Tally
    elapsed_s: float
    left_s: float | None = None
    """The estimated remaining seconds; None: not known."""
    notes: tuple[str, ...] = ()
    """Sentences about slow parts, and why something waits."""
    name: str = ""
    """The name of a job, or ""."""
    end: str = ""
    """How the wait ended: "done", "interrupted" …; "": it goes on."""
    at: str = ""
    """Date and time of this state, for a notebook that was saved."""
    counts_states: bool = True
    """False: only the number of ended parts is shown, as for engines that start."""
    page: str = ""
    """The path of the live view; "": there is none."""

    @property
    def share(self) -> float:
        """Return the share of parts that have ended, 0 to 1."""
        return self.tally.ended / self.tally.total if self.tally.total else 1.0

    def states(self) -> list[tuple[str, int]]:
        """Return (state, number of parts) for each state that has parts."""
        tally = self.tally
        if not self.counts_states:
            return []
        rows = [
            ("succeeded", tally.succeeded),
            ("failed", tally.failed),
            ("running", tally.runs or 0),
            ("scheduled", tally.waits or 0),
        ]
        return [(state, count) for state, count in rows if count]

    def count(self) -> str:
        """Return a count such as ``5/20 tasks``."""
        return f"{self.tally.ended:,}/{self.tally.total:,} {self.what}"

    def head(self) -> str:
        """Return the line above or beside the bar."""
        name = f"{self.name}: " if self.name else ""
        states = ", ".join(f"{count:,} {state}" for state, count in self.states())
        return f"{name}{self.count()}{f': {states}' if states else ''}"

    def times(self) -> str:
        """Return the elapsed and the remaining time: ``12 s, 27 s left``; "–" if the latter is not known."""
        if self.end == "done":
            return f"in {span(self.elapsed_s)}"
        if self.end:
            return f"{self.end} after {span(self.elapsed_s)}"
        if not self.counts_states:
            return whole(self.elapsed_s)
        left = "–" if self.left_s is None else span(self.left_s)
        return f"{whole(self.elapsed_s)}, {left} left"

    def lines(self) -> list[str]:
        """Return the notes as lines of bounded length, without control characters."""
        lines = [line for note in self.notes for line in note.splitlines()][:LINES_MAX]
        return ["".join(c if c.isprintable() else " " for c in line)[:LINE_CHARS] for line in lines]

    def text(self) -> str:
        """Return the whole view as text."""
        return "\n".join([f"{self.head()}, {self.times()}", *(f"  {line}" for line in self.lines())])

    def html(self) -> str:
        """Return the whole view as HTML that suits light and dark themes."""
        counts = dict(self.states()) if self.counts_states else {"succeeded": self.tally.ended}
        total = max(1, self.tally.total)
        bars = "".join(
            f'<div style="width:{100 * counts[state] / total:.2f}%;height:100%;background:{BARS[state]}"></div>'
            for state in STATES
            if counts.get(state)
        )
        notes = "".join(f'<div style="color:{MUTED}">{html.escape(line)}</div>' for line in self.lines())
        return (
            f'<div class="ipytaskfarm-progress" title="{html.escape(self.at)}" '
            'style="font-family:var(--jp-code-font-family,monospace);font-size:var(--jp-code-font-size,13px);'
            'line-height:1.4;max-width:56em">'
            '<div style="display:flex;justify-content:space-between;gap:2em">'
            f'<span>{html.escape(self.head())}</span><span style="white-space:nowrap">'
            f"{html.escape(self.times())}{f' · {page_link(self.page)}' if self.page else ''}</span></div>"
            f'<div style="display:flex;height:0.5em;background:{TRACK}">'
            f"{bars}</div>{notes}</div>"
        )


def whole(seconds: float) -> str:
    """Format a duration in whole seconds, so that it changes every second."""
    return span(seconds) if seconds >= 60 else f"{int(seconds)} s"
