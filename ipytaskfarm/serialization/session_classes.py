"""Classes of a session: what is saved of them, and the functions that make them again.

dill calls the metaclass again, with the whole body. So the hooks of the user's metaclasses and bases
(``__init_subclass__``, ``__set_name__``) would run twice: a registry would have each class two times, and a hook that
uses a name of the session, or wants a keyword of the class statement, would fail. What the hooks have left in the class
is saved with it, as with the classes of tasks (`rebuild_classes`).
"""

from __future__ import annotations

import abc
import typing
from typing import Any

from .classes import class_attributes, maker, registered_subclasses, registered_with
from .pickler import by_value
from .rebuild_classes import assign, make_class

_METACLASSES = (type, abc.ABCMeta, type(typing.Protocol))
_AT_ONCE = ("__orig_bases__", "__slots__")
"""The attributes that are read when the class is made."""


def is_plain(cls: type) -> bool:
    """Return whether a class is the user's, and its metaclass too or one that keeps nothing about its classes."""
    return by_value(cls) and (type(cls) in _METACLASSES or by_value(type(cls)))


def parts_of(cls: type) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the arguments of `new_class`, and the state for `fill_class`."""
    attributes = class_attributes(cls)
    namespace: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    namespace |= {name: attributes.pop(name) for name in _AT_ONCE if name in attributes}
    own = tuple(base for base in cls.__mro__[1:] if by_value(base))
    start = (type(cls), maker(type(cls)), cls.__name__, cls.__bases__, namespace, own)
    return start, (attributes, registered_subclasses(cls), registered_with(cls))


def new_class(
    metaclass: Any, maker: Any, name: str, bases: tuple[type, ...], namespace: dict[str, Any], own: tuple[type, ...]
) -> type:
    """Return a class without its attributes.

    Args:
        metaclass: the type of the class.
        maker: the metaclass, or the first of its bases that is not the user's. It makes the class.
        name, bases: of the class.
        namespace: the attributes that must exist when the class is made.
        own: the bases that are the user's, direct or not. Their hooks do not run.
    """
    return make_class(metaclass, maker, name, bases, namespace, {}, [*own])


def fill_class(cls: Any, state: tuple[dict[str, Any], list[type], list[Any]]) -> None:
    """Set the attributes of a class, and register its virtual subclasses."""
    attributes, subclasses, abstract = state
    assign(cls, attributes)
    for subclass in subclasses:
        cls.register(subclass)
    for each in abstract:
        each.register(cls)
