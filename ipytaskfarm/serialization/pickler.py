"""The pickler: plain data is written at C speed, and Python code handles only objects that have no name on the other
side.

`Pickler.reducer_override` is called for each object that is not a builtin container, number or string. It handles
functions, classes and modules that travel by value, the parts that they consist of, and a few types that `pickle`
refuses although they can travel (properties, cached properties, TypeVars, exceptions with constructors of their own).
`pickle` handles all other objects.

The way of taking functions and classes apart comes from cloudpickle. This pickler differs in three points: the globals
of functions (see `rebuild`), modules (whole sources, see `modules`), and classes. The definition of a class has a
digest; data that holds an instance carries the definition as a pickle of its own, which is made once and opened once.
"""

from __future__ import annotations

import builtins
import copyreg
import dataclasses
import functools
import io
import marshal
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from . import (
    rebuild as build,
    rebuild_classes as build_classes,
    rebuild_errors as build_errors,
    rebuild_values as build_values,
    session_state,
)
from .definition_stages import LEAVES, STAGE_REDUCERS, Stages, join, reduced
from .function_globals import Names
from .function_imports import imports_of
from .function_parts import added_attributes, annotations_of, cell_state, closure_of, makers_of, takes
from .global_names import (
    added_by_rewriting,
    annotation_names,
    can_be_sent,
    engine_owns,
    global_names,
    is_hint,
    loaded_submodules,
    only_in_texts,
    source_of,
)
from .hash_cycles import CYCLE_REDUCERS, Cycles, dump_settled, has_own_hash, reduce_hashed
from .module_bundles import Imports, bundle_of
from .module_origin import Travel, home_module, package_of, travel
from .modules import load_module, offer, offer_folder
from .named_functions import name_of, state_of_name
from .process_values import own_value

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
Reduced = Any
"""The return value of ``__reduce_ex__``, or NotImplemented for pickle's own way."""


class GlobalsHome:
    """Stand-in, in a pickle, for the globals that its by-value functions share."""

    __slots__ = ("module_name", "package")

    def __init__(self, module_name: str, package: str = "") -> None:
        self.module_name = module_name
        self.package = package


class Pickler(pickle.Pickler):
    """Pickler for one object at a time; `pack` keeps a few of them for reuse."""

    inline = False
    """Whether this pickle contains the definitions of classes itself, not as pickles of their own."""
    _homes: dict[int, tuple[dict[str, Any], GlobalsHome]] | None = None
    class_digests: Callable[[type], tuple[str, str, str]]
    """Returns the digests by which a class is known, and that of all it has. `cache`, which needs this, sets it."""
    packed_class: Callable[[type], tuple[str, str, bytes]]
    """Returns the two digests of a class and its packed definition."""

    def reducer_override(self, obj: Any) -> Reduced:
        kind = type(obj)
        reducer = REDUCERS.get(kind)
        if reducer is not None:
            return reducer(self, obj)
        try:
            reducer = self.kinds[kind]
        except KeyError:
            reducer = self.kinds[kind] = _reducer_of_kind(kind)
        return NotImplemented if reducer is None else reducer(self, obj)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.kinds: dict[type, Callable[[Pickler, Any], Reduced] | None] = {}
        """Reducers of the types that this pickle met and that are not in `REDUCERS`."""
        self.value: Any = None
        """The object that is being pickled."""
        self.cycles: Cycles | None = None
        """The objects that hold themselves in sets, see `hash_cycles`."""
        self.stages: Stages | None = None
        """The stages that definitions join at present, see `definition_stages`."""
        self.opened: list[Stages] = []
        """All stages of this pickle so far."""
        self.suspended: list[Stages | None] = []
        self.owner: type | None = None
        """The class that the most recently written step belongs to."""
        self.owners: dict[int, type] = {}
        """Address of a function or cell -> the class that is incomplete without it."""

    def home(self, function_globals: dict[str, Any]) -> GlobalsHome:
        """Return the stand-in for these globals: one object for all functions of this pickle."""
        if self._homes is None:
            self._homes = {}
        found = self._homes.get(id(function_globals))
        if found is None:
            name = function_globals.get("__name__")
            found = (
                function_globals,
                GlobalsHome(name if isinstance(name, str) else "__main__", package_of(function_globals)),
            )
            self._homes[id(function_globals)] = found
        return found[1]

    def forget(self) -> None:
        """Reset the pickler for the next object."""
        self.clear_memo()
        self._homes = None
        self.owner = None
        self.cycles = None
        self.opened = []
        if self.owners:
            self.owners = {}
        if self.kinds:
            self.kinds = {}


def _reducer_of_kind(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Return the reducer for instances of a type that `REDUCERS` does not list; None leaves them to pickle."""
    inherited = inherited_reducer(kind)
    if inherited is not None:
        return None if _is_registered(kind) else inherited
    for find in KINDS:
        found = find(kind)
        if found is not None:
            return found
    return plain_reducer(kind)


def plain_reducer(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Return the reducer for instances of any other type; None leaves them to pickle."""
    if has_own_hash(kind):
        return reduce_hashed
    return _reduce_guarded if _answers_before_its_state(kind) else None


def _answers_before_its_state(kind: Any) -> bool:
    """Return whether pickle's look-up of ``__setstate__`` may call a ``__getattr__`` that needs state not set yet."""
    return is_reduced_by_default(kind) and hasattr(kind, "__getattr__") and not hasattr(kind, "__setstate__")


def is_reduced_by_default(kind: Any) -> bool:
    by_default = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    return by_default and kind not in copyreg.dispatch_table


def _reduce_guarded(pickler: Pickler, found: Any) -> Reduced:
    reduced = found.__reduce_ex__(5)
    if not isinstance(reduced, tuple) or len(reduced) < 3 or reduced[2] is None:
        return reduced
    return (*(*reduced, None, None)[:5], build_values.fill_state)


KINDS: list[Callable[[type], Callable[[Any, Any], Reduced] | None]] = []
"""Further functions that find the reducer of a type that is not in `REDUCERS`."""


def dumps_inline(obj: Any, take: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """Return one pickle of the object that contains the definitions of its classes.

    `take` is called with each buffer and returns whether the buffer stays in the pickle; None keeps all buffers in it.
    """
    return dump_inline(obj, Pickler, take)


def dumps_to_compare(obj: Any, refer: Callable[[Any], bytes | None] | None = None) -> bytes:
    """Return a pickle to compare, without digests of classes; `refer` returns what stands for an object, or None."""
    kind = _Nameless if refer is None else type("_Referring", (_Referring,), {"refer": staticmethod(refer)})
    return dump_inline(obj, kind, None)


def dump_inline(obj: Any, kind: type[Pickler], take: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    file = io.BytesIO()
    pickler = kind(file, 5, buffer_callback=take)
    pickler.inline = True
    dump_settled(pickler, file, obj)
    return file.getvalue()


class _Nameless(Pickler):
    class_digests = staticmethod(lambda cls: ("", "", ""))


class _Referring(_Nameless):
    refer: Callable[[Any], bytes | None]

    def reducer_override(self, obj: Any) -> Reduced:
        reference = self.refer(obj)
        return super().reducer_override(obj) if reference is None else (bytes, (reference,))


def reduced_by_pickle(obj: Any) -> Any:
    """Return the reduction of an object by pickle's own rules."""
    registered = copyreg.dispatch_table.get(type(obj))
    return obj.__reduce_ex__(5) if registered is None else registered(obj)


def find_named(obj: Any) -> tuple[Travel, str, str] | None:
    """Return (way of travelling, module name, qualified name) of a function or class; None if no name reaches it."""
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


_BUILDERS = frozenset(
    id(value)
    for module in (build, build_classes, build_errors, build_values)
    for value in vars(module).values()
    if isinstance(value, types.FunctionType) and value.__module__ == module.__name__
)
"""The functions that our own pickles call: most of the functions in a pickle, and all of them go by name."""


def reduce_function(pickler: Pickler, function: types.FunctionType) -> Reduced:
    """Reduce a function to its name if it can be reached by name, else to code, cells and state."""
    if id(function) in _BUILDERS:
        return NotImplemented
    if build.is_call(function.__code__):
        return build.same, (vars(function)["__wrapped__"],)
    named = find_named(function)
    if named is not None:
        kind, module_name, qualname = named
        return NotImplemented if kind is Travel.REFERENCE else by_member(module_name, qualname)
    if function.__qualname__ == "<lambda>" and (found := named_lambda(function)) is not None:
        return found
    registry = dispatched(function)
    if registry is not None:
        stages, steps = join(pickler, by_value)
        stages.add(build.fill_single_dispatch, function, {"registry": registry}, pickler.owner)
        stages.add_each(build_classes.update_attributes, function, added_attributes(function), pickler.owner)
        return reduced(build.new_single_dispatch, (), steps)
    home = home_module(function.__globals__)
    state = function_state(function, home is None)
    state.update(state_of_name(function))
    start = (function.__code__, pickler.home(function.__globals__) if home is None else home, function.__closure__)
    stages, steps = join(pickler, by_value)
    owner = pickler.owners.get(id(function), pickler.owner)
    if owner is not None:
        pickler.owners.update((id(cell), owner) for cell in function.__closure__ or ())
    return reduced(build_classes.create_function, (*start, _staged(stages, function, state, owner)), steps)


def named_lambda(function: types.FunctionType) -> Reduced:
    """Reduce a lambda, which programs compare by identity, to the variable that holds it; None: it is none of a module
    that the other side has.
    """
    kind, name = travel(function.__module__), name_of(function)
    if kind is Travel.LOOSE or name is None:
        return None
    if kind is Travel.SOURCE:
        return by_member(function.__module__, name)
    return build.load_sentinel, (function.__module__, name)


def by_value(cls: type) -> bool:
    """Return whether instances of the class can be built only where its by-value definition has arrived."""
    made_by_library = is_made_in_c(cls) or cls.__module__ == "_ctypes" or _is_registered(type(cls))
    return not made_by_library and find_named(cls) is None


def _is_registered(metaclass: type) -> bool:
    """Return whether a library has told `copyreg` how its classes are made, as sympy has for ``Function("f")``."""
    registered = metaclass in copyreg.dispatch_table and issubclass(metaclass, type)
    return registered and find_named(metaclass) is not None


def is_made_in_c(cls: type) -> bool:
    """Return whether nobody can change the class. Its module does not tell: it is "builtins" after a plain `exec`."""
    return bool(cls.__flags__ & 1 << 8)  # Py_TPFLAGS_IMMUTABLETYPE


def is_free(value: Any) -> bool:
    """Return whether a value needs no definition that travels by value."""
    kind = type(value)
    if kind in LEAVES:
        return True
    if kind is tuple or kind is frozenset:
        return LEAVES.issuperset(map(type, value))
    return isinstance(value, type) and (is_made_in_c(value) or find_named(value) is not None)


def _staged(stages: Stages, function: types.FunctionType, state: dict[str, Any], owner: type | None) -> dict[str, Any]:
    """Return the part of a function's state that is needed to create it; add the rest to the stages as steps."""
    waiting: dict[str, Any] = {}
    for key, is_ready in _READY.items():
        if key in state and not is_ready(state[key]):
            waiting[key] = state.pop(key)
    for key, action in (("used", build_classes.use_global), ("dict", build_classes.update_attributes)):
        if key in state:
            named = state[key]
            state[key] = {name: value for name, value in named.items() if is_free(value)}
            stages.add_each(action, function, {name: named[name] for name in named if name not in state[key]}, owner)
    for key, value in waiting.items():
        stages.add(build.complete_function, function, {key: value}, owner)
    return state


def _all_free(values: dict[str, Any]) -> bool:
    return all(map(is_free, values.values()))


_READY: dict[str, Callable[[Any], bool]] = {
    "defaults": is_free,
    "kwdefaults": _all_free,
    "annotations": _all_free,
    "type_params": is_free,
    "submodules": lambda modules: False,
}


def dispatched(function: types.FunctionType) -> dict[type, Any] | None:
    """Return the registry of a `functools.singledispatch` function, whose own cache cannot travel; None for others."""
    if function.__globals__ is not vars(functools) or "registry" not in function.__dict__:
        return None
    return dict(function.__dict__["registry"])


def by_member(module_name: str, qualname: str) -> Reduced:
    """Reduce an object to a member of a module that travels as source."""
    return build.load_member, (sys.modules[module_name], qualname)


def used_globals(function: types.FunctionType) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (the globals that the function uses and that exist, the names of those that do not), both in order of
    name.
    """
    here = function.__globals__
    # A function that came here by value also has builtins and names of the engine among its globals.
    names = here.get("__builtins__")
    for_child = build.loading.for_child
    not_own = names.wanted - names.packed.keys() if isinstance(names, Names) else set()
    if not_own and for_child:
        not_own = {name for name in not_own if here.get(name) is vars(builtins).get(name)}
    taken = names.taken_values(for_child) if isinstance(names, Names) and names.taken else {}
    used: dict[str, Any] = {}
    wanted = []
    names_used = global_names(function.__code__)
    guessed = only_in_texts(function.__code__, names_used)
    hints = [name for name in annotation_names(annotations_of(function)) if name in here and is_hint(here[name])]
    for name in sorted({*names_used, *hints}) if hints else names_used:
        if name in taken:
            used[name] = taken[name]
        elif name in guessed and name in here and not can_be_sent(here[name], dumps_inline):
            wanted.append(name)
        elif name in here and name not in not_own and not engine_owns(name, here):
            used[name] = own_value(here[name], function, name)
        else:
            wanted.append(name)
    return used, tuple(wanted)


def used_submodules(function: types.FunctionType, with_globals: bool = True) -> list[types.ModuleType]:
    """Return the submodules that the function reaches through a package in its globals or cells (as after ``import
    xml``).
    """
    modules = [value for _, value in closure_of(function)]
    if with_globals:
        modules += used_globals(function)[0].values()
    return loaded_submodules(modules, function.__code__)


def function_state(function: types.FunctionType, with_globals: bool) -> dict[str, Any]:
    """Return the state of a function without code, globals and cells. Empty parts are left out."""
    state: dict[str, Any] = {
        "name": function.__name__,
        "qualname": function.__qualname__,
        "module": function.__module__,
    }
    optional = {
        "defaults": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
        "annotations": annotations_of(function),
        "dict": function.__dict__,
        "type_params": getattr(function, "__type_params__", None),
    }
    state.update((key, value) for key, value in optional.items() if value)
    submodules = used_submodules(function, with_globals)
    if submodules:
        state["submodules"] = submodules
    constants = function.__code__.co_consts
    if function.__doc__ is not (constants[0] if constants else None):
        state["doc"] = function.__doc__
    if with_globals:
        used, wanted = used_globals(function)
        session_state.look(function, used)
        if used:
            state["used"] = used
        if wanted:
            state["wanted"] = wanted
        imports = imports_of(function, used)
        if imports is not None:
            state["imports"] = imports
        source = source_of(function.__code__)
        if source is not None:
            state["source"] = source
    elif added := added_by_rewriting(function):
        state["added"] = added
    return state


def _reduce_home(pickler: Pickler, home: GlobalsHome) -> Reduced:
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
    content = cell_state(cell)
    if content and is_free(content[0]):
        return build.new_cell, (), content, None, None, build.fill_cell
    stages, steps = join(pickler, by_value)
    if content:
        stages.add(build.fill_cell, cell, content, pickler.owners.get(id(cell), pickler.owner))
    return reduced(build.new_cell, (), steps)


def reduce_method(pickler: Pickler, method: types.MethodType) -> Reduced:
    """Reduce a method to its name if its owner has it under that name, else to function and owner."""
    # pickle uses getattr(owner, name), which is right for all methods except functions that were bound by hand.
    name = getattr(method.__func__, "__name__", None)
    if name is not None and getattr(getattr(method.__self__, name, None), "__func__", None) is method.__func__:
        return NotImplemented
    return build.new_bound, (method.__func__, method.__self__)


_MODULE_OWN = frozenset({"__name__", "__doc__", "__builtins__", "__loader__", "__spec__", "__package__", "__cached__"})


def content_of(module: types.ModuleType) -> dict[str, Any] | None:
    """Return the content of a module that nobody can import (made by hand, or not in ``sys.modules``);
    None for others.
    """
    name = module.__name__
    if sys.modules.get(name) is module and (name == "__main__" or travel(name) is not Travel.LOOSE):
        return None
    return {key: value for key, value in vars(module).items() if key not in _MODULE_OWN}


def reduce_module(pickler: Pickler, module: types.ModuleType) -> Reduced:
    """Reduce a module to its name or its source; to its whole content if nobody can import it."""
    name = module.__name__
    kind = travel(name)
    content = content_of(module)
    if content is not None:
        return build_values.new_module, (name, module.__doc__), content, None, None, build_values.fill_module
    if kind is Travel.SOURCE:
        bundle = bundle_of(name)
        return load_module, (name, bundle.digest, bundle.packed)
    return build.load_reference, (name,)


# --------------------------------------------------------------------------------------------------
# Other types


def reduce_exception(error: BaseException) -> Reduced:
    """Reduce an exception whose own methods may want arguments other than ``args``, with which pickle would call it."""
    cls = type(error)
    is_usual = not isinstance(cls.__init__, types.FunctionType) or cls.__new__ is not _new_of_builtin(cls)
    if is_usual and takes(next(makers_of(cls)), 1 + len(error.args)):
        return NotImplemented
    if cls.__reduce_ex__ is not object.__reduce_ex__ or isinstance(cls.__reduce__, types.FunctionType):
        return NotImplemented
    reduced: Any = error.__reduce__()
    # The state comes afterwards, because it may contain the exception itself.
    state = reduced[2] if len(reduced) > 2 else None
    return build.new_exception, (cls, reduced[1], None), state, None, None, build_errors.fill_exception


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
    start = (found.__wrapped__, parameters["maxsize"], parameters["typed"])
    added = added_attributes(found) or None
    return build.new_lru_cache, start, added, None, None, build_classes.update_attributes


def _reduce_dict_view(pickler: Pickler, found: Iterable[Any]) -> Reduced:
    return build.new_dict_view, (type(found).__name__.removeprefix("dict_"), list(found))


def find_named_variable(found: Any) -> Reduced:
    """Reduce a TypeVar or NewType to its name; None if its module does not have it under that name."""
    module_name: Any = found.__module__
    name: str = found.__name__
    kind = travel(module_name)
    if kind is Travel.LOOSE or vars(sys.modules[module_name]).get(name) is not found:
        return None
    return NotImplemented if kind is Travel.REFERENCE else by_member(module_name, name)


_SENTINELS = {
    id(value): name
    for name, value in vars(dataclasses).items()
    if type(value).__module__ == "dataclasses" and not isinstance(value, type | types.FunctionType)
}
SENTINEL_TYPES = tuple({type(vars(dataclasses)[name]) for name in _SENTINELS.values()})
"""Types of objects that are compared by identity. pickle would copy such objects."""


def _reduce_sentinel(pickler: Pickler, found: Any) -> Reduced:
    name = _SENTINELS.get(id(found))
    return NotImplemented if name is None else (build.load_sentinel, ("dataclasses", name))


REDUCERS: dict[type, Callable[[Pickler, Any], Reduced]] = {
    types.FunctionType: reduce_function,
    types.ModuleType: reduce_module,
    types.CodeType: _reduce_code,
    types.CellType: _reduce_cell,
    types.MethodType: reduce_method,
    GlobalsHome: _reduce_home,
    Imports: _reduce_imports,
    property: _reduce_property,
    staticmethod: _reduce_wrapped,
    classmethod: _reduce_wrapped,
    functools.cached_property: _reduce_cached_property,
    functools._lru_cache_wrapper: _reduce_lru_cache,
    type({}.keys()): _reduce_dict_view,
    type({}.values()): _reduce_dict_view,
    type({}.items()): _reduce_dict_view,
    **dict.fromkeys(SENTINEL_TYPES, _reduce_sentinel),
    **STAGE_REDUCERS,
    **CYCLE_REDUCERS,
}
"""Exact type -> its reducer. `standard_values` adds more."""


BASES: dict[type, Callable[[Pickler, Any], Reduced]] = {BaseException: lambda pickler, error: reduce_exception(error)}
"""Base type -> the reducer of the types that inherit from it. `classes` and `standard_values` add more."""


def inherited_reducer(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Return the reducer of the first type in `BASES` that the given type inherits from; None if there is none."""
    return next((reducer for base, reducer in BASES.items() if issubclass(kind, base)), None)
