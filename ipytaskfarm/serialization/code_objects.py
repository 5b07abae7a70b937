"""Code objects: digests of what they compute, and the lines at which they stand now."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import types
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..system.user_code import lasting_name
from .function_parts import closure_of
from .global_names import nested_codes
from .known_classes import travelled

_DEPTH_MAX = 10


def follow_moves(cls: type, attributes: dict[str, Any]) -> None:
    """Give functions of a class that came by value the code of the same attributes in another pack of it.

    A class is known by what it is, and its identity lasts: an edit above it in its file makes no other class of it. Its
    functions get the code of the newest definition, which differs in file and lines alone, so that errors name these.
    """
    if not travelled(cls):
        return  # it was defined here, and what comes back may be older
    own = vars(cls)
    for name, value in attributes.items():
        for before, now in zip(functions_in(own.get(name)), functions_in(value), strict=False):
            _follow_move(before, now)


def functions_in(value: Any, depth: int = 0) -> Iterator[types.FunctionType]:
    """Yield the functions in an attribute of a class."""
    if depth > _DEPTH_MAX:
        return
    kind = type(value)
    if kind is types.FunctionType:
        yield value
        inner = [vars(value).get("__wrapped__"), *(each for _, each in closure_of(value) if type(each) is kind)]
    elif isinstance(value, staticmethod | classmethod):
        inner = [value.__func__]
    elif isinstance(value, property):
        inner = [value.fget, value.fset, value.fdel]
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        inner = [value.func]
    elif isinstance(value, functools.singledispatchmethod):
        inner = [value.func, *value.dispatcher.registry.values()]
    elif kind is functools._lru_cache_wrapper:
        inner = [value.__wrapped__]
    else:
        return
    for each in inner:
        yield from functions_in(each, depth + 1)


def _follow_move(before: types.FunctionType, now: types.FunctionType) -> None:
    old, new = before.__code__, now.__code__
    if _places(old) != _places(new) and old.co_code == new.co_code and old.co_freevars == new.co_freevars:
        before.__code__ = new


def place_of(code: types.CodeType) -> str:
    """Return in which file and at which lines code stands, with the code nested in it."""
    lines = 0
    for _, first, table in _places(code):
        lines = zlib.crc32(table, lines ^ first)
    return f"{lasting_name(code.co_filename)}:{code.co_firstlineno}:{lines}"


def _places(code: types.CodeType) -> list[tuple[str, int, bytes]]:
    return [(each.co_filename, each.co_firstlineno, each.co_linetable) for each in nested_codes(code)]


_CONSTANTS = frozenset(dis.hasconst)
_SMALL_INT = dis.opmap.get("LOAD_SMALL_INT")
_STORE_NAME = dis.opmap["STORE_NAME"]
_TEXT_OF_CLASS = frozenset({"__doc__", "__firstlineno__"})
"""Names that the body of a class sets, and that say nothing about what it does."""
_HAS_DOCSTRING = 0x4000000
"""A flag of code objects, from Python 3.14 on."""

_digests: dict[int, bytes] = {}
"""Address of a code object -> its digest, which cannot change: each new closure has the same code."""


def code_digest(code: types.CodeType, encode: Callable[[Any], bytes]) -> bytes:
    """Return the digest of a code object and of the code in it.  encode: gives bytes for a constant.

    A docstring of a function is a constant that no instruction loads, unless the function uses an equal text itself. So
    the constants are taken from the instructions that load them, in their order, and the operands of these are left
    out.
    """
    key = id(code)
    known = _digests.get(key)
    if known is None:
        known = _digests[key] = _digest(code, encode)
        weakref.finalize(code, _digests.pop, key, None).atexit = False
    return known


def _digest(code: types.CodeType, encode: Callable[[Any], bytes]) -> bytes:
    body = bytearray(code.co_code)
    constants: list[bytes] = []
    steps = [*_steps(body)]
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if step.op not in _CONSTANTS and step.op != _SMALL_INT:
            continue
        stored = code.co_names[following.operand] if following is not None and following.op == _STORE_NAME else ""
        if stored in _TEXT_OF_CLASS:
            body[step.start : step.end] = bytes(step.end - step.start)
        elif step.op in _CONSTANTS:
            constant = code.co_consts[step.operand]
            is_code = isinstance(constant, types.CodeType)
            constants.append(code_digest(constant, encode) if is_code else encode(constant))
            body[step.start + 1 : step.end : 2] = bytes((step.end - step.start) // 2)
    parts = (
        bytes(body), code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount,
        code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~_HAS_DOCSTRING, code.co_qualname,
        code.co_exceptiontable, tuple(constants), sys.version_info[:2],
    )  # fmt: skip
    return hashlib.blake2b(b"code" + encode(parts), digest_size=20).digest()


class _Step(NamedTuple):
    """An instruction with the prefixes of its operand, without what is cached behind it."""

    op: int
    operand: int
    start: int
    end: int


def _steps(body: bytes | bytearray) -> Iterator[_Step]:
    start, operand = 0, 0
    for place in range(0, len(body), 2):
        op = body[place]
        operand = operand << 8 | body[place + 1]
        if op == dis.EXTENDED_ARG:
            continue
        if op:  # 0 is room for the interpreter's caches
            yield _Step(op, operand, start, place + 2)
        start, operand = place + 2, 0
