"""Maps over tasks: `tc.map`, `tc.mapper(…).map` and the `tc.parallel` decorator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .results import TaskResult
from .tasks import MapTask

if TYPE_CHECKING:
    from .taskclient import TaskClient


def hand_in_map(
    client: TaskClient, function: Callable[..., Any], sequences: Sequence[Iterable[Any]], attributes: dict[str, Any]
) -> list[int]:
    """One MapTask for each tuple of arguments; returns the ids in order.  All lengths are checked before the first."""
    if not sequences:
        raise ValueError("map needs at least one sequence")
    # Read whole first: a length that does not fit must be found before anything is handed in.
    columns = [list(sequence) for sequence in sequences]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise ValueError(f"the sequences of a map must have equal lengths, not {[len(c) for c in columns]}")
    tasks = [MapTask(function, arguments, **attributes) for arguments in zip(*columns, strict=True)]
    return [client.run(task) for task in tasks]


def map_tasks(
    client: TaskClient,
    function: Callable[..., Any],
    sequences: Sequence[Iterable[Any]],
    attributes: dict[str, Any],
    return_exceptions: bool = False,
) -> list[Any]:
    """Hand in, wait, and collect in order; the failure of the lowest index is raised as itself."""
    ids = hand_in_map(client, function, sequences, attributes)
    client.barrier(ids)
    values: list[Any] = []
    for task_id in ids:
        try:
            values.append(_value(client, task_id))
        except Exception as error:
            if not return_exceptions:
                raise
            values.append(error)
    return values


def _value(client: TaskClient, task_id: int) -> Any:
    result = client.get_task_result(task_id)
    # A recovery task's result is of its own kind; for a map its value is what counts.
    return result.result if isinstance(result, TaskResult) else result


class Mapper:
    """`map` with task attributes; made by ``tc.mapper``."""

    def __init__(self, client: TaskClient, attributes: dict[str, Any], block: bool) -> None:
        self._client = client
        self._attributes = attributes
        self.block = block

    def map(self, function: Callable[..., Any], *sequences: Iterable[Any]) -> list[Any]:
        """The results in order; with block=False the ids.  See ``TaskClient.map``."""
        if self.block:
            return map_tasks(self._client, function, sequences, self._attributes)
        return hand_in_map(self._client, function, sequences, self._attributes)


class ParallelFunction:
    """The decorator that ``tc.parallel`` makes; it may decorate any number of functions."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __call__(self, function: Callable[..., Any]) -> Callable[..., list[Any]]:
        @functools.wraps(function)
        def call(*sequences: Iterable[Any]) -> list[Any]:
            return self.mapper.map(function, *sequences)

        return call
