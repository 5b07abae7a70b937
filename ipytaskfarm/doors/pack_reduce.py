"""The pickler: C speed for plain data, Python only for what has no name on the other side.

`Pickler.reducer_override` is asked about every object that is not a builtin container, number or string.  It answers
for functions, classes and modules that travel by value, for the parts that those are made of, and for a few types
that `pickle` refuses though they can travel (properties, cached properties, TypeVars, exceptions with constructors
of their own).  All else is left to `pickle`.

The way of taking functions and classes apart was learnt from cloudpickle.  Ours differs in the globals (see
`pack_build`), in modules (whole sources, see `pack_modules`) and in classes, whose definitions have a digest: data
that holds an instance carries the definition as a pickle of its own, made once and opened once.
"""

from __future__ import annotations

import abc
import builtins
import copyreg
import dataclasses
import enum
import functools
import linecache
import marshal
import pickle
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from ..core.errors import UnpickleableException
from . import pack_build as build
from .pack_bundles import Imports, bundle_of, imported_by
from .pack_globals import engine_owns, global_names, imports_by_name, last_line, loaded_submodules
from .pack_modules import load_module, offer, offer_folder
from .pack_origin import Travel, project_roots, travel

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_SOURCE_CHARACTERS_MAX = 20_000
Reduced = Any
"""What ``__reduce_ex__`` may return, or NotImplemented: pickle's own way."""


class Home:
    """Stands in a pickle for the globals that its by-value functions shared."""

    __slots__ = ("module_name", "package")

    def __init__(self, module_name: str, package: str = "") -> None:
        self.module_name = module_name
        self.package = package


class Pickler(pickle.Pickler):
    """One per pack at a time; `pack` keeps a few and uses them again."""

    inline = False
    """Whether classes are taken apart in this pickle, not in one of their own."""
    _homes: dict[int, tuple[dict[str, Any], Home]] | None = None
    class_digests: Callable[[type], tuple[str, str]]
    """The digests by which a class is known, see `pack_cache`, which sets it (it needs the pickler itself)."""
    packed_class: Callable[[type], tuple[str, str, bytes]]
    """The same and its packed definition."""

    def reducer_override(self, obj: Any) -> Reduced:
        kind = type(obj)
        reducer = REDUCERS.get(kind)
        if reducer is not None:
            return reducer(self, obj)
        if issubclass(kind, type):
            return reduce_class(self, obj)
        if issubclass(kind, BaseException):
            return reduce_exception(obj)
        return NotImplemented

    def home(self, function_globals: dict[str, Any]) -> Home:
        """The stand-in for these globals, the same for all functions of this pickle."""
        if self._homes is None:
            self._homes = {}
        found = self._homes.get(id(function_globals))
        if found is None:
            name = function_globals.get("__name__")
            found = (
                function_globals,
                Home(name if isinstance(name, str) else "__main__", package_of(function_globals)),
            )
            self._homes[id(function_globals)] = found
        return found[1]

    def forget(self) -> None:
        """Ready for the next object."""
        self.clear_memo()
        self._homes = None


def reduced_by_pickle(obj: Any) -> Any:
    """What pickle by itself would be told about an object."""
    registered = copyreg.dispatch_table.get(type(obj))
    return obj.__reduce_ex__(5) if registered is None else registered(obj)


def find_named(obj: Any) -> tuple[Travel, str, str] | None:
    """How a function or class is reached by name; None when it cannot be, and has to travel by value."""
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        return None
    kind = travel(module_name)
    if kind is Travel.LOOSE:
        return None
    found: Any = sys.modules[module_name]
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return (kind, module_name, qualname) if found is obj else None


# --------------------------------------------------------------------------------------------------
# Functions


def reduce_function(pickler: Pickler, function: types.FunctionType) -> Reduced:
    """By name if it has one, else code, cells and state."""
    if build.is_call(function.__code__):
        return build.same, (vars(function)["__wrapped__"],)
    named = find_named(function)
    if named is not None:
        kind, module_name, qualname = named
        return NotImplemented if kind is Travel.REFERENCE else by_member(module_name, qualname)
    registry = dispatched(function)
    if registry is not None:
        return build.new_single_dispatch, (), {"registry": registry}, None, None, build.fill_single_dispatch
    home = home_module(function.__globals__)
    state = function_state(function, home is None)
    start = (function.__code__, pickler.home(function.__globals__) if home is None else home, function.__closure__)
    return build.new_function, start, state, None, None, build.fill_function


def dispatched(function: types.FunctionType) -> dict[type, Any] | None:
    """What a `functools.singledispatch` function dispatches to; its own cache cannot travel."""
    if function.__globals__ is not vars(functools) or "registry" not in function.__dict__:
        return None
    return dict(function.__dict__["registry"])


def by_member(module_name: str, qualname: str) -> Reduced:
    """A member of a module that travels as source."""
    return build.load_member, (sys.modules[module_name], qualname)


def home_module(function_globals: dict[str, Any]) -> types.ModuleType | None:
    """The module whose globals these are, if the whole module will be on the other side."""
    name = function_globals.get("__name__")
    if not isinstance(name, str) or travel(name) is Travel.LOOSE:
        return None
    module = sys.modules[name]
    return module if module.__dict__ is function_globals else None


def package_of(function_globals: dict[str, Any]) -> str:
    """The package that relative imports in these globals start from; "" outside packages."""
    package = function_globals.get("__package__")
    return package if isinstance(package, str) else ""


def imports_of(function: types.FunctionType) -> Imports | None:
    """What a by-value function imports while it runs, if anything of it goes by value, or is imported by name only."""
    code = function.__code__
    names = imported_by(code, package_of(function.__globals__))
    dynamic = imports_by_name(code)
    if not names and not dynamic:
        return None
    roots = project_roots() if dynamic else ()
    return Imports(tuple(map(bundle_of, names)), roots[0] if roots else "")


def used_globals(function: types.FunctionType) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the globals the function uses that are there, the names of those that are not), both in order of name."""
    here = function.__globals__
    # A function that came here by value has builtins and names of the engine among its globals.
    names = here.get("__builtins__")
    not_own = names.wanted - names.packed.keys() if isinstance(names, build.Names) else set()
    if not_own and build.loading.for_child:
        not_own = {name for name in not_own if here.get(name) is vars(builtins).get(name)}
    used: dict[str, Any] = {}
    wanted = []
    for name in global_names(function.__code__):
        if name in here and name not in not_own and not engine_owns(name, here):
            used[name] = here[name]
        else:
            wanted.append(name)
    return used, tuple(wanted)


def function_state(function: types.FunctionType, with_globals: bool) -> dict[str, Any]:
    """All but code, globals and cells; what is absent is empty."""
    state: dict[str, Any] = {
        "name": function.__name__,
        "qualname": function.__qualname__,
        "module": function.__module__,
    }
    optional = {
        "defaults": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
        "annotations": function.__annotations__,
        "dict": function.__dict__,
        "type_params": getattr(function, "__type_params__", None),
    }
    state.update((key, value) for key, value in optional.items() if value)
    constants = function.__code__.co_consts
    if function.__doc__ is not (constants[0] if constants else None):
        state["doc"] = function.__doc__
    if with_globals:
        used, wanted = used_globals(function)
        if used:
            state["used"] = used
        if wanted:
            state["wanted"] = wanted
        submodules = loaded_submodules(used.values(), function.__code__)
        if submodules:
            state["submodules"] = submodules
        imports = imports_of(function)
        if imports is not None:
            state["imports"] = imports
        source = source_of(function.__code__)
        if source is not None:
            state["source"] = source
    return state


def source_of(code: types.CodeType) -> tuple[int, str] | None:
    """(first line, text) for tracebacks, if the lines are at hand."""
    lines = linecache.getlines(code.co_filename)
    text = "".join(lines[code.co_firstlineno - 1 : last_line(code)])
    return (code.co_firstlineno, text) if 0 < len(text) <= _SOURCE_CHARACTERS_MAX else None


def _reduce_home(pickler: Pickler, home: Home) -> Reduced:
    return (
        (build.new_names_in, (home.module_name, home.package))
        if home.package
        else (build.new_names, (home.module_name,))
    )


def _reduce_imports(pickler: Pickler, imports: Imports) -> Reduced:
    if imports.folder:
        pickler_folder = Imports(imports.bundles)
        return offer_folder, (imports.folder, *((pickler_folder,) if imports.bundles else ()))
    return offer, (tuple((each.name, each.digest, each.packed) for each in imports.bundles),)


def _reduce_code(pickler: Pickler, code: types.CodeType) -> Reduced:
    return build.load_code, (PYTHON, marshal.dumps(code))


def _reduce_cell(pickler: Pickler, cell: types.CellType) -> Reduced:
    try:
        content: tuple[Any, ...] = (cell.cell_contents,)
    except ValueError:
        content = ()
    return build.new_cell, (), content, None, None, build.fill_cell


def _reduce_method(pickler: Pickler, method: types.MethodType) -> Reduced:
    # pickle's way is getattr(owner, name), which is right for all but functions bound by hand.
    name = getattr(method.__func__, "__name__", None)
    if name is not None and getattr(getattr(method.__self__, name, None), "__func__", None) is method.__func__:
        return NotImplemented
    return build.new_bound, (method.__func__, method.__self__)


def reduce_module(pickler: Pickler, module: types.ModuleType) -> Reduced:
    """By name, or as source."""
    name = module.__name__
    kind = travel(name)
    if sys.modules.get(name) is not module:
        raise UnpickleableException(f"module {name!r} cannot travel: it is not the one that 'import {name}' gives")
    if kind is Travel.SOURCE:
        bundle = bundle_of(name)
        return load_module, (name, bundle.digest, bundle.packed)
    if kind is Travel.LOOSE and name != "__main__":
        raise UnpickleableException(f"module {name!r} cannot travel: it has no source")
    return build.load_reference, (name,)


# --------------------------------------------------------------------------------------------------
# Classes

_TYPES_OF_TYPES = {
    value: name
    for name, value in vars(types).items()
    if isinstance(value, type) and value.__module__ == "builtins" and not hasattr(builtins, value.__name__)
}
_NOT_ATTRIBUTES = frozenset(
    {"__dict__", "__weakref__", "__slotnames__", "_abc_impl", "__module__", "__firstlineno__", "__static_attributes__"}
)
_ENUM_OWN = frozenset(
    {"_generate_next_value_", "_member_names_", "_member_map_", "_value2member_map_", "_unhashable_values_"}
    | {"_unhashable_values_map_", "_member_type_", "_value_repr_", "_new_member_", "_use_args_", "_boundary_"}
    | {"_flag_mask_", "_singles_mask_", "_all_bits_", "_inverted_", "_hashable_values_", "__new__", "_iter_member_"}
)


def reduce_class(pickler: Pickler, cls: type) -> Reduced:
    """By name if it has one, else by its definition."""
    named = find_named(cls)
    if named is not None:
        kind, module_name, qualname = named
        return NotImplemented if kind is Travel.REFERENCE else by_member(module_name, qualname)
    if cls in _TYPES_OF_TYPES:
        return build.load_builtin_type, (_TYPES_OF_TYPES[cls],)
    if cls.__module__ == "builtins" or cls.__flags__ & (1 << 8):  # Py_TPFLAGS_IMMUTABLETYPE: made in C
        return NotImplemented
    if not pickler.inline:
        return build.load_class, pickler.packed_class(cls)
    return take_apart(cls, *pickler.class_digests(cls))


def take_apart(cls: type, born: str, digest: str) -> Reduced:
    """The definition of a class: a skeleton, then its attributes."""
    attributes = class_attributes(cls)
    state: dict[str, Any] = {"attributes": attributes}
    namespace: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    if "__orig_bases__" in attributes:
        namespace["__orig_bases__"] = attributes.pop("__orig_bases__")  # Generic looks at it when the class is made
    registered = _registered(cls)
    if registered:
        state["registered"] = registered
    if isinstance(cls, enum.EnumMeta):
        members = enum_members(cls)
        exact = _EXACT.get(vars(cls)["_member_type_"])
        if exact is not None and isinstance(cls.__dict__.get("__new_member__"), types.FunctionType):
            members = {name: (exact(cls[name]), value) for name, value in members.items()}
            namespace["__new__"] = build.new_exact_member
        state["members"] = enum_extras(cls)
        boundary = cls.__dict__.get("_boundary_")
        start: tuple[Any, ...] = (born, digest, type(cls), cls.__name__, cls.__bases__, namespace, members, boundary)
        return build.new_enum, start, state, None, None, build.fill_class
    if "__slots__" in cls.__dict__:
        namespace["__slots__"] = attributes.pop("__slots__")
    start = (born, digest, type(cls), cls.__name__, cls.__bases__, namespace)
    return build.new_class, start, state, None, None, build.fill_class


def class_attributes(cls: type) -> dict[str, Any]:
    """What the class statement put there, and what was set later; not what Python adds by itself."""
    found = {}
    is_enum = isinstance(cls, enum.EnumMeta)
    for name, value in cls.__dict__.items():
        if name in _NOT_ATTRIBUTES or isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            continue
        if is_enum and (name in _ENUM_OWN or name in cls.__members__):  # type: ignore[attr-defined]
            continue
        found[name] = value
    return found


_EXACT: dict[type, Callable[[Any], Any]] = {
    bytes: bytes,
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    tuple: tuple,
}
"""What a member of such an enumeration is, without its being a member."""


def enum_members(cls: Any) -> dict[str, Any]:
    """Name -> value, other names of a member included."""
    return {name: member._value_ for name, member in cls.__members__.items()}


def enum_extras(cls: Any) -> dict[str, dict[str, Any]]:
    """What members hold beside name and value (set by an ``__init__`` of the enumeration)."""
    own = {"_value_", "_name_", "__objclass__", "_sort_order_"}
    found = {}
    for name, member in cls.__members__.items():
        extra = {key: value for key, value in member.__dict__.items() if key not in own}
        if extra:
            found[name] = extra
    return found


def _registered(cls: type) -> list[type]:
    if not isinstance(cls, abc.ABCMeta):
        return []
    dump = getattr(__import__("_abc"), "_get_dump", None)
    registry: Iterable[Callable[[], type | None]] = dump(cls)[0] if dump is not None else ()
    found = [reference() for reference in registry]
    return sorted((each for each in found if each is not None), key=lambda each: each.__qualname__)


# --------------------------------------------------------------------------------------------------
# Odds and ends


def reduce_exception(error: BaseException) -> Reduced:
    """pickle calls the class with ``args``, which fails when its ``__init__`` wants something else."""
    cls = type(error)
    if not isinstance(cls.__init__, types.FunctionType) or cls.__new__ is not _new_of_builtin(cls):
        return NotImplemented
    if cls.__reduce_ex__ is not object.__reduce_ex__ or isinstance(cls.__reduce__, types.FunctionType):
        return NotImplemented
    reduced: Any = error.__reduce__()
    return build.new_exception, (cls, reduced[1], reduced[2] if len(reduced) > 2 else None)


def _new_of_builtin(cls: type[BaseException]) -> Any:
    return next(base for base in cls.__mro__ if base.__module__ == "builtins").__new__


def _reduce_property(pickler: Pickler, found: property) -> Reduced:
    return build.new_property, (found.fget, found.fset, found.fdel, found.__doc__)


def _reduce_wrapped(pickler: Pickler, found: staticmethod[Any, Any] | classmethod[Any, Any, Any]) -> Reduced:
    return type(found), (found.__func__,)


def _reduce_cached_property(pickler: Pickler, found: functools.cached_property[Any]) -> Reduced:
    return build.new_cached_property, (found.func, found.attrname)


def _reduce_lru_cache(pickler: Pickler, found: Any) -> Reduced:
    named = find_named(found)
    if named is not None:
        kind, module_name, qualname = named
        return NotImplemented if kind is Travel.REFERENCE else by_member(module_name, qualname)
    parameters = found.cache_parameters()
    return build.new_lru_cache, (found.__wrapped__, parameters["maxsize"], parameters["typed"])


def _reduce_builtin(pickler: Pickler, found: types.BuiltinFunctionType) -> Reduced:
    # A compiled module of the user's goes with the folder in which to look for it.
    if travel(found.__module__) is not Travel.SOURCE:
        return NotImplemented
    named = find_named(found)
    return NotImplemented if named is None else by_member(named[1], named[2])


def _reduce_mapping_proxy(pickler: Pickler, found: types.MappingProxyType[Any, Any]) -> Reduced:
    return build.new_mapping_proxy, (dict(found),)


def _reduce_dict_view(pickler: Pickler, found: Iterable[Any]) -> Reduced:
    return build.new_dict_view, (type(found).__name__.removeprefix("dict_"), list(found))


def _reduce_type_variable(pickler: Pickler, found: Any) -> Reduced:
    named = find_named_variable(found)
    if named is not None:
        return named
    start = (found.__name__, found.__bound__, found.__constraints__, found.__covariant__, found.__contravariant__)
    return build.new_type_variable, start


def find_named_variable(found: Any) -> Reduced:
    """TypeVars and NewTypes are found in their modules by their names; None: not there."""
    module_name: Any = found.__module__
    name: str = found.__name__
    kind = travel(module_name)
    if kind is Travel.LOOSE or vars(sys.modules[module_name]).get(name) is not found:
        return None
    return NotImplemented if kind is Travel.REFERENCE else by_member(module_name, name)


def _reduce_new_type(pickler: Pickler, found: Any) -> Reduced:
    named = find_named_variable(found)
    return named if named is not None else (build.new_new_type, (found.__name__, found.__module__, found.__supertype__))


_SENTINELS = {
    id(value): name
    for name, value in vars(dataclasses).items()
    if type(value).__module__ == "dataclasses" and not isinstance(value, type | types.FunctionType)
}
SENTINEL_TYPES = tuple({type(vars(dataclasses)[name]) for name in _SENTINELS.values()})
"""Of objects that are compared by identity, and that pickle would copy."""


def _reduce_sentinel(pickler: Pickler, found: Any) -> Reduced:
    name = _SENTINELS.get(id(found))
    return NotImplemented if name is None else (build.load_sentinel, ("dataclasses", name))


REDUCERS: dict[type, Callable[[Pickler, Any], Reduced]] = {
    types.FunctionType: reduce_function,
    types.ModuleType: reduce_module,
    types.CodeType: _reduce_code,
    types.CellType: _reduce_cell,
    types.MethodType: _reduce_method,
    Home: _reduce_home,
    Imports: _reduce_imports,
    type: reduce_class,
    property: _reduce_property,
    staticmethod: _reduce_wrapped,
    classmethod: _reduce_wrapped,
    functools.cached_property: _reduce_cached_property,
    functools._lru_cache_wrapper: _reduce_lru_cache,
    types.MappingProxyType: _reduce_mapping_proxy,
    types.BuiltinFunctionType: _reduce_builtin,
    type({}.keys()): _reduce_dict_view,
    type({}.values()): _reduce_dict_view,
    type({}.items()): _reduce_dict_view,
    typing.TypeVar: _reduce_type_variable,
    typing.NewType: _reduce_new_type,
    **dict.fromkeys(SENTINEL_TYPES, _reduce_sentinel),
}
