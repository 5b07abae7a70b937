"""Handle processes that libraries keep for later use: multiprocessing's fork server, loky's workers (joblib), trackers.

Such a process keeps the variables, the folder, the standard streams and the modules of the task that started it.

- A fork server ends with its task. The next task that needs one starts another in 0.1 s.
- loky's workers take half a second of CPU time to start, so later tasks use them again. They are ended if a new process
  would differ from them: other variables, another folder, another version of a module.
- The output of these processes belongs to the task that uses them. They write to the files of the descriptors 1 and 2,
  but without the lock by which `descriptors` recognises children that a task has left behind.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from .change_hooks import usual
from .descriptors import STDERR_FD, STDOUT_FD
from .surroundings import folder_now

_LOKY = ("joblib.externals.loky.reusable_executor", "loky.reusable_executor")
_LOKYS_STARTS = ("joblib.externals.loky.backend.fork_exec", "loky.backend.fork_exec")
_WORKER = "loky.backend.popen_loky_posix"
_SET_BY_JOBLIB = b"KMP_INIT_AT_FORK"
"""A variable that joblib sets on import, so it is set in one task and not in the next."""
_HELPERS = (_WORKER, "multiprocessing.resource_tracker", "loky.backend.resource_tracker")


class TaskForkServer:
    """multiprocessing's fork server, and its list of modules to preload.

    A server that was let go ends with the last process that it has started.
    """

    def __init__(self) -> None:
        self._let_go: list[int] = []

    def take(self) -> None:
        """Record the server that was started by hand, if there is one."""
        server = _fork_server()
        self._pid = server._forkserver_pid if server is not None else None
        self._preload = list(server._preload_modules) if server is not None else ["__main__"]

    def restore(self) -> bool:
        """Let the server of a task go; the next use starts another one."""
        if self._let_go:
            self._let_go = [pid for pid in self._let_go if _is_alive(pid)]
        server = _fork_server()
        if server is None:
            return False
        changed = bool(server._preload_modules != self._preload)
        if changed:
            server._preload_modules = list(self._preload)
        if server._forkserver_pid is None or server._forkserver_pid == self._pid:
            return changed
        with server._lock:
            os.close(server._forkserver_alive_fd)
            if not server._forkserver_address.startswith("\0"):
                with contextlib.suppress(OSError):
                    os.unlink(server._forkserver_address)
            self._let_go.append(server._forkserver_pid)
            server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
        return True


def _fork_server() -> Any:
    module = sys.modules.get("multiprocessing.forkserver")
    return getattr(module, "_forkserver", None)


def _is_alive(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:  # a task has waited for it already
        return False


class LokyWorkers:
    """The pool that joblib, or loky itself, reuses for each call."""

    def __init__(self) -> None:
        self._born: list[tuple[Any, ...]] = []
        """The surroundings in which each worker was started, see `_surroundings`."""

    def note_start(self) -> None:
        """Record the surroundings of a worker that is about to start."""
        self._born.append(_surroundings())

    def end_unlike(self) -> None:
        """End pools that still work, and pools that were started in other surroundings; called between tasks."""
        if not self._born or not (pools := _loky_pools()):
            return
        now = _surroundings()
        if any(born != now for born in self._born):
            self.end()
            return
        for module, executor in pools:
            if executor._pending_work_items:
                _end(module, executor)

    def end(self) -> None:
        """End all pools. The next use starts another one."""
        self._born.clear()
        for module, executor in _loky_pools():
            _end(module, executor)


LOKY_WORKERS = LokyWorkers()
"""The pools of this process."""


def _end(module: Any, executor: Any) -> None:
    module._executor = None
    with contextlib.suppress(Exception):  # its task may have broken the pool
        executor.shutdown(wait=False, kill_workers=bool(executor._pending_work_items))


def _surroundings() -> tuple[Any, ...]:
    """Return the surroundings of a process that starts now: variables, folder, and the files of its output."""
    try:
        files = [(status.st_dev, status.st_ino) for status in map(os.fstat, (STDOUT_FD, STDERR_FD))]
    except OSError:  # a task has closed a descriptor
        files = []
    variables = dict(os.environ._data)  # type: ignore[attr-defined]
    variables.pop(_SET_BY_JOBLIB, None)
    return variables, folder_now(), files


def _loky_pools() -> list[tuple[Any, Any]]:
    found = []
    for name in _LOKY:
        module = sys.modules.get(name)
        executor = getattr(module, "_executor", None)
        if executor is not None:
            found.append((module, executor))
    return found


def following(start: Callable[..., int]) -> Callable[..., int]:
    """Wrap ``_posixsubprocess.fork_exec``: processes that libraries keep start without the lock on their output."""

    def fork_exec(command: Sequence[str | bytes], *args: Any) -> int:
        if not _names(command, _HELPERS):
            return start(command, *args)
        if _names(command, (_WORKER,)):
            LOKY_WORKERS.note_start()
        with _unlocked_output():
            return start(command, *args)

    return fork_exec


def executing(execute: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    """Wrap ``os.execve``, by which the forked children of loky before 3.5 become workers, as `following` does."""

    @functools.wraps(execute)
    def execve(path: Any, argv: Sequence[str | bytes], env: Any) -> NoReturn:
        if _names(argv, _HELPERS):
            _unlock_output()
        execute(path, argv, env)

    return execve


def note_fork() -> None:
    """Record the surroundings of a process that is about to be forked: loky before 3.5 starts its workers so."""
    if any(name in sys.modules and not hasattr(sys.modules[name], "subprocess") for name in _LOKYS_STARTS):
        LOKY_WORKERS.note_start()


def _names(command: Sequence[str | bytes], programs: Sequence[str]) -> bool:
    words = [os.fsdecode(word) for word in command if isinstance(word, str | bytes)]
    return any(name in word for word in words for name in programs)


@contextlib.contextmanager
def _unlocked_output() -> Iterator[None]:
    """Replace the descriptors 1 and 2 by the same files, opened once more.

    Other threads may write to them meanwhile.  A socket cannot be opened again and stays as it is.
    """
    kept = []
    try:
        for number in (STDOUT_FD, STDERR_FD):
            with contextlib.suppress(OSError):
                kept.append((number, os.dup(number)))
        _unlock_output()
        yield
    finally:
        for number, copy in kept:
            usual["dup2"](copy, number)
            os.close(copy)


def _unlock_output() -> None:
    """Open the files of the descriptors 1 and 2 once more: the lock belongs to those that were open."""
    for number in (STDOUT_FD, STDERR_FD):
        with contextlib.suppress(OSError):
            again = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            usual["dup2"](again, number)
            os.close(again)
