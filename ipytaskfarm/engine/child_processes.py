"""What came with a task by value, under its name: in ``__main__``, and for processes that the task starts.

Functions and classes of a client's ``__main__`` live in globals of their own (see `serialization.rebuild`), and are
no names of the engine's ``__main__``, which belongs to whoever works at the engine.  While a task runs, ``__main__``
answers for them as well: pickle finds them there, and so do forked children.  Nothing is done for that per task: what
the running task brought is looked up when somebody asks for a name.

Children that are started afresh find by-value modules in a folder that stands first in their ``sys.path`` and in
PYTHONPATH; it is written when the first child is started (`Starts`).
"""

from __future__ import annotations

import multiprocessing.spawn  # noqa: F401 - `Starts` changes what it tells children
import os
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from ..serialization import child_processes
from ..serialization.function_globals import Names
from ..serialization.module_folders import child_folder, use_folder
from ..serialization.modules import active_versions, forget_kept, install_finders, keep_active, write_for_children
from ..serialization.rebuild import came, collect
from . import helper_processes

_ABSENT = object()


class Brought:
    """What one pack brought: functions and classes by name, and the globals of functions."""

    __slots__ = ("globals", "named")

    def __init__(self, objects: Iterable[Any], names: Iterable[Names] = ()) -> None:
        self.named = {
            each.__qualname__: each
            for each in objects
            if getattr(each, "__module__", None) == "__main__" and "." not in each.__qualname__
        }
        self.globals = [each for each in names if each.packed.get("__name__") == "__main__"]

    def find(self, name: str) -> Any:
        """Return the object, or `_ABSENT`."""
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
    """Knows what the running task brought, and prepares what its children need."""

    def __init__(self, running: Callable[[], list[Brought]]) -> None:
        """running: what the task that runs now brought; nothing between tasks."""
        self._running = running
        self.kept = Brought(())
        """What belongs to values in the engine's namespace."""

    def keep(self) -> None:
        """What was built since belongs to values in the engine's namespace."""
        self.kept.named.update(Brought(take_came()).named)
        keep_active()

    def forget_kept(self) -> None:
        """The namespace was cleared."""
        self.kept.named.clear()
        forget_kept()

    def install(self, main: types.ModuleType) -> None:
        """Have ``__main__`` answer for what runs."""
        collect()
        _answering[:] = [self]
        main.__class__ = TaskMain

    def find(self, name: str) -> Any:
        """Return what the running task has under that name; `_ABSENT`."""
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
    """The engine's ``__main__``: what the running task brought comes first, then the engine's namespace."""

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
"""Not empty once this engine has started a process: it may still be there, and import what comes later."""


def prepare_older() -> None:
    """A task with by-value modules begins: have processes that earlier tasks started find them."""
    for each in _started:
        each.prepare()
        each.end_outdated()


_PREPARING = ("multiprocessing.spawn", "joblib.externals.loky.backend.spawn", "loky.backend.spawn")
"""What tells a fresh child its ``sys.path``, which is the parent's."""


def _put_first(module: Any) -> None:
    """Have children look into the folder for them before the farm's start folder, as imports in the engine do."""
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
    """Finds nothing: the folder for children is on this process's ``sys.path`` for them alone."""

    def find_spec(self, fullname: str, target: object = None) -> None:
        return None


class Starts:
    """Writes the by-value modules that are active before a process is started."""

    def __init__(self, folder: str) -> None:
        """folder: a private one of this engine, which goes with it."""
        self._synced: list[tuple[Any, ...]] = []
        self._versions: dict[str, str] = {}
        """The versions of modules that processes kept by libraries may have imported."""
        self._outdated = False
        self._pid = os.getpid()
        use_folder(folder)

    def install(self) -> None:
        """Follow all ways in which Python starts processes; to be called before the baseline is taken."""
        import _posixsubprocess

        install_finders()
        folder = child_folder()
        sys.path.insert(1, folder)
        sys.path_importer_cache[folder] = _Blind()
        path = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{path}" if path else folder
        _put_first(sys.modules["multiprocessing.spawn"])
        _posixsubprocess.fork_exec = self._before(helper_processes.following(_posixsubprocess.fork_exec))
        module: Any = sys.modules.get("subprocess")
        if hasattr(module, "_fork_exec"):  # it keeps a reference of its own
            module._fork_exec = _posixsubprocess.fork_exec
        for name in ("posix_spawn", "posix_spawnp", "system"):
            setattr(os, name, self._before(getattr(os, name)))
        os.register_at_fork(before=self.prepare)
        child_processes.before_children.append(self.prepare)

    def prepare(self) -> None:
        """A process is about to be started."""
        if os.getpid() == self._pid:
            _started[:] = [self]
            if write_for_children(self._synced):
                for name, version in active_versions():
                    self._outdated |= self._versions.setdefault(name, version) != version
            for name in _PREPARING:
                if name in sys.modules:
                    _put_first(sys.modules[name])

    def end_outdated(self) -> None:
        """Between tasks: end the workers that libraries keep if they may have another version of a module."""
        if self._outdated:
            self._outdated = False
            self._versions = dict(active_versions())
            helper_processes.LOKY_WORKERS.end()

    def _before(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def starting(*args: Any, **kwargs: Any) -> Any:
            self.prepare()
            return start(*args, **kwargs)

        starting.__name__ = start.__name__
        starting.__doc__ = start.__doc__
        return starting
