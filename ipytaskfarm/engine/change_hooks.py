"""Records when a process changes state that only a system call, or a slow comparison, could show.

The functions with which Python programs change their working folder, environment variables, signal handlers, timers and
limits are wrapped. A call is recorded under the *kind* of state that it changes. State without a record is not
examined. So a task that changes nothing costs nothing, and an item of a map that changes something is known while it
still runs.

An audit hook was tried. It reports only folder, variables and limits (there is no event for a signal handler, a timer,
the umask), and it makes every ``id()`` and every pickled class slower by 0.1 µs. Changes that a C library makes by
itself are not recorded; for them, the baseline checks the folder from time to time.

The zygote installs the wrappers before the user's own modules are imported, which may keep these functions.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]
import faulthandler
import functools
import locale
import os
import posix
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from ..serialization.import_settings import IMPORT_VARIABLES

FOLDER, ENVIRONMENT, UMASK, PRIORITY, LIMITS = "folder", "environment", "umask", "priority", "limits"
HANDLERS, TIMERS, MASK, LOCALE, ZONE, FAULTS, IDENTITY, DESCRIPTORS = (
    "handlers", "timers", "mask", "locale", "zone", "faults", "identity", "descriptors",
)  # fmt: skip

STACK_SIGNAL = signal.SIGRTMIN + 6
"""Lets faulthandler write the main thread's stack into a file."""
_FAULT_SIGNALS = frozenset({
    STACK_SIGNAL, signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL,
})  # fmt: skip
"""The signals that faulthandler handles, beside the handlers that Python knows."""

_FUNCTIONS: tuple[tuple[str, tuple[Any, ...], tuple[str, ...]], ...] = (
    (FOLDER, (os, posix), ("chdir", "fchdir")),
    (ENVIRONMENT, (os, posix), ("putenv", "unsetenv")),
    (UMASK, (os, posix), ("umask",)),
    (PRIORITY, (os, posix), ("nice", "setpriority", "sched_setaffinity", "sched_setscheduler", "sched_setparam")),
    (
        IDENTITY,
        (os, posix),
        (
            "setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid", "setgroups",
            "chroot",
        ),
    ),
    (DESCRIPTORS, (os, posix), ("close", "closerange", "dup2")),
    (LIMITS, (resource,), ("setrlimit", "prlimit")),
    (HANDLERS, (signal, _signal), ("signal", "set_wakeup_fd", "siginterrupt")),
    (TIMERS, (signal, _signal), ("setitimer", "alarm")),
    (MASK, (signal, _signal), ("pthread_sigmask",)),
    (LOCALE, (locale, _locale), ("setlocale", "_setlocale")),
    (ZONE, (time,), ("tzset",)),
    (
        FAULTS,
        (faulthandler,),
        ("enable", "disable", "register", "unregister", "dump_traceback_later", "cancel_dump_traceback_later"),
    ),
)  # fmt: skip


class Changes:
    """The records since the last `clear`."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.names: set[bytes] = set()
        """The environment variables that were changed."""
        self.signals: set[int] = set()
        """The signals that were registered with faulthandler, or unregistered."""
        self.told: Callable[[], None] | None = None
        """Called with each record, in the thread that makes the change."""

    def clear(self) -> None:
        """Forget all records."""
        self.kinds.clear()
        self.names.clear()
        self.signals.clear()

    def note(self, kind: str, args: tuple[Any, ...]) -> None:
        """Record that state of this kind is about to be changed."""
        if kind is ENVIRONMENT and args:
            name, *value = map(os.fsencode, args)
            self.names.add(name)
            IMPORT_VARIABLES.note(name, value[0] if value else None)
        elif kind is FAULTS and args and isinstance(args[0], int):
            self.signals.add(args[0])
        elif kind is HANDLERS and args and args[0] in _FAULT_SIGNALS:
            self.kinds.add(FAULTS)
            self.signals |= {STACK_SIGNAL} & {args[0]}
        self.kinds.add(kind)
        if self.told is not None:
            self.told()


CHANGES = Changes()
"""The records of this process."""
usual: dict[str, Callable[..., Any]] = {}
"""Name -> the original function. Restoring uses these, since it must not be recorded."""


def _watch_standard(function: Callable[..., Any]) -> Callable[..., Any]:
    """Watch only descriptors below 3, because others are opened and closed all the time."""

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        number = args[1] if function.__name__ == "dup2" and len(args) > 1 else args[0] if args else 0
        if number in (0, 1, 2):
            CHANGES.note(DESCRIPTORS, args)
        return function(*args, **kwargs)

    return watched


def _watch(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if kind is DESCRIPTORS:
        return _watch_standard(function)

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        # Recorded first: a signal's handler may run between the change and the statement after it.
        CHANGES.note(kind, args)
        return function(*args, **kwargs)

    return watched


RECURSION_LEAST = 500
"""The lowest recursion limit.  A limit holds for all threads, and until the task's result is packed: one just above the
task's own depth would end the engine's threads with a RecursionError."""


def _with_least(function: Callable[[int], None]) -> Callable[[int], None]:
    @functools.wraps(function)
    def setrecursionlimit(limit: int, /) -> None:
        function(limit if not isinstance(limit, int) or limit < 1 else max(limit, RECURSION_LEAST))

    return setrecursionlimit


def watch() -> None:
    """Wrap the functions. A second call does nothing."""
    if usual:
        return
    sys.setrecursionlimit = _with_least(sys.setrecursionlimit)
    for kind, modules, names in _FUNCTIONS:
        for name in names:
            made: dict[int, Callable[..., Any]] = {}
            for module in modules:
                function = getattr(module, name, None)
                if function is None:
                    continue
                usual.setdefault(name, function)
                wrapped = made.setdefault(id(function), _watch(kind, function))
                setattr(module, name, wrapped)
                for supports in (os.supports_fd, os.supports_dir_fd, os.supports_follow_symlinks):
                    if function in supports:
                        supports.add(wrapped)
