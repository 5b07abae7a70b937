"""Digests of code objects for the result cache, in which docstrings and lines play no part.

A docstring of a function is a constant that no instruction loads, unless the function uses an equal text itself.  So
the constants are taken from the instructions that load them, in their order, and the operands of these are left out.
"""

from __future__ import annotations

import dis
import hashlib
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
    """Return the digest of a code object and of the code in it.  encode: gives bytes for a constant."""
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
