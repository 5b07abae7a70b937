"""Tells when a process changes what only a system call, or a slow look, could tell.

The functions by which Python programs change their working folder, environment variables, signal handlers, timers and
limits are wrapped: a call is noted under the *kind* of what it changes.  What was not noted needs no look, so a task
that changes nothing costs nothing, and a map's item that changes something is known while it still runs.

Tried: an audit hook.  It hears of folder, variables and limits alone (no event tells of a signal handler, a timer, the
umask), and makes every ``id()`` and every pickled class slower by 0.1 us.  What a C library changes by itself is not
heard of; the baseline looks at the folder now and then for that.

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
import time
from collections.abc import Callable
from typing import Any

FOLDER, ENVIRONMENT, UMASK, PRIORITY, LIMITS = "folder", "environment", "umask", "priority", "limits"
HANDLERS, TIMERS, MASK, LOCALE, ZONE, FAULTS, IDENTITY, DESCRIPTORS = (
    "handlers", "timers", "mask", "locale", "zone", "faults", "identity", "descriptors",
)  # fmt: skip

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
    """What was noted since the last `clear`."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()
        self.names: set[bytes] = set()
        """The environment variables among it."""
        self.signals: set[int] = set()
        """Signals for which faulthandler was asked to write a stack, or not to."""
        self.told: Callable[[], None] | None = None
        """Called with each note, by whoever made it."""

    def clear(self) -> None:
        """Begin anew."""
        self.kinds.clear()
        self.names.clear()
        self.signals.clear()

    def note(self, kind: str, args: tuple[Any, ...]) -> None:
        """Something of this kind is about to be changed."""
        if kind is ENVIRONMENT and args:
            self.names.add(os.fsencode(args[0]))
        elif kind is FAULTS and args and isinstance(args[0], int):
            self.signals.add(args[0])
        self.kinds.add(kind)
        if self.told is not None:
            self.told()


CHANGES = Changes()
"""Of this process."""
usual: dict[str, Callable[..., Any]] = {}
"""The functions themselves, by name: what restores is not to be noted."""


def _watch_standard(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of descriptors, those below 3 alone: others are opened and closed all the time."""

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
        # Before: a signal's handler may come between the change and what follows it.
        CHANGES.note(kind, args)
        return function(*args, **kwargs)

    return watched


def watch() -> None:
    """Wrap the functions; once."""
    if usual:
        return
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
