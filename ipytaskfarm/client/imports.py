"""Run the imports of a block on the engines too: ``with mec.sync_imports():``.

A replaced ``builtins.__import__`` sees which imports run.  The bytecode behind each import tells to which name the
module was bound, which distinguishes ``import numpy as np`` from ``import numpy``.
"""

from __future__ import annotations

import builtins
import contextlib
import dis
import sys
from collections.abc import Callable, Iterator
from itertools import dropwhile
from types import CodeType, FrameType
from typing import Any

_BINDING = {"STORE_NAME", "STORE_GLOBAL", "STORE_FAST", "STORE_DEREF"}
_BETWEEN = {"IMPORT_FROM", "SWAP", "POP_TOP", "ROT_TWO", "EXTENDED_ARG", "CACHE", "NOP"}


@contextlib.contextmanager
def collected(frame: FrameType, use: Callable[[list[str]], None]) -> Iterator[None]:
    """Run a block, then call `use` with the import statements that this frame ran in it.

    An exception prevents the call.
    """
    statements: dict[str, None] = {}
    original = builtins.__import__

    def watched(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        found = original(name, globals, locals, fromlist, level)
        caller = sys._getframe(1)
        if caller is frame and level == 0:
            statements[_statement(caller.f_code, caller.f_lasti, name, fromlist or ())] = None
        return found

    builtins.__import__ = watched
    try:
        yield
    finally:
        builtins.__import__ = original
    if statements:
        use(list(statements))


def _statement(code: CodeType, offset: int, module: str, names: tuple[str, ...]) -> str:
    """Return the import statement with the IMPORT_NAME instruction at this offset."""
    if "*" in names:
        return f"from {module} import *"
    bound: list[tuple[str | None, str]] = []
    part: str | None = None
    behind = dropwhile(lambda step: step.offset <= offset, dis.get_instructions(code))
    for step in behind:
        if step.opname == "IMPORT_FROM":
            part = step.argval
        elif step.opname in _BINDING:
            bound.append((part, step.argval))
            if not names or len(bound) == len(names):
                break
        elif step.opname not in _BETWEEN:
            break
    if names:
        return f"from {module} import {', '.join(_as(str(part), name) for part, name in bound)}"
    if not bound:
        return f"import {module}"
    part, name = bound[-1]
    plain = part is None and name == module.partition(".")[0]
    return f"import {module}" if plain else f"import {module} as {name}"


def _as(name: str, bound: str) -> str:
    return name if name == bound else f"{name} as {bound}"
