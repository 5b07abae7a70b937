"""By-value functions and classes in processes that a task starts.

`multiprocessing` pickles functions and classes by name. A forked child finds them under these names, because it has the
memory of its parent. A child that was started by spawn or forkserver does not. Therefore `ForkingPickler`, which
`multiprocessing` and `concurrent.futures` use, writes each object that a child cannot find by name into a file, once
per object, and sends the file's name. If the child knows the object already (it was forked with it, or has loaded it
before), it uses the known one: the object keeps its identity, also when it comes back to its sender.

In a spawned child, all functions of ``__main__`` share the child's ``__main__``, as in plain Python: what a pool's
initializer assigns to a global is seen by the functions that the pool calls.

Pickles for children name the function `load_in_child` and rely on its signature.
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
"""Identifies this process and the children forked from it, which have the same objects at the same addresses."""
_process = [_FAMILY]
"""Identifies this process alone."""
sent: dict[int, tuple[Any, tuple[Any, ...]]] = {}
"""Address -> (the object, the arguments for `load_in_child`)."""
_objects: weakref.WeakValueDictionary[tuple[bytes, int], Any] = weakref.WeakValueDictionary()
"""(process, number) -> the object that this process sent, or loaded, under that number."""
_counter = [0]
before_children: list[Callable[[], None]] = []
"""Functions that are called before a child is told about a member of a by-value module."""


class SharedMain(Names):
    """The globals of all functions of ``__main__`` in a child: the child's own ``__main__``."""

    __slots__ = ("shipped",)

    def __init__(self) -> None:
        main = sys.modules["__main__"].__dict__
        super().__init__("__main__", main)
        self.globals = main
        self.shipped: dict[str, Any] = {}

    def add(self, used: dict[str, Any], wanted: tuple[str, ...], function: types.FunctionType | None = None) -> None:
        """Bind the globals that a function brings, except those that the child has assigned to meanwhile."""
        for name, value in used.items():
            here = self.globals.get(name, self)
            if here is self or here is self.shipped.get(name, self.shipped):
                self.globals[name] = self.shipped[name] = value


_shared: list[SharedMain] = []


def reduce_for_child(pickler: ForkingPickler, obj: Any) -> Any:
    """Reduce an object for a child process: the ``reducer_override`` of `ForkingPickler`."""
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
    except Exception as error:  # a forked child has the object; another child raises this reason
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
        origin: the family and the process of the sender.
        number: the sender's number for the object.
        address: the object's address in the sender, and in processes that were forked from the sender afterwards.
        name: the ``__qualname__`` of the object.
        is_class: whether the object is a class.
        path: the file that contains the object.
        why: the reason why the file could not be written; "" if it was written.
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
            return _Failing(error)  # raised here, it would end the worker, and its pool would wait for ever
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
            use_folder(os.path.dirname(path))  # the engine removes it, however this process ends
    outer = build.loading.shared
    build.loading.shared = _shared[0] if _is_fresh() else None
    try:
        return pickle.loads(data)
    finally:
        build.loading.shared = outer


def _is_fresh() -> bool:
    """Return whether this process was spawned, and not forked from a process that holds by-value objects."""
    return not before_children


class _Failing:
    """Stand-in for a function that could not be loaded: calling it raises the reason."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *args: object, **kwargs: object) -> Any:
        raise self._error


def forget_sent() -> None:
    """Remove the files of objects that were sent to children of the last task. Called when another task begins."""
    for _, arguments in list(sent.values()):
        if arguments[0][1] == _process[0]:
            Path(arguments[5]).unlink(missing_ok=True)
    sent.clear()


def _forked() -> None:
    _process[0] = os.urandom(8)


os.register_at_fork(after_in_child=_forked)
setattr(ForkingPickler, "reducer_override", reduce_for_child)  # noqa: B010 - typed as pickle's own method
