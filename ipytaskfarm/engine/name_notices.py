"""Notices that a function uses the engine's value of a name and not its own, if the two differ."""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from ..serialization.function_globals import BY_CALL, placed
from ..serialization.global_names import global_names
from ..serialization.pack import pack

_SAID_MAX = 10_000
_PLAIN = (int, float, complex, str, bytes, bool, type(None))


class NameNotices:
    """Writes one line of standard error for each function and name, into the output of the run that first shows it."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._gathered: list[str] | None = None

    def tell(self, functions: Iterable[FunctionType], name: str, brought: Any, found: Any) -> None:
        """Write the notice, unless it was written before or the values are the same."""
        function = _user_of(functions, name)
        if function is None or name not in placed.by:  # the task itself has bound it
            return
        if placed.by[name].startswith(BY_CALL):
            return
        module = function.__module__
        label = function.__qualname__ if module == "__main__" else f"{module}.{function.__qualname__}"
        if (label, name) in self._said or _is_same(brought, found):
            return
        if len(self._said) >= _SAID_MAX:
            self._said.clear()
        self._said.add((label, name))
        own = "this session's" if module == "__main__" else f"{module}'s"
        if name in vars(builtins) and brought is vars(builtins)[name]:
            own = "Python's"
        text = f"{label} uses {name} from the engines (placed there by {placed.by.get(name, 'hand')}), not {own}"
        if self._gathered is not None:
            self._gathered.append(text)
        else:
            print(f"ipytaskfarm: {text}", file=sys.stderr)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[list[str]]:
        """Collect the notices of the block in a list, for code that has no output of its own."""
        outer = self._gathered
        texts: list[str] = []
        self._gathered = texts
        try:
            yield texts
        finally:
            self._gathered = outer


def _user_of(functions: Iterable[FunctionType], name: str) -> FunctionType | None:
    return next((each for each in functions if name in global_names(each.__code__)), None)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values have the same effect. Values that cannot be compared count as different."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other) or one != one
    if getattr(one, "shape", None) is not None and str(one.shape) != str(other.shape):
        return False  # parts of a scatter, which need not be unpacked for this
    try:
        return pack(one) == pack(other)
    except Exception:
        return False
