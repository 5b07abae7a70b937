"""The progress display of everything that is waited for: tasks, maps, jobs, engines that start.

It appears after half a second, and then shows four times a second at most how many have succeeded, failed, run and
wait, how long it has taken and will take, what is slow and why something waits.  In a notebook it is HTML in its
place, in a terminal a bar, in a file a line each minute.  Off with the environment variable
``IPYTASKFARM_PROGRESS=0``, or ``tc.progress = False`` for one client.
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

from .estimate import Estimate, Tally
from .progress_view import ProgressView
from .screens import Screen, notebook_shell, screen

AFTER_S = 0.5
EVERY_S = 0.25


class Work(Protocol):
    """Something that goes on and that a display looks at.

    `estimate` knows the durations of what has ended; None: there is nothing to judge.
    """

    @property
    def estimate(self) -> Estimate | None:
        """Return what judges the time left."""

    def tally(self, now_s: float) -> Tally:
        """Return what is known now; called four times a second at most, and quick."""


class FollowedWork(Work, Protocol):
    """Work that nobody may be waiting for."""

    def is_over(self) -> bool:
        """Return whether all of it has ended."""

    def elapsed_s(self) -> float | None:
        """Return for how long it has gone on, or went on; None: not known."""


class ProgressDisplay:
    """Shows how far some work has come, while somebody waits for it: a context, whose `tick` is called now and then.

    Args:
        work: is asked for its `Tally`.
        what: of what the tally counts parts, in the plural.
        show: False: nothing is shown.
        name: of a job, shown in front.
        counts_states: False: only what has ended is counted (engines that are ready).
        began_s: when the work, or the wait, began, by `time.monotonic`; None: now.
    """

    def __init__(
        self,
        work: Work,
        what: str = "tasks",
        show: bool = True,
        name: str = "",
        counts_states: bool = True,
        began_s: float | None = None,
    ) -> None:
        self._work = work
        self._what = what
        self._name = name
        self._counts_states = counts_states
        self._on = show and os.environ.get("IPYTASKFARM_PROGRESS", "1") != "0"
        self._after_s = AFTER_S
        self._began_s = time.monotonic() if began_s is None else began_s
        self._shown_s = -EVERY_S
        self._screen: Screen | None = None
        self._notes: list[str] = []

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("done" if kind is None else "interrupted" if kind is KeyboardInterrupt else "not waited for")

    def tick(self) -> None:
        """Show the present state, if it is time to."""
        now_s = time.monotonic()
        if not self._on or now_s - self._began_s < self._after_s or now_s - self._shown_s < EVERY_S:
            return
        if self._screen is None:
            self._screen = screen()
        self._shown_s = now_s
        self._screen.show(self.view(now_s))

    def view(self, now_s: float, end: str = "") -> ProgressView:
        """Return the present state, for a screen."""
        tally = self._work.tally(now_s)
        estimate = self._work.estimate
        left_s = estimate.left_s(tally, now_s) if estimate is not None and not end else None
        slow = estimate.slow(tally) if estimate is not None and not end else []
        notes = (*slow, *([tally.why] if tally.why else []), *self._notes)
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        if end == "done" and tally.ended < tally.total:
            end = "not waited for"
        return ProgressView(
            self._what, tally, now_s - self._began_s, left_s, notes, self._name, end, at, self._counts_states
        )

    def began_earlier(self, work: FollowedWork) -> None:
        """Count the time from the beginning of the work, as far as it is known."""
        now_s = time.monotonic()
        work.tally(now_s)
        elapsed_s = work.elapsed_s()
        if elapsed_s is not None:
            self._began_s = now_s - elapsed_s

    def note(self, text: str) -> None:
        """Show a sentence with the display from now on.  It is shown at once, even if the display was to come later."""
        self._notes.append(text)
        self.at_once()

    def at_once(self) -> None:
        """Show the present state now, even if the display was to come later."""
        self._after_s = 0.0
        self._shown_s = -EVERY_S
        self.tick()

    def beside(self, write: Callable[[], None]) -> None:
        """Write something else to the screen: a bar steps aside meanwhile."""
        if self._screen is None:
            write()
        else:
            self._screen.beside(write)

    def close(self, end: str) -> None:
        """Show how it has ended, if anything was shown."""
        place, self._screen = self._screen, None
        self._on = False
        if place is not None:
            place.close(self.view(time.monotonic(), end))


class CountedWork:
    """Work of which only a number is known: engines that start."""

    estimate: Estimate | None = None

    def __init__(self, total: Callable[[], int], ended: Callable[[], int], why: Callable[[], str] = str) -> None:
        self._total = total
        self._ended = ended
        self._why = why

    def tally(self, now_s: float) -> Tally:
        """Return what is known now."""
        total = self._total()
        ended = min(total, self._ended())
        return Tally(total, ended, why=self._why() if ended < total else "")


class LiveProgress:
    """The progress of work that nobody waits for: ``tc.progress(ids)``.

    In a notebook a display that follows the work until it has ended; elsewhere its repr says how far the work is.
    """

    def __init__(self, work: FollowedWork, what: str = "tasks", name: str = "") -> None:
        self._work = work
        self._display = ProgressDisplay(work, what, name=name)

    def __repr__(self) -> str:
        return self._now().text()

    def _repr_html_(self) -> str:
        return self._now().html()

    def _now(self) -> ProgressView:
        self._display.began_earlier(self._work)
        return self._display.view(time.monotonic(), "done" if self._work.is_over() else "")

    def _ipython_display_(self) -> None:
        if notebook_shell() is None:
            print(repr(self))
            return
        self._display.began_earlier(self._work)
        self._display.at_once()
        # The context tells to which cell the output belongs.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._follow,), name="ipytaskfarm progress", daemon=True).start()

    def _follow(self) -> None:
        with contextlib.suppress(Exception):  # the farm or the client is gone: the display stays as it is
            while not self._work.is_over():
                time.sleep(EVERY_S)
                self._display.tick()
            self._display.close("done")
