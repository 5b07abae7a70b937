"""What a task may not leave behind: working folder, environment variables, signal handlers, ``sys.path``, streams.

After each task they are put back to the baseline: what start-up, the last MultiEngine command or a console's
cell left.  Unchanged costs 2 µs, so the test is made of few, cheap comparisons; the signals it looks at are those
that programs use, not all 64.  Asking the system for the working folder costs as much again: it is asked when Python
was told to change it, and at the end of each slice, for libraries that change it by themselves.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.getsignal wraps it in 0.5 us of enumerations
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

SIGNALS = tuple(
    int(getattr(signal, name))
    for name in (
        "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM", "SIGCHLD", "SIGTSTP",
        "SIGVTALRM", "SIGPROF", "SIGWINCH", "SIGIO",
    )
)  # fmt: skip


class Baseline:
    """The surroundings of a task, to be restored after it."""

    def __init__(self) -> None:
        self._stale = True
        self._went = False
        """Somebody may have changed the folder since it was last looked at."""
        os.chdir, os.fchdir = self._follow(os.chdir), self._follow(os.fchdir)
        self.renew()

    def _follow(self, change: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(change)
        def changing(*args: Any, **kwargs: Any) -> None:
            self._went = True
            change(*args, **kwargs)

        return changing

    def renew(self) -> None:
        """Take what is now as the baseline."""
        try:
            self._cwd = os.getcwd()
        except FileNotFoundError:  # it was removed: there is nothing to go back to
            self._cwd = ""
        # os.environ compares through its bytes: comparing the mapping itself would decode every entry.
        self._environ_data: dict[bytes, bytes] = dict(_environ_data())
        self._handlers = tuple(map(_signal.getsignal, SIGNALS))
        self._path = list(sys.path)
        self._stdout, self._stderr = sys.stdout, sys.stderr
        self._stale = False

    def invalidate(self) -> None:
        """The user's own hands change things: `refresh` before the next task."""
        self._stale = True

    def refresh(self) -> None:
        """Before a run: take in what was changed by hand since."""
        if self._stale:
            self.renew()

    def restore(self) -> None:
        """After a task.  Never raises: what cannot be restored stays as it is."""
        if _environ_data() != self._environ_data:
            self._restore_environ()
        if sys.path != self._path:
            sys.path[:] = self._path
        if tuple(map(_signal.getsignal, SIGNALS)) != self._handlers:
            self._restore_handlers()
        if sys.stdout is not self._stdout or sys.stderr is not self._stderr:
            sys.stdout, sys.stderr = self._stdout, self._stderr
        if self._went:
            self.restore_folder()

    def restore_folder(self) -> None:
        """After a slice, and after a task that changed it."""
        self._went = False
        try:
            if os.getcwd() == self._cwd:
                return
        except OSError:
            pass
        try:
            os.chdir(self._cwd)
        except OSError:
            pass  # the folder is gone
        self._went = False

    def _restore_environ(self) -> None:
        wanted = self._environ_data
        for name in set(_environ_data()) - set(wanted):
            del os.environb[name]
        for name, value in wanted.items():
            if _environ_data().get(name) != value:
                os.environb[name] = value

    def _restore_handlers(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # who set a handler may have set an alarm
        for number, handler in zip(SIGNALS, self._handlers, strict=True):
            if handler is not None and _signal.getsignal(number) != handler:
                try:
                    signal.signal(number, handler)
                except (OSError, ValueError):
                    pass


def _environ_data() -> dict[bytes, bytes]:
    data = os.environ._data  # type: ignore[attr-defined]
    assert isinstance(data, dict)
    return data
