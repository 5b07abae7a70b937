"""Hooks in libraries that behave otherwise on an engine than in a script: matplotlib, tqdm, multiprocessing."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from multiprocessing import pool as pools, resource_tracker, shared_memory
from types import ModuleType
from typing import Any


def keep_to_matplotlib(variable: str, given: str | None) -> None:
    """Restore the variable to its value before ipykernel set it; set ipykernel's value only while matplotlib is
    imported.

    ipykernel names the inline backend, which shows figures as displays, in ``MPLBACKEND``. matplotlib reads it once,
    while it is imported. A child of a task that inherited the variable would draw figures that nobody sees, or fail
    because the backend's module is missing.

    `given` is the user's own value, which matplotlib finds in any case.
    """
    backend = os.environ.get(variable)
    if given or backend is None:
        return
    if given is None:
        del os.environ[variable]
    else:
        os.environ[variable] = given
    matplotlib: Any = sys.modules.get("matplotlib")
    if matplotlib is not None:  # preloaded at a time when no backend was named
        matplotlib.rcParams["backend"] = backend
    else:
        sys.meta_path.insert(0, _MatplotlibFinder(variable, backend))


class _MatplotlibFinder:
    """Finds matplotlib like other finders, and sets the variable while its code runs."""

    def __init__(self, variable: str, backend: str) -> None:
        self._variable = variable
        self._backend = backend
        self._looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of matplotlib; None for all other modules."""
        if name != "matplotlib" or self._looking:
            return None
        self._looking = True
        try:
            spec = find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            self._set_while(spec.loader)
        return spec

    def _set_while(self, loader: Loader) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            usual = os.environ.get(self._variable)
            if not usual:
                os.environ[self._variable] = self._backend
            try:
                execute(module)
            finally:
                if usual is None:
                    os.environ.pop(self._variable, None)
                elif not usual:
                    os.environ[self._variable] = usual

        vars(loader)["exec_module"] = exec_module


_NAMES = {"tqdm": "tqdm", "trange": "trange", "tqdm_notebook": "tqdm", "tnrange": "trange"}
_MODULES = ("tqdm.autonotebook", "tqdm.notebook")


class TextBars(MetaPathFinder, Loader):
    """Gives tqdm's modules for notebooks the bars of its module for terminals.

    To tqdm an engine looks like a notebook's kernel, but no notebook shows its widgets. ``tqdm.auto`` would draw one,
    and the result would show only its first state: 0 of 5.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in _MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        plain = importlib.import_module("tqdm.std")
        for name, meant in _NAMES.items():
            setattr(module, name, getattr(plain, meant))


def bars_as_text() -> None:
    """Make tqdm draw text in this process."""
    sys.meta_path.insert(0, TextBars())


_EXCEPTION = 1
"""The exit code of a process that ended by an exception."""
_ITERATOR: Any = pools.IMapIterator
_MAP: Any = pools.MapResult
_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def watch_pools() -> None:
    """Make the pools of this process fail if a worker dies of an exception. Otherwise such a pool waits for ever.

    A worker ends by an exception if its initializer raises, if the work that it was sent cannot be loaded, or if a call
    ends in SystemExit. The pool starts another worker, but never repeats the first worker's call.
    """
    cls: Any = pools.Pool
    usual_init, usual_join = cls.__init__, cls._join_exited_workers

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        _pools.add(self)
        usual_init(self, *args, **kwargs)

    def join(workers: list[Any]) -> Any:
        died = [worker.name for worker in workers if worker.exitcode == _EXCEPTION]
        if died:
            _fail(workers, died[0])
        return usual_join(workers)

    functools.update_wrapper(init, usual_init)
    cls.__init__ = init
    cls._join_exited_workers = staticmethod(join)


def _fail(workers: list[Any], name: str) -> None:
    pool = next((each for each in list(_pools) if getattr(each, "_pool", None) is workers), None)
    if pool is None or pool._state != pools.RUN:
        return
    error = RuntimeError(
        f"{name} of this pool was ended by an exception: its initializer failed, or what it was sent could not be "
        "loaded there, or a call ended in SystemExit; its traceback is in the task's standard error"
    )
    waiting: Any
    for waiting in list(pool._cache.values()):
        if isinstance(waiting, _ITERATOR):
            waiting._set(waiting._index, (False, error))
            waiting._set_length(waiting._index)
        else:
            if isinstance(waiting, _MAP):
                if not hasattr(waiting, "_number_left"):
                    continue  # another thread is making it: the worker that is started now will die for the same reason
                waiting._number_left = 1  # no more answers are awaited
            waiting._set(0, (False, error))


_KIND = "shared_memory"
_HAS_TRACK = sys.version_info >= (3, 13)


class _Attaching(threading.local):
    is_on = False


_attaching = _Attaching()


def keep_attached_memory() -> None:
    """Let blocks that this process and its forked children attach to go unregistered.

    Python registers each block with the process's resource tracker, also one that somebody else made, and the tracker
    removes what is registered when the process has ended. Workers of a process pool share the tracker of the process
    that made the block. An engine has a tracker of its own, which would remove the memory of a program that still uses
    it. Python 3.13 has an argument for this, `track`.
    """
    cls: Any = shared_memory.SharedMemory
    tracker: Any = resource_tracker
    usual_init, usual_unlink, usual_register = cls.__init__, cls.unlink, tracker.register

    def init(self: Any, name: str | None = None, create: bool = False, size: int = 0, **track: bool) -> None:
        if create or track:
            usual_init(self, name, create, size, **track)
        elif _HAS_TRACK:
            usual_init(self, name, track=False)
            self._attached = True
        else:
            _attaching.is_on = True
            try:
                usual_init(self, name)
            finally:
                _attaching.is_on = False
            self._attached = True

    def unlink(self: Any) -> None:
        if getattr(self, "_attached", False):  # it takes the name back, which the tracker has to know for that
            usual_register(self._name, _KIND)
            self._track = True
        usual_unlink(self)

    def register(name: str, kind: str) -> None:
        if not (_attaching.is_on and kind == _KIND):
            usual_register(name, kind)

    cls.__init__ = functools.wraps(usual_init)(init)
    cls.unlink = functools.wraps(usual_unlink)(unlink)
    if not _HAS_TRACK:
        tracker.register = register
