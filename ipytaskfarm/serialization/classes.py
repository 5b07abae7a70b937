"""Reducers for classes that travel by value: what creates a class, and the steps that complete it.

The entries of a class's dictionary travel as they are, so that decorators, metaclasses and later assignments need not
run again. `definition_stages` decides the order of the parts, and `rebuild_classes` puts them together.
"""

from __future__ import annotations

import abc
import builtins
import collections.abc
import contextlib
import copyreg
import enum
import functools
import inspect
import io
import itertools
import numbers
import os
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any, get_args

from . import known_classes, rebuild as build, rebuild_classes as build_classes
from .class_state import state_of_class
from .definition_stages import After, Stages, Whole, join, reduced
from .function_parts import EVALUATED_LATE, MADE_BY_PYTHON, makers_of, own_annotations, takes, texts_of
from .global_names import annotation_names, is_hint
from .kept_changes import fills_table
from .library_values import place_in_context
from .module_origin import Travel
from .pickler import (
    BASES,
    KINDS,
    REDUCERS,
    Pickler,
    Reduced,
    by_member,
    by_value,
    find_named,
    find_named_variable,
    is_free,
    is_made_in_c,
    is_reduced_by_default,
    plain_reducer,
    reduced_by_pickle,
)
from .process_values import asked

_TYPES_OF_TYPES = {
    value: name
    for name, value in vars(types).items()
    if isinstance(value, type) and value.__module__ == "builtins" and not hasattr(builtins, value.__name__)
}
_NOT_ATTRIBUTES = frozenset(
    {"__dict__", "__weakref__", "__slotnames__", "_abc_impl", "__module__", "__firstlineno__", "__static_attributes__"}
    | MADE_BY_PYTHON
)
_ENUM_OWN = frozenset(
    {"_generate_next_value_", "_member_names_", "_member_map_", "_value2member_map_", "_unhashable_values_"}
    | {"_unhashable_values_map_", "_member_type_", "_value_repr_", "_new_member_", "_use_args_", "_boundary_"}
    | {"_flag_mask_", "_singles_mask_", "_all_bits_", "_inverted_", "_hashable_values_", "__new__", "_iter_member_"}
)


def reduce_class(pickler: Pickler, cls: type) -> Reduced:
    """Reduce a class to its name if it can be reached by name, else to its definition."""
    named = find_named(cls) if not _is_of_own_models(cls) else None
    if named is not None:
        kind, module_name, qualname = named
        return NotImplemented if kind is Travel.REFERENCE else by_member(module_name, qualname)
    if cls.__module__ == "_ctypes" and issubclass(cls, type):
        return build_classes.type_of, (next(each for each in _ctypes_samples() if type(each) is cls),)
    if cls in _TYPES_OF_TYPES:
        return build.load_builtin_type, (_TYPES_OF_TYPES[cls],)
    if is_made_in_c(cls):
        return NotImplemented
    if _type_name(type(cls)) == "_ctypes.PyCSimpleType":
        other = _other_byte_order(cls)
        if other is not NotImplemented:
            return other
    derived = _C_TYPES.get(_type_name(type(cls)))
    if derived is not None and _made_by_library(cls):
        return derived(cls)
    if (place := place_in_context(cls)) is not None:
        return by_member("mpmath", place)
    packed = None if pickler.inline else pickler.packed_class(cls)
    return take_apart(pickler, cls, *pickler.class_digests(cls)) if packed is None else (build.load_class, packed)


def _is_of_own_models(cls: type) -> bool:
    """Return whether a model of pydantic has a class of the user as argument: ``RootModel[Mine]``.

    pydantic before 2.10 puts it into the module of ``RootModel``, where engines do not have it."""
    waiting = [*vars(cls).get("__pydantic_generic_metadata__", {}).get("args", ())]
    while waiting:
        each = waiting.pop()
        if isinstance(each, type) and by_value(each):
            return True
        waiting += get_args(each)
    return False


def take_apart(pickler: Pickler, cls: type, born: str, digest: str, content: str) -> Reduced:
    """Reduce a class to its definition.

    Args:
        pickler: the pickler, in which the definition is written in this pickle.
        cls: the class.
        born, digest: the digests of the class, see `known_classes.known_class`.
        content: the digest of all that the class has, with its state.
    """
    stages, steps = join(pickler, by_value)
    stages.classes.append(cls)
    attributes = class_attributes(cls)
    for value in attributes.values():
        pickler.owners.update((id(function), cls) for function in _functions(value))
    namespace: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    for name in ("__orig_bases__", "__slots__"):
        if name in attributes and not isinstance(cls, enum.EnumMeta):
            namespace[name] = attributes.pop(name)  # read when the class is made
    if not isinstance(namespace.get("__slots__", ()), str | tuple | list | dict):
        namespace["__slots__"] = _slots(cls)
    fields = {name: attributes.pop(name) for name in _CTYPES_FIELDS if name in attributes and _is_ctypes(cls)}
    body = {name: value for name, value in attributes.items() if _is_body(value)}
    rest = {name: value for name, value in attributes.items() if name not in body}
    made: tuple[Callable[..., Any], tuple[Any, ...]]
    if isinstance(cls, enum.EnumMeta):
        made = _reduce_enum(stages, cls, born, digest, namespace, body)
    elif _is_struct(cls):
        made = _reduce_struct(stages, cls, born, digest, namespace, body)
    else:
        # A ctypes structure's fields are final once another structure derives from it.
        final = tuple(base for base in cls.__bases__ if _is_ctypes(cls) and by_value(base))
        bases = After(cls.__bases__, final) if final else cls.__bases__
        start: tuple[Any, ...] = (born, digest, type(cls), maker(type(cls)), cls.__name__, bases)
        start = (*start, namespace, {}, body)
        made = build_classes.create_class, start
    stages.add_each(build_classes.set_attributes, cls, rest, cls)
    if fields:
        embedded = tuple(_embedded(fields.get("_fields_", ())))
        stages.add(build_classes.set_fields, cls, After(fields, embedded) if embedded else fields, cls)
    hints = class_hints(cls)
    if hints:
        stages.add(build_classes.set_hints, cls, hints, cls)
    registered = registered_subclasses(cls)
    if registered:
        stages.add_late(build_classes.register, cls, registered, cls, {cls, *registered})
    abstract = registered_with(cls)
    if abstract:
        stages.add_late(build_classes.register_with, cls, abstract, cls, {cls})
    state = {} if known_classes.travelled(cls) else {name: vars(cls)[name] for name in sorted(state_of_class(cls))}
    if state:
        stages.add(build_classes.renew_state, cls, (content, state), None)
    return reduced(*made, steps)


def maker(metaclass: type) -> type:
    """Return the metaclass itself, or the first of its bases that does not travel by value."""
    return next(each for each in metaclass.__mro__ if not by_value(each))


def _functions(value: Any) -> Iterable[types.FunctionType]:
    """Return the functions that an attribute consists of."""
    if isinstance(value, types.FunctionType):
        return (value,)
    if isinstance(value, property):
        return (each for each in (value.fget, value.fset, value.fdel) if isinstance(each, types.FunctionType))
    inner = asked(value, "__func__" if isinstance(value, staticmethod | classmethod) else "func")
    return (inner,) if isinstance(inner, types.FunctionType) else ()


def _is_body(value: Any) -> bool:
    """Return whether an attribute can be set as soon as the class exists."""
    kind = type(value)
    if kind is types.FunctionType or is_free(value):
        return True
    if kind is staticmethod or kind is classmethod:
        return isinstance(value.__func__, types.FunctionType)
    if kind is property:
        return all(isinstance(each, types.FunctionType | None) for each in (value.fget, value.fset, value.fdel))
    if kind is functools.cached_property:
        return isinstance(value.func, types.FunctionType)
    return kind is dict and all(is_free(key) and is_free(item) for key, item in value.items())


def _slots(cls: type) -> tuple[str, ...]:
    """Return the slots' names from the member descriptors, for a class where ``__slots__`` was an iterator."""
    return tuple(name for name, value in cls.__dict__.items() if isinstance(value, types.MemberDescriptorType))


def without_seeds(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a class without a ``__hash__`` made by attrs, which holds a number of the hash seed.

    The attributes ``__attrs_attrs__`` and ``__eq__`` tell the same.
    """
    code = getattr(attributes.get("__hash__"), "__code__", None)
    if code is None or not code.co_filename.startswith("<attrs generated"):
        return attributes
    return {name: value for name, value in attributes.items() if name != "__hash__"}


def class_attributes(cls: type) -> dict[str, Any]:
    """Return the attributes that the class statement or a later assignment set, not those that Python adds itself."""
    found = {}
    is_enum = isinstance(cls, enum.EnumMeta)
    hints = known_classes.hints.get(cls, {})
    for name, value in cls.__dict__.items():
        if name in _NOT_ATTRIBUTES or _is_own_descriptor(value, cls):
            continue
        if is_enum and (name in _ENUM_OWN or name in cls.__members__):  # type: ignore[attr-defined]
            continue
        if name in hints and hints[name] is value:
            continue
        if _type_name(type(value)) in ("_ctypes.CField", "ctypes.CField"):
            continue
        if name in _CTYPES_OWN and _is_ctypes(cls):
            continue
        if name == "__pydantic_parent_namespace__" and isinstance(value, dict) and "__name__" in value:
            value = None  # all names of a module or notebook, which pydantic before 2.9 keeps; it looks there anyway
        found[name] = value
    if EVALUATED_LATE and "__annotations__" not in found and (annotations := _sent_annotations(cls)):
        found["__annotations__"] = annotations
    return found


def _is_own_descriptor(value: Any, cls: type) -> bool:
    """Return whether Python made the descriptor for the slots of this class."""
    return isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType) and value.__objclass__ is cls


# --------------------------------------------------------------------------------------------------
# Annotations in strings


def class_hints(cls: type) -> dict[str, Any]:
    """Return the objects that names in string annotations refer to.

    They are looked up in the class's module, as `typing.get_type_hints` does.
    """
    known = known_classes.hints.get(cls)
    if known is not None:
        return known
    names = hint_names(cls)
    if not names:
        return {}
    home = vars(sys.modules.get(cls.__module__, builtins))
    return {name: home[name] for name in names if name in home and is_hint(home[name])}


def hint_names(cls: type) -> list[str]:
    """Return the names in a class's own string annotations."""
    return annotation_names(_sent_annotations(cls))


def _sent_annotations(cls: type) -> dict[str, Any]:
    """Return the annotations of a class in the form in which they travel.

    Fields of a `msgspec.Struct` are made with the class, so annotations that may lead back to it are sent as they are
    written, and their names like those of other strings."""
    annotations = own_annotations(cls)
    if not EVALUATED_LATE or not _is_struct(cls) or all(map(is_free, annotations.values())):
        return annotations
    texts, home = texts_of(cls), vars(sys.modules.get(cls.__module__, builtins))
    known = {*home, *vars(builtins)}
    return {
        name: value if is_free(value) or not known.issuperset(annotation_names({name: texts[name]})) else texts[name]
        for name, value in annotations.items()
    }


# --------------------------------------------------------------------------------------------------
# Enumerations and abstract classes


def _reduce_enum(
    stages: Stages, cls: Any, born: str, digest: str, namespace: dict[str, Any], body: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Reduce an enumeration to a call that makes it with its members.

    The bases and the classes of the members' values must be complete before the call.
    """
    members = enum_members(cls)
    if _has_own_construction(cls):
        base = next((each for each in cls.__mro__ if each in _EXACT), object)
        exact: Callable[[Any], Any] = _EXACT.get(base, _nothing)
        members = {name: (base, exact(cls[name]), value) for name, value in members.items()}
        namespace["__new__"] = build_classes.make_member
        namespace["__init__"] = build_classes.initialize_nothing
    extras = enum_extras(cls)
    if extras:
        stages.add(build_classes.update_members, cls, extras, cls)
    bases = [base for base in cls.__mro__[1:] if by_value(base)]
    made = (cls.__bases__, members)
    classes = stages.instances_in(members)
    start = (
        born,
        digest,
        type(cls),
        maker(type(cls)),
        cls.__name__,
        Whole(made, {*bases, *classes}) if bases or classes else made,
        namespace,
        cls.__dict__.get("_boundary_"),
        body,
    )
    return build_classes.create_enum, start


def _nothing(member: Any) -> None:
    """Return None: a member that derives from no builtin type has no builtin value."""


def _has_own_construction(cls: Any) -> bool:
    """Return whether by-value functions make the members, or the values are of a by-value class."""
    if isinstance(getattr(cls, "__new_member__", None), types.FunctionType):
        return True
    if isinstance(cls.__init__, types.FunctionType) and cls.__init__.__module__ != "enum":
        return True
    return by_value(vars(cls)["_member_type_"])


def reduce_member(pickler: Pickler, member: enum.Enum) -> Reduced:
    """Reduce an enumeration member to its name. A combination of flags has no name, so pickle handles it."""
    cls: Any = type(member)
    if cls.__members__.get(member._name_) is not member:
        return NotImplemented
    return build_classes.load_enum_member, (cls, member._name_)


_EXACT: dict[type, Callable[[Any], Any]] = {
    bytes: bytes,
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    tuple: tuple,
}
"""Builtin base of an enumeration -> the function that gives a member's plain builtin value."""


def enum_members(cls: Any) -> dict[str, Any]:
    """Return name -> value of all members, including aliases."""
    return {name: member._value_ for name, member in cls.__members__.items()}


def enum_extras(cls: Any) -> dict[str, dict[str, Any]]:
    """Return member -> its attributes other than name and value, such as those that the ``__init__`` sets."""
    own = {"_value_", "_name_", "__objclass__", "_sort_order_"}
    found = {}
    for name, member in cls.__members__.items():
        extra = {key: value for key, value in member.__dict__.items() if key not in own}
        if extra:
            found[name] = extra
    return found


def registered_subclasses(cls: type) -> list[type]:
    """Return the virtual subclasses of an abstract class, in order of their names."""
    found = [reference() for reference in _registry(cls)] if isinstance(cls, abc.ABCMeta) else []
    return sorted((each for each in found if each is not None), key=lambda each: each.__qualname__)


def registered_with(cls: type) -> list[type]:
    """Return the abstract classes of the standard library of which a class has been made a virtual subclass."""
    reference = weakref.ref(cls)
    return [each for each in _abstract_classes() if reference in _registry(each)]


def _registry(cls: type) -> Collection[Callable[[], type | None]]:
    dump = getattr(__import__("_abc"), "_get_dump", None)
    registry: Collection[Callable[[], type | None]] = dump(cls)[0] if dump is not None else ()
    return registry


@functools.cache
def _abstract_classes() -> tuple[type, ...]:
    """Return those with which programs register their own classes, such as ``@Sequence.register``."""
    modules = (collections.abc, contextlib, io, numbers, os)
    found = (value for module in modules for value in vars(module).values() if isinstance(value, abc.ABCMeta))
    return tuple(dict.fromkeys(found))


# --------------------------------------------------------------------------------------------------
# Types that C code of other libraries makes

_STRUCT = "msgspec._core.StructMeta"
_CTYPES_OWN = ("__ctype_be__", "__ctype_le__")
_CTYPES_FIELDS = ("_pack_", "_align_", "_layout_", "_anonymous_", "_fields_")
_STRUCT_CONFIG = (
    *("frozen", "eq", "order", "array_like", "gc", "repr_omit_defaults", "omit_defaults", "forbid_unknown_fields"),
    *("weakref", "dict", "cache_hash", "tag", "tag_field"),
)


def _type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_ctypes(cls: type) -> bool:
    return any(each.__module__ == "_ctypes" for each in inspect.getmro(type(cls)))


def _embedded(fields: Iterable[tuple[Any, ...]]) -> Iterable[type]:
    """Yield the structures that are fields of another structure. Their sizes must be known before it is made."""
    for field in fields:
        kind = field[1]
        while hasattr(kind, "_length_") and isinstance(getattr(kind, "_type_", None), type):
            kind = kind._type_
        if by_value(kind) and hasattr(kind, "_fields_"):
            yield kind


def _sized(kind: type) -> Any:
    """Return a type of items in a form in which its size is known: an array type is made of it."""
    embedded = tuple(_embedded([("", kind)]))
    return After(kind, embedded) if embedded else kind


def _made_by_library(cls: Any) -> bool:
    """Return whether a call of ctypes made the class (as `POINTER` does), and not a class statement."""
    return "_type_" in cls.__dict__ or "_restype_" in cls.__dict__


_C_TYPES: dict[str, Callable[[Any], Reduced]] = {
    "_ctypes.PyCPointerType": lambda cls: (build_classes.new_pointer_type, (cls._type_,)),
    "_ctypes.PyCArrayType": lambda cls: (build_classes.new_array_type, (_sized(cls._type_), cls._length_)),
    "_ctypes.PyCFuncPtrType": lambda cls: (
        build_classes.new_callback_type,
        (cls._restype_, tuple(cls._argtypes_), cls._flags_),
    ),
}


def _ctypes_samples() -> Iterable[type]:
    """Return one type of each metaclass of `ctypes`.

    On Python 3.11 and 3.12 the metaclasses have no names of their own.
    """
    found = vars(sys.modules["_ctypes"])
    return (found[name] for name in ("Structure", "Union", "Array", "_SimpleCData", "_Pointer", "CFuncPtr"))


def _other_byte_order(cls: type) -> Reduced:
    """Reduce a type with swapped byte order to the type that it was derived from; NotImplemented for other types."""
    for base, name in itertools.product(vars(sys.modules["ctypes"]).values(), _CTYPES_OWN):
        if isinstance(base, type) and base.__dict__.get(name) is cls:
            return getattr, (base, name)
    return NotImplemented


def struct_parts(cls: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return (own defaults, own default factories, keywords of the class statement) of a `msgspec.Struct`."""
    own = own_annotations(cls)
    parts: dict[str, Any] = {}
    factories: dict[str, Any] = {}
    fields = cls.__struct_fields__
    defaults = cls.__struct_defaults__
    with_default = zip(fields[len(fields) - len(defaults) :], defaults, strict=True)
    for name, default in with_default:
        if name in own and type(default).__name__ == "Factory":
            factories[name] = default.factory
        elif name in own and type(default).__name__ != "NoDefaultType":
            parts[name] = default
    keywords = {name: getattr(cls.__struct_config__, name) for name in _STRUCT_CONFIG}
    for name in ("tag", "tag_field"):
        if keywords[name] is None:
            del keywords[name]
    encoded = {a: b for a, b in zip(fields, cls.__struct_encode_fields__, strict=True) if a != b and a in own}
    if encoded:
        keywords["rename"] = encoded
    own_fields = [name for name in fields if name in own]
    keywords["kw_only"] = bool(own_fields) and not any(name in cls.__match_args__ for name in own_fields)
    return parts, factories, keywords


def _reduce_struct(
    stages: Stages, cls: Any, born: str, digest: str, namespace: dict[str, Any], body: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Reduce a `msgspec.Struct` class to a call that makes it with its fields and the attributes that
    must exist then.
    """
    parts, factories, keywords = struct_parts(cls)
    made = {**namespace, **body}
    made.pop("__slots__", None)
    annotations = _sent_annotations(cls)
    made["__annotations__"] = Whole(annotations) if stages.instances_in(annotations) else annotations
    made.update({name: value if is_free(value) else Whole(value) for name, value in parts.items()})
    start = (born, digest, type(cls), maker(type(cls)), cls.__name__, cls.__bases__, made, keywords)
    return build_classes.create_struct, (*start, Whole(factories) if factories else factories)


def struct_digested(cls: type) -> tuple[Any, ...]:
    """Return the parts of a `msgspec.Struct` class that its digest covers beside its dictionary; () for
    other classes.
    """
    if not _is_struct(cls):
        return ()
    parts, factories, keywords = struct_parts(cls)
    return tuple(tuple(sorted(each.items())) for each in (parts, factories, keywords))


def _is_struct(cls: type) -> bool:
    return type(cls) is not type and any(_type_name(each) == _STRUCT for each in inspect.getmro(type(cls)))


# --------------------------------------------------------------------------------------------------
# Type parameters


def _reduce_parameter(pickler: Pickler, found: Any) -> Reduced:
    named = find_named_variable(found)
    if named is not None:
        return named
    build_classes.note_parameter(type(found).__name__, found)
    return build_classes.new_parameter, build_classes.parameter_parts(found)


def _reduce_alias(pickler: Pickler, found: Any) -> Reduced:
    named = find_named_variable(found)
    if named is not None:
        return named
    start = (found.__name__, found.__module__, [*map(build_classes.parameter_parts, found.__type_params__)])
    return build_classes.open_type_alias, start, found.__value__, None, None, build_classes.close_type_alias


def _reduce_forward_ref(pickler: Pickler, found: Any) -> Reduced:
    """Reduce a forward reference to its name, without the cached object that it resolves to."""
    start = (found.__forward_arg__, found.__forward_is_argument__, found.__forward_module__)
    return build_classes.new_forward_ref, (*start, found.__forward_is_class__)


def _reduce_single_dispatch_method(pickler: Pickler, found: Any) -> Reduced:
    """Reduce a `singledispatchmethod` without its cache, which holds weak references to instances."""
    return build_classes.new_single_dispatch_method, (found.dispatcher, found.func)


def _reduce_partial_method(pickler: Pickler, found: Any) -> Reduced:
    """Reduce a `partialmethod` to a call: since Python 3.14 none can be made without its function."""
    return build_classes.new_partial_method, (found.func, found.args, found.keywords)


PARAMETER_TYPES = (typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple)
REDUCERS.update(dict.fromkeys((*PARAMETER_TYPES, typing.NewType), _reduce_parameter))
REDUCERS[type] = BASES[type] = reduce_class
REDUCERS[functools.partialmethod] = _reduce_partial_method
REDUCERS[functools.singledispatchmethod] = _reduce_single_dispatch_method
REDUCERS[typing.ForwardRef] = _reduce_forward_ref
if hasattr(typing, "TypeAliasType"):
    REDUCERS[typing.TypeAliasType] = _reduce_alias


def _by_inheritance(kind: type) -> Callable[[Any, Any], Reduced] | None:
    return reduce_member if isinstance(kind, enum.EnumMeta) and by_value(kind) else None


def _of_own_new(kind: type) -> Callable[[Pickler, Any], Reduced] | None:
    """Find the reducer for instances made by a ``__new__`` that travels by value, or wants more than pickle has."""
    made = next(makers_of(kind))
    if type(made) is not types.FunctionType:
        return None
    others = (find(kind) for find in KINDS if find is not _of_own_new)
    if not by_value(kind) and (takes(made, 1) or not is_reduced_by_default(kind) or any(others)):
        return None
    return functools.partial(_reduce_made, plain_reducer(kind), made)


def _reduce_made(
    plain: Callable[[Any, Any], Reduced] | None, own: types.FunctionType, pickler: Pickler, obj: Any
) -> Any:
    reduced: Any = NotImplemented if plain is None else plain(pickler, obj)
    pickler.kinds[type(obj)] = functools.partial(_reduce_made, plain, own)
    if reduced is NotImplemented:
        reduced = reduced_by_pickle(obj)
    if not isinstance(reduced, tuple):
        return reduced
    make, arguments = reduced[1] if (is_provisional := reduced[0] is build_classes.new_provisional) else reduced[:2]
    is_called = make is type(obj) and type(make.__reduce__) is not types.FunctionType
    if make is _NEW_OBJECT and _is_open(pickler, type(obj)):
        make = build.new_instance
    elif (is_called or make is _NEW_OBJECT) and not takes(own, len(arguments) + is_called):
        if fills_table(own.__code__):
            raise pickle.PicklingError("its __new__ keeps instances")
        make, arguments = build.new_by_base, (make, *arguments) if is_called else arguments
    else:
        return reduced
    return (reduced[0], (make, arguments), *reduced[2:]) if is_provisional else (make, arguments, *reduced[2:])


def _is_open(pickler: Pickler, kind: type) -> bool:
    """Return whether the definition of a class is being written."""
    return any(stages is not None and stages.has_open(kind) for stages in (pickler.stages, *pickler.suspended))


_NEW_OBJECT = vars(copyreg)["__newobj__"]
KINDS += [_by_inheritance, _of_own_new]
