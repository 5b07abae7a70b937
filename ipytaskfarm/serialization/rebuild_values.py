"""The functions that our pickles call to rebuild values of the standard library that `pickle` refuses.

The rule of `rebuild` holds here too, because pickles in a store name these functions: add new ones, never change or
remove one.
"""

from __future__ import annotations

import contextlib
import importlib
import json.scanner
import logging
import random
import sys
import types
import typing
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast


def load_stream(name: str, part: str | None) -> Any:
    """Return this process's own standard stream, or its ``buffer``."""
    stream = getattr(sys, name)
    return stream if part is None else getattr(stream, part)


def new_json_scanner(parts: dict[str, Any]) -> Any:
    """Return the scanner in C of a ``json.JSONDecoder``, which it copies these attributes from."""
    return json.scanner.c_make_scanner(types.SimpleNamespace(**parts))  # type: ignore[attr-defined]


def fill_state(obj: Any, state: Any) -> None:
    """Set an object's state as pickle does, without looking up attributes of the object first.

    A ``__getattr__`` that reads the state would call itself without end.
    """
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        object.__getattribute__(obj, "__dict__").update(state)
    for name, value in (slots or {}).items():
        setattr(obj, name, value)


def member_of_state(module: types.ModuleType, name: str, kind: type, state: Any) -> Any:
    """Return the object that a module has under this name, or a copy if that has another state here."""
    found = vars(module).get(name)
    if type(found) is not kind or found.__getstate__() != state:
        found = object.__new__(kind)
        fill_state(found, state)
    return found


def fill_array(array: Any, state: tuple[Any, dict[str, Any]]) -> None:
    """Set the content of an array of a class of the user, and its attributes."""
    array.__setstate__(state[0])
    vars(array).update(state[1])


_marks: dict[str, object] = {}
_marks_of: dict[int, str] = {}
"""Address of an object in `_marks` -> its key there."""
_MARKS_MAX = 100_000


def mark(key: str) -> object:
    """Return the one ``object()`` of this process that stands for that of another process with this key."""
    found = _marks.get(key)
    if found is None:
        found = object()
        if len(_marks) < _MARKS_MAX:
            _marks[key] = found
            _marks_of[id(found)] = key
    return found


def context_variable(key: str, name: str, *default: Any) -> ContextVar[Any]:
    """Return the one context variable of this process that stands for that of another process with this key."""
    found = _marks.get(key)
    if found is None:
        found = ContextVar(name, default=default[0]) if default else ContextVar(name)
        if len(_marks) < _MARKS_MAX:
            _marks[key] = found
            _marks_of[id(found)] = key
    return cast(ContextVar[Any], found)


_arrived: set[int] = set()
"""Addresses of the objects in `_marks` that `named_object` has made."""


def named_object(key: str, kind: type) -> Any:
    """Return the one object of this process that stands for that of another process with this key."""
    found: Any = _marks.get(key)
    if found is None:
        found = object.__new__(kind)
        if len(_marks) < _MARKS_MAX:
            _marks[key] = found
            _marks_of[id(found)] = key
            _arrived.add(id(found))
    return found


def fill_named(found: Any, state: Any) -> None:
    """Set the state of an object that came here. One that was made here has its own."""
    if id(found) in _arrived:
        fill_state(found, state)


def new_wrapping(kind: Any, locks: dict[str, Callable[[], Any]]) -> Any:
    """Build what a decorator has made of a function, without its attributes."""
    found = object.__new__(kind)
    found.__dict__.update({name: make() for name, make in locks.items()})
    return found


def new_generator(kind: Any, state: Any) -> Any:
    """Build a random generator of a class of the user, without its constructor, whose arguments nobody knows."""
    found = random.Random.__new__(kind)
    random.Random.setstate(found, state)
    return found


def key_of_mark(found: object) -> str | None:
    """Return the key by which other processes know an object that has its identity alone; None: there are too many."""
    key = _marks_of.get(id(found))
    if key is None and len(_marks) < _MARKS_MAX:
        key = _marks_of[id(found)] = uuid.uuid4().hex
        _marks[key] = found
    return key


def new_context_manager(cls: Any, function: Any, args: Any, keywords: Any) -> Any:
    """Build what a function with ``contextlib.contextmanager`` returns."""
    return cls(function, args, keywords)


def load_descriptor(cls: type, name: str) -> Any:
    """Return the descriptor that a class made in C, or `__slots__`, has under this name."""
    return cls.__dict__[name]


def load_class_dict(cls: type) -> Any:
    """Return the namespace of a class: the read-only view, not a copy."""
    return cls.__dict__


def new_memory_view(data: Any, form: str, shape: tuple[int, ...]) -> memoryview:
    """Build a memoryview over bytes of its own."""
    view = memoryview(data)
    if view.nbytes == 0 or (form == "B" and shape == view.shape):
        return view
    # `cast` may not know the format; the bytes are complete all the same
    with contextlib.suppress(ValueError, TypeError):
        return view.cast("B").cast(form, shape)  # type: ignore[call-overload,no-any-return]
    return view


def new_odict_view(kind: str, content: list[Any]) -> Any:
    """Build a view of the keys, values or items of an OrderedDict that holds only these."""
    if kind == "items":
        return OrderedDict(content).items()
    if kind == "keys":
        return OrderedDict.fromkeys(content).keys()
    return OrderedDict(enumerate(content)).values()


def new_descriptor(
    base: Any, cls: Any, args: tuple[Any, ...], state: dict[str, Any], locks: dict[str, Callable[[], Any]]
) -> Any:
    """Build an instance of a subclass of property, classmethod, staticmethod or cached_property.

    The subclass's own ``__init__`` is not called: its arguments are unknown, and the attributes that it set are in
    `state` and, if they are locks, in `locks`.
    """
    found = base.__new__(cls)
    base.__init__(found, *args)
    if state or locks:
        found.__dict__.update(state, **{name: make() for name, make in locks.items()})
    return found


def new_element(text: bytes, is_tree: bool, is_html: bool) -> Any:
    """Build an element of lxml, with the text behind it, or a tree."""
    name = "lxml.html" if is_html else "lxml.etree"
    library = importlib.import_module(name)
    make = library.XHTMLParser if is_html else library.XMLParser
    parser = make(huge_tree=True, resolve_entities=False, strip_cdata=False, recover=is_html)
    etree = importlib.import_module("lxml.etree")
    if is_tree:
        return etree.fromstring(text, parser).getroottree()
    around = etree.fromstring(b"<around>" + text + b"</around>", parser)
    found = around[0]
    around.remove(found)
    return found


# --------------------------------------------------------------------------------------------------
# Weak containers. Their items travel with them, and the rebuilt container keeps them alive, as nobody else may hold
# them.

_KEPT_ALIVE = "_kept_alive"


class KeptRef(weakref.ref[Any]):
    """A weak reference from another process, which keeps its object alive."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        super().__init__(held)  # type: ignore[call-arg]
        self.held = held


class KeptMethod(weakref.WeakMethod[Any]):
    """A weak reference to a bound method from another process, which keeps the method's owner alive."""

    __slots__ = ("held",)
    held: Any

    def __new__(cls, method: Any) -> KeptMethod:
        """Create the reference and keep the owner of the method."""
        found = super().__new__(cls, method)
        found.held = method.__self__
        return found


def new_weak_reference(target: Any) -> Any:
    """Build a weak reference to an object that travelled with it."""
    return KeptRef(target)


def new_weak_method(method: Any) -> Any:
    """Build a weak reference to a bound method."""
    return KeptMethod(method)


def new_dead_reference() -> weakref.ref[Any]:
    """Build a weak reference to an object that does not exist any more."""

    class Nobody:
        """A class with one instance that nobody holds."""

    return weakref.ref(Nobody())


def new_weak_set(cls: Any) -> Any:
    """Build an empty WeakSet. It is filled later, since its items may refer to it."""
    return cls()


def fill_weak_set(found: Any, items: list[Any]) -> None:
    """Add the items and keep them alive."""
    setattr(found, _KEPT_ALIVE, items)
    found.update(items)


def new_weak_dict(cls: Any) -> Any:
    """Build an empty WeakKeyDictionary or WeakValueDictionary."""
    return cls()


def fill_weak_dict(found: Any, items: list[tuple[Any, Any]]) -> None:
    """Add the items and keep them alive."""
    setattr(found, _KEPT_ALIVE, items)
    for key, value in items:
        found[key] = value


# --------------------------------------------------------------------------------------------------
# Modules without a file


def new_alias(origin: Any, arguments: Any) -> Any:
    """Return ``origin[arguments]`` as ``typing.Generic`` makes it."""
    return vars(typing.Generic)["__class_getitem__"].__get__(None, origin)(arguments)


def new_module(name: str, doc: str | None) -> types.ModuleType:
    """Build an empty module. It is not put into ``sys.modules``, because it was not found there."""
    return types.ModuleType(name, doc)


def fill_module(module: types.ModuleType, content: dict[str, Any]) -> None:
    """Set the content of the module."""
    vars(module).update(content)


# --------------------------------------------------------------------------------------------------
# logging


def new_logger(cls: Any, name: str) -> Any:
    """Build a logger outside the logging manager. Its handlers follow, since they may refer to it."""
    return cls(name)


def fill_logger(logger: logging.Logger, state: dict[str, Any]) -> None:
    """Set level, handlers and filters."""
    logger.__dict__.update(state)


def new_handler(cls: Any) -> Any:
    """Build a logging handler without its state, which `fill_handler` sets."""
    return cls.__new__(cls)


def fill_handler(handler: logging.Handler, state: dict[str, Any]) -> None:
    """Set everything except the lock, which is created here."""
    handler.__dict__.update(state)
    handler.createLock()


def new_wrapper(wrapped: Any, wrapper: Any, enabled: Any) -> Any:
    """Return a function with a decorator of wrapt."""
    return importlib.import_module("wrapt").FunctionWrapper(wrapped, wrapper, enabled)


class NotedValues:
    """The values of a ``mec.map`` on one engine, with the engine's notices about it."""

    __slots__ = ("notices", "values")

    def __init__(self, values: list[Any], notices: list[str]) -> None:
        self.values = values
        self.notices = notices

    def __reduce__(self) -> tuple[Any, ...]:
        return NotedValues, (self.values, self.notices)
