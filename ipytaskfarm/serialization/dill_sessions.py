"""Save the names of an interpreter, its *session*, and restore them elsewhere, with dill.

A function of a session is restored *into* the namespace: it sees the current values of the names. A task's function is
packed in the opposite way (``serialization/pack.py``): it brings the values that the names had when it was submitted.

dill walks the objects. This module changes four points. Definitions that dill restores incompletely (enumerations, type
variables, named tuples with methods) are restored whole. The user's own modules travel by value, as with tasks. Objects
that cannot travel with a task (locks, sockets, open files) are never copied. One name that cannot be saved does not
prevent saving the others.
"""

from __future__ import annotations

import collections
import enum
import functools
import hashlib
import io
import pickle
import platform
import sys
import types
import typing
import warnings
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

import dill
import msgspec
from dill import _dill

from ..core.errors import SessionError
from .function_globals import Names, placed, remember
from .function_parts import annotations_of, cell_state
from .module_origin import Travel, travel
from .pack import pack, unpack
from .pickler import reduce_exception
from .process_values import find_process_value, load_own
from .rebuild import fill_cell, fill_function, new_cached_property, new_cell, new_function
from .refusals import Culprit, explain, find_culprit, remedy_of
from .session_classes import fill_class, is_plain, new_class, parts_of
from .standard_values import find_named_method

# Importing dill changes the tables of the standard pickle; this undoes it for the user's process.
dill.extend(False)

MAGIC = b"ipytaskfarm session 1\n"
_NEVER = frozenset({"exit", "quit", "get_ipython", "open", "In", "Out"})
"""Names that IPython binds in every session (`open` only in kernels)."""


class SessionHead(msgspec.Struct, frozen=True):
    """The description at the beginning of a saved session."""

    python: str
    """The version of Python, such as ``3.11.7``."""
    dill: str
    """The version of dill, such as ``0.4.1``."""
    names: list[str]
    """The saved names, in the order in which they were bound."""
    left_out: dict[str, str]
    """The names that could not be saved, each with the reason."""
    digest: bytes
    """The SHA-256 of the pickle."""
    modules: list[str] = []
    """The modules that must be importable by name when the session is restored."""


# --------------------------------------------------------------------------------------------------
# Saving


def is_of_session(name: str) -> bool:
    """Return whether a name is the user's. Dunder names and the names that IPython maintains are not."""
    if name in _NEVER or (name.startswith("__") and name.endswith("__")):
        return False
    rest = name.lstrip("_").removeprefix("i")
    return not name.startswith("_") or not (rest in {"", "i", "ii", "h", "oh", "dh", "exit_code"} or rest.isdigit())


def dump_session(names: MutableMapping[str, Any], hidden: Collection[str] = ()) -> tuple[bytes, dict[str, str]]:
    """Save the names of a namespace.

    Args:
        names: the namespace itself. Its functions are restored with the namespace of the other side as globals.
        hidden: further names that are not the user's, beside those that `is_of_session` excludes.

    Returns:
        (the session as bytes, the names that were left out with the reason for each).
    """
    values = {name: value for name, value in names.items() if is_of_session(name) and name not in hidden}
    left_out: dict[str, str] = {}
    try:
        body, modules = _pickled(values, names)
    except Exception:
        for name, value in list(values.items()):
            reason = _why_not(name, value, names)
            if reason is not None:
                left_out[name] = reason
                del values[name]
        body, modules = _pickled(values, names)
    digest = hashlib.sha256(body).digest()
    head = SessionHead(platform.python_version(), dill.__version__, list(values), left_out, digest, modules)
    encoded = msgspec.msgpack.encode(head)
    return b"".join((MAGIC, len(encoded).to_bytes(8, "little"), encoded, body)), left_out


def _pickled(value: Any, names: MutableMapping[str, Any]) -> tuple[bytes, list[str]]:
    file = io.BytesIO()
    pickler = SessionPickler(file, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dill.PicklingWarning)
        pickler.dump(value)
    return file.getvalue(), sorted(pickler.modules)


def _why_not(name: str, value: Any, names: MutableMapping[str, Any]) -> str | None:
    """Return the reason why a value cannot be saved by itself; None if it can."""

    def fails(part: Any) -> bool:
        try:
            _pickled(part, names)
        except Exception:
            return True
        return False

    try:
        _pickled(value, names)
    except Exception as error:
        try:
            found = find_culprit(value, name, fails)
        except RecursionError:
            found = Culprit(name, value, None)
        return explain(found, error)
    return None


class SessionPickler(dill.Pickler):
    """dill's pickler for one namespace.

    dill recognises its own pickler by the module's name, which must contain "dill": hence the name of this module.
    """

    dispatch = _dill.MetaCatchingDict(dill.Pickler.dispatch.copy())

    def __init__(self, file: io.BytesIO, names: MutableMapping[str, Any]) -> None:
        super().__init__(file, protocol=5, byref=False, recurse=False)
        self._names = names
        self.modules: set[str] = set()
        """The modules that must be importable by name."""
        self._known: dict[type, bool] = {}
        self._cells: set[int] = set()
        """The identities of the closure cells of functions that were sent here by value."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        """Save an object. The module's docstring says in which cases this does not leave the object to dill."""
        kind = type(obj)
        if id(obj) in self.memo or kind in _PLAIN:
            super().save(obj, save_persistent_id)
        elif kind is dict and obj is self._names:
            self.write(pickle.GLOBAL + b"__builtin__\n__main__\n")
        elif kind is types.ModuleType:
            self._save_module(obj)
        elif (own := find_process_value(obj)) is not None:
            self.save_reduce(load_own, (own.module, *own.names), obj=obj)
        elif kind in _METHODS and hasattr(obj, "__name__") and find_named_method(obj) is not None:
            # ``from random import random``: with a copy of the generator all engines would have the same numbers.
            self.save_reduce(_unpacked, (pack(obj),), obj=obj)
        elif self._comes_by_value(obj, kind):
            self.save_reduce(_unpacked, (pack(obj),), obj=obj)
        elif kind in _TYPE_VARIABLES:
            self.save_reduce(_type_variable, _described(obj), obj=obj)
        elif isinstance(obj, enum.EnumMeta) and self._is_local(obj):
            self._save_enum(obj)
        elif kind is type and _is_named_tuple(obj) and self._is_local(obj):
            self._save_named_tuple(obj)
        elif isinstance(obj, type) and is_plain(obj):
            start, state = parts_of(obj)
            self.save_reduce(new_class, start, state, state_setter=fill_class, obj=obj)
        elif isinstance(obj, BaseException) and (reduced := reduce_exception(obj)) is not NotImplemented:
            self.save_reduce(*reduced, obj=obj)
        elif kind is functools.cached_property:  # without its lock
            self.save_reduce(new_cached_property, (obj.func, obj.attrname), obj=obj)
        elif self._is_bound_to_process(obj, kind):
            self._save_as_pickle_does(obj)
        elif kind is types.FunctionType and obj.__globals__ is self._names:
            self._save_function(obj)
        elif kind is types.FunctionType and isinstance(obj.__globals__.get("__builtins__"), Names):
            self._save_function_by_value(obj)
        elif kind is Names:
            self._save_names(obj)
        elif kind is types.CellType and id(obj) in self._cells:
            self.save_reduce(new_cell, (), cell_state(obj), state_setter=fill_cell, obj=obj)
        else:
            super().save(obj, save_persistent_id)

    def _save_module(self, module: types.ModuleType) -> None:
        """Save a module: by name if it is installed, by value if it is the user's own, as with tasks."""
        name = module.__name__
        if vars(module) is self._names:
            self.save_reduce(_main_module, (), obj=module)
        elif travel(name) is Travel.REFERENCE:
            self.modules.add(name)
            self.save_reduce(_imported, (name,), obj=module)
        else:
            self.save_reduce(_unpacked, (pack(module),), obj=module)

    @staticmethod
    def _is_local(obj: Any) -> bool:
        """Return whether a definition belongs to ``__main__``, or is nested in a function."""
        return not _dill._locate_function(obj)

    @staticmethod
    def _comes_by_value(obj: Any, kind: type) -> bool:
        """Return whether an object is a function or class of one of the user's own modules."""
        if kind is not types.FunctionType and not isinstance(obj, type):
            return False
        module = getattr(obj, "__module__", None)
        if not isinstance(module, str) or module == "__main__" or module not in sys.modules:
            return False
        return travel(module) is not Travel.REFERENCE

    def _is_bound_to_process(self, obj: Any, kind: type) -> bool:
        """Return whether an object belongs to its process, like a lock or an open file. dill would copy it."""
        known = self._known.get(kind)
        if known is None:
            known = self._known[kind] = not isinstance(obj, type) and remedy_of(obj) is not None
        return known

    def _save_as_pickle_does(self, obj: Any) -> None:
        reduced = obj.__reduce_ex__(5)
        if isinstance(reduced, str):
            self.save_global(obj, reduced)
        else:
            self.save_reduce(*reduced, obj=obj)

    def _save_function(self, function: types.FunctionType) -> None:
        """Save a function of the namespace.

        dill copies all globals of a function if its ``__module__`` differs from the one of its globals, as after
        `functools.wraps`. Therefore ``__module__`` is set for the duration of the call.
        """
        module = function.__module__
        if module == self._names.get("__name__"):
            super().save(function)
            return
        function.__module__ = self._names.get("__name__", "__main__")
        try:
            super().save(function)
        finally:
            function.__module__ = module

    def _save_function_by_value(self, function: types.FunctionType) -> None:
        """Save a function that was sent here by value.

        After a restore too, it first uses the values that were sent with it, and then the namespace.  dill would copy
        the globals for each function, and the copies would have no access to the namespace.
        """
        self._cells.update(id(cell) for cell in function.__closure__ or ())
        state = {
            "name": function.__name__,
            "qualname": function.__qualname__,
            "module": function.__module__,
            "doc": function.__doc__,
            "defaults": function.__defaults__,
            "kwdefaults": function.__kwdefaults__,
            "annotations": annotations_of(function),
            "dict": vars(function),
        }
        if type_params := getattr(function, "__type_params__", ()):
            state["type_params"] = type_params
        start = (function.__code__, function.__globals__["__builtins__"], function.__closure__)
        self.save_reduce(new_function, start, state, state_setter=fill_function, obj=function)

    def _save_names(self, names: Names) -> None:
        """Save the globals of functions that were sent here by value, with the latest values."""
        brought = {**names.packed, **names.globals}
        used = {
            name: value
            for name, value in brought.items()
            if name not in {"__builtins__", "__name__"} and (name in names.packed or name not in names.wanted)
        }
        start = (brought["__name__"], self._names)
        self.save_reduce(_names_of, start, (used, sorted(names.wanted)), state_setter=_fill_names, obj=names)

    def _save_enum(self, cls: Any) -> None:
        members = {name: member._value_ for name, member in cls.__members__.items()}
        data = cls._member_type_
        bases = tuple(base for base in cls.__bases__ if isinstance(base, enum.EnumMeta) or base is data)
        others = tuple(base for base in cls.__bases__ if base not in bases)
        own = {
            name: value
            for name, value in vars(cls).items()
            if name not in members and name not in _ENUM_MADE and name not in _BOUND_TO_CLASS
        }
        extras = {name: _extras(member) for name, member in cls.__members__.items() if _extras(member)}
        start = (type(cls), cls.__name__, (*others, *bases), members, cls.__module__, cls.__qualname__)
        self.save_reduce(_enumeration, start, (own, extras), state_setter=_fill_enumeration, obj=cls)

    def _save_named_tuple(self, cls: Any) -> None:
        own = {name: value for name, value in vars(cls).items() if name not in _NAMED_TUPLE_MADE | set(cls._fields)}
        start = (cls.__name__, cls._fields, cls._field_defaults, cls.__module__, cls.__qualname__)
        self.save_reduce(_named_tuple, start, own, state_setter=_fill_class, obj=cls)


_METHODS = (types.MethodType, types.BuiltinFunctionType)
_PLAIN = frozenset({int, float, str, bytes, bool, type(None), complex, list, tuple, set, frozenset})
_TYPE_VARIABLES = frozenset({typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple})
_BOUND_TO_CLASS = frozenset({"__dict__", "__weakref__"})
_ENUM_MADE = frozenset(vars(enum.Enum("_", "A"))) | frozenset(vars(enum.Flag("_", "A"))) - {"__doc__"}
"""The attributes that the metaclass sets in each enumeration."""
_NAMED_TUPLE_MADE = frozenset(vars(typing.NamedTuple("_", [("a", int)]))) - {"__doc__", "__annotations__", "a"} | {
    "__orig_bases__"
}


def _is_named_tuple(cls: type) -> bool:
    return cls.__bases__ == (tuple,) and hasattr(cls, "_fields") and hasattr(cls, "_field_defaults")


def _extras(member: enum.Enum) -> dict[str, Any]:
    """Return the attributes of a member other than its name and value."""
    made = {"_value_", "_name_", "__objclass__", "_sort_order_"}
    return {name: value for name, value in vars(member).items() if name not in made}


def _described(variable: Any) -> tuple[Any, ...]:
    if isinstance(variable, typing.TypeVar):
        options = {"bound": variable.__bound__} if variable.__bound__ is not None else {}
        given = {**options, "covariant": variable.__covariant__, "contravariant": variable.__contravariant__}
        return typing.TypeVar, variable.__name__, variable.__constraints__, given, variable.__module__
    return type(variable), variable.__name__, (), {}, variable.__module__


# -- the functions that a saved session calls when it is restored


def _unpacked(data: bytes) -> Any:
    return unpack(data)


def _imported(name: str) -> types.ModuleType:
    __import__(name)
    return sys.modules[name]


def _names_of(module_name: str, namespace: dict[str, Any]) -> Names:
    names = Names(module_name, namespace)
    if placed.namespace is not None:
        remember(names)
    return names


def _fill_names(names: Names, state: tuple[dict[str, Any], list[str]]) -> None:
    used, wanted = state
    names.add(used, tuple(wanted))
    names.settle()


def _main_module() -> types.ModuleType:
    return sys.modules["__main__"]


def _type_variable(kind: Any, name: str, constraints: tuple[Any, ...], given: dict[str, Any], module: str) -> Any:
    made = kind(name, *constraints, **given)
    made.__module__ = module
    return made


def _enumeration(
    kind: Any, name: str, bases: tuple[type, ...], members: dict[str, Any], module: str, qualname: str
) -> Any:
    namespace = kind.__prepare__(name, bases)
    namespace["__module__"], namespace["__qualname__"] = module, qualname
    for member, value in members.items():
        namespace[member] = value
    return kind(name, bases, namespace)


def _fill_enumeration(cls: Any, state: tuple[dict[str, Any], dict[str, dict[str, Any]]]) -> None:
    own, extras = state
    for name, value in own.items():
        if name == "__new__":
            cls._new_member_ = cls.__new_member__ = value
        else:
            type.__setattr__(cls, name, value)
    for name, values in extras.items():
        vars(cls.__members__[name]).update(values)


def _named_tuple(
    name: str, fields: tuple[str, ...], defaults: dict[str, Any], module: str, qualname: str
) -> type[tuple[Any, ...]]:
    made = collections.namedtuple(name, fields, defaults=list(defaults.values()), module=module)  # type: ignore[misc]
    made.__qualname__ = qualname
    return made


def _fill_class(cls: type, own: dict[str, Any]) -> None:
    for name, value in own.items():
        setattr(cls, name, value)


# --------------------------------------------------------------------------------------------------
# Restoring


def read_head(data: bytes, source: str) -> tuple[SessionHead, memoryview]:
    """Read the description of a session, and check that the session is whole and fits the versions of Python and dill.

    Args:
        data: the session as bytes.
        source: the name of the session for error messages, such as its file's name.

    Returns:
        (the description, the pickle of the names).

    Raises:
        SessionError: `data` is not a session or is damaged, or another version of Python or dill saved it.
    """
    if not data.startswith(MAGIC):
        raise SessionError(f"{source} is not a session of this version of ipytaskfarm: save it again")
    start = len(MAGIC) + 8
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    try:
        head = msgspec.msgpack.decode(data[start:end], type=SessionHead)
    except msgspec.MsgspecError:
        raise SessionError(f"{source} is damaged: its head cannot be read") from None
    body = memoryview(data)[end:]
    if hashlib.sha256(body).digest() != head.digest:
        raise SessionError(f"{source} is damaged: its content has changed since it was saved, or its end is missing")
    _check_versions(head, source)
    return head, body


def _check_versions(head: SessionHead, source: str) -> None:
    for what, theirs, ours in (
        ("Python", head.python, platform.python_version()),
        ("dill", head.dill, dill.__version__),
    ):
        if theirs.split(".")[:2] != ours.split(".")[:2]:
            raise SessionError(
                f"{source} was saved with {what} {theirs}, and {what} {ours} is here: "
                f"load it where {what} {'.'.join(theirs.split('.')[:2])} runs, or save it again here"
            )


def load_session(data: bytes, names: MutableMapping[str, Any], source: str = "the session") -> SessionHead:
    """Bind the names of a saved session in a namespace.

    The whole session is restored before the first name is bound. If anything fails, the namespace is unchanged.

    Args:
        data: the bytes that `dump_session` returned.
        names: the namespace. Functions of the session have it as globals from then on.
        source: the name of the session for error messages.

    Returns:
        The description of the session.

    Raises:
        SessionError: see `read_head`; or a module is not installed here; or an object cannot be restored.
    """
    head, body = read_head(data, source)
    _check_modules(head, source)
    try:
        values: Mapping[str, Any] = _SessionUnpickler(io.BytesIO(body), names).load()
    except ImportError as error:
        raise SessionError(f"{source} needs what cannot be imported here ({sys.executable}): {error}") from error
    except Exception as error:
        raise SessionError(f"{source} cannot be restored here: {type(error).__name__}: {error}") from error
    names.update(values)
    return head


def _check_modules(head: SessionHead, source: str) -> None:
    for name in head.modules:
        try:
            _imported(name)
        except ImportError as error:
            raise SessionError(
                f"{source} uses module {name}, which cannot be imported here ({sys.executable}): {error}; "
                "install it there, or save the session without the names that use it"
            ) from error


class _SessionUnpickler(dill.Unpickler):
    def __init__(self, file: io.BytesIO, names: MutableMapping[str, Any]) -> None:
        super().__init__(file, ignore=True)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("__builtin__", "__main__"):
            return self._names
        return super().find_class(module, name)
