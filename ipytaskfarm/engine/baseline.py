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

import builtins
import contextlib
import contextvars
import decimal
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..serialization.import_settings import IMPORT_SETTINGS, ProcessSetting, merge_lists, merge_names
from ..system.process import resident_bytes
from .change_hooks import CHANGES, DESCRIPTORS, FOLDER, HANDLERS, LIMITS, LOCALE, TIMERS, UMASK, usual, watch
from .child_processes import LOKY_WORKERS
from .interpreter import Builtins, Decimals, StartMethod, unreported_parts
from .surroundings import RESOURCES, SIGNALS, CannotRestore, folder_now, watched_parts

_ABSENT = object()
_ATTRIBUTES = (
    (sys, ("excepthook", "unraisablehook", "tracebacklimit", "dont_write_bytecode", "pycache_prefix")),
    (threading, ("excepthook",)),
    (warnings, ("showwarning", "formatwarning", "_showwarnmsg_impl")),
    (logging, ("lastResort", "raiseExceptions", "_warnings_showwarning")),
    (tempfile, ("tempdir",)),
    (socket, ("socket",)),
)


def settings_of_imports() -> dict[str, ProcessSetting]:
    """Return the settings by name. To look at all of them takes about 40 µs.

    Not among them: the standard streams and the arguments, which belong to the task; timers and the signals with which
    the farm ends an engine; what cannot be undone.

    What calls of watched functions change is set by such calls, so that the baseline restores it.
    """
    chosen, decimals = StartMethod(), Decimals()
    found = {
        "working folder": ProcessSetting(folder_now, os.chdir),
        "umask": ProcessSetting(_umask, os.umask),
        "locale": ProcessSetting(
            lambda: usual["setlocale"](locale.LC_ALL, None), partial(locale.setlocale, locale.LC_ALL)
        ),
        "recursion limit": ProcessSetting(sys.getrecursionlimit, sys.setrecursionlimit),
        "switch interval": ProcessSetting(sys.getswitchinterval, sys.setswitchinterval),
        "gc": ProcessSetting(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        "gc threshold": ProcessSetting(gc.get_threshold, lambda numbers: gc.set_threshold(*numbers)),
        "socket time-out": ProcessSetting(socket.getdefaulttimeout, socket.setdefaulttimeout),
        "log level": ProcessSetting(lambda: logging.root.level, logging.root.setLevel),
        "log disabled": ProcessSetting(lambda: logging.root.manager.disable, logging.disable),
        "start method": ProcessSetting(chosen.look, chosen.put),
        "decimal default": ProcessSetting(decimals.look, decimals.put),
        "builtins": ProcessSetting(lambda: dict(vars(builtins)), Builtins.put, merge_names),
        "sys.path": _listed(lambda: sys.path),
        "warnings filters": _listed(lambda: warnings.filters, vars(warnings)["_filters_mutated"]),
        "log handlers": _listed(lambda: logging.root.handlers),
        "log filters": _listed(lambda: logging.root.filters),
    }
    if hasattr(sys, "get_int_max_str_digits"):
        found["digits of int"] = ProcessSetting(sys.get_int_max_str_digits, sys.set_int_max_str_digits)
    for module, names in _ATTRIBUTES:
        found |= {f"{module.__name__}.{name}": _attribute(module, name) for name in names}
    for number in SIGNALS:
        if number not in (signal.SIGINT, signal.SIGTERM):
            found[f"signal {number}"] = ProcessSetting(
                partial(signal.getsignal, number), partial(signal.signal, number)
            )
    for number in RESOURCES:
        found[f"limit {number}"] = ProcessSetting(
            partial(resource.getrlimit, number), partial(resource.setrlimit, number)
        )
    return found


def _umask() -> int:
    present: int = usual["umask"](0o077)
    usual["umask"](present)
    return present


def _listed(find: Callable[[], Any], tell: Callable[[], None] = lambda: None) -> ProcessSetting:
    def put(items: list[Any]) -> None:
        find()[:] = items
        tell()

    return ProcessSetting(lambda: list(find()), put, merge_lists)


def _attribute(module: Any, name: str) -> ProcessSetting:
    def put(value: Any) -> None:
        if value is _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, value)

    return ProcessSetting(lambda: vars(module).get(name, _ABSENT), put)


if TYPE_CHECKING:
    from .capture import Capture
    from .surroundings import Loops

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
        self._unreported = unreported_parts()
        self._hands = contextvars.copy_context()
        self._decimal: decimal.Context | None = None
        self._modules = dict(sys.modules)
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
        for part in (*self._watched.values(), *self._unreported):
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
        if len(sys.modules) != len(self._modules):
            self._look_at_modules()
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

    def _look_at_modules(self) -> None:
        """Put all modules back if a task has removed most of them: the engine's own imports would fail from now on."""
        if len(sys.modules) < len(self._modules) // 2:
            sys.modules.update(self._modules)
        self._modules = dict(sys.modules)

    def _adopt_imports(self) -> None:
        """Make what modules of the user have set at their import part of the baseline, as long as they stay."""
        IMPORT_SETTINGS.adopt()
        for part in (*(self._watched[kind] for kind in (UMASK, HANDLERS, LOCALE, LIMITS)), *self._unreported):
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
        for part in (*parts, *self._unreported):
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


COLLECT_EVERY_S = 0.05
GROWTH_BYTES, GROWTH_SHARE = 32 << 20, 0.25
"""A collection follows when the process has grown by both since the last one. The share is for values that stay: they
would be examined again and again."""


class Garbage:
    """Collects cyclic garbage between runs if the process has grown.

    Python collects cycles by the number of objects, not by their size: a model, a figure or an exception with its
    frames is few objects and many megabytes. In a process of its own a task's garbage dies with it; here the next task
    would be charged for it, and ended when the engine exceeds its limit of memory.
    """

    def __init__(self) -> None:
        self.due_s = 0.0
        """When (`time.perf_counter`) to look again."""
        self._least = resident_bytes(os.getpid())
        """Resident bytes, the fewest since the last collection."""

    def look(self, now_s: float) -> None:
        """Collect if the process has grown; not if the user's own code has switched the collector off."""
        self.due_s = now_s + COLLECT_EVERY_S
        resident = resident_bytes(os.getpid())
        if resident - self._least < max(GROWTH_BYTES, GROWTH_SHARE * self._least):
            self._least = min(self._least, resident)
        elif gc.isenabled():
            gc.collect()
            self._least = resident_bytes(os.getpid())
