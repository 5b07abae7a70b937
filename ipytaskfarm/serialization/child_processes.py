"""What came by value, in processes that a task starts.

`multiprocessing` pickles functions and classes by name.  A child that is forked finds them under these names, since it
has all of its parent's memory; one that is started afresh (spawn, forkserver) does not.  So `ForkingPickler`, with
which all of `multiprocessing` and `concurrent.futures` pickle, writes what has no name in a child into a file, once per
object, and sends the file's name.  A child that knows the object, because it was forked with it or has loaded it
before, takes that one: an object keeps its identity, and comes back to its sender as itself.

In a child that was started afresh all functions of ``__main__`` share the child's ``__main__``, as they do in plain
Python: what a pool's initializer assigns to a global is seen by the functions that the pool calls.

The name `load_in_child` and its signature are named by the pickles of children.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import types
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from . import (
    cache,  # noqa: F401 - it completes the pickler
    rebuild as build,
)
from .function_globals import Names
from .module_folders import private_folder, use_folder
from .module_origin import Travel, travel
from .modules import is_by_value
from .pickler import Pickler

_FAMILY = os.urandom(8)
"""Inherited by children that are forked: they have the same objects at the same addresses."""
_process = [_FAMILY]
"""Names this process alone."""
sent: dict[int, tuple[Any, tuple[Any, ...]]] = {}
"""id -> (the object, what `load_in_child` is called with)."""
_objects: weakref.WeakValueDictionary[tuple[bytes, int], Any] = weakref.WeakValueDictionary()
"""(process, number) -> what was sent from there, or loaded here, under it."""
_counter = [0]
before_children: list[Callable[[], None]] = []
"""Called before a child is told about a member of a by-value module."""


class SharedMain(Names):
    """The globals of all functions of ``__main__`` in a child: those of its own ``__main__``."""

    __slots__ = ("shipped",)

    def __init__(self) -> None:
        main = sys.modules["__main__"].__dict__
        super().__init__("__main__", main)
        self.globals = main
        self.shipped: dict[str, Any] = {}

    def add(self, used: dict[str, Any], wanted: tuple[str, ...], function: types.FunctionType | None = None) -> None:
        """Bind what a function brings, unless the child has assigned to it meanwhile."""
        for name, value in used.items():
            here = self.globals.get(name, self)
            if here is self or here is self.shipped.get(name, self.shipped):
                self.globals[name] = self.shipped[name] = value


_shared: list[SharedMain] = []


def reduce_for_child(pickler: ForkingPickler, obj: Any) -> Any:
    """`ForkingPickler`'s ``reducer_override``."""
    if not isinstance(obj, types.FunctionType | type):
        return NotImplemented
    module = getattr(obj, "__module__", None)
    kind = travel(module) if isinstance(module, str) else Travel.REFERENCE
    if kind is Travel.REFERENCE:
        return NotImplemented
    if kind is Travel.SOURCE:
        if module is not None and is_by_value(module):
            for prepare in before_children:
                prepare()
        return NotImplemented
    known = sent.get(id(obj))
    if known is None:
        known = sent[id(obj)] = (obj, _send(obj))
    return load_in_child, known[1]


def _send(obj: Any) -> tuple[Any, ...]:
    _counter[0] += 1
    number = _counter[0]
    _objects[_process[0], number] = obj
    path = os.path.join(private_folder(), f"object-{os.getpid()}-{number}")
    why = ""
    try:
        Path(path).write_bytes(_packed(obj))
    except Exception as error:  # a forked child has the object; another one says why it cannot
        why = f"{obj.__qualname__} cannot be sent to a process that was not forked: {error}"
    return (_FAMILY, _process[0]), number, id(obj), obj.__qualname__, isinstance(obj, type), path, why


def _packed(obj: Any) -> bytes:
    file = io.BytesIO()
    pickler = Pickler(file, 5)
    pickler.inline = True
    build.loading.for_child = True
    try:
        pickler.dump(obj)
    finally:
        build.loading.for_child = False
    return file.getvalue()


def load_in_child(
    origin: tuple[bytes, bytes], number: int, address: int, name: str, is_class: bool, path: str, why: str
) -> Any:
    """Return the object in the process that receives it.

    Args:
        origin: the family and the process that it comes from.
        number: what that process calls it.
        address: where it stands in the memory of that process, and of those that were forked by it afterwards.
        name: its ``__qualname__``.
        is_class: whether it is a class.
        path: the file that it is in.
        why: what kept it from being written.
    """
    family, process = origin
    key = process, number
    known = _objects.get(key)
    if known is not None:
        return known
    obj = _inherited(name, address) if family == _FAMILY else None
    if obj is None:
        try:
            obj = _load(path, why)
        except Exception as error:
            if is_class:
                raise
            return _Failing(error)  # raised here, it would end the worker and leave its pool waiting for ever
        if _is_fresh() and "." not in name:
            _shared[0].add({name: obj}, ())
    _objects[key] = obj
    sent[id(obj)] = obj, (origin, number, address, name, is_class, path, why)
    return obj


def _inherited(name: str, address: int) -> Any:
    found: Any = sys.modules["__main__"]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if id(found) == address else None


def _load(path: str, why: str) -> Any:
    if why:
        raise pickle.PicklingError(why)
    data = Path(path).read_bytes()
    if not _shared:
        _shared.append(SharedMain())
        if _is_fresh():
            use_folder(os.path.dirname(path))  # it goes with the engine, however this process ends
    outer = build.loading.shared
    build.loading.shared = _shared[0] if _is_fresh() else None
    try:
        return pickle.loads(data)
    finally:
        build.loading.shared = outer


def _is_fresh() -> bool:
    """Return whether this process was started afresh, not forked by one that keeps what came by value."""
    return not before_children


class _Failing:
    """Stands for a function that could not be loaded, and raises why when it is called."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise self._error


def forget_sent() -> None:
    """Another task begins: remove the files of what was sent to children of the last one."""
    for _, arguments in list(sent.values()):
        if arguments[0][1] == _process[0]:
            Path(arguments[5]).unlink(missing_ok=True)
    sent.clear()


def _forked() -> None:
    _process[0] = os.urandom(8)


os.register_at_fork(after_in_child=_forked)
setattr(ForkingPickler, "reducer_override", reduce_for_child)  # noqa: B010 - typed as pickle's own method
