"""The functions that our pickles call to rebuild functions, classes and modules.

The names and signatures here are part of what is stored and sent, because pickles contain the names. Add new functions;
never change or remove one while a store may hold pickles of an older version.

`function_globals` makes the globals that rebuilt functions use.
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
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

from ..core.errors import VersionMismatch
from ..core.signatures import called_name
from .function_globals import Names, placed, remember, setup_globals
from .function_parts import function_of, makers_of, takes
from .known_classes import is_unfilled, known_class, note_built, note_pack, note_unfilled, steps_of_pack, travelled
from .lent_globals import Lender, note_borrower
from .named_functions import keep_places, own_cached, place_here

_SOURCES_KEPT = 256


class Loading(threading.local):
    """The context in which the current thread unpickles. Each thread has its own."""

    namespace: MutableMapping[str, Any] | None = None
    """The engine's user namespace. None in a client, where the client's own modules are used as they are."""
    names: list[Names] | None = None
    """If it is a list, each `Names` that is made is appended to it, for `bind`."""
    before: list[Callable[[], Any]] | None = None
    """If it is a list, it collects what must run before each call: steps that install the right by-value modules."""

    shared: Names | None = None
    """In a child process: the globals that all functions share."""
    for_child = False
    """Whether this thread packs for a child process, which does not have the engine's namespace."""


loading = Loading()
came: list[Any] = []
"""In an engine (see `collect`): functions and classes that were built by value and not taken by a reader yet."""
_collecting = [False]
_CAME_MAX = 10_000


def collect() -> None:
    """Start to record in `came` each function and class that is built by value."""
    _collecting[0] = True
    keep_places()


def is_own_side() -> bool:
    """Return whether this process is a client, where unpacked values belong to modules that the client has itself."""
    return loading.namespace is None and not _collecting[0]


def takes_own() -> bool:
    """Return whether this thread rebuilds a value for the program that defined its functions, see `named_functions`."""
    return is_own_side() and loading.names is None and loading.shared is None


def is_own(function: Any) -> bool:
    """Return whether the program's own function stands for a copy of it that has come back."""
    return takes_own() and place_here(function) is not None


def _note_came(obj: Any) -> None:
    if _collecting[0] and len(came) < _CAME_MAX:
        came.append(obj)


def bind(
    function: Callable[..., Any],
    names: list[Names],
    before: list[Callable[[], Any]] | None = None,
    renews: bool = False,
) -> Callable[..., Any]:
    """Return a callable that restores the packed globals and the right versions of modules before each call.

    Args:
        function: the function to call.
        names: the globals to restore.
        before: further steps to run before each call.
        renews: the function is unpacked anew for each task, which an attribute of the wrapper says.

    Returns:
        The wrapper, or `function` itself if there is nothing to do before a call.
    """
    if not names and not before and not renews:
        return function
    for each in names:
        each.wanted -= each.packed.keys()
        if placed.by:
            each.look_for_placed()
        if setup_globals.active:
            each.take_setup()
    lenders = [Lender(names)] if names else []
    steps: tuple[Callable[[], Any], ...] = (*(each.reset for each in names), *lenders, *(before or ()))

    def call(*args: Any, **kwargs: Any) -> Any:
        for step in steps:
            step()
        return function(*args, **kwargs)

    functools.update_wrapper(call, function)
    if not hasattr(function, "__name__"):  # a partial, or a callable object
        call.__name__ = call.__qualname__ = called_name(function)
    if not any(each.assigned for each in names):
        call.steps = steps  # type: ignore[attr-defined]
    return call


class Renewing:
    """What is unpacked of a function whose calls may change the function itself: each task unpacks it anew."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __reduce__(self) -> Any:
        return Renewing, (self.function,)


def for_many(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function to use for many calls in a row.

    If no call can change what the next call sees, run the steps of `bind` once now and return the inner function.
    Otherwise return `function`, which runs the steps before each call.
    """
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
    """Return whether the code belongs to a wrapper that `bind` made.

    Its frame comes just before the user's first frame.
    """
    return code is _CALL_CODE


# --------------------------------------------------------------------------------------------------
# Functions


def load_code(version: str, data: bytes) -> types.CodeType:
    """Return the code object from its bytecode.

    Raises:
        VersionMismatch: another minor version of Python made the bytecode, which therefore cannot run here.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version != here:
        raise VersionMismatch(
            f"this function was made by Python {version} and cannot run here on Python {here}: "
            f"use one minor version on both sides, or put the function in an installed module"
        )
    code: types.CodeType = marshal.loads(data)
    return code


def new_names(module_name: str) -> Names:
    """Return fresh globals for the by-value functions of one pickle."""
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
    """Return fresh globals with ``__package__`` set, because relative imports in the functions of a package read it."""
    names = new_names(module_name)
    names.packed["__package__"] = names.globals["__package__"] = package
    return names


def new_function(
    code: types.CodeType, home: Names | types.ModuleType, closure: tuple[types.CellType, ...] | None
) -> types.FunctionType:
    """Return a function without its state.

    `fill_function` adds the state later, so that the function may refer to itself.
    """
    if isinstance(home, Names) and not home.assigned:
        home.assigned = _assigns(code)
    return types.FunctionType(code, home.globals if isinstance(home, Names) else home.__dict__, None, None, closure)


_ASSIGNING = frozenset(dis.opmap[name] for name in ("STORE_GLOBAL", "DELETE_GLOBAL"))
_REACHING = frozenset({"globals", "exec", "eval"})


def _assigns(code: types.CodeType) -> bool:
    """Return whether running the code may change globals.

    The test looks at bytecode and names. It may give True wrongly, because data between the instructions can look like
    an instruction. It misses no direct assignment.
    """
    if not _ASSIGNING.isdisjoint(code.co_code[::2]) or not _REACHING.isdisjoint(code.co_names):
        return True
    return any(isinstance(each, types.CodeType) and _assigns(each) for each in code.co_consts)


def fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    """Set everything of a function except its code, globals and cells."""
    function.__name__ = state["name"]
    function.__qualname__ = state["qualname"]
    function.__module__ = state["module"]
    if "doc" in state:
        function.__doc__ = state["doc"]
    complete_function(function, {"used": {}, **state})
    for name, value in state.get("added", {}).items():
        function.__globals__.setdefault(name, value)
    if "source" in state:
        remember_source(function.__code__.co_filename, *state["source"])
    _note_came(function)


def complete_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    """Set more of a function's state. What `state` lacks stays as it is; so does all of the program's own one."""
    if is_own(function):
        return
    if "defaults" in state:
        function.__defaults__ = state["defaults"]
    if "kwdefaults" in state:
        function.__kwdefaults__ = state["kwdefaults"]
    if "annotations" in state:
        function.__annotations__.update(state["annotations"])
    if "dict" in state:
        function.__dict__.update(state["dict"])
    if "type_params" in state:
        function.__type_params__ = state["type_params"]  # type: ignore[attr-defined]
    if "used" in state:
        add_globals(function, state["used"], state.get("wanted", ()))


def add_globals(function: types.FunctionType, used: dict[str, Any], wanted: tuple[str, ...] = ()) -> None:
    """Add names to the globals that by-value functions share.

    A function of a module uses the module's globals instead.
    """
    names = function.__globals__.get("__builtins__")
    if isinstance(names, Names):
        names.add(used, wanted, function)
        if loading.names is None:  # no `bind` follows that would do it
            names.settle()
    elif loading.shared is not None and loading.shared.globals is function.__globals__:
        loading.shared.add(used, wanted, function)


def assigned_by(objects: Iterable[Any]) -> tuple[Names, ...]:
    """Return the globals that methods of these classes may assign to."""
    found: dict[int, Names] = {}
    for each in objects:
        for member in vars(each).values() if isinstance(each, type) else ():
            function = function_of(member)
            names = function.__globals__.get("__builtins__") if type(function) is types.FunctionType else None
            if isinstance(names, Names) and names.assigned:
                names.wanted -= names.packed.keys()
                found[id(names)] = names
    return tuple(found.values())


def new_single_dispatch() -> Any:
    """Return an empty `functools.singledispatch` function.

    It is filled later, since its implementations may refer to it.
    """
    return functools.singledispatch(same)


def fill_single_dispatch(function: Any, state: dict[str, Any]) -> None:
    """Register the implementations of a `functools.singledispatch` function, including the one for ``object``."""
    for cls, implementation in state["registry"].items():
        function.register(cls, implementation)
    functools.update_wrapper(function, state["registry"][object])


def new_cell() -> types.CellType:
    """Return an empty cell. It is filled later, since its content may refer to the function that holds it."""
    return types.CellType()


def fill_cell(cell: types.CellType, content: tuple[Any, ...]) -> None:
    """Set the cell's content, given as a tuple of one item. An empty tuple leaves the cell empty."""
    if content:
        cell.cell_contents = content[0]


def load_member(module: types.ModuleType, qualname: str) -> Any:
    """Return a function or class of a module that travelled by value.

    Raises:
        AttributeError: the module has no such member.
    """
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
    """Import and return a module that both sides can import."""
    return importlib.import_module(name)


def load_builtin_type(name: str) -> Any:
    """Return a builtin type that is reachable through the module ``types`` and not through ``builtins``."""
    return getattr(types, name)


# --------------------------------------------------------------------------------------------------
# Source lines for tracebacks, of functions whose file does not exist here

_sources: OrderedDict[str, dict[int, str]] = OrderedDict()


def remember_source(filename: str, first: int, text: str) -> None:
    """Keep the source lines of a function, so that `source_lines` can return them."""
    lines = _sources.setdefault(filename, {})
    _sources.move_to_end(filename)
    for number, line in enumerate(text.splitlines(keepends=True), first):
        lines[number] = line
    while len(_sources) > _SOURCES_KEPT:
        _sources.popitem(last=False)


def source_lines(filename: str) -> list[str] | None:
    """Return the known lines of a file, with blank lines in the gaps; None if no line is known."""
    known = _sources.get(filename)
    if not known:
        return None
    return [known.get(number, "\n") for number in range(1, max(known) + 1)]


# --------------------------------------------------------------------------------------------------
# Classes: see `known_classes`


def note_filled(cls: type) -> None:
    """Record that the class is complete. From now on `known_class` finds it by its digests."""
    _note_came(cls)
    note_built(cls)
    if _collecting[0]:
        note_borrower(cls)


def load_class(born: str, digest: str, packed: bytes) -> Any:
    """Return a class that data refers to.

    The definition is a pickle of its own, which is opened only if this process does not know the class; and if it is
    another one than the last, because the code of the class has moved in its file, which `code_objects` follows. The
    modules that the class needs are put in place in any case: another task may have taken them out.
    """
    known = known_class(born, digest)
    if known is not None:
        _note_came(known)
        steps = steps_of_pack(digest, packed)
        if steps is None and not travelled(known):
            return known
        if steps is not None:
            for step in steps:
                step()
            if loading.before is not None:
                loading.before.extend(steps)
            return known
    outer, loading.before = loading.before, []
    try:
        opened = pickle.loads(packed)
        note_pack(digest, packed, loading.before)
        if outer is not None:
            outer.extend(loading.before)
    finally:
        loading.before = outer
    return opened


def new_class(
    born: str, digest: str, metaclass: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any]
) -> type:
    """Return a class without its attributes. `fill_class` adds them later, since methods may refer to their class."""
    known = known_class(born, digest)
    if known is not None:
        return known
    if metaclass is TYPED_DICT:
        # TypedDict's own __new__ accepts only TypedDicts as bases
        cls: type = type.__new__(metaclass, name, bases, namespace)
    else:
        with quiet([base for base in ancestors(bases) if travelled(base)]):
            cls = types.new_class(name, bases, {"metaclass": metaclass}, lambda ns: ns.update(namespace))
    note_unfilled(cls, born, digest)
    return cls


TYPED_DICT = type(typing.TypedDict("_", {}))  # type: ignore[operator]
_quieting = threading.RLock()


def ancestors(bases: tuple[type, ...]) -> Iterator[type]:
    """Yield the bases of a class, direct or not."""
    return (base for each in bases for base in each.__mro__)


@contextlib.contextmanager
def quiet(bases: list[type]) -> Iterator[None]:
    """Disable ``__init_subclass__`` of these bases.

    The effects of the first call travel in the class itself, and the arguments of that call are not known any more.
    """
    loud = {
        base: vars(base)["__init_subclass__"]
        for base in bases
        if "__init_subclass__" in vars(base) and base.__flags__ & (1 << 9)  # Py_TPFLAGS_HEAPTYPE
    }
    if not loud:
        yield
        return
    with _quieting:
        for base in loud:
            type.__setattr__(base, "__init_subclass__", classmethod(lambda cls, **keywords: None))
        try:
            yield
        finally:
            for base, method in loud.items():
                type.__setattr__(base, "__init_subclass__", method)


def new_exact_member(cls: Any, raw: Any, value: Any) -> Any:
    """Create an enumeration member. Replaces the ``__new__`` of the enumeration while its members are rebuilt."""
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
    """Return an enumeration with its members. `fill_class` adds further attributes of the members later."""
    known = known_class(born, digest)
    if known is not None:
        return known
    body = metaclass.__prepare__(name, bases)
    for key, value in {**namespace, **members}.items():
        body[key] = value
    kwargs = {} if boundary is None else {"boundary": boundary}
    cls: type = metaclass.__new__(metaclass, name, bases, body, **kwargs)
    note_unfilled(cls, born, digest)
    return cls


def fill_class(cls: type, state: dict[str, Any]) -> None:
    """Set the attributes of a class that was just created; leave a class that was known before as it is."""
    if not is_unfilled(cls):
        return
    for name, value in state["attributes"].items():
        type.__setattr__(cls, name, value)
    for name, extra in state.get("members", {}).items():
        cls[name].__dict__.update(extra)  # type: ignore[index]
    for subclass in state.get("registered", ()):
        cls.register(subclass)  # type: ignore[attr-defined]
    note_filled(cls)


# --------------------------------------------------------------------------------------------------
# Other types


def same(value: Any) -> Any:
    """Return the argument: the call to use for an object that the pickle replaces with another object."""
    return value


def new_property(fget: Any, fset: Any, fdel: Any, doc: str | None) -> property:
    """Return a property. `pickle` has no way of its own to rebuild one."""
    return property(fget, fset, fdel, doc)


def new_cached_property(function: Any, name: str | None) -> Any:
    """Return a `functools.cached_property`. On Python 3.11 it holds a lock, which pickle refuses."""
    found = functools.cached_property(function)
    found.attrname = name
    return found


def new_lru_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Return the function with a new, empty cache, whose content does not travel; or the program's own one."""
    own = own_cached(function, maxsize, typed) if takes_own() else None
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function) if own is None else own


def new_mapping_proxy(content: dict[Any, Any]) -> types.MappingProxyType[Any, Any]:
    """Return a read-only view of a copy of the mapping."""
    return types.MappingProxyType(content)


def new_dict_view(kind: str, content: list[Any]) -> Any:
    """Return a view of the keys, values or items of a new dict that holds only these."""
    if kind == "items":
        return dict(content).items()
    if kind == "keys":
        return dict.fromkeys(content).keys()
    return dict(enumerate(content)).values()


def new_type_variable(name: str, bound: Any, constraints: tuple[Any, ...], covariant: bool, contravariant: bool) -> Any:
    """Return a TypeVar that a notebook defined."""
    return typing.TypeVar(name, *constraints, bound=bound, covariant=covariant, contravariant=contravariant)


def new_new_type(name: str, module: str, supertype: Any) -> Any:
    """Return a NewType that a notebook defined."""
    found = typing.NewType(name, supertype)  # type: ignore[misc]
    found.__module__ = module
    return found


def new_bound(function: Any, owner: Any) -> types.MethodType:
    """Return a bound method for a function that its owner does not have under the function's name."""
    return types.MethodType(function, owner)


def load_sentinel(module: str, name: str) -> Any:
    """Return an object that is compared by identity, such as ``dataclasses.MISSING``."""
    return getattr(importlib.import_module(module), name)


def new_instance(cls: Any, *args: Any) -> Any:
    """Return an instance that the definition of its own class holds, without calling the class's ``__new__``.

    A ``__new__`` may count, or look in a pool of instances.  That is an attribute which the class does not have yet,
    and this instance is in it.  Only an instance with a content, such as a number or a text, is made by it.
    """
    maker = next(each for each in cls.__mro__ if type(vars(each).get("__new__")) is types.BuiltinFunctionType)
    return object.__new__(cls) if maker is object else new_by_base(cls, *args)


def new_by_base(cls: Any, *args: Any) -> Any:
    """Return an instance of a class whose ``__new__`` wants other arguments than a pickle has, by that of a base."""
    make = next(each for each in makers_of(cls) if takes(each, 1 + len(args)))
    return make(cls, *args)


def new_exception(cls: Any, args: tuple[Any, ...], state: dict[str, Any] | None) -> Any:
    """Return an exception without calling an ``__init__`` of its own, which may want arguments other than ``args``.

    The first ``__init__`` written in C is called, because builtin exceptions set their fields from ``args`` there.
    """
    error = new_by_base(cls, *args)
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is not None and not isinstance(init, types.FunctionType):
            init(error, *args)
            break
    if state:
        error.__dict__.update(state)
    return error
