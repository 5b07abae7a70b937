"""Values that belong to the process, and that a function finds under global names: the other side has its own.

After ``from os import environ`` a function's global is the object that holds this process's variables.  A copy of it
would show the function another process's variables, and what it assigned there no child process would see.  So such a
global is replaced by the object of the process in which the function runs, as the standard streams are.

Only globals are replaced: an argument or a result is meant as it is.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from ..core.errors import UnpickleableException


class ProcessValue:
    """Stand-in for an object that each process has, or for a method of such an object."""

    __slots__ = ("module", "names")

    def __init__(self, module: str, names: tuple[str, ...]) -> None:
        self.module = module
        self.names = names

    @property
    def full_name(self) -> str:
        """Return the dotted name, such as ``os.environ``."""
        return ".".join((self.module, *self.names))

    def __reduce__(self) -> Any:
        return load_own, (self.module, *self.names)


def load_own(module: str, *names: str) -> Any:
    """Return this process's own object, or a method of it; IPython's shell is None in a process without one."""
    if module == _SHELL:
        found = _shell()
    else:
        found, names = getattr(sys.modules[module], names[0]), names[1:]
    for name in names:
        found = getattr(found, name)
    return found


def _shell() -> Any:
    find = getattr(sys.modules.get("IPython.core.getipython"), "get_ipython", None)
    return find() if find is not None else None


_SHELL = "get_ipython()"
_VALUES = {
    "os": ("environ", "environb"),
    "sys": (
        "modules", "path", "meta_path", "path_hooks", "path_importer_cache", "version_info", "implementation", "flags",
        "float_info", "int_info", "hash_info", "thread_info",
    ),
}  # fmt: skip
_names = {
    id(getattr(module, name)): (getattr(module, name), module.__name__, name)
    for module in (os, sys)
    for name in _VALUES[module.__name__]
    if hasattr(module, name)
}
"""Address -> the object, its module and its name there."""


class AbsentClient:
    """Stand-in for a client among the globals of a method, or among the attributes of an object.

    A class of a program often has both: the steps that run in tasks, and a method that submits them by a client.
    The class can be sent, as nobody calls that method in a task.
    """

    __slots__ = ("_kind", "_name")

    def __init__(self, kind: str, name: str) -> None:
        self._kind = kind
        self._name = name

    def __reduce__(self) -> Any:
        return AbsentClient, (self._kind, self._name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise UnpickleableException(
            f"{self._name}.{attribute}: {self._name} was a {self._kind} where this came from. It "
            "cannot travel; inside a task use `current_task()`"
        )


_CLIENTS = frozenset({
    "TaskClient", "MultiEngineClient", "Farm", "Job", "Executor", "Pool",
    "Client", "DirectView", "LoadBalancedView", "ViewExecutor",
})  # fmt: skip
_PACKAGE = __name__.partition(".")[0]


def is_client(value: Any) -> bool:
    """Return whether a value is one of our clients, farms, jobs, executors or views, or of a class derived of these."""
    return any(
        each.__name__ in _CLIENTS and str(each.__module__).partition(".")[0] == _PACKAGE for each in type(value).__mro__
    )


def asked(value: Any, name: str, default: Any = None) -> Any:
    """Return an attribute of any object of the user; the default if there is none, or anything else is raised.

    A ``__getattr__`` of the user is not called: a dict whose items are attributes too may add what it is asked for.
    """
    kind = type(value)
    try:
        if hasattr(kind, "__getattr__"):
            holders = (*kind.__mro__, *(value.__mro__ if isinstance(value, type) else ()))
            if not any(name in vars(each) for each in holders) and name not in vars(value):
                return default
        return getattr(value, name, default)
    except Exception:
        return default


def own_value(value: Any, function: types.FunctionType, name: str) -> Any:
    """Return the stand-in for a function's global that belongs to this process; any other value as it is.

    name: under which name the function uses it.
    """
    if _is_method(function) and is_client(value):
        return AbsentClient(type(value).__name__, name)
    found = find_process_value(value)
    return value if found is None else found


def find_process_value(value: Any) -> ProcessValue | None:
    """Return the stand-in for a value that belongs to this process, or for a method of one; None for other values."""
    found = _named(value)
    if found is not None:
        return ProcessValue(*found)
    if type(value) not in _METHODS:  # others are not asked for attributes: a dict with them may raise what it likes
        return None
    owner = value.__self__
    found = _named(owner) if owner is not None else None
    name = getattr(value, "__name__", "")
    if found is None or getattr(owner, name, None) != value:
        return None
    return ProcessValue(found[0], (*found[1], name))


def _is_method(function: types.FunctionType) -> bool:
    owner = function.__qualname__.rpartition(".")[0]
    return bool(owner) and not owner.endswith("<locals>")


_METHODS = (types.MethodType, types.BuiltinFunctionType)


def _named(value: Any) -> tuple[str, tuple[str, ...]] | None:
    known = _names.get(id(value))
    if known is not None and known[0] is value:
        return known[1], (known[2],)
    if type(value).__name__.endswith("Shell") and _shell() is value:
        return _SHELL, ()
    return None
