"""The parts of the surroundings that belong to the Python interpreter. Nothing reports changes of them.

`surroundings` has the parts outside the interpreter.
"""

from __future__ import annotations

import builtins
import decimal
import gc
import io
import itertools
import logging
import os
import socket
import sys
import tempfile
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from operator import is_
from typing import Any

from .child_processes import TaskForkServer
from .surroundings import Priority, Surrounding

_ABSENT = object()
_ABSENTS = itertools.repeat(_ABSENT)


Value = tuple[Callable[[], Any], Callable[[Any], Any]]


class ModuleValues:
    """Values that one function returns and another function sets."""

    def __init__(self, *pairs: Value) -> None:
        self._pairs = pairs
        self._getters = [get for get, _ in pairs]

    def take(self) -> None:
        self._values = [get() for get in self._getters]

    def restore(self) -> bool:
        if [get() for get in self._getters] == self._values:
            return False
        changed = False
        for (get, put), wanted in zip(self._pairs, self._values, strict=True):
            if get() != wanted:
                put(wanted)
                changed = True
        return changed


class Attributes:
    """Values of module attributes."""

    def __init__(self, *names: tuple[Any, str]) -> None:
        self._names = names
        self._here = [vars(module) for module, _ in names]
        self._words = [name for _, name in names]

    def take(self) -> None:
        self._values = self._look()

    def _look(self) -> list[Any]:
        return [*map(dict.get, self._here, self._words, _ABSENTS)]

    def restore(self) -> bool:
        if all(map(is_, self._look(), self._values)):
            return False
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
    """Shared lists: the list object and its items."""

    def __init__(self, *lists: tuple[Any, str, Callable[[], Any]]) -> None:
        """Create the part from (module, name of the list, function to call after the list was restored)."""
        self._lists = lists

    def take(self) -> None:
        found = [getattr(module, name) for module, name, _ in self._lists]
        self._found, self._items = found, [*map(list, found)]

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
        if vars(builtins) == self._names:
            return False
        self.put(self._names)
        return True

    @staticmethod
    def put(names: dict[str, Any]) -> None:
        """Let these be the names."""
        here = vars(builtins)
        here.update(names)
        for name in here.keys() - names.keys():
            del here[name]


class Decimals:
    """The default for new decimal contexts. The present context is private to the run (`Baseline.task_context`)."""

    _FIELDS = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")

    def take(self) -> None:
        self._seen = self.look()

    def restore(self) -> bool:
        changed = self.look() != self._seen
        if changed:
            self.put(self._seen)
        return changed

    def put(self, seen: tuple[tuple[Any, ...], tuple[bool, ...]]) -> None:
        """Set what `look` has returned."""
        context, (fields, traps) = decimal.DefaultContext, seen
        for field, value in zip(self._FIELDS, fields, strict=True):
            setattr(context, field, value)
        context.traps.update(zip(context.traps, traps, strict=True))

    def look(self) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
        found = decimal.DefaultContext
        fields = found.prec, found.rounding, found.Emin, found.Emax, found.capitals, found.clamp
        return fields, tuple(found.traps.values())


class Finders:
    """``sys.meta_path`` and ``sys.path_hooks``.

    A finder that an imported module has added stays, because the module stays too: ``six.moves`` needs its finder.
    """

    def take(self) -> None:
        lists: tuple[list[Any], list[Any]] = sys.meta_path, sys.path_hooks
        self._lists, self._items = lists, [*map(list, lists)]

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
    """Return whether an imported module defines the finder or its class."""
    made_by = finder if hasattr(finder, "__qualname__") else type(finder)
    module = sys.modules.get(getattr(made_by, "__module__", ""))
    if module is None or getattr(module, "__spec__", None) is None or module.__name__ == "__main__":
        return False
    return hasattr(module, made_by.__qualname__.partition(".")[0])


class Numpy:
    """numpy's error state before numpy 2.0, and its print options before 2.1: they belong to the thread, or to the
    process. Later they belong to the context."""

    def take(self) -> None:
        numpy, version = _numpy()
        self._errors = numpy.geterr() if version.startswith("1.") else _NUMPYS_ERRORS
        self._options = numpy.get_printoptions() if version.startswith(("1.", "2.0.")) else _NUMPYS_OPTIONS

    def restore(self) -> bool:
        numpy, version = _numpy()
        if not version.startswith(("1.", "2.0.")):
            return False
        changed = version.startswith("1.") and numpy.seterr(**self._errors) != self._errors
        if numpy.get_printoptions() != self._options:
            numpy.set_printoptions(**self._options)
            changed = True
        return bool(changed)


_NUMPYS_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
_NUMPYS_OPTIONS: dict[str, Any] = {
    "edgeitems": 3, "threshold": 1000, "floatmode": "maxprec", "precision": 8, "suppress": False, "linewidth": 75,
    "nanstr": "nan", "infstr": "inf", "sign": "-", "formatter": None, "legacy": False,
}  # fmt: skip


def _numpy() -> tuple[Any, str]:
    """Return (numpy, its version); "" while it is not imported."""
    numpy = sys.modules.get("numpy")
    return numpy, getattr(numpy, "__version__", "") if hasattr(numpy, "set_printoptions") else ""


class StandardInput:
    """``sys.stdin``, which a task may have closed."""

    def take(self) -> None:
        """Record nothing: the stream always reads descriptor 0."""

    def restore(self) -> bool:
        if sys.__stdin__ is not None and not sys.__stdin__.closed:
            return False
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, closefd=False))  # type: ignore[misc]
        return True


class StartMethod:
    """The start method of multiprocessing. It may be set only once; here, each task may set it."""

    def take(self) -> None:
        self._chosen = self.look()

    def restore(self) -> bool:
        if self._context() is None or self.look() is self._chosen:
            return False
        self.put(self._chosen)
        return True

    def look(self) -> Any:
        """Return what was chosen; None if nothing was."""
        context = self._context()
        return context._actual_context if context is not None else None

    def put(self, chosen: Any) -> None:
        """Set what `look` has returned."""
        context = self._context()
        if context is not None:
            context._actual_context = chosen

    def _context(self) -> Any:
        module = sys.modules.get("multiprocessing.context")
        return getattr(module, "_default_context", None)


class Tracing:
    """tracemalloc, which slows down all later code. The engine's own profiler keeps it on."""

    profiler_on = False
    """Whether the engine's memory profiler is on. A thread of its own may start it at any time."""

    def take(self) -> None:
        self._traces = tracemalloc.is_tracing() and not Tracing.profiler_on

    def restore(self) -> bool:
        changed = tracemalloc.is_tracing() and not self._traces and not Tracing.profiler_on
        if changed:
            tracemalloc.stop()
        return changed


def _nothing() -> None:
    """Do nothing: no other part must know of the restored list."""


def unreported_parts() -> list[Surrounding]:
    """Return the parts for which nothing reports changes. Examining all of them takes about 12 µs."""
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
    if hasattr(sys, "monitoring"):
        values.append((_monitors, _stop_monitors))
    if hasattr(sys, "get_int_max_str_digits"):
        values.append((sys.get_int_max_str_digits, sys.set_int_max_str_digits))
    names = [(sys, name) for name in _SYS_NAMES]
    names += [
        (warnings, "showwarning"),
        (warnings, "formatwarning"),
        (warnings, "_showwarnmsg_impl"),
        (threading, "excepthook"),
        (tempfile, "tempdir"),
        (logging, "lastResort"),
        (logging, "raiseExceptions"),
        (logging, "_warnings_showwarning"),
        (socket, "socket"),
        (os, "environ"),
        (sys.modules["__main__"], "__builtins__"),
    ]
    return [
        ModuleValues(*values),
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
        StandardInput(),
        StartMethod(),
        TaskForkServer(),
        Priority(),
    ]


def _monitors() -> tuple[Any, ...]:
    """Return the tools that monitor the interpreter, from Python 3.12 on."""
    monitoring: Any = vars(sys)["monitoring"]
    return tuple(map(monitoring.get_tool, range(6)))


def _stop_monitors(wanted: tuple[Any, ...]) -> None:
    monitoring: Any = vars(sys)["monitoring"]
    for number, (here, there) in enumerate(zip(_monitors(), wanted, strict=True)):
        if here is not None and there is None:
            monitoring.set_events(number, 0)
            monitoring.free_tool_id(number)


_SYS_NAMES = (
    "stdout", "stderr", "stdin", "__stdout__", "__stderr__", "__stdin__", "excepthook", "displayhook", "unraisablehook",
    "breakpointhook", "dont_write_bytecode", "pycache_prefix", "tracebacklimit", "modules",
)  # fmt: skip
