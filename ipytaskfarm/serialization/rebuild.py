"""What a pickle of ours calls to build functions, classes and modules again.

The names and signatures here are part of what is stored and sent: pickles name them.  Add new ones, never change
or remove one while pickles of an older version may be in a store.

The globals of functions are those of `function_globals`.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import importlib
import marshal
import pickle
import sys
import threading
import types
import typing
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from ..core.errors import VersionMismatch
from .function_globals import Names, placed, remember

_CLASSES_KEPT = 256
_SOURCES_KEPT = 256


class Loading(threading.local):
    """What the unpickling of this thread is for."""

    namespace: MutableMapping[str, Any] | None = None
    """The engine's user namespace; None: a client, whose own modules are taken as they are."""
    names: list[Names] | None = None
    """Collects the globals made, for `bind`."""
    before: list[Callable[[], Any]] | None = None
    """Collects what must be done before each call: the right versions of by-value modules put in place."""

    shared: Names | None = None
    """Globals that all functions are built over, in a child process."""
    for_child = False
    """Whether this thread packs for a child process, which does not have the engine's namespace."""


loading = Loading()
came: list[Any] = []
"""Functions and classes that were built here by value, in an engine (see `collect`), until somebody takes them."""
_collecting = [False]
_CAME_MAX = 10_000


def collect() -> None:
    """Note in `came` what is built by value from now on."""
    _collecting[0] = True


def is_own_side() -> bool:
    """Return whether what is unpacked came home: this is a client, whose own modules are taken as they are."""
    return loading.namespace is None and not _collecting[0]


def _note_came(obj: Any) -> None:
    if _collecting[0] and len(came) < _CAME_MAX:
        came.append(obj)


def bind(
    function: Callable[..., Any], names: list[Names], before: list[Callable[[], Any]] | None = None
) -> Callable[..., Any]:
    """Return a callable whose every call starts from the packed globals, with the right versions of modules in
    place."""
    if not names and not before:
        return function
    for each in names:
        each.wanted -= each.packed.keys()
        if placed.by:
            each.look_for_placed()
    steps: tuple[Callable[[], Any], ...] = (*(each.reset for each in names), *(before or ()))

    def call(*args: Any, **kwargs: Any) -> Any:
        for step in steps:
            step()
        return function(*args, **kwargs)

    functools.update_wrapper(call, function)
    if not any(each.assigned for each in names):
        call.steps = steps  # type: ignore[attr-defined]
    return call


def for_many(function: Callable[..., Any]) -> Callable[..., Any]:
    """For many calls in a row: start from the packed globals once, where no call can change what the next one sees."""
    steps = getattr(function, "steps", None)
    if steps is None or not is_call(getattr(function, "__code__", None)):
        return function
    for step in steps:
        step()
    inner: Callable[..., Any] = vars(function)["__wrapped__"]
    return inner


_CALL_CODE = next(
    each for each in bind.__code__.co_consts if isinstance(each, types.CodeType) and each.co_name == "call"
)


def is_call(code: types.CodeType | None) -> bool:
    """Return whether this is the code of what `bind` makes: the frame before the user's first."""
    return code is _CALL_CODE


# --------------------------------------------------------------------------------------------------
# Functions


def load_code(version: str, data: bytes) -> types.CodeType:
    """Bytecode runs on the Python minor version that made it alone."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version != here:
        raise VersionMismatch(
            f"this function was made by Python {version} and cannot run here on Python {here}: "
            f"use one minor version on both sides, or put the function in an installed module"
        )
    code: types.CodeType = marshal.loads(data)
    return code


def new_names(module_name: str) -> Names:
    """Fresh globals for the by-value functions of one pickle."""
    if loading.shared is not None:
        return loading.shared
    namespace = loading.namespace
    if namespace is None:
        namespace = sys.modules["__main__"].__dict__
    names = Names(module_name, namespace)
    if loading.namespace is not None:
        remember(names)
    if loading.names is not None:
        loading.names.append(names)
    return names


def new_names_in(module_name: str, package: str) -> Names:
    """Return the same, for a module of a package: relative imports in its functions look at ``__package__``."""
    names = new_names(module_name)
    names.packed["__package__"] = names.globals["__package__"] = package
    return names


def new_function(
    code: types.CodeType, home: Names | types.ModuleType, closure: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    """Return a function without its state: that follows by `fill_function`, so that it may refer to itself."""
    if isinstance(home, Names) and not home.assigned:
        home.assigned = _assigns(code)
    return types.FunctionType(code, home.globals if isinstance(home, Names) else home.__dict__, None, None, closure)


_ASSIGNING = frozenset(dis.opmap[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL"))
_REACHING = frozenset({"globals", "exec", "eval"})


def _assigns(code: types.CodeType) -> bool:
    """Return whether running it may change globals, as far as can be seen; data among the code may look like it, never
    the other way round."""
    if not _ASSIGNING.isdisjoint(code.co_code[::2]) or not _REACHING.isdisjoint(code.co_names):
        return True
    return any(isinstance(each, types.CodeType) and _assigns(each) for each in code.co_consts)


def fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    """Everything but code, globals and cells."""
    function.__name__ = state["name"]
    function.__qualname__ = state["qualname"]
    function.__module__ = state["module"]
    function.__defaults__ = state.get("defaults")
    function.__kwdefaults__ = state.get("kwdefaults")
    if "doc" in state:
        function.__doc__ = state["doc"]
    if "annotations" in state:
        function.__annotations__ = state["annotations"]
    if "dict" in state:
        function.__dict__.update(state["dict"])
    if "type_params" in state:
        function.__type_params__ = state["type_params"]  # type: ignore[attr-defined]
    add_globals(function, state.get("used", {}), state.get("wanted", ()))
    if "source" in state:
        remember_source(function.__code__.co_filename, *state["source"])
    _note_came(function)


def add_globals(function: types.FunctionType, used: dict[str, Any], wanted: tuple[str, ...] = ()) -> None:
    """Add to the globals that by-value functions share; a function of a module has the module's own."""
    names = function.__globals__.get("__builtins__")
    if isinstance(names, Names):
        names.add(used, wanted, function)
        if loading.names is None:  # nobody will do it afterwards
            names.settle()
    elif loading.shared is not None and loading.shared.globals is function.__globals__:
        loading.shared.add(used, wanted, function)


def new_single_dispatch() -> Any:
    """Return a `functools.singledispatch` function, empty: what it dispatches to may refer to it."""
    return functools.singledispatch(same)


def fill_single_dispatch(function: Any, state: dict[str, Any]) -> None:
    """Its implementations, the one for ``object`` among them."""
    for cls, implementation in state["registry"].items():
        function.register(cls, implementation)
    functools.update_wrapper(function, state["registry"][object])


def new_cell() -> types.CellType:
    """Return an empty cell: its content may refer to the function that holds it."""
    return types.CellType()


def fill_cell(cell: types.CellType, content: tuple[Any, ...]) -> None:
    """() leaves it empty."""
    if content:
        cell.cell_contents = content[0]


def load_member(module: types.ModuleType, qualname: str) -> Any:
    """Return a function or class of a module that travelled by value."""
    found: Any = module
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AttributeError(
                f"{qualname!r} is not in {module.__name__!r} as it stands in {getattr(module, '__file__', '?')}: "
                f"was it renamed after it was imported? Reload the module"
            ) from None
    return found


def load_reference(name: str) -> types.ModuleType:
    """Return a module that can be imported on both sides."""
    return importlib.import_module(name)


def load_builtin_type(name: str) -> Any:
    """Return a type that has no name in ``builtins``: it stands in ``types``."""
    return getattr(types, name)


# --------------------------------------------------------------------------------------------------
# Source lines of functions whose file is not here, for tracebacks

_sources: OrderedDict[str, dict[int, str]] = OrderedDict()


def remember_source(filename: str, first: int, text: str) -> None:
    """Keep the lines of a function; `source_lines` gives them back."""
    lines = _sources.setdefault(filename, {})
    _sources.move_to_end(filename)
    for number, line in enumerate(text.splitlines(keepends=True), first):
        lines[number] = line
    while len(_sources) > _SOURCES_KEPT:
        _sources.popitem(last=False)


def source_lines(filename: str) -> list[str] | None:
    """Return the lines known of that file, blank where unknown; None when nothing is."""
    known = _sources.get(filename)
    if not known:
        return None
    return [known.get(number, "\n") for number in range(1, max(known) + 1)]


# --------------------------------------------------------------------------------------------------
# Classes
#
# A class has a *digest* of its definition.  Where it was defined, it is registered under it, so that its instances
# come back as instances of that very class.  Where it was built from a pickle, it is built once per digest; if its
# attributes change afterwards it is still known by the digest that it was born with.

originals: dict[str, weakref.ref[type]] = {}
"""Digest -> a class defined in this process; the newest one, if the same cell ran twice."""
_built: OrderedDict[str, type] = OrderedDict()
_born: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
_unfilled: weakref.WeakKeyDictionary[type, tuple[str, str]] = weakref.WeakKeyDictionary()


hints: weakref.WeakKeyDictionary[type, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Class -> what the names in its string annotations stand for, if it came here by value."""


def born_digest(cls: type) -> str | None:
    """Return the digest by which the class came into this process; None for one defined here."""
    return _born.get(cls)


def known_class(born: str, digest: str) -> type | None:
    """Return the class that these digests stand for, if this process has it."""
    reference = originals.get(born)
    original = reference() if reference is not None else None
    if original is not None:
        return original
    built = _built.get(digest)
    if built is not None:
        _built.move_to_end(digest)
    return built


def note_unfilled(cls: type, born: str, digest: str) -> None:
    """The class was created, and is not complete."""
    _unfilled[cls] = (born, digest)


def is_unfilled(cls: type) -> bool:
    """Return whether the class was created by this pickle, and is not complete."""
    return cls in _unfilled


def note_filled(cls: type) -> None:
    """The class is complete, and known by its digests from now on."""
    _note_came(cls)
    digests = _unfilled.pop(cls, None)
    if digests is not None:
        born, digest = digests
        _born[cls] = born
        _built[digest] = cls
        while len(_built) > _CLASSES_KEPT:
            _built.popitem(last=False)


def travelled(cls: type) -> bool:
    """Return whether the class came here by value."""
    return cls in _born or cls in _unfilled


def load_class(born: str, digest: str, packed: bytes) -> Any:
    """Return a class inside data: its definition is a pickle of its own, opened only when the class is not known
    here."""
    known = known_class(born, digest)
    if known is not None:
        _note_came(known)
        return known
    return pickle.loads(packed)


def new_class(
    born: str, digest: str, metaclass: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any]
) -> type:
    """Return a class without its attributes: those follow by `fill_class`, as methods may refer to their class."""
    known = known_class(born, digest)
    if known is not None:
        return known
    if metaclass is _TYPED_DICT:
        cls: type = type.__new__(metaclass, name, bases, namespace)  # its own __new__ wants TypedDicts for bases
    else:
        with _quiet(bases):
            cls = types.new_class(name, bases, {"metaclass": metaclass}, lambda ns: ns.update(namespace))
    _unfilled[cls] = (born, digest)
    return cls


_TYPED_DICT = type(typing.TypedDict("_", {}))  # type: ignore[operator]
_quieting = threading.Lock()


@contextlib.contextmanager
def _quiet(bases: tuple[type, ...]) -> Iterator[None]:
    """Without ``__init_subclass__`` of bases that travelled: what it left travels too, and its arguments are gone."""
    travelled = [base for each in bases for base in each.__mro__ if base in _born or base in _unfilled]
    loud = [base for base in travelled if "__init_subclass__" in base.__dict__]
    if not loud:
        yield
        return
    with _quieting:
        kept = [(base, base.__dict__["__init_subclass__"]) for base in dict.fromkeys(loud)]
        for base, _ in kept:
            type.__setattr__(base, "__init_subclass__", classmethod(lambda cls, **kwargs: None))
        try:
            yield
        finally:
            for base, method in kept:
                type.__setattr__(base, "__init_subclass__", method)


def new_exact_member(cls: Any, raw: Any, value: Any) -> Any:
    """Stands in for the ``__new__`` of an enumeration with one of its own, while its members are made again."""
    member = cls._member_type_.__new__(cls, raw)
    member._value_ = value
    return member


def new_enum(
    born: str,
    digest: str,
    metaclass: Any,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    members: dict[str, Any],
    boundary: Any,
) -> type:
    """Return an enumeration with its members; what they hold beside their values follows by `fill_class`."""
    known = known_class(born, digest)
    if known is not None:
        return known
    body = metaclass.__prepare__(name, bases)
    for key, value in {**namespace, **members}.items():
        body[key] = value
    kwargs = {} if boundary is None else {"boundary": boundary}
    cls: type = metaclass.__new__(metaclass, name, bases, body, **kwargs)
    _unfilled[cls] = (born, digest)
    return cls


def fill_class(cls: type, state: dict[str, Any]) -> None:
    """Attributes of a class; nothing happens to one that was known already."""
    if cls not in _unfilled:
        return
    for name, value in state["attributes"].items():
        type.__setattr__(cls, name, value)
    for name, extra in state.get("members", {}).items():
        cls[name].__dict__.update(extra)  # type: ignore[index]
    for subclass in state.get("registered", ()):
        cls.register(subclass)  # type: ignore[attr-defined]
    note_filled(cls)


# --------------------------------------------------------------------------------------------------
# Odds and ends


def same(value: Any) -> Any:
    """For what travels as something else."""
    return value


def new_property(fget: Any, fset: Any, fdel: Any, doc: str | None) -> property:
    """`property` cannot be pickled by itself."""
    return property(fget, fset, fdel, doc)


def new_cached_property(function: Any, name: str | None) -> Any:
    """`functools.cached_property` holds a lock on Python 3.11."""
    found = functools.cached_property(function)
    found.attrname = name
    return found


def new_lru_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Reduce a cached function; the cache itself does not travel."""
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function)


def new_mapping_proxy(content: dict[Any, Any]) -> types.MappingProxyType[Any, Any]:
    """Return a read-only view of a copy."""
    return types.MappingProxyType(content)


def new_dict_view(kind: str, content: list[Any]) -> Any:
    """Keys, values or items of a dict, without the rest of the dict."""
    if kind == "items":
        return dict(content).items()
    if kind == "keys":
        return dict.fromkeys(content).keys()
    return dict(enumerate(content)).values()


def new_type_variable(name: str, bound: Any, constraints: tuple[Any, ...], covariant: bool, contravariant: bool) -> Any:
    """Return a TypeVar of the notebook."""
    return typing.TypeVar(name, *constraints, bound=bound, covariant=covariant, contravariant=contravariant)


def new_new_type(name: str, module: str, supertype: Any) -> Any:
    """Return a NewType of the notebook."""
    found = typing.NewType(name, supertype)  # type: ignore[misc]
    found.__module__ = module
    return found


def new_bound(function: Any, owner: Any) -> types.MethodType:
    """Return a bound method whose function cannot be reached from its owner by name."""
    return types.MethodType(function, owner)


def load_sentinel(module: str, name: str) -> Any:
    """Return an object that is compared by identity, such as ``dataclasses.MISSING``."""
    return getattr(importlib.import_module(module), name)


def new_exception(cls: Any, args: tuple[Any, ...], state: dict[str, Any] | None) -> Any:
    """Return an exception whose own ``__init__`` wants other arguments than ``args``: it is not called.

    The first ``__init__`` in C is: builtin exceptions take their fields from args there.
    """
    error = cls.__new__(cls, *args)
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is not None and not isinstance(init, types.FunctionType):
            init(error, *args)
            break
    if state:
        error.__dict__.update(state)
    return error
