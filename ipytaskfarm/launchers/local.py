"""Processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ipytaskfarm.system.farm_paths import process_started
from ipytaskfarm.system.files import tail
from ipytaskfarm.system.host import absolute_folders
from ipytaskfarm.system.odd_files import make_usable, set_aside_unless_file
from ipytaskfarm.system.process import PYTHONPATH_BEFORE

from . import EXIT_UNKNOWN, ProcessSpec

LOG_BYTES = 10 * 2**20
LOG_FILES = 3


class LocalProcess:
    """A process on this machine: our child, or adopted."""

    def __init__(
        self, kind: str, pid: int, log: Path, started: float, child: subprocess.Popen[bytes] | None, log_start: int = 0
    ) -> None:
        self.kind = kind
        self.pid = pid
        self._log = log
        self._log_start = log_start
        self._started = started
        self._child = child
        self._status: int | None = None
        self._pidfd = _open_pidfd(pid)

    def poll(self) -> int | None:
        """Return None while it lives; else its exit code, or `EXIT_UNKNOWN` if it is not our child."""
        if self._status is None:
            if self._child is not None:
                self._status = self._child.poll()
            elif process_started(self.pid) != self._started:
                self._status = EXIT_UNKNOWN
        return self._status

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        # poll() first: a pid may be signalled only while it is known to be the same process.
        if self.poll() is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    def wait_fd(self) -> int | None:
        """Return its pidfd, which is readable once the process has ended."""
        return self._pidfd

    def said(self, limit_bytes: int = 4000) -> str:
        """Return the end of its log, but nothing from before its own start."""
        try:
            is_longer = self._log.stat().st_size >= self._log_start
        except OSError:
            return ""
        return tail(self._log, limit_bytes, self._log_start if is_longer else 0)

    def record(self) -> dict[str, Any]:
        """Return its pid and the time of its start, which together identify a process for ever."""
        return {"kind": self.kind, "pid": self.pid, "started": self._started, "log": str(self._log)}

    def close(self) -> None:
        """Forget it and close its pidfd."""
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._child is not None and self._child.returncode is None:
            # It lives on, on purpose: Popen must not warn about that.
            self._child.returncode = 0


class LocalProcesses:
    """Starts processes on this machine, each in a session of its own."""

    def start(self, part: ProcessSpec) -> LocalProcess:
        """Start a process without a terminal, so that a Ctrl-C in ours reaches only us."""
        output = _open_log(part.log)
        try:
            log_start = os.fstat(output).st_size
            # -P: neither the farm's folder nor the user's is searched for our own modules.
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", part.module, *part.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=part.folder,
                env=child_environment(part.environment),
                pass_fds=part.fds,
                start_new_session=True,
            )
        finally:
            os.close(output)
        return LocalProcess(part.kind, child.pid, part.log, process_started(child.pid) or 0.0, child, log_start)

    def fork(self, part: ProcessSpec, run: Callable[[], int]) -> LocalProcess:
        """Fork a process that calls `run` in place of a new interpreter, and exits with its result.

        It is detached like one that `start` starts; `part` says how.

        Raises:
            RuntimeError: this process has other threads, whose locks the child would inherit.
        """
        if not may_fork():
            raise RuntimeError("a process with several threads must not fork: start another Python instead")
        output = _open_log(part.log)
        try:
            log_start = os.fstat(output).st_size
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                _leave_with(run, part, output)
        finally:
            os.close(output)
        return LocalProcess(part.kind, pid, part.log, process_started(pid) or 0.0, None, log_start)

    def adopt(self, record: dict[str, Any]) -> LocalProcess | None:
        """Return the process of the record, if it still lives."""
        pid, started = int(record["pid"]), float(record["started"])
        if process_started(pid) != started:
            return None
        return LocalProcess(str(record["kind"]), pid, Path(record["log"]), started, None)


def _open_log(log: Path) -> int:
    set_aside_unless_file(log)
    make_usable(log)
    rotate(log)
    # Append mode, so that truncating a log that grew too long (`trim`) leaves no hole.
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _leave_with(run: Callable[[], int], part: ProcessSpec, output: int) -> NoReturn:
    """Detach this forked child, call `run`, and exit with its result: the parent's program must not go on here."""
    code = 1
    try:
        _detach(part, output)
        code = run()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _detach(part: ProcessSpec, output: int) -> None:
    os.setsid()
    os.chdir(part.folder)
    os.environ.update(part.environment)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, fd in enumerate((null, output, output)):
        os.dup2(fd, number)
    # The others are the parent's, and perhaps of pipes whose end somebody waits for. Their numbers stay in use, as
    # objects that own them may still close them.
    for inherited in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, null, *part.fds}:
        with contextlib.suppress(OSError):
            os.fstat(inherited)
            os.dup2(null, inherited, inheritable=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    if not sys.flags.safe_path:  # as with -P: the user's folder is not searched for what is still to be imported
        del sys.path[0]


def may_fork() -> bool:
    """Return whether this process has no other threads, so that a forked child inherits no locks that are held."""
    return threading.active_count() == 1


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """Return our environment variables, extended so that a child finds this very package, even from an uninstalled
    checkout.
    """
    environment = {**os.environ, **absolute_folders(), **extra}
    root = str(Path(__file__).resolve().parents[2])
    if root not in [*site.getsitepackages(), site.getusersitepackages()]:
        known = environment.get("PYTHONPATH", "").split(os.pathsep)
        if root not in known:
            environment[PYTHONPATH_BEFORE] = environment.get("PYTHONPATH", "")  # for the children of tasks
            environment["PYTHONPATH"] = os.pathsep.join([*filter(None, known), root])
    return environment


def rotate(log: Path, limit_bytes: int = LOG_BYTES) -> None:
    """Rename a log that is too long to ``.1``, that one to ``.2``, and remove the oldest. Called before a start."""
    if _make_room(log, limit_bytes):
        os.replace(log, log.with_name(f"{log.name}.1"))


def trim(log: Path, limit_bytes: int = LOG_BYTES) -> None:
    """Copy a log that is too long to ``.1`` and empty it, while its process writes to it.

    The file stays the same, because the process has it open. Text that is written between copy and truncation is lost.
    A log stays as it is if its disk has no room for the copy, or if it cannot be cut.
    """
    import shutil

    with contextlib.suppress(OSError):
        if _make_room(log, limit_bytes):
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


def _make_room(log: Path, limit_bytes: int) -> bool:
    """Return whether a log is too long; then its former parts have moved, and the name ``.1`` is free."""
    try:
        if log.stat().st_size < limit_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(LOG_FILES - 1, 1, -1):
        newer = log.with_name(f"{log.name}.{number - 1}")
        if newer.exists():
            set_aside_unless_file(log.with_name(f"{log.name}.{number}"))
            os.replace(newer, log.with_name(f"{log.name}.{number}"))
    set_aside_unless_file(log.with_name(f"{log.name}.1"))
    return True


def _open_pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
