"""The sessions of this process: one per farm and role, shared by all its clients, and closed with the last of them.

The module also handles forks and the end of the process.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from ..core import errors
from ..system import farm_paths
from ..system.farm_paths import ConnectionInfo, Where
from ..system.host import open_standard_descriptors, user_name
from ..system.supervision import comes_back
from .session import Session

CONNECT_TIMEOUT_S = 5.0
EXIT_FLUSH_S = 10.0
DEFAULT_ADDRESS = ("127.0.0.1", 10113)

Whose: TypeAlias = tuple[str, str]
"""The farm's incarnation, and the role of the connection file.

A reader that shared the session of a client could submit, and a client that shared a reader's could not."""
_sessions: dict[Whose, Session] = {}
_lock = threading.Lock()
_connecting: dict[Whose, threading.Lock] = {}
"""Locks that are held while a session is connected, for other threads that need the same one."""


def connect(
    where: Where = None, key_file: str | PathLike[str] | None = None, timeout_s: float | None = None
) -> Session:
    """Return this process's session with a farm; make and connect it, within timeout_s seconds, if there is none.

    Without timeout_s it waits 5 s, and longer while the farm's supervisor says that it starts the controller again.

    Raises FarmNotRunning (with the command that starts a farm), SecurityError, VersionMismatch.  The caller calls
    `release` at the end.
    """
    if isinstance(where, str) and (where.startswith("pb:") or where.endswith(".furl")) and not os.path.exists(where):
        raise errors.FarmNotRunning(
            f"{where!r} is a FURL of IPython 0.10: no argument is the farm 'default', a name another farm of this "
            "machine, the path of its connection file (.json) one of another machine"
        )
    deadline = time.monotonic() + (CONNECT_TIMEOUT_S if timeout_s is None else timeout_s)
    read = farm_paths.connection_reader(where, key_file)
    patient = timeout_s is None
    info = _await_file(read, where, deadline, patient)
    whose = info.incarnation, info.role
    session = _used(whose)
    if session is not None:
        return session
    with _lock:
        connecting = _connecting.setdefault(whose, threading.Lock())
    if not connecting.acquire(timeout=-1 if patient else max(0.5, deadline - time.monotonic())):
        raise errors.FarmNotRunning(
            f"farm {info.farm!r} does not answer at {farm_paths.endpoint(farm_paths.dialled(info), info.port)} "
            f"within {timeout_s:g} s; another thread of this process waits for it too"
        )
    try:
        session = _used(whose)
        if session is None:
            open_standard_descriptors()  # otherwise a socket may get the number of stdout
            session = Session(read, f"{user_name()}@{socket.gethostname()} {os.getpid()}")
            session.start(max(0.5, deadline - time.monotonic()), patient)
            session.users = 1
            with _lock:
                _sessions[whose] = session
        return session
    finally:
        connecting.release()


def _used(whose: Whose) -> Session | None:
    """Count one client more of the session with a farm, and return it; None: there is none that works."""
    with _lock:
        session = _sessions.get(whose)
        if session is None or session.fatal is not None:
            return None
        session.users += 1
        return session


def _await_file(read: Callable[[], ConnectionInfo], where: Where, deadline: float, patient: bool) -> ConnectionInfo:
    """Read the connection file; wait for the file if the farm is starting.

    patient: wait beyond the deadline, while the farm's supervisor says that it starts the controller.
    """
    said = False
    while True:
        try:
            return read()
        except errors.FarmNotRunning:
            folder = _folder_of(where)
            in_time = time.monotonic() < deadline
            starting = comes_back(folder, read) if patient or in_time else ""
            if not starting and not (in_time and _is_starting(folder)):
                raise
        if starting and not said and not in_time and sys.stderr is not None:
            said = True
            print(f"ipytaskfarm: the farm does not run: {starting}; waiting for it", file=sys.stderr, flush=True)
        time.sleep(0.05)


def _folder_of(where: Where) -> Path | None:
    """Return the folder of a farm of this host; None if a path or an address was given."""
    try:
        return farm_paths.farm_folder(where or farm_paths.DEFAULT_FARM) if isinstance(where, str | None) else None
    except ValueError:
        return None


def _is_starting(folder: Path | None) -> bool:
    """Return whether the farm's controller lives: it writes the connection file when it accepts connections."""
    try:
        return (
            folder is not None and farm_paths.process_started(int((folder / "controller.lock").read_text())) is not None
        )
    except (OSError, ValueError):
        return False


def default_address() -> tuple[str, int]:
    """Return (host, port) of the farm "default", or its default address if it does not run."""
    try:
        info = farm_paths.connection_reader()()
    except errors.FarmNotRunning:
        return DEFAULT_ADDRESS
    return info.host, info.port


def unfinished_tasks(incarnation: str) -> set[int]:
    """Return the unfinished tasks that this process's sessions with a farm have submitted, or wait for."""
    found: set[int] = set()
    for (farm, _), session in list(_sessions.items()):
        if farm == incarnation:
            found |= session.arrivals.submitted | session.arrivals.watched
    return found


def wait_gone(session: Session, timeout_s: float) -> None:
    """Wait until the farm has removed its connection file.  Raises TimeoutError when timeout_s is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            session.io.read_info()
        except (errors.FarmNotRunning, OSError):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"farm {session.farm!r} has not ended within {timeout_s:g} s")
        time.sleep(0.02)


def release(session: Session) -> None:
    """Count one client less.  The last one closes the session, after its tasks are accepted."""
    with _lock:
        session.users -= 1
        last = session.users <= 0
        if last:
            for key in [key for key, known in _sessions.items() if known is session]:
                del _sessions[key]
    if last:
        _say(session.close(EXIT_FLUSH_S))


def end_farm(incarnation: str) -> None:
    """Close this process's sessions with a farm at once, also for other clients, because the owner stopped the farm."""
    with _lock:
        ended = [_sessions.pop(whose) for whose in list(_sessions) if whose[0] == incarnation]
    for session in ended:
        session.close(0.0, errors.FarmNotRunning(f"farm {session.farm!r} was stopped: start another one, Farm(n=…)"))


def _say(lost: str) -> None:
    if lost:
        print(f"ipytaskfarm: {lost}", file=sys.stderr)


def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_FLUSH_S
    for session in list(_sessions.values()):
        try:
            _say(session.close(max(0.1, deadline - time.monotonic())))
        except (errors.TaskFarmError, KeyboardInterrupt) as error:
            print(f"ipytaskfarm: at exit: {error!r}", file=sys.stderr)
    _sessions.clear()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _connecting.clear()
    for session in _sessions.values():
        session.after_fork()
    _forked.extend(_sessions.values())
    _sessions.clear()


_forked: list[Session] = []
"""The parent's sessions; a child keeps them so that the garbage collector does not close the parent's sockets."""

atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
