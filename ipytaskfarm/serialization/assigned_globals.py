"""Warns of globals of by-value modules that the program has assigned from outside after the import.

Tasks run the module's source, so after ``config.N = 5`` they would compute with the number in the source, without a
word.  Only plain constants count that the source assigns once, and that no function of the module assigns: what a
module does with its own globals is its own affair, and what other modules of the program assign when they are imported
they assign on engines too.  A file that was edited after this process began is left alone,
because its source may differ from what was imported.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from ..core.text import shown
from ..system.farm_paths import process_started

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CONSTANTS_MAX = 10_000
"""How many constants of a module are compared, whenever its file is looked at: these take a third of a millisecond."""
_warned: set[tuple[str, str]] = set()


class AssignedGlobals:
    """The constants of one imported module, to compare them with its globals later."""

    __slots__ = ("_constants", "_globals", "_name", "_seen", "_sources")

    def __init__(self, name: str, constants: dict[str, Any], sources: Sequence[bytes]) -> None:
        self._name = name
        self._constants = constants
        self._globals = vars(sys.modules[name])
        self._sources = sources
        self._seen: list[int] = []
        """The identities of the constants' values at the last look."""

    def warn(self) -> None:
        """Warn of the constants that have another value by now, once of each."""
        present = self._globals
        seen = [*map(id, map(present.get, self._constants))]
        if seen == self._seen:
            return
        self._seen = seen
        for name, value in self._constants.items():
            now = present.get(name, value)
            if now is value or (type(now) is type(value) and now == value):
                continue
            if not isinstance(now, _PLAIN) or (self._name, name) in _warned:
                continue
            _warned.add((self._name, name))
            by_import = re.compile(rb"(?m)^[\w.]*\.%s\s*(:[^=\n]*)?=(?!=)" % name.encode())
            if not any(map(by_import.search, self._sources)):
                warnings.warn(
                    f"{self._name}.{name} was set to {shown(now)} after the import, and tasks run the module's source, "
                    f"where it is {shown(value)}: pass it as an argument, or keep it in the script",
                    stacklevel=2,
                )


def constants_to_compare(name: str, file: str, source: bytes, sources: Sequence[bytes]) -> AssignedGlobals | None:
    """Return the constants of a by-value module that may be compared with its globals; None if there are none.

    Args:
        name: the module's name.
        file: its file.
        source: the content of the file.
        sources: those of all modules that travel with it.
    """
    if name not in sys.modules or b"=" not in source:
        return None
    try:
        if os.stat(file).st_ctime >= _began_s():  # the time of an edit can be set, this one cannot
            return None
        constants = dict(_constants(ast.parse(source)))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    return AssignedGlobals(name, constants, sources) if 0 < len(constants) <= _CONSTANTS_MAX else None


@functools.cache
def _began_s() -> float:
    """Return the wall-clock time at which this process began."""
    since_boot_s = process_started()
    return 0.0 if since_boot_s is None else time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s


def _constants(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Yield name and value of each plain constant that is assigned once, by a statement of the module itself."""
    bound: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            bound.update(dict.fromkeys(node.names, 2))
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound[node.id] = bound.get(node.id, 0) + 1
        elif isinstance(node, ast.alias):
            bound[node.asname or node.name] = 2
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) and len(statement.targets) == 1 else None
        if isinstance(statement, ast.AnnAssign):
            target = statement.target
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr) and bound.get(target.id) == 1:
            try:
                constant = ast.literal_eval(value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(constant, _PLAIN):
                yield target.id, constant
