"""A chunk of a map: one attempt, many calls, each with an end of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from typing import Any, TypeAlias

from ..core.errors import TaskRejectError, UnpickleableException
from ..core.work import FailureBody
from ..doors.blobs import Keeper
from ..doors.pack import for_many, pack
from .brief import described
from .sinks import SINK

Error: TypeAlias = tuple[int, bool, FailureBody]
"""(index, whether it rejected the engine, the error)."""


def call_each(function: Callable[..., Any], items: Sequence[Any], star: bool) -> tuple[list[Any], list[Error]]:
    """Call it with each item (star: with each item's items).  An interrupt ends the chunk as a whole.

    The error of an item that is alone is raised: it is the task's own, to be retried and rejected like any other.
    """
    values: list[Any] = []
    errors: list[Error] = []
    sink = SINK.get()
    if sink is not None:
        sink.begin_items(values)
    left = iter(items)
    function = for_many(function)
    calls: Iterator[Any] = starmap(function, left) if star else map(function, left)
    while len(values) < len(items):
        try:
            values.extend(calls)  # the loop is in C; what was computed before an error stays
            if len(values) < len(items):
                raise RuntimeError("the function raised StopIteration")
        except (Exception, SystemExit) as error:
            if len(items) == 1:
                raise
            errors.append((len(values), issubclass(type(error), TaskRejectError), described(error)[1]))
            values.append(None)
    return values, errors


def pack_each(ended: tuple[list[Any], list[Error]], keeper: Keeper | None) -> bytes:
    """Pack what `call_each` gave; a value that cannot travel becomes an error of its item."""
    try:
        return pack(ended, "value", keeper)
    except UnpickleableException:
        values, errors = ended
        failed = [(index, error) for index, value in enumerate(values) if (error := _refusal(value)) is not None]
        if not failed or len(values) == 1:
            raise
        for index, refusal in failed:
            values[index] = None
            errors.append((index, False, described(refusal)[1]))
        return pack((values, errors), "value", keeper)


def _refusal(value: Any) -> Exception | None:
    try:
        pack(value)
    except UnpickleableException as error:
        return error
    return None
