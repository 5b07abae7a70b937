"""Exceptions in parts: a part that cannot travel, or is too large, is replaced with a remark; the type stays.

An ``except CalledProcessError`` in the client must work whatever the exception holds: gigabytes of output, a lock, a
connection, a frame.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

from . import rebuild_errors as build_errors
from .cache import dumps, loads
from .refusals import type_name

PICKLED_BYTES_MAX = 1024 * 1024
"""The limit for one failure: the sum over all exceptions of its chain."""
_PART_BYTES_MAX = 128 * 1024
_ITEMS_MAX = 200
_DEPTH_MAX = 3
_BEGINNING = 200
_OWN_FIELDS = frozenset({"args", "__cause__", "__context__", "__suppress_context__", "__traceback__", "__dict__"})
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})
_ARGS: Any = BaseException.__dict__["args"]
_Descriptors = types.MemberDescriptorType | types.GetSetDescriptorType


class Budget:
    """The number of bytes of pickles that a failure may still hold."""

    def __init__(self) -> None:
        self.left = PICKLED_BYTES_MAX


def pack_alone(error: BaseException, budget: Budget) -> tuple[bytes | None, str]:
    """Return the exception as a pickle, whole or with remarks.

    The pickle is opened here as a test, because a class with its own ``__init__`` or ``__reduce__`` may make a pickle
    that cannot be opened. If no better pickle can be made, such a pickle is sent all the same: the reader's process may
    be able to open it.

    Args:
        error: the exception, without its chain.
        budget: the bytes that are left for this failure; the size of the pickle is deducted.

    Returns:
        (pickle, ""), or (None, the reason why the exception cannot travel).
    """
    whole, why = _whole(error, budget)
    if whole is not None and not why:
        budget.left -= len(whole)
        return whole, ""
    data, worse = _in_parts(error, _Remarks(budget))
    if data is None:
        return (whole, why) if whole is not None and len(whole) <= budget.left else (None, worse)
    if len(data) > budget.left:
        return None, f"it is too large, even without what it holds: {len(data):,} bytes"
    budget.left -= len(data)
    return data, ""


def _whole(error: BaseException, budget: Budget) -> tuple[bytes | None, str]:
    """Return the exception as a pickle, or None, and what is wrong with the pickle ("" for nothing)."""
    try:
        data = dumps(error)
    except Exception as problem:
        return None, _said(problem)
    if len(data) > budget.left:
        return data, f"it is too large: {len(data):,} bytes"
    try:
        again = loads(data)
    except Exception as problem:
        return data, f"it cannot be built again: {_said(problem)}"
    if type(again).__qualname__ != type(error).__qualname__:
        return None, f"it would come back as {type_name(again)}"
    if _told(again) != _told(error):
        return data, "it would come back with another text"
    return data, ""


def _told(error: BaseException) -> str | None:
    try:
        return str(error)
    except Exception:
        return None


def _in_parts(error: BaseException, remarks: _Remarks) -> tuple[bytes | None, str]:
    try:
        data = dumps(remarks.parts_of(error))
        again = loads(data)
    except Exception as problem:
        return None, f"its class cannot travel: {_said(problem)}"
    return (data, "") if isinstance(again, BaseException) else (None, f"it would come back as {type_name(again)}")


def pack_group(error: BaseExceptionGroup[Any], budget: Budget) -> tuple[bytes | None, str]:
    """Return an exception group without its members as a pickle of class, message and state, or None and the reason."""
    remarks = _Remarks(budget)
    state = {name: remarks.fit(value) for name, value in state_of(error).items()}
    try:
        data = dumps((type(error), remarks.fit(error.message), state))
    except Exception as problem:
        return None, f"its class cannot travel: {_said(problem)}"
    budget.left -= len(data)
    return data, ""


def pack_lost_fields(error: BaseException, data: bytes, budget: Budget) -> bytes | None:
    """Return a pickle of the attributes that the exception's own pickle leaves out; None if there are none.

    Examples are `name` and `obj` of an AttributeError, all slots, and what was assigned to an exception with a
    ``__reduce__`` of its own, like a JSONDecodeError.
    """
    fields, state = fields_of(error), state_of(error)
    if not fields and len(state) <= ("__notes__" in state):
        return None
    again = loads(data)
    known, kept = fields_of(again), state_of(again)
    remarks = _Remarks(budget)
    lost = {
        name: remarks.fit_field(error, name, value) for name, value in fields.items() if _is_lost(name, value, known)
    }
    for name, value in state.items():
        if name not in kept and name not in lost and name != "__notes__":  # notes have a place of their own in a link
            fitted = remarks.fit(value)
            if fitted is value:  # an attribute that cannot travel may be the reason for the __reduce__
                lost[name] = value
    return dumps(lost) if lost else None


def _is_lost(name: str, value: object, again: dict[str, Any]) -> bool:
    """Return whether an attribute has another value after the exception was opened again."""
    if name not in again:
        return True
    found = again[name]
    if found is value or type(value) not in _PLAIN:  # what __reduce__ or __init__ has made is taken to be right
        return found is None and value is not None
    return type(found) is not type(value) or found != value


def open_error(data: bytes, fields: bytes | None) -> BaseException:
    """Return the exception from its pickle; fields: the pickle of the attributes that it lacks, or None.

    Raises any error that the class of the exception raises.
    """
    error = loads(data)
    if not isinstance(error, BaseException):
        raise TypeError(f"it came back as {type_name(error)}")
    if fields is not None:
        for name, value in _fields_opened(fields).items():
            with contextlib.suppress(Exception):  # it can only be read, or is a property that does anything
                BaseException.__setattr__(error, name, value)
    return error


def _fields_opened(data: bytes) -> dict[str, Any]:
    """Return the attributes; none if one of them needs what is not here, because the type matters more."""
    try:
        found: dict[str, Any] = loads(data)
    except Exception:
        return {}
    return found


def open_group(data: bytes, members: list[BaseException]) -> BaseException:
    """Return the exception group with its members. Any error that its class raises is passed on."""
    cls, message, state = loads(data)
    made: BaseException = build_errors.new_exception_group(cls, message, members, state)
    return made


def state_of(error: BaseException) -> dict[str, Any]:
    """Return the exception's ``__dict__``, even if its class overrides the access to attributes."""
    state: dict[str, Any] = object.__getattribute__(error, "__dict__")
    return {name: value for name, value in state.items() if isinstance(name, str)}


def fields_of(error: BaseException) -> dict[str, Any]:
    """Return the attributes that are stored outside ``__dict__``: fields of builtin exceptions (`errno`, `code`) and
    slots.
    """
    found: dict[str, Any] = {}
    for base in type(error).__mro__:
        if base is BaseException or base is object:
            continue
        if base is BaseExceptionGroup:
            continue
        for name, descriptor in vars(base).items():
            if name in _OWN_FIELDS or name == "__weakref__" or not isinstance(descriptor, _Descriptors):
                continue
            try:
                found[descriptor.__name__] = descriptor.__get__(error)
            except AttributeError:  # an empty slot; `characters_written`
                continue
    return found


class _Parts:
    """An object that reduces to a call of a rebuilding function."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call[0], self._call[1:]


class _Remarks:
    """Fits values into the bytes that a failure may hold."""

    def __init__(self, budget: Budget) -> None:
        self._left = min(budget.left, PICKLED_BYTES_MAX) // 2

    def parts_of(self, error: BaseException, depth: int = 0) -> _Parts:
        """Return the exception taken apart."""
        args = tuple(self.fit(each, depth) for each in _ARGS.__get__(error))
        fields = {name: self.fit_field(error, name, value) for name, value in fields_of(error).items()}
        state = {name: self.fit(value, depth) for name, value in state_of(error).items()}
        return _Parts(build_errors.new_exception_in_parts, type(error), args, fields, state)

    def fit(self, value: Any, depth: int = 0) -> Any:
        """Return the value, or a copy with remarks in place of some parts, or a remark."""
        if isinstance(value, BaseException) and depth < _DEPTH_MAX and not isinstance(value, BaseExceptionGroup):
            return self._fit_error(value, depth)
        try:
            size = len(dumps(value))
        except Exception as problem:
            return self._mended(value, depth) or _remark(f"a {type_name(value)} cannot travel: {_said(problem)}")
        if size <= min(_PART_BYTES_MAX, self._left):
            self._left -= size
            return value
        if isinstance(value, str | bytes):
            what = "characters" if isinstance(value, str) else "bytes"
            many = f"{len(value):,} {what} are too much to travel with an error"
            return _remark(f"{many}; they begin with {value[:_BEGINNING]!r}")
        mended = self._mended(value, depth)
        return mended or _remark(f"a {type_name(value)} of {size:,} bytes is too large to travel with an error")

    def fit_field(self, error: BaseException, name: str, value: Any) -> Any:
        """Return the fitted value of an attribute that C code relies on: `object` of a UnicodeError stays bytes or
        text.
        """
        fitted = self.fit(value)
        if fitted is value or not isinstance(error, UnicodeError) or name != "object":
            return fitted
        middle = value[error.start : error.start + _BEGINNING]  # type: ignore[attr-defined]
        before = min(error.start, len(value))  # type: ignore[attr-defined]
        return _Parts(build_errors.new_padded, before, middle, len(value) - before - len(middle))

    def _fit_error(self, error: BaseException, depth: int) -> Any:
        """Return an exception that is part of another one: whole or in parts."""
        try:
            data = dumps(error)
            if len(data) <= min(_PART_BYTES_MAX, self._left) and _told(loads(data)) == _told(error):
                self._left -= len(data)
                return error
        except Exception:
            data = b""  # then send it in parts
        parts = self.parts_of(error, depth + 1)
        try:
            size = len(dumps(parts))
        except Exception as problem:
            return _remark(f"a {type_name(error)} cannot travel: {_said(problem)}")
        if size > min(_PART_BYTES_MAX, self._left):
            return _remark(f"a {type_name(error)} of {size:,} bytes is too large to travel with an error")
        self._left -= size
        return parts

    def _mended(self, value: Any, depth: int) -> Any:
        """Return a builtin container with remarks in place of some items; None if that is not possible."""
        if depth >= _DEPTH_MAX:
            return None
        kind = type(value)
        if kind is dict and 0 < len(value) <= _ITEMS_MAX:
            return {key: self.fit(each, depth + 1) for key, each in value.items() if isinstance(key, str | int)}
        if kind in (list, tuple) and 0 < len(value) <= _ITEMS_MAX:
            return kind([self.fit(each, depth + 1) for each in value])
        return None


def _remark(text: str) -> str:
    return f"<left out: {text}>"


def _said(problem: BaseException) -> str:
    try:
        text = str(problem)
    except Exception:
        text = ""
    return f"{type(problem).__name__}: {text[:_BEGINNING]}" if text else type(problem).__name__
