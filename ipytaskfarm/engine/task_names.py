"""Names that a task of code binds: functions in the engine's namespace find them while the task runs.

IPython 0.10's tasks gave pushed functions their parameters in this way: ``StringTask("r = model()", push={"a": 5})``.
So the names that the task itself pushes or assigns take precedence over what functions of the namespace have brought,
like names that were placed by hand. When the task has ended they are names that a task has left, and do not.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType

from ..serialization.function_globals import Names
from ..serialization.global_names import stored_names


class TaskNames:
    """The names that functions in the namespace have brought, and that a task may bind."""

    def __init__(self) -> None:
        self.brought: dict[str, list[weakref.ref[Names]]] = {}
        """Name -> the globals of the functions that have brought a value for it."""

    def watch(self, found: Iterable[Names]) -> None:
        """Watch the globals of functions that were unpacked into the namespace."""
        for names in found:
            reference = weakref.ref(names)
            for name in names.packed:
                if not name.startswith("__"):
                    known = [each for each in self.brought.get(name, ()) if each() is not None]
                    self.brought[name] = [*known, reference]

    def bound_by(self, pushed: Iterable[str], codes: Iterable[CodeType | None]) -> frozenset[str]:
        """Return the names in `brought` that a task binds: those that it pushes, and those that its code assigns."""
        brought = self.brought.keys()
        found = frozenset(brought & {*pushed})
        for code in codes:
            if code is not None and not brought.isdisjoint(code.co_names):
                found |= brought & _stored(code)
        return found

    @contextmanager
    def preferred(self, bound: frozenset[str]) -> Iterator[None]:
        """Let functions in the namespace find these names there."""
        changed = []
        for name in bound:
            for reference in self.brought[name]:
                names = reference()
                if names is not None and name not in names.taken:
                    names.prefer(name)
                    changed.append(names)
        try:
            yield
        finally:
            for names in changed:
                names.hide()


@functools.lru_cache(1024)
def _stored(code: CodeType) -> frozenset[str]:
    return frozenset(stored_names(code))


task_names = TaskNames()
