"""Tells which objects cannot change, so that a digest of them stays right, and which are meant to."""

from __future__ import annotations

import array
import collections
import contextvars
import dataclasses
import enum
import functools
import gc
import io
import itertools
import operator
import random
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from .classes import PARAMETER_TYPES
from .module_origin import Travel
from .pickler import SENTINEL_TYPES, find_named, is_made_in_c

_CANNOT_CHANGE: tuple[Any, ...] = (
    re.Pattern, range, slice, enum.Enum,
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType,
    types.GenericAlias, types.UnionType, vars(typing)["_GenericAlias"], type(typing.Any),
    *PARAMETER_TYPES, typing.NewType, functools.cached_property, functools._lru_cache_wrapper,
    operator.itemgetter, operator.attrgetter,
    dataclasses.Field, vars(dataclasses)["_DataclassParams"], *SENTINEL_TYPES,
    type(vars(collections.namedtuple("_", "field"))["field"]),
)  # fmt: skip
"""Types of objects that cannot change, or not in a way that matters."""
_CANNOT_CHANGE_BY_NAME = {
    "datetime": {"date", "time", "datetime", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "numpy": {"bool", "int64", "int32", "float64", "float32", "complex128"},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "uuid": {"UUID"},
}
"""More such types, which are not imported for this purpose: module -> names of the exact types."""
HOLDERS = (
    types.BuiltinFunctionType, types.MethodWrapperType,
    functools.cached_property, functools._lru_cache_wrapper, slice,
)  # fmt: skip
"""The types in `_CANNOT_CHANGE` that hold an object of the user, which may change."""


_MUTABLE = frozenset({
    list, dict, set, bytearray, object, collections.deque, collections.Counter, collections.defaultdict,
    collections.OrderedDict, io.StringIO, io.BytesIO, random.Random, array.array, itertools.count, itertools.cycle,
    contextvars.ContextVar, types.SimpleNamespace,
})  # fmt: skip


def is_mutable(kind: type) -> bool:
    """Return whether a change of one object of this type is seen wherever it is used, and may be meant by the user.

    Objects of installed libraries share parts among themselves as they like, so only arrays count among them.
    """
    if kind in _MUTABLE or is_array(kind):
        return True
    if issubclass(kind, BaseException):
        return True
    if is_made_in_c(kind) or issubclass(kind, type) or issubclass(kind, enum.Enum):
        return False
    named = find_named(kind)
    return named is None or named[0] is Travel.SOURCE


def is_array(kind: type) -> bool:
    """Return whether this is numpy's type of arrays, which is not imported for this purpose."""
    return kind.__qualname__ == "ndarray" and kind.__module__ == "numpy"


def is_numpys_chance(obj: Any) -> bool:
    """Return whether an object is the hidden state of ``numpy.random``, which many objects of scipy share."""
    if type(obj).__qualname__ != "RandomState":
        return False
    return obj is getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)


def cannot_change(obj: Any) -> bool:
    kind = type(obj)
    return isinstance(obj, _CANNOT_CHANGE) or kind.__qualname__ in _CANNOT_CHANGE_BY_NAME.get(kind.__module__, ())


def owned_by(parts: Iterable[Any]) -> Iterator[Any]:
    """Yield the definitions and the mutable objects in what an object that cannot change was reduced to.

    They are the user's, such as the default of a dataclass's field: they can change. The containers around them were
    made for the reduction.
    """
    for part in parts:
        kind = type(part)
        if kind is tuple or kind is list:
            yield from owned_by(part)
        elif kind is dict:
            yield from owned_by(part.values())
        elif kind is types.MappingProxyType:
            yield from gc.get_referents(part) if part else ()
        elif kind is types.FunctionType or isinstance(part, type) or is_mutable(kind):
            yield part
