"""Show the progress of a wait: for tasks, maps, jobs, and engines that start.

The display appears after half a second and is updated at most four times a second.  It shows how many tasks have
succeeded and failed, run and wait, the elapsed and the remaining time, what is slow, and why nothing runs.  A notebook
shows HTML in the cell's output, a terminal a bar, and a file one line per minute.  The environment variable
``IPYTASKFARM_PROGRESS=0`` turns it off, and ``tc.progress = False`` does so for one client.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from ..core import errors
from ..display.ipython import notebook_shell
from .estimate import Estimate, Tally
from .screens import NotebookScreen, ProgressView, Screen, screen

AFTER_S = 0.5
EVERY_S = 0.25
AWAY_EVERY_S = 2.0
"""How often is looked whether a farm that is away is back."""


class Work(Protocol):
    """Work that a display shows.

    `estimate` has the durations of the parts that have ended; None: no time is estimated.
    """

    @property
    def estimate(self) -> Estimate | None:
        """Return the estimate of the remaining time."""

    def tally(self, now_s: float) -> Tally:
        """Return the present state.  The display calls this up to four times a second, so it must be quick."""


class FollowedWork(Work, Protocol):
    """Work that goes on without a waiting caller; `task_work` documents the methods."""

    def is_over(self) -> bool: ...
    def is_lost(self) -> bool: ...
    def elapsed_s(self) -> float | None: ...


class ProgressDisplay:
    """A context that shows the progress of a wait; the waiting code calls `tick` a few times a second.

    Args:
        work: gives a `Tally` when it is asked.
        what: the plural noun for the counted parts.
        show: False shows nothing.
        name: the name of a job, shown in front.
        counts_states: False: only the number of ended parts is shown (engines that are ready).
        began_s: when the work or the wait began, by `time.monotonic`; None: now.
        page: the path of the live view; "": there is none.
    """

    def __init__(
        self,
        work: Work,
        what: str = "tasks",
        show: bool = True,
        name: str = "",
        counts_states: bool = True,
        began_s: float | None = None,
        page: str = "",
    ) -> None:
        self._work = work
        self._page = page
        self._what = what
        self._name = name
        self._counts_states = counts_states
        self._on = show and os.environ.get("IPYTASKFARM_PROGRESS", "1") != "0"
        self._after_s = AFTER_S
        self._began_s = time.monotonic() if began_s is None else began_s
        self._shown_s = -EVERY_S
        self._screen: Screen | None = None
        self._notes: list[str] = []
        self.is_waited_for = True
        """Whether somebody waits. Otherwise the time stands still while the farm is away: nothing is known of it."""
        self.is_away = False
        """Whether the farm did not answer at the last look."""

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("done" if kind is None else "interrupted" if kind is KeyboardInterrupt else "not waited for")

    def tick(self) -> None:
        """Update the display if it is time to."""
        now_s = time.monotonic()
        if not self._on or not self.is_due or now_s - self._shown_s < EVERY_S:
            return
        if self._screen is None:
            self._screen = screen()
        self._shown_s = now_s
        self._screen.show(self.view(now_s))

    @property
    def is_due(self) -> bool:
        """Return whether the display may appear now, or will never appear."""
        return not self._on or time.monotonic() - self._began_s >= self._after_s

    def view(self, now_s: float, end: str = "") -> ProgressView:
        """Return the present state for a screen."""
        tally = self._work.tally(now_s)
        estimate = self._work.estimate
        left_s = estimate.left_s(tally, now_s) if estimate is not None and not end else None
        slow = estimate.slow(tally) if estimate is not None and not end else []
        notes = (*slow, *([tally.why] if tally.why else []), *self._notes)
        self.is_away = tally.away_s > 0
        before_s = 0.0 if self.is_waited_for else tally.away_s
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - before_s))
        if end == "done" and tally.ended < tally.total:
            end = "not waited for"
        return ProgressView(
            self._what,
            tally,
            now_s - before_s - self._began_s,
            left_s,
            notes,
            self._name,
            end,
            at,
            self._counts_states,
            self._page,
        )

    def began_earlier(
        self, work: FollowedWork, opened_s: float = 0.0, last_end_s: Callable[[], float | None] | None = None
    ) -> None:
        """Count the elapsed time from the beginning of the work, if that is known.

        Args:
            work: what is shown.
            opened_s: Unix time at which the work was submitted; 0: not known before the first end.
            last_end_s: asked for the end of work that was over before it was followed.
        """
        now_s = time.monotonic()
        work.tally(now_s)
        elapsed_s = work.elapsed_s()
        if elapsed_s is None and opened_s:
            ended_s = None
            if last_end_s is not None and work.is_over():
                with contextlib.suppress(errors.TaskFarmError):  # the farm is away
                    ended_s = last_end_s()
            elapsed_s = max(0.0, (ended_s or time.time()) - opened_s)
        if elapsed_s is not None:
            self._began_s = now_s - elapsed_s

    def note(self, text: str) -> None:
        """Add a sentence to the display, and show the display at once."""
        self._notes.append(text)
        self.at_once()

    def at_once(self) -> None:
        """Show the display now, even before its first half second is over."""
        self._after_s = 0.0
        self._shown_s = -EVERY_S
        self.tick()

    def beside(self, write: Callable[[], None]) -> None:
        """Call `write`, which writes to the same screen; a bar moves aside for it."""
        if self._screen is None:
            write()
        else:
            self._screen.beside(write)

    def close(self, end: str) -> None:
        """Show how the wait ended, if the display was visible."""
        place, self._screen = self._screen, None
        self._on = False
        if place is not None:
            place.close(self.view(time.monotonic(), end))
        if isinstance(place, NotebookScreen) and not self.is_waited_for:
            place.close_followed()


class CountedWork:
    """Work with a known number of parts and nothing else: engines that start."""

    estimate: Estimate | None = None

    def __init__(self, total: Callable[[], int], ended: Callable[[], int], why: Callable[[], str] = str) -> None:
        self._total = total
        self._ended = ended
        self._why = why

    def tally(self, now_s: float) -> Tally:
        """Return the present state."""
        total = self._total()
        ended = min(total, self._ended())
        return Tally(total, ended, why=self._why() if ended < total else "")


class LiveProgress:
    """The progress of work without a waiting caller: ``tc.progress(ids)``.

    In a notebook it is a display that follows the work to its end; elsewhere its repr is the present state.
    """

    def __init__(
        self,
        work: FollowedWork,
        what: str = "tasks",
        name: str = "",
        opened_s: float = 0.0,
        page: str = "",
        last_end_s: Callable[[], float | None] | None = None,
    ) -> None:
        """Create the display; nothing is shown yet.

        opened_s: Unix time at which the work was submitted; 0: not known.  page: the path of the live view.
        last_end_s: as for `ProgressDisplay.began_earlier`.
        """
        self._work = work
        self._times = opened_s, last_end_s
        self._display = ProgressDisplay(work, what, name=name, page=page)
        self._display.is_waited_for = False

    def __repr__(self) -> str:
        return self._now().text()

    def _repr_html_(self) -> str:
        return self._now().html()

    def _now(self) -> ProgressView:
        self._display.began_earlier(self._work, *self._times)
        return self._display.view(time.monotonic(), "done" if self._work.is_over() else "")

    def _ipython_display_(self) -> None:
        if notebook_shell() is None:
            print(repr(self))
            return
        self._display.began_earlier(self._work, *self._times)
        self._display.at_once()
        # The context determines the cell to which the output belongs.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._follow,), name="ipytaskfarm progress", daemon=True).start()

    def _follow(self) -> None:
        with contextlib.suppress(Exception):  # the farm or the client is gone: the display keeps its last state
            while not self._work.is_over() and not self._work.is_lost():
                time.sleep(AWAY_EVERY_S if self._display.is_away else EVERY_S)
                self._display.tick()
            self._display.began_earlier(self._work, *self._times)  # the ends tell it exactly
            self._display.close("done" if self._work.is_over() else "not followed any longer")
