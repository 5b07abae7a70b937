"""The surroundings of tasks.

Each task begins in the surroundings that start-up code, the last MultiEngine command or a cell of a console left,
whatever the task before it did. ``docs/surroundings.md`` has the table.

There are three ways to know what was changed, because a look at everything costs 15 µs and a task may take 10 µs:

- The functions that change state outside Python are watched (`watched`). If they recorded nothing, nothing is examined.
- State that is quick to compare and often changed (``sys.path``, the streams) is compared after each task.
- The rest is examined after a task that took at least `LONG_S`, that mentions something which could change it
  (`reach`), or that made one of the changes above; and also every `LOOK_EVERY_S`.

State that belongs to the context (context variables, the decimal context, numpy's error state and print options) is
private to each run, which runs in a copy of the context of the user's commands.
"""

from __future__ import annotations

import contextlib
import contextvars
import decimal
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..serialization.import_settings import IMPORT_SETTINGS
from .change_hooks import CHANGES, DESCRIPTORS, FOLDER, HANDLERS, LIMITS, LOCALE, TIMERS, UMASK, usual, watch
from .helper_processes import LOKY_WORKERS
from .import_effects import settings_of_imports
from .interpreter import looked_at
from .surroundings import CannotRestore, folder_now, watched_parts

if TYPE_CHECKING:
    from .capture import Capture
    from .loops import Loops

T = TypeVar("T")
LOOK_EVERY_S = 0.02
_show_warnings_again: Callable[[], None] = vars(warnings)["_filters_mutated"]
LONG_S = 0.0005
"""After a run of this many seconds the time of a look at everything does not matter."""


class Baseline:
    """The surroundings of a task, to be restored after it."""

    def __init__(self, loops: Loops, capture: Capture) -> None:
        watch()
        IMPORT_SETTINGS.watch(settings_of_imports())
        self._loops = loops
        self._capture = capture
        self._stale = True
        self._watched = watched_parts(capture.put_back)
        self._looked_at = looked_at()
        self._hands = contextvars.copy_context()
        self._decimal: decimal.Context | None = None
        self._looked_s = 0.0
        """The thread's processor time at the last look."""
        self._due_after_s = 0.0
        """No look is due before this monotonic time: processor time does not pass faster."""
        self.spoiled = ""
        """Why nothing more may run in this process: what a task has changed for good, or a module that was edited."""
        self.renew()

    def by_hand(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that belongs to a user's command, in the context that keeps the variables of
        such commands.
        """
        return self._hands.run(function, *args)

    def task_context(self) -> contextvars.Context:
        """Return the context in which a task runs, a copy of that of the user's own hands."""
        context = self._hands.copy()
        if self._decimal is not None:
            # All copies of the context share the decimal context in it.
            context.run(decimal.setcontext, self._decimal.copy())
        return context

    def for_item(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that belongs to an item of a map, in a copy of its task's context."""
        context = contextvars.copy_context()
        if self._decimal is not None:
            context.run(decimal.setcontext, self._decimal.copy())
        if IMPORT_SETTINGS.records:
            context.run(IMPORT_SETTINGS.put_variables)
        return context.run(function, *args)

    def renew(self) -> None:
        """Make the present surroundings the baseline."""
        IMPORT_SETTINGS.renewed()
        self._cwd = folder_now()
        for part in (*self._watched.values(), *self._looked_at):
            try:
                part.take()
            except Exception:  # a command has put there what cannot be used, as in ``os.environ = os.environ.copy()``
                with contextlib.suppress(Exception):
                    part.restore()
        self._path, self._argv = list(sys.path), list(sys.argv)
        self._objects = sys.stdin, sys.stdout, sys.stderr, os.environ
        self._decimal = next((each.copy() for each in self._hands.values() if isinstance(each, decimal.Context)), None)
        self._loops.renew()
        LOKY_WORKERS.end_unlike()
        _show_warnings_again()
        CHANGES.clear()
        self._stale = False

    def invalidate(self) -> None:
        """Record that the user changes the surroundings by hand: `refresh` runs before the next task."""
        self._stale = True

    def refresh(self) -> None:
        """Make changes by hand part of the baseline, before a run."""
        if self._stale:
            self.renew()

    def disarm(self) -> None:
        """Cancel timers that the user's code has set. They must not fire in the farm's own code after it."""
        if TIMERS in CHANGES.kinds:
            self._watched[TIMERS].restore()

    def restore(self, thoroughly: bool = False) -> bool:
        """Restore the surroundings after a task, and return whether anything was different.

        It never raises. State that cannot be restored stays as it is, or marks the process as `spoiled`.
        """
        changed = self._loops.restore()
        _show_warnings_again()  # each task is shown its own warnings, even if the task before was shown the same
        modules_moved = bool(IMPORT_SETTINGS.records) and IMPORT_SETTINGS.is_due()
        if (
            thoroughly
            or modules_moved
            or CHANGES.kinds
            or sys.path != self._path
            or sys.argv != self._argv
            or (sys.stdin, sys.stdout, sys.stderr, os.environ) != self._objects
        ):
            changed |= self._restore()
        if modules_moved:
            self._adopt_imports()
        return changed

    def _adopt_imports(self) -> None:
        """Make what modules of the user have set at their import part of the baseline, as long as they stay."""
        IMPORT_SETTINGS.adopt()
        for part in (*(self._watched[kind] for kind in (UMASK, HANDLERS, LOCALE, LIMITS)), *self._looked_at):
            part.take()
        self._cwd = folder_now()
        self._path = list(sys.path)
        CHANGES.clear()

    def end_items(self) -> bool:
        """Read the output of items of a map that have ended; see `Capture.end_items`."""
        return self._capture.end_items()

    def look_is_due(self) -> bool:
        """Return whether tasks have run for long enough to look for what was changed by ways that nobody watches.

        The thread's own processor time counts: on a busy machine an engine may wait for ten times as long.
        """
        now_s = time.monotonic()
        if now_s < self._due_after_s:
            return False  # to read the processor time is a system call, a twentieth of the cost of a short task
        left_s = self._looked_s + LOOK_EVERY_S - time.thread_time()
        self._due_after_s = now_s + left_s
        return left_s < 0

    def look(self) -> None:
        """Examine everything and restore it. Called between tasks."""
        self._looked_s = time.thread_time()
        if not self._stale:  # otherwise the user made the changes by hand
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
                self.spoiled = f"a task has spoiled its process: {why}"
            except Exception:
                pass  # a list that is no list any more, a module without its functions: the run has its result already
        if changed:
            CHANGES.clear()
        return changed

    def _restore_folder(self) -> None:
        if folder_now() != self._cwd:
            with contextlib.suppress(OSError):  # the folder does not exist any more
                usual["chdir"](self._cwd)
