"""What a task may not leave behind: each begins in the surroundings that start-up, the last MultiEngine command or a
console's cell left, whatever the task before it did.  ``docs/surroundings.md`` is the table.

There are three ways of knowing what was changed, since a look at everything costs 15 us and a task may take 10:

- The functions that change what lies outside Python are watched (`watched`).  No note, no look.
- What is quick to compare and often changed (``sys.path``, the streams) is compared after each task.
- The rest is looked at after a task that took `LONG_S`, whose code mentions what could change it (`reach`), or that did
  one of the above; and every `LOOK_EVERY_S`.

What the context holds (context variables, the decimal context, numpy's error state and print options) is each run's
own: it runs in a copy of the context in which the user's own hands work.
"""

from __future__ import annotations

import contextvars
import decimal
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .change_hooks import CHANGES, DESCRIPTORS, FOLDER, TIMERS, usual, watch
from .helper_processes import LOKY_WORKERS
from .interpreter import looked_at
from .surroundings import CannotRestore, watched_parts

if TYPE_CHECKING:
    from .capture import Capture
    from .loops import Loops

T = TypeVar("T")
LOOK_EVERY_S = 0.01
_show_warnings_again: Callable[[], None] = vars(warnings)["_filters_mutated"]
LONG_S = 0.0005
"""After a run of this length nobody notices the look at everything."""


class Baseline:
    """The surroundings of a task, to be restored after it."""

    def __init__(self, loops: Loops, capture: Capture) -> None:
        watch()
        self._loops = loops
        self._capture = capture
        self._stale = True
        self._watched = watched_parts(capture.put_back)
        self._looked_at = looked_at()
        self._hands = contextvars.copy_context()
        self._decimal: decimal.Context | None = None
        self._looked_s = 0.0
        self.spoiled = ""
        """What a task has changed for good: nothing more may run in this process."""
        self.renew()

    def by_hand(self, function: Callable[..., T], *args: Any) -> T:
        """Call what belongs to the user's own hands in their context, so that its variables are there afterwards."""
        return self._hands.run(function, *args)

    def for_task(self, function: Callable[..., T], *args: Any) -> T:
        """Call what belongs to a task in a context of its own."""
        context = self._hands.copy()
        if self._decimal is not None:
            context.run(
                decimal.setcontext, self._decimal.copy()
            )  # else all copies would share the one that stands in it
        return context.run(function, *args)

    def for_item(self, function: Callable[..., T], *args: Any) -> T:
        """Call it in a copy of the present context, which is its task's."""
        context = contextvars.copy_context()
        if self._decimal is not None:
            context.run(decimal.setcontext, self._decimal.copy())
        return context.run(function, *args)

    def renew(self) -> None:
        """Take what is now as the baseline."""
        try:
            self._cwd = os.getcwd()
        except FileNotFoundError:  # it was removed: there is nothing to go back to
            self._cwd = ""
        for part in (*self._watched.values(), *self._looked_at):
            part.take()
        self._path, self._argv = list(sys.path), list(sys.argv)
        self._objects = sys.stdin, sys.stdout, sys.stderr, os.environ
        self._decimal = next((each.copy() for each in self._hands.values() if isinstance(each, decimal.Context)), None)
        self._loops.renew()
        LOKY_WORKERS.end_unlike()
        _show_warnings_again()
        CHANGES.clear()
        self._stale = False

    def invalidate(self) -> None:
        """The user's own hands change things: `refresh` before the next task."""
        self._stale = True

    def refresh(self) -> None:
        """Before a run: take in what was changed by hand since."""
        if self._stale:
            self.renew()

    def disarm(self) -> None:
        """The user's code has just ended: what it has wound up must not go off in ours."""
        if TIMERS in CHANGES.kinds:
            self._watched[TIMERS].restore()

    def restore(self, thoroughly: bool = False) -> bool:
        """After a task; gives whether anything was different.

        Never raises: what cannot be restored stays as it is, or makes the process `spoiled`."""
        changed = self._loops.restore()
        _show_warnings_again()  # each task is told of its own, though the one before has shown the same
        if (
            thoroughly
            or CHANGES.kinds
            or sys.path != self._path
            or sys.argv != self._argv
            or (sys.stdin, sys.stdout, sys.stderr, os.environ) != self._objects
        ):
            changed |= self._restore()
        return changed

    def end_items(self) -> bool:
        """After items of a map: see `Capture.end_items`."""
        return self._capture.end_items()

    def look_is_due(self) -> bool:
        """Return whether it is time to look for what was changed by ways that nobody watches."""
        return time.perf_counter() - self._looked_s > LOOK_EVERY_S

    def look(self) -> None:
        """Look at everything, and put it back; between tasks."""
        self._looked_s = time.perf_counter()
        if not self._stale:  # else it was the user's own hands
            self.restore(thoroughly=True)
            self._watched[DESCRIPTORS].restore()
            self._restore_folder()

    def _restore(self) -> bool:
        self._capture.leave_streams()
        changed = bool(CHANGES.kinds)
        if FOLDER in CHANGES.kinds:
            self._restore_folder()
        parts = [part for kind, part in self._watched.items() if kind in CHANGES.kinds] if changed else ()
        for part in (*parts, *self._looked_at):
            try:
                changed |= part.restore()
            except CannotRestore as why:
                self.spoiled = str(why)
            except Exception:
                pass  # a list that is one no more, a module without its functions: the run has its result already
        if changed:
            CHANGES.clear()
        return changed

    def _restore_folder(self) -> None:
        try:
            if os.getcwd() == self._cwd:
                return
        except OSError:
            pass
        try:
            usual["chdir"](self._cwd)
        except OSError:
            pass  # the folder is gone
