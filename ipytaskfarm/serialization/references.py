"""References to results among the arguments of tasks.

A `Ref` is not sent as it is: where it is packed, its task's id is noted for the graph (`noting`), and what travels is
a call of `input_value`, which gives the value itself on the engine, out of the results that came with the run
(`giving`).  So a reference may stand anywhere within the arguments, at no cost for those that have none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from operator import index
from typing import Any


class _Here(threading.local):
    note: Callable[[object], int] | None = None
    give: Callable[[int], Any] | None = None


_here = _Here()


class Ref:
    """Stands for the result of a task among another one's arguments: ``Task(f, args=(Ref(id),))``.

    The other task waits for it, and gets the value from its engine's side, not through the client: a function's return
    value, or the dict of the names that a StringTask pulls; with `name` that name's value alone.  If the task failed
    and ``if_failed="run"``, it is the exception.

    Args:
        task: an id, a `TaskFuture`, or a `Task` of the same job, which has no id yet.
        name: one of the names that it pulls.
    """

    __slots__ = ("name", "task")

    def __init__(self, task: Any, name: str | None = None) -> None:
        self.task = task
        self.name = name

    def __repr__(self) -> str:
        return f"Ref({self.task!r}{f', {self.name!r}' if self.name is not None else ''})"

    def __index__(self) -> int:
        return index(self.task)

    def __reduce__(self) -> tuple[Any, ...]:
        return reference(self.task, self.name)


def reference(task: object, name: str | None = None) -> tuple[Any, ...]:
    """Return what is packed in place of a result.  Raises TypeError where no task is being packed."""
    if _here.note is None:
        raise TypeError(
            "the result of a task can only stand among the arguments of another one (args, kwargs, push): "
            "a function's closure or global cannot wait for it"
        )
    number = _here.note(task)
    return (input_value, (number,)) if name is None else (input_name, (number, name))


class noting:  # noqa: N801 - it is used as a statement
    """``with noting(note):``: references packed within are told to `note`, which gives the number that they travel
    under."""

    __slots__ = ("_before", "_note")

    def __init__(self, note: Callable[[object], int]) -> None:
        self._note = note

    def __enter__(self) -> None:
        self._before, _here.note = _here.note, self._note

    def __exit__(self, *exc_info: object) -> None:
        _here.note = self._before


def give_inputs(give: Callable[[int], Any] | None) -> None:
    """From now on references that are unpacked in this thread are looked up there; None: there are none."""
    _here.give = give


def input_value(number: int) -> Any:
    """Return the value of the input of that number; called by pickles."""
    if _here.give is None:
        raise LookupError(f"the result of task {number} was not sent with this run")
    return _here.give(number)


def input_name(number: int, name: str) -> Any:
    """Return one of the names that it pulled; called by pickles."""
    value = input_value(number)
    return value if isinstance(value, BaseException) else value[name]
