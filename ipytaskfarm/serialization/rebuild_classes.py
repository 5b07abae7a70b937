"""The functions that our pickles call to rebuild definitions stage by stage: see `definition_stages`.

The names and signatures here are part of what is stored and sent, like those of `rebuild`.

The hooks of metaclasses and bases (``__init_subclass__``, a metaclass's ``__new__``) need care. A hook that travelled
by value is not run again: what it left in the class, in the metaclass or in a registry travels as well, and a second
run would do it twice. A hook of an installed module is run, because it may keep a record that does not travel. If such
a hook raises an error (the keywords of the class statement are not known, the body is incomplete), the class is made
without hooks.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import importlib
import inspect
import types
import typing
import weakref
from collections import OrderedDict
from typing import Any

from . import known_classes, rebuild as build
from .code_objects import follow_moves
from .known_classes import is_unfilled, known_class, note_unfilled, travelled
from .named_functions import note_place, own_function
from .rebuild import TYPED_DICT, ancestors, complete_function, quiet  # stored pickles name the third one here


def whole(*parts: Any) -> Any:
    """Return the value that stands before the last mark.

    The items in front of it are steps, which pickle has done by now.
    """
    return parts[-2]


def finish(definition: Any, steps: list[Any]) -> None:
    """Do nothing. Pickle passes the list of steps as state, and has done all of them by then."""


# --------------------------------------------------------------------------------------------------
# Functions


def create_function(
    code: types.CodeType, home: Any, closure: tuple[types.CellType, ...] | None, state: dict[str, Any]
) -> types.FunctionType:
    """Return a function with the part of its state that needs no other definition; the program's own one if it has
    come back.
    """
    own = own_function(code, state) if build.takes_own() else None
    if own is not None:
        return own
    function = build.new_function(code, home, closure)
    build.fill_function(function, state)
    note_place(function, state)
    return function


def use_global(function: types.FunctionType, used: dict[str, Any]) -> None:
    """Add globals of a function that hold data."""
    complete_function(function, {"used": used})


def update_attributes(function: types.FunctionType, attributes: dict[str, Any]) -> None:
    """Add attributes of a function that hold data."""
    if not build.is_own(function):
        function.__dict__.update(attributes)


# --------------------------------------------------------------------------------------------------
# Classes


def create_class(
    born: str,
    digest: str,
    metaclass: Any,
    maker: Any,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    keywords: dict[str, Any],
    body: dict[str, Any],
) -> type:
    """Return a class with the part of its body that needs no other definition.

    Args:
        born, digest: the digests of the class, see `known_classes.known_class`.
        metaclass: the type of the class.
        maker: the metaclass, or the first of its bases that did not travel by value. It makes the class.
        name: the ``__name__`` of the class.
        bases: the base classes, which have been created but may be incomplete.
        namespace: the attributes that must exist when the class is made, such as ``__slots__``.
        keywords: the keywords of the class statement, as far as they are known.
        body: the attributes to set immediately afterwards.
    """
    known = known_class(born, digest)
    if known is not None:
        follow_moves(known, {**namespace, **body})
        return known
    if metaclass is TYPED_DICT:
        # TypedDict's own __new__ accepts only TypedDicts as bases
        cls: type = type.__new__(metaclass, name, bases, namespace)
    else:
        own = [base for base in ancestors(bases) if travelled(base)]
        cls = make_class(metaclass, maker, name, bases, namespace, keywords, own)
    assign(cls, body)
    note_unfilled(cls, born, digest)
    return cls


def make_class(
    metaclass: Any,
    maker: Any,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    keywords: dict[str, Any],
    own: list[type],
) -> type:
    """Return a class without its attributes.

    Args:
        own: the bases, direct or not, whose hooks do not run.

    The other arguments are those of `create_class`.
    """
    try:
        with quiet(own):
            if maker is metaclass:
                body = {"metaclass": metaclass, **keywords}
                return types.new_class(name, bases, body, lambda names: names.update(namespace))
            made: type = maker.__new__(metaclass, name, bases, dict(namespace), **keywords)
            return made
    except Exception:
        return make_without_hooks(metaclass, name, bases, dict(namespace), keywords)


def make_without_hooks(
    metaclass: Any, name: str, bases: tuple[type, ...], namespace: dict[str, Any], keywords: dict[str, Any]
) -> type:
    """Make the class with the first ``__new__`` in the metaclass's order that is written in C."""
    made_in_c = next(
        each
        for each in metaclass.__mro__
        if "__new__" in vars(each) and not isinstance(each.__new__, types.FunctionType)
    )
    with quiet([*ancestors(bases)]):
        cls: type = made_in_c.__new__(metaclass, name, bases, namespace, **keywords)
    if isinstance(cls, abc.ABCMeta):
        __import__("_abc")._abc_init(cls)
    return cls


def assign(cls: type, attributes: dict[str, Any]) -> None:
    """Set attributes with the first ``__setattr__`` in the metaclass's order that is not written in Python.

    `type.__setattr__` would not do: a metaclass made in C refuses to be passed over.
    """
    assign = next(
        found
        for each in inspect.getmro(type(cls))
        if (found := vars(each).get("__setattr__")) is not None and not isinstance(found, types.FunctionType)
    )
    for name, value in attributes.items():
        assign(cls, name, value)


def set_attributes(cls: type, attributes: dict[str, Any]) -> None:
    """Set more attributes of a class that is being built; a class that was known before gets the places of its code."""
    if is_unfilled(cls):
        assign(cls, attributes)
    else:
        follow_moves(cls, attributes)


_contents: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
"""Class that came here by value -> the digest of what it had at home when its state was set."""


def renew_state(cls: type, part: tuple[str, dict[str, Any]]) -> None:
    """Give a class that came by value the state that it has at home, if that has changed since it came last."""
    content, state = part
    if travelled(cls) and _contents.get(cls) != content:
        _contents[cls] = content
        if not is_unfilled(cls):
            assign(cls, state)


def set_fields(cls: type, attributes: dict[str, Any]) -> None:
    """Set attributes that the metaclass processes, such as the ``_fields_`` of `ctypes`."""
    if is_unfilled(cls):
        for name, value in attributes.items():
            setattr(cls, name, value)


def set_hints(cls: type, hints: dict[str, Any]) -> None:
    """Define the names that string annotations of the class mention, see `known_classes.hints`."""
    if is_unfilled(cls):
        known_classes.hints[cls] = hints
        for name, value in hints.items():
            if name not in vars(cls):
                type.__setattr__(cls, name, value)


def new_single_dispatch_method(dispatcher: Any, function: Any) -> Any:
    """Return a `functools.singledispatchmethod` that uses this dispatcher, which may get its implementations later."""
    made: Any = functools.singledispatchmethod(build.same)
    made.dispatcher = dispatcher
    made.func = function
    return made


def new_partial_method(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Return a `functools.partialmethod`."""
    return functools.partialmethod(function, *arguments, **keywords)


def register(cls: Any, subclasses: list[type]) -> None:
    """Register virtual subclasses of an abstract class."""
    if is_unfilled(cls):
        for subclass in subclasses:
            cls.register(subclass)


def register_with(cls: Any, abstract: list[Any]) -> None:
    """Make a class a virtual subclass of abstract classes of the standard library."""
    if is_unfilled(cls):
        for each in abstract:
            each.register(cls)


def finish_class(cls: type, part: None) -> None:
    """Mark the class as complete. From now on it is found by its digests."""
    build.note_filled(cls)
    made = vars(cls).get("__pydantic_generic_metadata__")
    if made and made["origin"] is not None:
        with contextlib.suppress(Exception):  # pydantic's own business, in another version elsewhere
            generics = importlib.import_module("pydantic._internal._generics")
            generics.set_cached_generic_type(made["origin"], made["args"], cls)  # so that ``Page[int]`` is this class


# --------------------------------------------------------------------------------------------------
# Enumerations


def create_enum(
    born: str,
    digest: str,
    metaclass: Any,
    maker: Any,
    name: str,
    made: tuple[tuple[type, ...], dict[str, Any]],
    namespace: dict[str, Any],
    boundary: Any,
    body: dict[str, Any],
) -> type:
    """Return an enumeration with its members.

    Args:
        made: the bases and the members. The classes of all of them are complete.
        namespace: the attributes that must exist when the enumeration is made.
        boundary: the boundary of a Flag; None for other enumerations.
        body: the attributes to set immediately afterwards.

    The other arguments are those of `create_class`.
    """
    known = known_class(born, digest)
    if known is not None:
        follow_moves(known, {**namespace, **body})
        return known
    bases, members = made
    ns = maker.__prepare__(name, bases)
    for key, value in namespace.items():
        ns[key] = value
    for key, value in members.items():
        # Functions, classes and descriptors are no members by themselves.
        ns[key] = enum.member(value) if callable(value) or hasattr(value, "__get__") else value
    keywords = {} if boundary is None else {"boundary": boundary}
    with quiet([base for base in ancestors(bases) if travelled(base)]):
        cls: type = maker.__new__(metaclass, name, bases, ns, **keywords)
    for attribute in ("__init__", "__new_member__"):
        if vars(cls).get(attribute) in (initialize_nothing, make_member):
            type.__delattr__(cls, attribute)
    assign(cls, body)
    note_unfilled(cls, born, digest)
    return cls


def update_members(cls: Any, extras: dict[str, dict[str, Any]]) -> None:
    """Set the attributes of members other than name and value."""
    if is_unfilled(cls):
        for name, extra in extras.items():
            cls.__members__[name].__dict__.update(extra)


def make_member(cls: Any, *arguments: Any) -> Any:
    """Create an enumeration member from its recorded value.

    Replaces ``__new__`` while an enumeration is rebuilt that defines its own, or has values of a class of its own.
    """
    base, raw, value = arguments if len(arguments) == 3 else arguments[0]
    member = base.__new__(cls) if base is object else base.__new__(cls, raw)
    member._value_ = value
    return member


def initialize_nothing(self: Any, *arguments: Any) -> None:
    """Do nothing. Replaces the ``__init__`` of such an enumeration: the attributes that it set travel."""


def load_enum_member(cls: Any, name: str) -> Any:
    """Return a member by its name. A look-up by value could fail, as the value may equal nothing but itself."""
    return cls.__members__[name]


# --------------------------------------------------------------------------------------------------
# Objects in reference cycles through sets and dicts, see `hash_cycles`

_provisional: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def new_provisional(create: Any, arguments: tuple[Any, ...]) -> Any:
    """Return an object that cannot be hashed yet, as an instance of a subclass that hashes by identity."""
    made = create(*arguments)
    cls = type(made)
    other = _provisional.get(cls)
    if other is None:
        body = {"__slots__": (), "__hash__": object.__hash__, "__eq__": object.__eq__, "__qualname__": cls.__qualname__}
        body["__module__"] = cls.__module__
        other = _provisional[cls] = make_without_hooks(type(cls), cls.__name__, (cls,), body, {})
    object.__setattr__(made, "__class__", other)
    return made


def fill_provisional(obj: Any, state: tuple[Any]) -> None:
    """Set the object's state in the way that pickle does."""
    other = type(obj)
    object.__setattr__(obj, "__class__", other.__bases__[0])
    setstate = getattr(obj, "__setstate__", None)
    if state[0] is None:
        pass
    elif setstate is not None:
        setstate(state[0])
    else:
        attributes, slots = state[0] if isinstance(state[0], tuple) and len(state[0]) == 2 else (state[0], None)
        if attributes:
            obj.__dict__.update(attributes)
        for name, value in (slots or {}).items():
            object.__setattr__(obj, name, value)
    object.__setattr__(obj, "__class__", other)


def settle_hashes(value: Any, members: list[Any], containers: list[Any]) -> Any:
    """Give the objects their real class and refill the containers, now that the objects can be hashed; return the
    value.

    Args:
        value: the unpickled value.
        members: the objects that `new_provisional` made.
        containers: the sets and dicts that hold such objects.
    """
    emptied: list[tuple[Any, Any, list[Any]]] = []
    for container in containers:  # read before the change of classes, while the old hashes still hold
        if isinstance(container, set):
            emptied.append((set, container, [*set.__iter__(container)]))
        else:
            kind: Any = OrderedDict if isinstance(container, OrderedDict) else dict
            emptied.append((kind, container, [*kind.items(container)]))
    for kind, container, _ in emptied:
        kind.clear(container)
    for member in members:
        object.__setattr__(member, "__class__", type(member).__bases__[0])
    for kind, container, items in emptied:
        if kind is set:
            set.update(container, items)
        else:
            for key, item in items:
                kind.__setitem__(container, key, item)
    return value


# --------------------------------------------------------------------------------------------------
# Types that C code of other libraries makes


def type_of(cls: type) -> Any:
    """Return the metaclass of a class; the metaclass has no name of its own to be imported by."""
    return type(cls)


def create_struct(
    born: str,
    digest: str,
    metaclass: Any,
    maker: Any,
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    keywords: dict[str, Any],
    factories: dict[str, Any],
) -> type:
    """Return a `msgspec.Struct` class. Its fields and ``__post_init__`` are read only once, when the class is made."""
    field = importlib.import_module("msgspec").field
    made = {each: field(default_factory=factory) for each, factory in factories.items()}
    return create_class(born, digest, metaclass, maker, name, bases, {**namespace, **made}, keywords, {})


def new_pointer_type(target: Any) -> Any:
    """Return ``ctypes.POINTER(target)``."""
    return importlib.import_module("ctypes").POINTER(target)


def new_array_type(element: Any, length: int) -> Any:
    """Return the `ctypes` array type ``element * length``."""
    return element * length


def new_callback_type(result: Any, arguments: tuple[Any, ...], flags: int) -> Any:
    """Return ``ctypes.CFUNCTYPE(result, *arguments)``."""
    function_type = importlib.import_module("ctypes").CFUNCTYPE
    return function_type(result, *arguments, use_errno=bool(flags & 0x8), use_last_error=bool(flags & 0x10))


# --------------------------------------------------------------------------------------------------
# Type parameters


_parameters: dict[tuple[str, str, str], list[weakref.ref[Any]]] = {}
_SAME_NAMES_MAX = 16


def note_parameter(kind: str, found: Any) -> None:
    """Remember a type variable. It is compared by identity, and each pickle that uses it brings it again."""
    known = _parameters.setdefault((kind, found.__name__, found.__module__), [])
    known[:] = [weakref.ref(found), *(each for each in known if each() not in (None, found))][:_SAME_NAMES_MAX]


def new_parameter(kind: str, name: str, module: str, keywords: dict[str, Any]) -> Any:
    """Return a TypeVar, ParamSpec, TypeVarTuple or NewType of the notebook; the known object if an equal one exists."""
    for reference in _parameters.get((kind, name, module), ()):
        known = reference()
        if known is not None and parameter_keywords(known) == keywords:
            return known
    if kind == "NewType":
        found: Any = vars(typing)["NewType"](name, keywords["supertype"])
    else:
        rest = {key: value for key, value in keywords.items() if key != "constraints"}
        found = getattr(typing, kind)(name, *keywords.get("constraints", ()), **rest)
    found.__module__ = module
    note_parameter(kind, found)
    return found


def parameter_parts(found: Any) -> tuple[str, str, str, dict[str, Any]]:
    """Return the arguments with which `new_parameter` makes a type variable."""
    return type(found).__name__, found.__name__, found.__module__, parameter_keywords(found)


def parameter_keywords(found: Any) -> dict[str, Any]:
    """Return the keyword arguments that the type variable was made with, without its name."""
    keywords: dict[str, Any] = {}
    for name in ("bound", "covariant", "contravariant", "infer_variance", "constraints", "supertype"):
        value = getattr(found, f"__{name}__", None)
        if value:
            keywords[name] = value
    if getattr(found, "has_default", lambda: False)():
        keywords["default"] = found.__default__
    return keywords


def new_forward_ref(name: str, is_argument: bool, module: Any, is_class: bool) -> Any:
    """Return a reference to a name in an annotation that has not been looked up yet."""
    return typing.ForwardRef(name, is_argument=is_argument, module=module, is_class=is_class)


_open_aliases: dict[int, list[Any]] = {}
_STARS = {"TypeVar": "", "TypeVarTuple": "*", "ParamSpec": "**"}


def open_type_alias(name: str, module: str, parameters: list[tuple[str, str, str, dict[str, Any]]]) -> Any:
    """Return the object that a ``type`` statement makes; its value, which may mention it, comes after it."""
    texts = []
    for number, (kind, parameter, _, keywords) in enumerate(parameters):
        of_it = f"parameters[{number}][3]"
        bounds = [f"{of_it}['constraints'][{place}]" for place in range(len(keywords.get("constraints", ())))]
        bound = f": ({', '.join(bounds)})" if bounds else f": {of_it}['bound']" if "bound" in keywords else ""
        default = f" = {of_it}['default']" if "default" in keywords else ""
        texts.append(f"{_STARS[kind]}{parameter}{bound}{default}")
    head = f"{name}[{', '.join(texts)}]" if texts else name
    names: dict[str, Any] = {"__name__": module}
    exec(f"def make(value, parameters):\n    type {head} = value[0]\n    return {name}", names)
    value: list[Any] = []
    found = names["make"](value, parameters)
    _open_aliases[id(found)] = value
    for each in found.__type_params__:  # the value mentions these
        note_parameter(type(each).__name__, each)
    return found


def close_type_alias(found: Any, value: Any) -> None:
    """Give a type alias the value that it evaluates to."""
    _open_aliases.pop(id(found)).append(value)
