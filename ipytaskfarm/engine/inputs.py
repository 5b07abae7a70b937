"""Results of other tasks as a running task gets them: for its arguments, and from its children."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec

from ..core.errors import DependencyFailed, InputsLost, TaskAborted
from ..core.messages import Input
from ..core.messages.payload import ResultBody
from ..core.messages.task_types import FailureSummary
from ..core.states import ABORTS
from ..serialization.cache import damage_of
from ..serialization.pack import unpack, unpack_error

_decode = msgspec.msgpack.Decoder(ResultBody).decode


def value_of(
    task: int, reason: str, body: bytes | None, failure: FailureSummary | None, names: MutableMapping[str, Any]
) -> Any:
    """Return a task's value, or the exception with which it failed (returned, not raised)."""
    left = _decode(body) if body else ResultBody()
    if not reason:
        return unpack(left.value, names) if left.value is not None else None
    text = f"task {task} failed ({reason}): {failure.value if failure is not None else ''}"
    if reason in ABORTS:
        return TaskAborted(text)
    return unpack_error(left.failure) if left.failure is not None else DependencyFailed(text)


def kept_value(task: int, body: bytes, names: MutableMapping[str, Any]) -> Any:
    """Return a task's value that was taken from the result cache.

    Raises:
        InputsLost: it cannot be read, so the task has to run again.
    """
    value = _decode(body).value
    try:
        if value is None:
            return None
        if not damage_of(value):
            return unpack(value, names)
    except Exception as error:  # a large value or a class is gone, and a class may raise anything
        raise InputsLost([task]) from error
    raise InputsLost([task])


def giver(inputs: list[Input], names: MutableMapping[str, Any]) -> Callable[[int], Any]:
    """Return a function that gives the value of an input by its number in the arguments.

    Each input is unpacked once.
    """
    by_number = {each.number: each for each in inputs}
    made: dict[int, Any] = {}

    def give(number: int) -> Any:
        if number not in made:
            each = by_number[number]
            if each.body is None:
                text = f"the result of task {each.task}, an argument of this one, was cleared before it was taken"
                raise DependencyFailed(text)
            if each.from_cache:
                value = kept_value(each.task, each.body, names)
            else:
                value = value_of(each.task, each.reason, each.body, each.failure, names)
            made[number] = value if each.item is None or each.reason else value[each.item]
        return made[number]

    return give
