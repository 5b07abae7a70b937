"""What a process has but once, and how it is put back: one class for each kind of thing.

`take` notes what is there; `restore` puts it back where it differs, and gives whether it did.  The table for people is
``docs/surroundings.md``, and its rows are tested (``tests/test_surroundings.py``).
"""

from __future__ import annotations

import builtins
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
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from .capture import STDERR_FD
from .watched import (
    CHANGES,
    ENVIRONMENT,
    FAULTS,
    HANDLERS,
    IDENTITY,
    LIMITS,
    LOCALE,
    MASK,
    PRIORITY,
    TIMERS,
    UMASK,
    ZONE,
    usual,
)

_ABSENT = object()

SIGNALS = tuple(
    int(getattr(signal, name))
    for name in (
        "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGCHLD", "SIGTSTP",
        "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO", "SIGCONT", "SIGTTIN", "SIGTTOU", "SIGSEGV", "SIGFPE", "SIGABRT",
        "SIGBUS", "SIGILL", "SIGTRAP", "SIGSYS", "SIGXCPU", "SIGXFSZ", "SIGURG",
    )
)  # fmt: skip
_OUR_SIGNALS_FROM = signal.SIGRTMIN + 5
_CLOCKS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_RESOURCES = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


class CannotRestore(Exception):
    """What was changed cannot be changed back by this process."""


class Part(Protocol):
    """One kind of thing."""

    def take(self) -> None: ...
    def restore(self) -> bool: ...


class Environment:
    """Environment variables, those included that were set behind ``os.environ``'s back."""

    def take(self) -> None:
        # os.environ compares through its bytes: comparing the mapping itself would decode every entry.
        self._environ = os.environ
        self._data: dict[bytes, bytes] = dict(os.environ._data)  # type: ignore[attr-defined]

    def restore(self) -> bool:
        os.environ = self._environ  # noqa: B003  # the very object, whose variables follow
        wanted, data = self._data, self._environ._data  # type: ignore[attr-defined]
        changed = CHANGES.names | {name for name in {*wanted, *data} if wanted.get(name) != data.get(name)}
        for name in changed:
            if name in wanted:
                usual["putenv"](name, wanted[name])
                data[name] = wanted[name]
            else:
                usual["unsetenv"](name)
                data.pop(name, None)
        if b"TZ" in changed:
            usual["tzset"]()
        return True


class Zone:
    """What the C library makes of TZ; only who calls `time.tzset` changes it."""

    def take(self) -> None:
        """It follows the environment."""

    def restore(self) -> bool:
        usual["tzset"]()
        return True


class Umask:
    """The mode of new files."""

    def take(self) -> None:
        self._umask = usual["umask"](0o077)
        usual["umask"](self._umask)

    def restore(self) -> bool:
        usual["umask"](self._umask)
        return True


class Timers:
    """``signal.alarm`` and ``signal.setitimer``: what a task has wound up ends with it."""

    def take(self) -> None:
        """One that a command has wound up goes on, until a task winds up another."""

    def restore(self) -> bool:
        for clock in _CLOCKS:
            usual["setitimer"](clock, 0)
        return True


class Mask:
    """Blocked signals of the main thread."""

    def take(self) -> None:
        self._mask = usual["pthread_sigmask"](signal.SIG_BLOCK, ())

    def restore(self) -> bool:
        blocked = usual["pthread_sigmask"](signal.SIG_BLOCK, ()) - self._mask
        # What a task sent to itself and did not take must not reach the next one. The farm's own signals do.
        stale = {s for s in signal.sigpending() & blocked if s < _OUR_SIGNALS_FROM} - {signal.SIGTERM, signal.SIGINT}
        while stale and signal.sigtimedwait(stale, 0) is not None:
            pass
        usual["pthread_sigmask"](signal.SIG_SETMASK, self._mask)
        return True


class Handlers:
    """Signal handlers."""

    def take(self) -> None:
        self._handlers = [signal.getsignal(number) for number in SIGNALS]
        self._wakeup_fd = usual["set_wakeup_fd"](-1)
        usual["set_wakeup_fd"](self._wakeup_fd)

    def restore(self) -> bool:
        for number, handler in zip(SIGNALS, self._handlers, strict=True):
            if handler is not None and signal.getsignal(number) != handler:
                usual["signal"](number, handler)
        usual["set_wakeup_fd"](self._wakeup_fd)
        return True


class Faults:
    """faulthandler: fatal errors are written to the engine's log, and no stack is about to be."""

    def take(self) -> None:
        """It is as `process` has made it."""

    def restore(self) -> bool:
        usual["cancel_dump_traceback_later"]()
        for number in CHANGES.signals:
            if number < _OUR_SIGNALS_FROM:
                usual["unregister"](number)
        usual["enable"](STDERR_FD, all_threads=True)
        return True


class Limits:
    """Resource limits: soft ones, and those hard ones that may be raised again."""

    def take(self) -> None:
        self._limits = [resource.getrlimit(each) for each in _RESOURCES]

    def restore(self) -> bool:
        for each, limit in zip(_RESOURCES, self._limits, strict=True):
            if resource.getrlimit(each) != limit:
                try:
                    usual["setrlimit"](each, limit)
                except (OSError, ValueError):
                    raise CannotRestore("its hard resource limits were lowered") from None
        return True


class Priority:
    """Niceness, cores, scheduling class."""

    def take(self) -> None:
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self._cores = os.sched_getaffinity(0)
        self._class = os.sched_getscheduler(0), os.sched_getparam(0)

    def restore(self) -> bool:
        try:
            if os.sched_getaffinity(0) != self._cores:
                usual["sched_setaffinity"](0, self._cores)
            if (os.sched_getscheduler(0), os.sched_getparam(0)) != self._class:
                usual["sched_setscheduler"](0, *self._class)
            if os.getpriority(os.PRIO_PROCESS, 0) != self._nice:
                usual["setpriority"](os.PRIO_PROCESS, 0, self._nice)
        except OSError as error:
            raise CannotRestore(f"its priority was changed, and cannot be changed back: {error}") from None
        return True


class Identity:
    """User, groups and root folder of the process: whoever gives them up does not get them back."""

    def take(self) -> None:
        self._who = self._look()

    def restore(self) -> bool:
        if self._look() != self._who:
            raise CannotRestore("its user, its groups or its root folder were changed")
        return True

    def _look(self) -> tuple[Any, ...]:
        root = os.stat("/")
        return os.getresuid(), os.getresgid(), os.getgroups(), root.st_dev, root.st_ino


class Locale:
    """``locale.setlocale``."""

    def take(self) -> None:
        self._all = usual["setlocale"](locale.LC_ALL, None)

    def restore(self) -> bool:
        usual["setlocale"](locale.LC_ALL, self._all)
        return True


Value = tuple[Callable[[], Any], Callable[[Any], Any]]


class Values:
    """What has a function that tells and another that sets."""

    def __init__(self, *pairs: Value) -> None:
        self._pairs = pairs

    def take(self) -> None:
        self._values = [get() for get, _ in self._pairs]

    def restore(self) -> bool:
        changed = False
        for (get, put), wanted in zip(self._pairs, self._values, strict=True):
            if get() != wanted:
                put(wanted)
                changed = True
        return changed


class Attributes:
    """What stands under a name of a module."""

    def __init__(self, *names: tuple[Any, str]) -> None:
        self._names = names

    def take(self) -> None:
        self._values = [getattr(module, name, _ABSENT) for module, name in self._names]

    def restore(self) -> bool:
        changed = False
        for (module, name), wanted in zip(self._names, self._values, strict=True):
            if getattr(module, name, _ABSENT) is not wanted:
                changed = True
                if wanted is _ABSENT:
                    delattr(module, name)
                else:
                    setattr(module, name, wanted)
        return changed


class Lists:
    """Lists that everybody shares: the object and what is in it."""

    def __init__(self, *lists: tuple[Any, str, Callable[[], Any]]) -> None:
        """Each: a module, the list's name there, and what is to be called when it was changed back."""
        self._lists = lists

    def take(self) -> None:
        self._found = [getattr(module, name) for module, name, _ in self._lists]
        self._items = [list(found) for found in self._found]

    def restore(self) -> bool:
        changed = False
        for (module, name, tell), found, items in zip(self._lists, self._found, self._items, strict=True):
            if getattr(module, name, None) is not found or found != items:
                found[:] = items
                setattr(module, name, found)
                tell()
                changed = True
        return changed


class Builtins:
    """The names that every function sees."""

    def take(self) -> None:
        self._names = dict(vars(builtins))

    def restore(self) -> bool:
        here = vars(builtins)
        if here == self._names:
            return False
        here.update(self._names)
        for name in here.keys() - self._names.keys():
            del here[name]
        return True


class Decimals:
    """What new decimal contexts are made from; the context itself is the run's own (`Baseline.for_task`)."""

    _FIELDS = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")

    def take(self) -> None:
        self._seen = self._look()

    def restore(self) -> bool:
        changed = self._look() != self._seen
        if changed:
            context, (fields, traps) = decimal.DefaultContext, self._seen
            for field, value in zip(self._FIELDS, fields, strict=True):
                setattr(context, field, value)
            context.traps.update(zip(context.traps, traps, strict=True))
        return changed

    def _look(self) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
        found = decimal.DefaultContext
        fields = found.prec, found.rounding, found.Emin, found.Emax, found.capitals, found.clamp
        return fields, tuple(found.traps.values())


class Finders:
    """``sys.meta_path`` and ``sys.path_hooks``.

    Those that a module has added while it was imported stay, as the module does: ``six.moves`` is found by one."""

    def take(self) -> None:
        self._lists: tuple[list[Any], list[Any]] = sys.meta_path, sys.path_hooks
        self._items = [list(found) for found in self._lists]

    def restore(self) -> bool:
        if [sys.meta_path, sys.path_hooks] == self._items:
            return False
        for found, items in zip(self._lists, self._items, strict=True):
            added = [each for each in found if each not in items and _is_of_a_module(each)]
            before = [each for each in added if found.index(each) < len(added)]
            found[:] = [*before, *items, *(each for each in added if each not in before)]
        sys.meta_path, sys.path_hooks = self._lists
        self._items = [list(found) for found in self._lists]
        return True


def _is_of_a_module(finder: Any) -> bool:
    """Whether an imported module has made it: its class, or the function that it is, is still there."""
    made_by = finder if hasattr(finder, "__qualname__") else type(finder)
    module = sys.modules.get(getattr(made_by, "__module__", ""))
    if module is None or getattr(module, "__spec__", None) is None or module.__name__ == "__main__":
        return False
    return hasattr(module, made_by.__qualname__.partition(".")[0])


class Numpy:
    """numpy's error state where it belongs to the thread (before numpy 2; since then it is the context's)."""

    def take(self) -> None:
        numpy = _old_numpy()
        self._state = numpy.geterr() if numpy is not None else None

    def restore(self) -> bool:
        numpy = _old_numpy()
        if numpy is None:
            return False
        before = numpy.seterr(**(self._state or _NUMPYS_OWN))
        return bool(before != numpy.geterr())


_NUMPYS_OWN = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


def _old_numpy() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy if numpy is not None and getattr(numpy, "__version__", "2").startswith("1.") else None


class Tracing:
    """tracemalloc, which makes all that follows slow."""

    def take(self) -> None:
        self._traces = tracemalloc.is_tracing()

    def restore(self) -> bool:
        changed = tracemalloc.is_tracing() and not self._traces
        if changed:
            tracemalloc.stop()
        return changed


def _nothing() -> None:
    """Nobody need be told."""


def watched_parts() -> dict[str, Part]:
    """By the kind under which a change is noted; in the order in which they are put back: first what interrupts."""
    return {
        TIMERS: Timers(),
        MASK: Mask(),
        HANDLERS: Handlers(),
        FAULTS: Faults(),
        ENVIRONMENT: Environment(),
        ZONE: Zone(),
        UMASK: Umask(),
        LOCALE: Locale(),
        LIMITS: Limits(),
        PRIORITY: Priority(),
        IDENTITY: Identity(),
    }


def looked_at() -> list[Part]:
    """What nothing tells of.  All of it is looked at in some 10 us."""
    values: list[Value] = [
        (sys.getrecursionlimit, sys.setrecursionlimit),
        (sys.getswitchinterval, sys.setswitchinterval),
        (sys.gettrace, sys.settrace),
        (sys.getprofile, sys.setprofile),
        (sys.getdlopenflags, sys.setdlopenflags),
        (sys.get_coroutine_origin_tracking_depth, sys.set_coroutine_origin_tracking_depth),
        (lambda: tuple(sys.get_asyncgen_hooks()), lambda hooks: sys.set_asyncgen_hooks(*hooks)),
        (threading.gettrace, threading.settrace),
        (threading.getprofile, threading.setprofile),
        (threading.stack_size, threading.stack_size),
        (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        (gc.get_threshold, lambda numbers: gc.set_threshold(*numbers)),
        (gc.get_debug, gc.set_debug),
        (socket.getdefaulttimeout, socket.setdefaulttimeout),
        (lambda: logging.root.level, logging.root.setLevel),
        (lambda: logging.root.manager.disable, logging.disable),
    ]
    if hasattr(sys, "get_int_max_str_digits"):
        values.append((sys.get_int_max_str_digits, sys.set_int_max_str_digits))
    names = [(sys, name) for name in _SYS_NAMES]
    names += [(warnings, "showwarning"), (warnings, "formatwarning"), (threading, "excepthook"), (tempfile, "tempdir")]
    names += [(logging, "lastResort"), (logging, "raiseExceptions"), (socket, "socket"), (os, "environ")]
    return [
        Values(*values),
        Attributes(*names),
        Lists(
            (sys, "path", _nothing),
            (sys, "argv", _nothing),
            (warnings, "filters", vars(warnings)["_filters_mutated"]),
            (gc, "callbacks", _nothing),
            (logging.root, "handlers", _nothing),
            (logging.root, "filters", _nothing),
        ),
        Finders(),
        Builtins(),
        Decimals(),
        Numpy(),
        Tracing(),
    ]


_SYS_NAMES = (
    "stdout", "stderr", "stdin", "__stdout__", "__stderr__", "__stdin__", "excepthook", "displayhook", "unraisablehook",
    "breakpointhook", "dont_write_bytecode", "pycache_prefix", "tracebacklimit", "modules",
)  # fmt: skip
