"""Format a progress display as text and as HTML, find where to show it, and draw it there: a notebook, a terminal, or
lines in a file.
"""

from __future__ import annotations

import contextlib
import html
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..display.colours import BARS, MUTED, TERMINAL, TRACK
from ..display.ipython import notebook_shell
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


if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

LINE_EVERY_S = 60.0
"""Seconds between two lines in a file; the first line appears after the same time."""
BAR_CHARS, BAR_CHARS_LEAST = 30, 10
NAME_CHARS_LEAST = 8
STAYS_S = 3.0
"""Seconds; in a terminal the last state stays visible if the work took at least this long, failed, or
was interrupted.
"""


class Screen(Protocol):
    """A place that shows a progress display."""

    def show(self, view: ProgressView) -> None:
        """Replace the shown state."""

    def beside(self, write: Callable[[], None]) -> None:
        """Call `write`, which writes to the same place."""

    def close(self, view: ProgressView) -> None:
        """Show the last state and finish."""


def screen() -> Screen:
    """Return the place that the user sees."""
    shell = notebook_shell()
    if shell is not None:
        return NotebookScreen(shell)
    stream = sys.stderr
    if stream is not None and stream.isatty():
        return TerminalScreen()
    return LineScreen()


class Slot:
    """One output of a notebook cell that can be replaced.

    The first `show` assigns it to a cell: the cell of the caller's context.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._transient = {"display_id": uuid.uuid4().hex}
        self._there = False

    def again(self) -> None:
        """Assign the next `show` to a further cell; later ones renew all cells."""
        self._there = False

    def show(self, data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
        """Show a mime bundle, in place of the one before."""
        self._shell.display_pub.publish(data, metadata or {}, transient=self._transient, update=self._there)
        self._there = True

    def show_last(self, data: dict[str, Any]) -> None:
        """Show what stays, now and once more at the end of the cell that runs then: for work that no cell waits for.

        nbclient (nbconvert, papermill) takes updates of a display only from the cell that it runs.
        """
        self.show(data)
        events = self._shell.events

        def show(*_: object) -> None:
            events.unregister("post_run_cell", show)
            with contextlib.suppress(Exception):
                self.show(data)

        events.register("post_run_cell", show)


class NotebookScreen:
    """HTML that is updated in place; the last state is saved with the notebook, and needs neither kernel
    nor widgets.
    """

    def __init__(self, shell: Any) -> None:
        self._slot = Slot(shell)
        self._shown: dict[str, Any] = {}

    def show(self, view: ProgressView) -> None:
        data = {"text/plain": view.text(), "text/html": view.html()}
        if view.tally.away_s and data == self._shown:
            return  # nothing moves while the farm is away, and the notebook stays as it was saved
        self._shown = data
        self._slot.show(data)

    def beside(self, write: Callable[[], None]) -> None:
        write()

    def close(self, view: ProgressView) -> None:
        self.show(view)

    def close_followed(self) -> None:
        """Let the state that was shown last stay, of work that no cell waits for."""
        self._slot.show_last(self._shown)


class TerminalScreen:
    """A bar at the bottom of a terminal, drawn by rich."""

    def __init__(self) -> None:
        self._live: Live | None = None

    def show(self, view: ProgressView) -> None:
        from rich.console import Console
        from rich.live import Live

        if self._live is None:
            # Output of other code appears above the bar. Without auto_refresh no thread of rich draws.
            self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(_drawn(view, self._live.console.width), refresh=True)

    def beside(self, write: Callable[[], None]) -> None:
        write()  # rich has replaced the streams, and moves the bar itself

    def close(self, view: ProgressView) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            if view.elapsed_s >= STAYS_S or view.tally.failed or view.end != "done":
                print(view.text(), file=sys.stderr, flush=True)


class LineScreen:
    """A line per minute in a file or a pipe, without control characters; short waits print nothing."""

    def __init__(self) -> None:
        self._next_s = LINE_EVERY_S

    def show(self, view: ProgressView) -> None:
        if view.elapsed_s >= self._next_s:
            self._next_s = view.elapsed_s + LINE_EVERY_S
            self._print(view)

    def beside(self, write: Callable[[], None]) -> None:
        write()

    def close(self, view: ProgressView) -> None:
        if view.elapsed_s >= LINE_EVERY_S:
            self._print(view)

    def _print(self, view: ProgressView) -> None:
        if sys.stderr is not None:
            print(f"ipytaskfarm: {view.text()}", file=sys.stderr, flush=True)


def _with_short_name(view: ProgressView, width: int) -> ProgressView:
    """Return the view with a name that is short enough for the counts to stand beside the bar."""
    over = BAR_CHARS_LEAST + len(f" {view.head()}") + 1 - width
    kept = max(NAME_CHARS_LEAST, len(view.name) - over)
    return replace(view, name=f"{view.name[: kept - 1]}…") if over > 0 and kept < len(view.name) else view


def _drawn(view: ProgressView, width: int) -> RenderableType:
    """Return the bar with counts and times.  The bar gives way to them, and then the times get their own line."""
    from rich.text import Text

    head, times = _with_short_name(view, width).head(), view.times()
    room = width - len(f" {head}, {times}") - 1
    text, more = (f" {head}, {times}", []) if room >= BAR_CHARS_LEAST else (f" {head}", [times])
    chars = max(BAR_CHARS_LEAST, min(width - len(text) - 1, BAR_CHARS))
    counts = dict(view.states()) if view.counts_states else {"succeeded": view.tally.ended}
    bar = Text()
    used = ended = 0
    for state in STATES:
        ended += counts.get(state, 0)
        upto = round(chars * ended / max(1, view.tally.total))
        bar.append(("━" if state != "running" else "╌") * (upto - used), style=TERMINAL[state])
        used = upto
    bar.append("─" * (chars - used), style="dim")
    drawn = Text(no_wrap=True, overflow="ellipsis").append_text(bar).append(text)
    for line in (*more, *view.lines()):
        drawn.append(f"\n  {line}")
    return drawn
