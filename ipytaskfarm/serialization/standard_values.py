"""Reducers for values of the standard library (and of pydantic and numpy) that `pickle` refuses, or that the other side
has itself.

`pickler` contains the pickler, and takes functions and classes apart. This module adds to its tables.
"""

from __future__ import annotations

import _thread
import abc
import ast
import contextlib
import contextvars
import copyreg
import functools
import inspect
import io
import itertools
import logging
import operator
import pickle
import random
import sys
import threading
import types
import typing
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import rebuild as build, rebuild_values as values, shared_state
from .function_parts import ABSENT
from .library_values import of_library, of_wrapt
from .module_origin import Travel, module_with, travel
from .pickler import (
    BASES,
    KINDS,
    REDUCERS,
    Pickler,
    Reduced,
    by_member,
    find_named,
    is_made_in_c,
    plain_reducer,
    reduce_method,
    reduce_module,
)

_STREAMS = ("stdout", "stderr", "stdin", "__stdout__", "__stderr__", "__stdin__")
_PARTS = ("buffer",)


def _reduce_stream(pickler: Pickler, stream: Any) -> Reduced:
    """Reduce a standard stream to that of the process that unpacks it; leave other streams to `pickle`."""
    for name in _STREAMS:
        if getattr(sys, name) is stream:
            return values.load_stream, (name.strip("_"), None)
    for name in _STREAMS:
        for part in _PARTS:
            if getattr(getattr(sys, name), part, None) is stream:
                return values.load_stream, (name.strip("_"), part)
    return NotImplemented


def _reduce_handler(pickler: Pickler, handler: logging.Handler) -> Reduced:
    cls = type(handler)
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return NotImplemented
    state = {name: value for name, value in handler.__dict__.items() if name != "lock"}
    return values.new_handler, (cls,), state, None, None, values.fill_handler


_LOGGER_STATE = ("level", "propagate", "handlers", "filters", "disabled")


def _reduce_logger(pickler: Pickler, logger: logging.Logger) -> Reduced:
    """Reduce a logger to its name; a logger that was made by hand travels with its handlers."""
    if logger.manager.loggerDict.get(logger.name) is logger:
        return NotImplemented
    state = {name: getattr(logger, name) for name in _LOGGER_STATE}
    return values.new_logger, (type(logger), logger.name), state, None, None, values.fill_logger


def _reduce_module_of_own_class(pickler: Pickler, module: types.ModuleType) -> Reduced:
    """Reduce a module whose class is another one, such as a callable or a lazy module, if an import finds it."""
    found = sys.modules.get(module.__name__)
    return reduce_module(pickler, module) if found is module else NotImplemented


def find_named_method(method: Any) -> tuple[Travel, str, str] | None:
    """Return how to reach a method of a hidden instance by name: `random.random`, `numpy.random.rand`.

    Such an instance is its module's own state, and the module on the other side has one of its own. A copy of this one
    would give the same random numbers on every engine.
    """
    owner = method.__self__
    name = method.__name__
    if owner is None or isinstance(owner, type | types.ModuleType):
        return None
    module_name = getattr(type(owner), "__module__", None)
    if not isinstance(module_name, str):
        return None
    kind = travel(module_name)
    if kind is Travel.LOOSE:
        return None
    found: Any = vars(sys.modules[module_name]).get(name)
    if type(found) is not type(method) or found.__self__ is not owner or found != method:
        return None
    return kind, module_name, name


def _by_name(named: tuple[Travel, str, str]) -> Reduced:
    kind, module_name, name = named
    return by_member(module_name, name) if kind is Travel.SOURCE else (build.load_sentinel, (module_name, name))


def _reduce_method(pickler: Pickler, method: types.MethodType) -> Reduced:
    named = find_named_method(method) if hasattr(method, "__name__") else None
    return _by_name(named) if named is not None else reduce_method(pickler, method)


def _reduce_builtin(pickler: Pickler, function: types.BuiltinFunctionType) -> Reduced:
    named = find_named_method(function)
    return _reduce_compiled(pickler, function) if named is None else _by_name(named)


def _reduce_compiled(pickler: Pickler, function: Any) -> Reduced:
    """Reduce a function of a compiled module of the project to its name and the module, which brings its folder."""
    if travel(function.__module__) is not Travel.SOURCE:
        return NotImplemented
    named = find_named(function)
    return NotImplemented if named is None else by_member(*named[1:])


def _of_compiled(kind: type) -> Any:
    """Find the reducer for the functions that compilers of Python code make, such as Cython."""
    return _reduce_compiled if is_made_in_c(kind) and kind.__name__ in _COMPILED else None


_COMPILED = frozenset({"cython_function_or_method", "fused_cython_function", "nb_func"})


def _reduce_descriptor(pickler: Pickler, found: Any) -> Reduced:
    owner = found.__objclass__
    if owner.__dict__.get(found.__name__) is not found:
        return NotImplemented
    return values.load_descriptor, (owner, found.__name__)


def _reduce_mapping_proxy(pickler: Pickler, found: types.MappingProxyType[Any, Any]) -> Reduced:
    cls = _class_of_dict(found)
    return (build.new_mapping_proxy, (dict(found),)) if cls is None else (values.load_class_dict, (cls,))


def _class_of_dict(found: types.MappingProxyType[Any, Any]) -> type | None:
    """Return the class that has this mapping as its ``__dict__``; None if there is none."""
    for name in ("__dict__", "__weakref__"):
        own = found.get(name)
        if isinstance(own, types.GetSetDescriptorType) and own.__objclass__.__dict__ == found:
            return own.__objclass__
    return None


def _reduce_memory_view(pickler: Pickler, view: memoryview) -> Reduced:
    if view.c_contiguous:
        data: Any = pickle.PickleBuffer(view if view.ndim == 1 and view.format == "B" else view.cast("B"))
    else:
        data = view.tobytes()
    return values.new_memory_view, (data, view.format, view.shape)


def _reduce_odict_view(pickler: Pickler, found: Iterable[Any]) -> Reduced:
    return values.new_odict_view, (type(found).__name__.removeprefix("odict_"), list(found))


# --------------------------------------------------------------------------------------------------
# Weak containers


def _reduce_weak_reference(pickler: Pickler, found: weakref.ref[Any]) -> Reduced:
    target = found()
    return (values.new_dead_reference, ()) if target is None else (values.new_weak_reference, (target,))


def _reduce_weak_method(pickler: Pickler, found: weakref.WeakMethod[Any]) -> Reduced:
    method = found()
    return (values.new_dead_reference, ()) if method is None else (values.new_weak_method, (method,))


def _reduce_weak_set(pickler: Pickler, found: weakref.WeakSet[Any]) -> Reduced:
    return values.new_weak_set, (type(found),), list(found), None, None, values.fill_weak_set


def _reduce_weak_dict(pickler: Pickler, found: Any) -> Reduced:
    return values.new_weak_dict, (type(found),), list(found.items()), None, None, values.fill_weak_dict


# --------------------------------------------------------------------------------------------------
# Values that pickle would wrongly accept


later = ["multiprocessing.connection"]
"""Modules with types to refuse that have not been imported yet; empty once these types are refused."""


def _refuse(pickler: Pickler, found: Any) -> Reduced:
    raise pickle.PicklingError(f"cannot pickle {type(found).__name__!r} object")


def refuse_connections() -> None:
    """Refuse pipes from now on; called when their module is imported.

    pickle would send the number of a descriptor, which means another file elsewhere.
    """
    REDUCERS[sys.modules[later.pop()].Connection] = _refuse


# --------------------------------------------------------------------------------------------------
# Subclasses of descriptors


def _own_reduce(cls: Any) -> bool:
    """Return whether a class defines in Python how its instances are reduced."""
    return isinstance(cls.__reduce__, types.FunctionType) or isinstance(cls.__reduce_ex__, types.FunctionType)


def _described(base: type, found: Any, args: tuple[Any, ...], own: tuple[str, ...] = ()) -> Reduced:
    if _own_reduce(type(found)):
        return NotImplemented
    state = {name: value for name, value in getattr(found, "__dict__", {}).items() if name not in own}
    return values.new_descriptor, (base, type(found), args, *without_locks(state))


def without_locks(state: Any) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """Return a state without the locks among its attributes, and what makes these."""
    if not isinstance(state, dict):
        return state, {}
    locks = {name: _LOCKS[type(value)] for name, value in state.items() if type(value) in _LOCKS}
    return {name: value for name, value in state.items() if name not in locks}, locks


_LOCKS: dict[type, Callable[[], Any]] = {_thread.LockType: _thread.allocate_lock, _thread.RLock: _thread.RLock}
"""Locks of descriptors and decorators, such as astropy's ``lazyproperty``: each process makes its own."""


def _reduce_wrapped(pickler: Pickler, found: Any) -> Reduced:
    base = classmethod if isinstance(found, classmethod) else staticmethod
    return _described(base, found, (found.__func__,), _WRAPPER_OWN)


_WRAPPER_OWN = ("__wrapped__", "__doc__", "__name__", "__qualname__", "__module__", "__annotations__", "__annotate__")
"""Attributes that classmethod and staticmethod copy from their function."""


def _reduce_property(pickler: Pickler, found: property) -> Reduced:
    return _described(property, found, (found.fget, found.fset, found.fdel, found.__doc__), ("__doc__",))


def _reduce_cached_property(pickler: Pickler, found: functools.cached_property[Any]) -> Reduced:
    return _described(functools.cached_property, found, (found.func,), ("func", "lock"))


def _reduce_generator(pickler: Pickler, found: random.Random) -> Reduced:
    """Reduce a random generator of a class of the user, of which Python's own pickles have no attributes."""
    kind = type(found)
    if isinstance(found, random.SystemRandom):  # it has no state, and draws from the system of each process
        made = copyreg.__newobj__  # type: ignore[attr-defined]
        return made, (kind,), vars(found).copy(), None, None, values.fill_state
    names = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "getstate", "setstate")
    plain = all(getattr(kind, name, None) is getattr(random.Random, name, None) for name in names)
    if kind is random.Random or not plain:
        return NotImplemented
    return values.new_generator, (kind, found.getstate()), vars(found).copy(), None, None, values.fill_state


def _reduce_mark(pickler: Pickler, found: object) -> Reduced:
    """Reduce an ``object()``, which programs compare by identity."""
    return _by_identity(found, values.mark)


def _reduce_count(pickler: Pickler, found: itertools.count[Any]) -> Reduced:
    """Reduce a counter to one that goes on from the same plain number, which since Python 3.14 only its text tells."""
    try:
        return itertools.count, ast.literal_eval(f"({repr(found).removeprefix('count(')[:-1]},)")
    except (ValueError, SyntaxError):  # it counts in another type
        return NotImplemented


def _reduce_context_variable(pickler: Pickler, found: contextvars.ContextVar[Any]) -> Reduced:
    """Reduce a context variable, of which the default is sent and no value."""
    return _by_identity(found, values.context_variable, found.name, *default_of(found))


def _by_identity(found: object, make: Callable[..., object], *rest: Any) -> Reduced:
    """Reduce an object to its name in a module, or to a call of `make` with a key of this process and the rest."""
    place = _marks_of_modules.place_of(found)
    if place is not None:
        return by_member(*place)
    key = values.key_of_mark(found)
    if key is None:
        return NotImplemented
    used_marks.keys.add(key)
    return make, (key, *rest)


def key_of_mark(found: object) -> str | None:
    """Return the key under which an object that is compared by identity travels; None: it goes by its name."""
    return values.key_of_mark(found) if _marks_of_modules.place_of(found) is None else None


def default_of(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    """Return the default of a context variable as a tuple of one; () if it has none."""
    try:
        return (contextvars.Context().run(variable.get),)
    except LookupError:
        return ()


class _UsedMarks(threading.local):
    """The keys in what this thread has pickled since `cache` has cleared them."""

    def __init__(self) -> None:
        self.keys: set[str] = set()


used_marks = _UsedMarks()


class _MarksOfModules:
    """Each ``object()`` and context variable that modules which are not sent as values, and their classes, have."""

    def __init__(self) -> None:
        self._modules: list[Any] = []
        """The modules that were looked at. On an engine one may take the place of another one of the same name."""
        self._places: dict[int, tuple[object, str, str]] = {}
        """Address of an object -> the object, its module and its name there."""

    def place_of(self, found: object) -> tuple[str, str] | None:
        """Return the module that has an object, and its name there; None if no module has it."""
        modules = list(sys.modules.values())
        if len(modules) != len(self._modules) or not all(map(operator.is_, modules, self._modules)):
            self._look(modules)
        place = self._places.get(id(found))
        return None if place is None else place[1:]

    def _look(self, modules: list[Any]) -> None:
        self._modules, self._places = modules, {}
        for module_name, module in list(sys.modules.items()):
            if type(module) is types.ModuleType:
                for name, value in _marks_below(module, module_name):
                    if travel(module_name) is not Travel.LOOSE:
                        self._places.setdefault(id(value), (value, module_name, name))


_marks_of_modules = _MarksOfModules()


def _marks_below(owner: Any, module_name: str, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield qualified name and value of each of these objects in a module, and in the classes that it defines."""
    for name, value in list(vars(owner).items()):
        kind = type(value)
        if kind is object or kind is contextvars.ContextVar:
            yield prefix + name, value
        elif isinstance(value, type) and value.__module__ == module_name and value.__qualname__ == prefix + name:
            yield from _marks_below(value, module_name, f"{prefix}{name}.")


def _reduce_context_manager(pickler: Pickler, found: Any) -> Reduced:
    """Reduce what a function with ``contextmanager`` returned, if nobody has entered it: a decorator keeps one so."""
    if getattr(found, "func", None) is None or inspect.getgeneratorstate(found.gen) != inspect.GEN_CREATED:
        return NotImplemented
    return values.new_context_manager, (type(found), found.func, found.args, found.kwds)


REDUCERS.update(
    {
        itertools.count: _reduce_count,
        object: _reduce_mark,
        contextvars.ContextVar: _reduce_context_variable,
        contextlib._GeneratorContextManager: _reduce_context_manager,
        types.MethodType: _reduce_method,
        types.BuiltinFunctionType: _reduce_builtin,
        types.GetSetDescriptorType: _reduce_descriptor,
        types.MemberDescriptorType: _reduce_descriptor,
        types.ClassMethodDescriptorType: _reduce_descriptor,
        types.MappingProxyType: _reduce_mapping_proxy,
        memoryview: _reduce_memory_view,
        logging.Logger: _reduce_logger,
        type(OrderedDict().keys()): _reduce_odict_view,
        type(OrderedDict().values()): _reduce_odict_view,
        type(OrderedDict().items()): _reduce_odict_view,
        weakref.ref: _reduce_weak_reference,
        values.KeptRef: _reduce_weak_reference,
        weakref.WeakMethod: _reduce_weak_method,
        values.KeptMethod: _reduce_weak_method,
        weakref.WeakSet: _reduce_weak_set,
        weakref.WeakKeyDictionary: _reduce_weak_dict,
        weakref.WeakValueDictionary: _reduce_weak_dict,
        abc.abstractclassmethod: _reduce_wrapped,
        abc.abstractstaticmethod: _reduce_wrapped,
        abc.abstractproperty: _reduce_property,
    }
)


def _reduce_alias(pickler: Pickler, alias: Any) -> Reduced:
    """Reduce ``Stack[int]`` without a call of a ``__class_getitem__`` of the user, whose class may not be whole yet."""
    origin = alias.__origin__
    if not isinstance(origin, type) or travel(origin.__module__) is Travel.REFERENCE:
        return NotImplemented
    method = getattr(getattr(origin, "__class_getitem__", None), "__func__", None)
    if not hasattr(type(origin), "__getitem__") and getattr(method, "__module__", "typing") == "typing":
        return NotImplemented
    return values.new_alias, alias.__reduce__()[1]


def _of_name_resolver(kind: type) -> Any:
    """Find the reducer for the resolver of names that `pydantic.validate_call` keeps in its functions.

    It holds the globals of the module or notebook, whatever is in them. It is used up when the function's schema is
    built, so an empty one travels.
    """
    named = (kind.__module__, kind.__name__) == ("pydantic._internal._namespace_utils", "NsResolver")
    return (lambda pickler, found: (kind, ())) if named else None


def _of_few_parts(kind: type) -> Any:
    """Find the reducer for types whose instances pickle refuses or cannot restore, and a few parts make anew."""
    named = (kind.__module__, kind.__name__)
    if named in _OPEN_DATABASES:
        return _refuse
    if named == ("_struct", "Struct"):
        return lambda pickler, found: (kind, (found.format,))
    if named == ("_json", "Scanner"):
        return lambda pickler, found: (values.new_json_scanner, (_parts_of(found, _SCANNER),))
    if kind.__module__ in ("msgspec.json", "msgspec.msgpack") and kind.__name__ in ("Encoder", "Decoder"):
        return lambda pickler, found: (functools.partial(kind, **_parts_of(found, _CODEC)), ())
    if kind.__name__ == "finfo" and str(kind.__module__).partition(".")[0] == "numpy":
        return lambda pickler, found: (kind, (found.dtype,))
    return None


_OPEN_DATABASES = {("dbm.dumb", "_Database"), ("shelve", "DbfilenameShelf")}
"""Types whose copy on an engine would write into the same files when it is collected."""
_SCANNER = ("strict", "object_hook", "object_pairs_hook", "parse_float", "parse_int", "parse_constant")
_CODEC = (
    "type", "strict", "dec_hook", "float_hook", "ext_hook", "enc_hook", "decimal_format", "uuid_format", "order"
)  # fmt: skip


def _parts_of(found: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(found, name) for name in names if hasattr(found, name)}


def _of_global_names(kind: Any) -> Any:
    """Find the reducer for objects that pickle writes as the name of a global (their ``__reduce__`` returns a string).

    Engines have no such name in a notebook or script: what wraps a function, such as cachetools' ``cached``, travels
    with its attributes; another object is compared by identity.
    """
    if not _own_reduce(kind) or (not hasattr(kind, "__get__") and travel(kind.__module__) is Travel.REFERENCE):
        return None
    finders = (find(kind) for find in KINDS if find is not _of_global_names)
    plain = next(filter(None, finders), None) or plain_reducer(kind)

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        reduced = found.__reduce_ex__(5)
        if not isinstance(reduced, str):
            if _is_of_class(reduced[1], found):
                if len(reduced[1]) > 2:  # what else it needs, such as SQLAlchemy's mapping, is not in the class
                    raise pickle.PicklingError(f"cannot pickle {kind.__name__!r} object: it is made with its class")
                return _by_attributes(found)
            return reduced if plain is None else plain(pickler, found)
        way = travel(module := module_with(found, reduced))
        if way is not Travel.LOOSE:
            return NotImplemented if way is Travel.REFERENCE else by_member(module, reduced)
        if hasattr(kind, "__get__"):
            return _by_attributes(found)
        start: Any = _by_identity(found, values.named_object, kind)
        if start is NotImplemented:
            return start
        return (*start, object.__getstate__(found), None, None, values.fill_named)

    return reduce


def _is_of_class(arguments: tuple[Any, ...], found: object) -> bool:
    """Return whether arguments name a class that travels by value, and the name of an object in it."""
    classes = [each for each in arguments if isinstance(each, type) and find_named(each) is None]
    return any(vars(cls).get(name) is found for cls in classes for name in arguments if isinstance(name, str))


def _by_attributes(found: object) -> Reduced:
    """Reduce what a decorator has made of a function to its attributes."""
    state, locks = without_locks(object.__getstate__(found))
    return values.new_wrapping, (type(found), locks), state, None, None, values.fill_state


def _of_module_singles(kind: Any) -> Any:
    """Find the reducer for types of which a module keeps instances to compare by identity, ``A = Action("a")``."""
    module = sys.modules.get(kind.__module__) if isinstance(kind.__module__, str) else None
    if module is None or travel(kind.__module__) is Travel.LOOSE or kind in copyreg.dispatch_table:
        return None
    if kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__:
        return None
    names = [name for name, value in list(vars(module).items()) if type(value) is kind]
    plain = plain_reducer(kind)

    def reduce(pickler: Pickler, found: Any) -> Reduced:
        for name in names:
            if vars(module).get(name) is found:
                state = _state_of(found)
                if state is None:
                    return by_member(kind.__module__, name)
                if _has_names_only(kind, state):
                    return values.member_of_state, (module, name, kind, state)
        return NotImplemented if plain is None else plain(pickler, found)

    return reduce if names else None


def _state_of(found: Any) -> Any:
    """Return the state that pickle writes; `ABSENT` if it writes more, or refuses the object."""
    try:
        _, arguments, *state = found.__reduce_ex__(2)
    except Exception:
        return ABSENT
    return state[0] if state and arguments == (type(found),) and not any(state[1:]) else ABSENT


def _has_names_only(kind: Any, state: Any) -> bool:
    """Return whether attributes are texts or None, and the object is equal to itself only."""
    if kind.__eq__ is not object.__eq__ or hasattr(kind, "__setstate__"):
        return False
    parts = state if isinstance(state, tuple) else (state,)
    return all(each is None or {str, type(None)}.issuperset(map(type, each.values())) for each in parts)


REDUCERS[vars(typing)["_GenericAlias"]] = _reduce_alias
KINDS[:0] = [of_library, _of_global_names]
KINDS += [_of_compiled, _of_name_resolver, _of_few_parts, of_wrapt, *shared_state.KINDS, _of_module_singles]
BASES.update(
    {
        vars(io)["IOBase"].__base__: _reduce_stream,
        logging.Handler: _reduce_handler,
        random.Random: _reduce_generator,
        types.ModuleType: _reduce_module_of_own_class,
        classmethod: _reduce_wrapped,
        staticmethod: _reduce_wrapped,
        property: _reduce_property,
        functools.cached_property: _reduce_cached_property,
    }
)
