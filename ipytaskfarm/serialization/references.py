"""References to results in the arguments of tasks.

A `Ref` is replaced when it is packed: the id of its task is recorded for the graph (`noting`), and the pickle contains
a call of `input_value`. On the engine that call returns the value from the results that came with the run
(`give_inputs`). So a reference may stand anywhere in the arguments, and arguments without references cost nothing
extra.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from operator import index
from typing import Any

from ..core.text import shown


class _Here(threading.local):
    note: Callable[[object], int] | None = None
    give: Callable[[int], Any] | None = None


_here = _Here()


class Ref:
    """The result of a task as an argument of another task: ``Task(f, args=(Ref(id),))``.

    The other task waits for the result. It gets the value directly from the engine's side, not through the client: the
    return value of a function, or the dict of the names that a StringTask pulls, or with `name` one of these values. If
    the task failed and ``if_failed="run"``, the value is the exception.

    Args:
        task: an id, a `TaskFuture`, or a `Task` of the same job that has no id yet.
        name: one of the names that the task pulls.

    Raises:
        TypeError: a text, a number with a fraction or a collection is no task.
    """

    __slots__ = ("name", "task")

    def __init__(self, task: Any, name: str | None = None) -> None:
        if isinstance(task, str | bytes | float | list | tuple | dict | set | None):
            raise TypeError(f"task must be an id, a TaskFuture or a Task, not {shown(task)}: tc.run(…) returns an id")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be one of the names that the task pulls, not {shown(name)}")
        self.task = task
        self.name = name

    def __repr__(self) -> str:
        return f"Ref({self.task!r}{f', {self.name!r}' if self.name is not None else ''})"

    def __index__(self) -> int:
        return index(self.task)

    def __reduce__(self) -> tuple[Any, ...]:
        return reference(self.task, self.name)


def reference(task: object, name: str | None = None) -> tuple[Any, ...]:
    """Return the reduction of a reference.

    Raises:
        TypeError: no task is being packed.
    """
    if _here.note is None:
        raise TypeError(
            "the result of a task can only stand among the arguments of another one (args, kwargs, push): "
            "a function's closure or global cannot wait for it. A file can keep the task's id: tc.get_task_result(id)"
        )
    number = _here.note(task)
    return (input_value, (number,)) if name is None else (input_name, (number, name))


class noting:  # noqa: N801 - it is used as a statement
    """A context, ``with noting(note):``, in which references are packed.

    `note` is called with the task of each reference, and returns the number under which the reference travels.
    """

    __slots__ = ("_before", "_note")

    def __init__(self, note: Callable[[object], int]) -> None:
        self._note = note

    def __enter__(self) -> None:
        self._before, _here.note = _here.note, self._note

    def __exit__(self, *exc_info: object) -> None:
        _here.note = self._before


def give_inputs(give: Callable[[int], Any] | None) -> None:
    """Set the function that returns the value of a reference which is unpacked in this thread; None for
    no references.
    """
    _here.give = give


def input_value(number: int) -> Any:
    """Return the value of the input of this number. Pickles call this."""
    if _here.give is None:
        raise LookupError(f"the result of task {number} was not sent with this run")
    return _here.give(number)


def input_name(number: int, name: str) -> Any:
    """Return one of the names that the input's task pulled. Pickles call this."""
    value = input_value(number)
    if isinstance(value, Ref):  # the reader of a task that does not run it
        return Ref(value.task, name)
    return value if isinstance(value, BaseException) else value[name]
