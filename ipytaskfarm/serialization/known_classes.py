"""The classes that pickles refer to, by digests.

A class has a *digest* of its definition. The process that defined the class registers it under its digest, so that
instances come back as instances of that same class. Another process builds the class from a pickle, once per digest.
If the attributes of the class change afterwards, it is still known by its first digest.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from .function_parts import closure_of, function_of

Steps: TypeAlias = Sequence[Callable[[], Any]]
_CLASSES_KEPT = 256

_originals: dict[str, weakref.ref[type]] = {}
"""Digest -> the class defined in this process. If the same cell ran twice, the newest class."""
_built: OrderedDict[str, type] = OrderedDict()
_packs: OrderedDict[str, tuple[bytes, Steps]] = OrderedDict()
"""Digest of a class -> the pack of its definition that came last beside data, and its steps."""
_arrived: weakref.WeakKeyDictionary[type, tuple[str, str]] = weakref.WeakKeyDictionary()
"""Class that came here by value -> its digests on arrival, see `known_class`."""
_unfilled: weakref.WeakKeyDictionary[type, tuple[str, str]] = weakref.WeakKeyDictionary()
hints: weakref.WeakKeyDictionary[type, dict[str, Any]] = weakref.WeakKeyDictionary()
"""Class that came here by value -> the objects that the names in its string annotations refer to."""


def digests_on_arrival(cls: type) -> tuple[str, str] | None:
    """Return the digests under which the class came into this process; None for a class defined here."""
    return _arrived.get(cls)


def known_class(born: str, digest: str) -> type | None:
    """Return the class that has one of these digests in this process; None if there is none.

    Args:
        born: the digest of the class when it was defined; a class defined in this process is found by it.
        digest: the digest of the packed definition; a class built from a pickle is found by it.
    """
    original = _original(born)
    if original is not None:
        return original
    built = _built.get(digest)
    if built is not None:
        _built.move_to_end(digest)
    return built


def _original(digest: str) -> type | None:
    reference = _originals.get(digest)
    return reference() if reference is not None else None


def note_original(cls: type, digest: str) -> None:
    """Register a class that was defined in this process.

    If its cell ran again, it takes the place of the class before. Classes that were made from that one and have no name
    in the program, such as local classes with that base, are forgotten: what engines return is made from the new class.
    """
    before = _original(digest)
    _originals[digest] = weakref.ref(cls)
    if before is None or before is cls:
        return
    for known, each in list(_built.items()):
        if _is_outdated(each, before):
            del _built[known]
    for known, reference in list(_originals.items()):
        other = reference()
        if other is None or (other is not cls and _is_outdated(other, before)):
            del _originals[known]


def _is_outdated(cls: type, before: type) -> bool:
    return _is_made_from(cls, before) and not _has_name(cls)


def _has_name(cls: type) -> bool:
    """Return whether the program finds the class by its name: its own cell has not run again."""
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, "__dict__", {}).get(name)  # a module's own __getattr__ may do anything
    return found is cls


def _is_made_from(cls: type, other: type) -> bool:
    """Return whether a class has another one as its base, as an attribute, or in a closure of its methods."""
    return other in cls.__mro__ or any(found is other for value in vars(cls).values() for found in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    yield value
    yield type(value)
    function = function_of(value)
    if type(function) is types.FunctionType:
        yield from (content for _, content in closure_of(function))


def note_unfilled(cls: type, born: str, digest: str) -> None:
    """Record that the class was created and is not complete yet."""
    _unfilled[cls] = (born, digest)


def is_unfilled(cls: type) -> bool:
    """Return whether this pickle created the class and has not completed it yet."""
    return cls in _unfilled


def note_built(cls: type) -> None:
    """Record that the class, if it was created here, is complete. From now on `known_class` finds it by its digests."""
    digests = _unfilled.pop(cls, None)
    if digests is not None:
        _arrived[cls] = digests
        _built[digests[1]] = cls
        while len(_built) > _CLASSES_KEPT:
            _built.popitem(last=False)


def forget_built() -> None:
    """Forget the classes that came by value: the next pack that brings one builds it anew, with modules as they are."""
    _built.clear()
    _packs.clear()


def steps_of_pack(digest: str, packed: bytes) -> Steps | None:
    """Return the steps of a class's definition that came beside data, see `note_pack`; None for another one than the
    last, because code has moved.
    """
    last = _packs.get(digest)
    return last[1] if last is not None and last[0] == packed else None


def note_pack(digest: str, packed: bytes, steps: Steps) -> None:
    """Record the pack of a class's definition that came beside data.

    steps: they put the by-value modules in place that the class needs. They are not part of the data.
    """
    _packs[digest] = packed, steps
    _packs.move_to_end(digest)
    while len(_packs) > _CLASSES_KEPT:
        _packs.popitem(last=False)


def travelled(cls: type) -> bool:
    """Return whether the class came here by value."""
    return cls in _arrived or cls in _unfilled
