"""The parts of a process's surroundings that exist once per process, and how they are restored: one class for each
part.

`take` records the present state. `restore` restores it where it differs, and returns whether it did. The table for
users is ``docs/surroundings.md``; its rows are tested (``tests/unit/test_surroundings.py``).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import asyncio
import fcntl
import locale
import os
import resource
import signal
from asyncio import events
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, Protocol

from ..serialization.import_settings import IMPORT_VARIABLES
from .change_hooks import (
    CHANGES,
    DESCRIPTORS,
    ENVIRONMENT,
    FAULTS,
    HANDLERS,
    IDENTITY,
    LIMITS,
    LOCALE,
    MASK,
    PRIORITY,
    STACK_SIGNAL,
    TIMERS,
    UMASK,
    ZONE,
    usual,
)
from .descriptors import STDERR_FD

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
RESOURCES = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})


class CannotRestore(Exception):
    """Raised if this process cannot undo a change."""


def folder_now() -> str:
    """Return the working folder; "" if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""


class Surrounding(Protocol):
    """One part of the surroundings."""

    def take(self) -> None: ...
    def restore(self) -> bool: ...


class EnvironmentVariables:
    """The environment variables, including changes that bypass ``os.environ``, and those of imported modules."""

    def take(self) -> None:
        # The bytes inside os.environ are compared: comparing the mapping itself would decode every entry.
        data: dict[bytes, bytes] = IMPORT_VARIABLES.without(os.environ._data)  # type: ignore[attr-defined]
        self._environ, self._data = os.environ, data

    def restore(self) -> bool:
        os.environ = self._environ  # noqa: B003  # the same object as before; its variables follow
        wanted, data = IMPORT_VARIABLES.over(self._data), self._environ._data  # type: ignore[attr-defined]
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
    """The C library's time zone, which `time.tzset` reads from TZ."""

    def take(self) -> None:
        """Record nothing: the time zone follows from the environment variables."""

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


class AlarmTimers:
    """The timers of ``signal.alarm`` and ``signal.setitimer``, which end with the task that set them."""

    def take(self) -> None:
        """Record nothing: a timer that a command has set goes on, until a task sets another."""

    def restore(self) -> bool:
        for clock in _CLOCKS:
            usual["setitimer"](clock, 0)
        return True


class Mask:
    """The blocked signals of the main thread."""

    def take(self) -> None:
        self._mask = usual["pthread_sigmask"](signal.SIG_BLOCK, ())

    def restore(self) -> bool:
        blocked = usual["pthread_sigmask"](signal.SIG_BLOCK, ()) - self._mask
        # A signal that a task sent to itself and did not take must not reach the next task. The farm's own signals
        # must.
        stale = {s for s in signal.sigpending() & blocked if s < _OUR_SIGNALS_FROM} - {signal.SIGTERM, signal.SIGINT}
        while stale and signal.sigtimedwait(stale, 0) is not None:
            pass
        usual["pthread_sigmask"](signal.SIG_SETMASK, self._mask)
        return True


class Handlers:
    """The handlers of all signals, also those of the farm's own."""

    _NUMBERS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
    _own: ClassVar[dict[int, Any]] = {}

    @classmethod
    def hold(cls, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        """Install the handler of a signal of the farm, which nobody can replace for long."""
        cls._own[number] = handler
        usual["signal"](number, handler)

    def take(self) -> None:
        for number, handler in self._own.items():
            if _signal.getsignal(number) != handler:
                usual["signal"](number, handler)
        self._handlers = [*map(_signal.getsignal, self._NUMBERS)]
        self._wakeup_fd = usual["set_wakeup_fd"](-1)
        usual["set_wakeup_fd"](self._wakeup_fd)

    def restore(self) -> bool:
        for number, handler in zip(self._NUMBERS, self._handlers, strict=True):
            if handler is not None and _signal.getsignal(number) != handler:
                usual["signal"](number, handler)
        usual["set_wakeup_fd"](self._wakeup_fd)
        return True


class Faults:
    """faulthandler: fatal errors go to the engine's log, stacks to their file, and no delayed dump is pending."""

    stack_fd = -1
    """Where the stack is written to on `STACK_SIGNAL`."""

    def take(self) -> None:
        """Record nothing: the state is always the one that `begin` has set; but let stacks be written."""
        if STACK_SIGNAL in CHANGES.signals:
            self.begin(self.stack_fd)

    @classmethod
    def begin(cls, stack_fd: int) -> None:
        """Let faulthandler write fatal errors to the log, and the main thread's stack to this file."""
        cls.stack_fd = stack_fd
        usual["enable"](STDERR_FD, all_threads=True)
        usual["unregister"](STACK_SIGNAL)
        usual["register"](STACK_SIGNAL, file=stack_fd, all_threads=False, chain=False)

    def restore(self) -> bool:
        usual["cancel_dump_traceback_later"]()
        for number in CHANGES.signals:
            if number < _OUR_SIGNALS_FROM:
                usual["unregister"](number)
        # It installs handlers only if it believes that it has none.
        usual["disable"]()
        self.begin(self.stack_fd)
        return True


class ResourceLimits:
    """The soft resource limits, and those hard limits that may be raised again."""

    def take(self) -> None:
        self._limits = [resource.getrlimit(each) for each in RESOURCES]

    def restore(self) -> bool:
        for each, limit in zip(RESOURCES, self._limits, strict=True):
            if resource.getrlimit(each) != limit:
                try:
                    usual["setrlimit"](each, limit)
                except (OSError, ValueError):
                    raise CannotRestore("its hard resource limits were lowered") from None
        return True


class Priority:
    """Niceness, cores and scheduling class.

    They are also compared, because psutil changes them without a watched function.
    """

    def take(self) -> None:
        self._seen = self._look()

    def restore(self) -> bool:
        if self._look() == self._seen:
            return False
        nice, cores, scheduling, parameters = self._seen
        try:
            usual["sched_setaffinity"](0, cores)
            if os.sched_getscheduler(0) != scheduling or os.sched_getparam(0) != parameters:
                usual["sched_setscheduler"](0, scheduling, parameters)
            if os.getpriority(os.PRIO_PROCESS, 0) != nice:
                usual["setpriority"](os.PRIO_PROCESS, 0, nice)
        except OSError as error:
            raise CannotRestore(f"its priority was changed, and cannot be changed back: {error}") from None
        return True

    def _look(self) -> tuple[int, set[int], int, os.sched_param]:
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        return nice, os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)


class Identity:
    """User, groups and root folder of the process. Once given up, they cannot be restored."""

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
    """The locale (``locale.setlocale``)."""

    def take(self) -> None:
        self._all = usual["setlocale"](locale.LC_ALL, None)

    def restore(self) -> bool:
        usual["setlocale"](locale.LC_ALL, self._all)
        return True


class Descriptors:
    """The descriptors 0, 1 and 2, which a program may close or redirect."""

    _NUMBERS = (0,)

    def __init__(self, put_back_output: Callable[[], bool]) -> None:
        """Create the part; `put_back_output` restores 1 and 2, whose files a copy here would keep locked (see
        `descriptors`).
        """
        self._copies: list[int] = []
        self._put_back_output = put_back_output

    def take(self) -> None:
        if not self._look():  # a command has closed one, and the next file would get its number
            self._put_back()
        for copy in self._copies:
            os.close(copy)
        # Copies get numbers from 3 on, above those that programs with few descriptors close by number.
        self._copies = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in self._NUMBERS]
        self._files = self._look()

    def restore(self) -> bool:
        changed = self._look() != self._files
        if changed:
            self._put_back()
        return self._put_back_output() or changed

    def _put_back(self) -> None:
        for copy, number in zip(self._copies, self._NUMBERS, strict=True):
            usual["dup2"](copy, number)

    def _look(self) -> list[tuple[int, int]]:
        try:
            return [(found.st_dev, found.st_ino) for found in map(os.fstat, self._NUMBERS)]
        except OSError:
            return []


def watched_parts(put_back_output: Callable[[], bool]) -> dict[str, Surrounding]:
    """Return the kind under which a change is recorded -> the part, in the order of restoring: interruptions first."""
    return {
        TIMERS: AlarmTimers(),
        MASK: Mask(),
        HANDLERS: Handlers(),
        FAULTS: Faults(),
        ENVIRONMENT: EnvironmentVariables(),
        ZONE: Zone(),
        UMASK: Umask(),
        LOCALE: Locale(),
        LIMITS: ResourceLimits(),
        PRIORITY: Priority(),
        IDENTITY: Identity(),
        DESCRIPTORS: Descriptors(put_back_output),
    }


_events = vars(events)
# Python 3.14 warns of the names without the underscore.
_policy = _events.get("_get_event_loop_policy", asyncio.get_event_loop_policy)
_set_policy = _events.get("_set_event_loop_policy", asyncio.set_event_loop_policy)
_set_running_loop = events._set_running_loop


class Loops:
    """The event loops that asyncio knows for the main thread.

    A plain function as a task runs inside a callback of the kernel's loop. For its author no loop runs there:
    ``asyncio.run``, ``loop.run_until_complete`` and ``anyio.run`` must work as in a script. Therefore no loop counts as
    running in the main thread in the meantime. The policy has no loop there; before Python 3.14 it makes one on
    request, as in a fresh interpreter. Coroutines and cells with a top-level await run in the kernel's loop, and find
    it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._policy: Any = None
        self._noted: dict[str, Any] = {}
        """The policy's record of this thread's loop. It is empty until some code sets a loop or asks for one."""

    def hide(self) -> None:
        """Make no loop count as running, until `show`."""
        _set_running_loop(None)

    def show(self) -> None:
        """Make the kernel's loop count as running again."""
        _set_running_loop(self.loop)

    def renew(self) -> None:
        """Replace the present policy with a fresh one for users' code, without a loop in this thread."""
        if events._get_running_loop() is self.loop:  # until the loop runs, only the policy can find it
            self._fresh(_policy())

    def restore(self) -> bool:
        """Forget the loop that a task has set or asked for, and the policy that it has chosen.

        Return whether there was any.

        The loop is not closed, because the task may have stored it for later tasks.
        """
        policy = self._policy
        if policy is None:
            return False
        if self._noted or _events["_event_loop_policy"] is not policy:
            self._fresh(policy)
            return True
        return False

    def _fresh(self, policy: Any) -> None:
        # Code that runs in the kernel's loop finds it whatever the policy says; so does code in the loops of other
        # threads.
        self._policy = type(policy)()
        _set_policy(self._policy)
        self._noted = vars(getattr(self._policy, "_local", self))
        if self._noted is vars(self):  # a policy from another library
            self._noted = {}
