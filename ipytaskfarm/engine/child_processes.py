"""Makes by-value functions and classes of a task available under their names, in ``__main__`` and in child processes.

Functions and classes of a client's ``__main__`` have globals of their own (see `serialization.rebuild`). They are not
names of the engine's ``__main__``, which belongs to the person who works at the engine. While a task runs, ``__main__``
answers for them as well, so that pickle and forked children find them there. This costs nothing per task: the objects
of the running task are searched only when a name is looked up.

Children that are spawned find by-value modules in a folder that stands first in their ``sys.path`` and in PYTHONPATH.
It is written when the first child is started (`Starts`).

Libraries keep processes for later use: multiprocessing's fork server, loky's workers (joblib), trackers. Such a process
keeps the variables, the folder, the standard streams and the modules of the task that started it.

- A fork server ends with its task. The next task that needs one starts another in 0.1 s.
- loky's workers take half a second of CPU time to start, so later tasks use them again. They are ended if a new process
  would differ from them: other variables, another folder, another version of a module.
- The output of these processes belongs to the task that uses them. They write to the files of the descriptors 1 and 2,
  but without the lock by which `descriptors` recognises children that a task has left behind.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing.context
import multiprocessing.spawn  # `Starts` changes what it tells children
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from ..serialization import child_processes
from ..serialization.function_globals import Names
from ..serialization.module_folders import child_folder, use_folder
from ..serialization.modules import (
    active_versions,
    forget_kept,
    install_finders,
    keep_active,
    kept_files,
    write_for_children,
)
from ..serialization.rebuild import assigned_by, came, collect
from .change_hooks import usual
from .descriptors import STDERR_FD, STDOUT_FD
from .edited_modules import EDITED
from .failures import described
from .surroundings import folder_now

_ABSENT = object()


class Brought:
    """The objects that one pack brought: functions and classes by name, and the globals of functions."""

    __slots__ = ("assigned", "globals", "named")

    def __init__(self, objects: Sequence[Any], names: Iterable[Names] = ()) -> None:
        self.named = {
            each.__qualname__: each
            for each in objects
            if getattr(each, "__module__", None) == "__main__" and "." not in each.__qualname__
        }
        self.globals = [each for each in names if each.packed.get("__name__") == "__main__"]
        self.assigned = assigned_by(objects)

    def begin(self) -> None:
        """Give the globals of methods the values that they were sent with: a class is built once for many tasks."""
        for each in self.assigned:
            each.reset()

    def find(self, name: str) -> Any:
        """Return the object of this name, or `_ABSENT`."""
        for each in self.globals:
            if name in each.packed:
                return each.globals.get(name, _ABSENT)
        return self.named.get(name, _ABSENT)

    def home(self, name: str) -> dict[str, Any] | None:
        """Return the globals that hold the name."""
        return next((each.globals for each in self.globals if name in each.packed), None)


def take_came() -> list[Any]:
    """Return the functions and classes that were built since the last call."""
    taken = came[:]
    came.clear()
    return taken


class ChildProcesses:
    """Knows the objects that the running task brought, and prepares what its children need."""

    def __init__(self, running: Callable[[], list[Brought]]) -> None:
        """Create it; `running` returns the objects of the running task, and nothing between tasks."""
        self._running = running
        self.kept = Brought(())
        """The objects that belong to values in the engine's namespace."""

    def keep(self) -> None:
        """Keep the objects that were built since the last call: they belong to values in the engine's namespace."""
        self.kept.named.update(Brought(take_came()).named)
        keep_active()
        EDITED.note_kept(kept_files(EDITED.own))

    def forget_kept(self) -> None:
        """Forget the kept objects, because the namespace was cleared."""
        self.kept.named.clear()
        forget_kept()

    def install(self, main: types.ModuleType) -> None:
        """Make ``__main__`` answer for the objects of the running task."""
        collect()
        _answering[:] = [self]
        main.__class__ = TaskMain

    def find(self, name: str) -> Any:
        """Return the running task's object of this name, or `_ABSENT`."""
        for brought in self._running():
            found = brought.find(name)
            if found is not _ABSENT:
                return found
        return _ABSENT

    def home(self, name: str) -> dict[str, Any] | None:
        """Return the globals of the running task that hold the name."""
        return next((home for each in self._running() if (home := each.home(name)) is not None), None)


_answering: list[ChildProcesses] = []


class TaskMain(types.ModuleType):
    """The engine's ``__main__``: it looks a name up among the running task's objects, then in the
    engine's namespace.
    """

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        found = _answering[0].find(name)
        return found if found is not _ABSENT else super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        kept = _answering[0].kept.named
        if name in kept:
            return kept[name]
        raise AttributeError(f"module '__main__' has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        home = None if name.startswith("__") else _answering[0].home(name)
        if home is None:
            super().__setattr__(name, value)
        else:
            home[name] = value

    def __delattr__(self, name: str) -> None:
        home = None if name.startswith("__") else _answering[0].home(name)
        if home is None or name not in home:
            super().__delattr__(name)
        else:
            del home[name]


# --------------------------------------------------------------------------------------------------
# By-value modules for children


_started: list[Starts] = []
"""Not empty once this engine has started a process, which may still run and import modules later."""


def prepare_older() -> None:
    """Make the by-value modules of the next task available to processes that earlier tasks started."""
    for each in _started:
        each.prepare()
        each.end_outdated()


_PREPARING = ("multiprocessing.spawn", "joblib.externals.loky.backend.spawn", "loky.backend.spawn")
"""Modules that tell a spawned child its ``sys.path``, which is the parent's."""


def _put_first(module: Any) -> None:
    """Put the folder for children before the farm's start folder in their ``sys.path``, as imports in the engine do."""
    usual = module.get_preparation_data
    if hasattr(usual, "usual"):
        return

    def get_preparation_data(*args: Any, **kwargs: Any) -> dict[str, Any]:
        data: dict[str, Any] = usual(*args, **kwargs)
        folder = child_folder()
        if folder in data.get("sys_path", ()):
            data["sys_path"] = [folder, *(entry for entry in data["sys_path"] if entry != folder)]
        return data

    get_preparation_data.usual = usual  # type: ignore[attr-defined]
    module.get_preparation_data = get_preparation_data


class _Blind:
    """A finder that finds nothing. The folder for children is on this process's ``sys.path`` only for the children."""

    def find_spec(self, fullname: str, target: object = None) -> None:
        return None


class Starts:
    """Writes the active by-value modules before a process is started."""

    def __init__(self, folder: str) -> None:
        """Create it; `folder` is private to this engine and is removed with it."""
        self._synced: list[tuple[Any, ...]] = []
        self._versions: dict[str, str] = {}
        """The versions of modules that kept worker processes may have imported."""
        self._outdated = False
        self._pid = os.getpid()
        use_folder(folder)

    def install(self) -> None:
        """Watch all functions with which Python starts processes. Call this before the baseline is taken."""
        import _posixsubprocess

        install_finders()
        folder = child_folder()
        sys.path.insert(1, folder)
        sys.path_importer_cache[folder] = _Blind()
        path = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{path}" if path else folder
        _put_first(sys.modules["multiprocessing.spawn"])
        # Python 3.14 would start a server, to which functions of a client's `__main__` are unknown.
        vars(multiprocessing.context)["_default_context"]._default_context = multiprocessing.get_context("fork")
        _posixsubprocess.fork_exec = self._before(following(_posixsubprocess.fork_exec))
        module: Any = sys.modules.get("subprocess")
        if hasattr(module, "_fork_exec"):  # this module keeps a reference of its own
            module._fork_exec = _posixsubprocess.fork_exec
        for name in ("posix_spawn", "posix_spawnp", "system"):
            setattr(os, name, self._before(getattr(os, name)))
        vars(os)["execve"] = executing(os.execve)
        os.register_at_fork(before=self.prepare)
        os.register_at_fork(before=note_fork)
        child_processes.before_children.append(self.prepare)

    def prepare(self) -> None:
        """Write the modules for a process that is about to be started."""
        if os.getpid() == self._pid:
            _started[:] = [self]
            if write_for_children(self._synced):
                for name, version in active_versions():
                    self._outdated |= self._versions.setdefault(name, version) != version
            for name in _PREPARING:
                if name in sys.modules:
                    _put_first(sys.modules[name])

    def end_outdated(self) -> None:
        """End kept workers that may have imported another version of a module; called between tasks."""
        if self._outdated:
            self._outdated = False
            self._versions = dict(active_versions())
            LOKY_WORKERS.end()

    def _before(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def starting(*args: Any, **kwargs: Any) -> Any:
            self.prepare()
            return start(*args, **kwargs)

        starting.__name__ = start.__name__
        starting.__doc__ = start.__doc__
        return starting


def leave_fork(error: BaseException | None, filename: str = "", code: str = "") -> NoReturn:
    """End a forked child of a task or a command, which has returned to the engine's own code, as a script ends.

    Its error is printed with the frames of the user's code.  Args: see `failures.describe`.
    """
    status: object = 0 if error is None else 1
    text = ""
    try:
        if isinstance(error, SystemExit):
            status = error.code or 0
            text = "" if isinstance(status, int) else str(status)
        elif error is not None:
            text = described(error, filename, code)[1].traceback
        if text:
            print(text, file=sys.stderr)
    finally:  # whatever the streams do, the child must not go on as a second engine
        os._exit(status if isinstance(status, int) else 1)


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
