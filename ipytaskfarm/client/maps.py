"""Maps over tasks: `tc.map`, `tc.imap`, `tc.mapper(…).map` and the `tc.parallel` decorator.

A blocking map whose items need nothing of their own runs in *chunks*: one task calls the function with many items, as
many as take some milliseconds (`core.pace`), and every item still has an end of its own.  Otherwise each item is a
task.  The engine's side of a chunk is ``engine/each.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import messages, tables
from ..core.pace import Pace
from ..doors.pack import unpack_error
from .mapped import Gathered, Values
from .progress import Progress
from .results import TaskResult, sign
from .tasks import EachTask, MapTask

if TYPE_CHECKING:
    from .taskclient import TaskClient

LOOK_AHEAD = 4
"""While an early chunk takes its time, `imap` keeps at most so many times what is under way for later."""

CLEARED_AT_ONCE = 64


class Items:
    """The arguments of a map, to be taken a chunk at a time."""

    def __init__(self, sequences: Sequence[Iterable[Any]]) -> None:
        if not sequences:
            raise ValueError("map needs at least one sequence")
        self.star = len(sequences) > 1
        first = sequences[0]
        # A slice of a range is a range, which travels as three numbers.
        self._sliced = first if not self.star and isinstance(first, range | list | tuple) else None
        self._rest: Iterator[Any] = iter(zip(*sequences, strict=True) if self.star else first)
        self.total = len(first) if isinstance(first, Sized) else None
        self.taken = 0
        self.ended = 0

    @property
    def left(self) -> int | None:
        """How many were not taken; None: nobody knows."""
        return None if self.total is None else self.total - self.taken

    def take(self, count: int) -> Sequence[Any]:
        """The next ones; fewer at the end."""
        if self._sliced is not None:
            chunk: Sequence[Any] = self._sliced[self.taken : self.taken + count]
        else:
            chunk = list(islice(self._rest, count))
        self.taken += len(chunk)
        return chunk


class Chunk(NamedTuple):
    """Items on their way: those at `places` of the whole."""

    places: Sequence[int]
    items: Sequence[Any]
    retries: int


class Ended(NamedTuple):
    """What came of a chunk: its values, and instead of some of them (by index) the errors."""

    places: Sequence[int]
    values: Sequence[Any]
    errors: dict[int, BaseException]


def equally_long(sequences: Sequence[Iterable[Any]]) -> list[Sequence[Any]]:
    """The sequences, read whole: a length that does not fit must be found before anything is handed in."""
    columns: list[Sequence[Any]] = [s if isinstance(s, range | list | tuple) else list(s) for s in sequences]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"the sequences of a map must have equal lengths, not {[len(c) for c in columns]}")
    return columns


def hand_in_map(
    client: TaskClient, function: Callable[..., Any], sequences: Sequence[Iterable[Any]], attributes: dict[str, Any]
) -> list[int]:
    """One MapTask for each tuple of arguments; returns the ids in order.  All lengths are checked before the first."""
    if not sequences:
        raise ValueError("map needs at least one sequence")
    tasks = [MapTask(function, arguments, **attributes) for arguments in zip(*equally_long(sequences), strict=True)]
    return [client.run(task) for task in tasks]


def map_tasks(
    client: TaskClient,
    function: Callable[..., Any],
    sequences: Sequence[Iterable[Any]],
    attributes: dict[str, Any],
    return_exceptions: bool = False,
    stream: bool = False,
) -> Values:
    """Hand in, wait, and collect in order; the failure of the lowest index is raised as itself."""
    gathered = Gathered(stream)
    if not _may_chunk(function, attributes):
        ids = hand_in_map(client, function, sequences, attributes)
        client.barrier(ids)
        return Values(_collect(client, ids, return_exceptions, gathered), gathered.printed)
    items = Items(equally_long(sequences))
    values: list[Any] = []
    errors: dict[int, BaseException] = {}
    progress = Progress(items.total or 0, "item", client.progress)
    with progress:
        for ended in _run_chunks(client, function, items, gathered, attributes.get("retries", 0)):
            _put(values, errors, ended, items.taken)
            progress.left(max(0, (items.total or 0) - items.ended), len(errors))
    if errors and not return_exceptions:
        raise errors[min(errors)]
    for place, error in errors.items():
        values[place] = error
    return Values(values, gathered.printed)


def _put(values: list[Any], errors: dict[int, BaseException], ended: Ended, taken: int) -> None:
    """Put what came of a chunk where it belongs."""
    if len(values) < taken:
        values.extend([None] * (taken - len(values)))
    places = ended.places
    if isinstance(places, range):
        values[places.start : places.stop] = ended.values
    else:
        for place, value in zip(places, ended.values, strict=True):
            values[place] = value
    errors.update((places[index], error) for index, error in ended.errors.items())


def imap(
    client: TaskClient,
    function: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    ordered: bool,
    stream: bool = False,
) -> Iterator[Any]:
    """The values, as they come or in order; items are read no further ahead than the work needs."""
    items = Items(iterables)
    waiting: dict[int, Any] = {}
    """Values and _Raise, by place, that came before their turn."""
    turn = 0
    for ended in _run_chunks(client, function, items, Gathered(True) if stream else None, 0, lambda: len(waiting)):
        if not ordered:
            yield from _values(ended)
            continue
        waiting.update(zip(ended.places, ended.values, strict=True))
        waiting.update((ended.places[index], _Raise(error)) for index, error in ended.errors.items())
        while turn in waiting:
            value = waiting.pop(turn)
            turn += 1
            if type(value) is _Raise:
                raise value.error
            yield value


class _Raise(NamedTuple):
    error: BaseException


def _values(ended: Ended) -> Iterator[Any]:
    for index, value in enumerate(ended.values):
        if index in ended.errors:
            raise ended.errors[index]
        yield value


def _may_chunk(function: Callable[..., Any], attributes: dict[str, Any]) -> bool:
    if inspect.iscoroutinefunction(function):
        return False  # each runs in the engine's loop
    return not any(attributes.get(name) for name in ("clear_before", "clear_after", "recovery_task", "depend"))


def _run_chunks(
    client: TaskClient,
    function: Callable[..., Any],
    items: Items,
    gathered: Gathered | None,
    retries: int,
    held: Callable[[], int] = lambda: 0,
) -> Iterator[Ended]:
    """Chunks as they end.  held: how many values the consumer has that it cannot pass on yet.

    Items that fail and may be tried again, and those that rejected the engine, come again alone: then the farm's own
    rules for tasks hold.
    """
    engines = client._ask(messages.Engines(), tables.EngineTable).rows
    pace = Pace(len(engines))
    under_way: dict[int, Chunk] = {}
    again: deque[Chunk] = deque()
    largest = 1
    finished: list[int] = []
    while True:
        while len(under_way) < pace.window and held() < LOOK_AHEAD * pace.window * largest:
            chunk = again.popleft() if again else _next_chunk(items, pace, retries)
            if not chunk.items:
                break
            largest = max(largest, len(chunk.items))
            task = EachTask(function, (chunk.items, items.star), retries=chunk.retries)
            under_way[client.run(task)] = chunk
        if not under_way or len(finished) >= CLEARED_AT_ONCE:
            # Nobody knows their ids: what they held is with the caller now.
            if finished:
                client.clear(finished)
            finished = []
        if not under_way:
            return
        done, _ = client.wait(list(under_way), return_when="first")
        for task_id in done:
            chunk = under_way.pop(task_id)
            result = client.get_task_result(task_id, raw=False)
            ended = _open(chunk, result)
            if gathered is not None:
                gathered.take(result._contents(), chunk.places)
            if result.failure is None:
                pace.ended(len(chunk.items), result.duration, result._is_large)
                ended = _set_aside(ended, chunk, result.result[1], again)
            finished.append(task_id)
            items.ended += len(ended.places)
            yield ended


def _next_chunk(items: Items, pace: Pace, retries: int) -> Chunk:
    start = items.taken
    taken = items.take(pace.size(items.left))
    return Chunk(range(start, start + len(taken)), taken, retries)


def _open(chunk: Chunk, result: TaskResult) -> Ended:
    """What came of it.  A chunk that failed as a whole (its engine was lost) failed for each of its items."""
    if result.failure is not None:
        every = range(len(chunk.items))
        return Ended(chunk.places, [None for _ in every], dict.fromkeys(every, result.failure.value))
    values, failed = result.result
    errors = {}
    for index, _, body in failed:
        error = unpack_error(body, result.engineid)
        sign(error, result.engineid, body.traceback)
        errors[index] = error
    return Ended(chunk.places, values, errors)


def _set_aside(ended: Ended, chunk: Chunk, failed: list[tuple[int, bool, Any]], again: deque[Chunk]) -> Ended:
    """Take out what is to be tried again."""
    back = {index: rejected for index, rejected, _ in failed if rejected or chunk.retries > 0}
    if not back:
        return ended
    for index, rejected in back.items():
        retries = chunk.retries if rejected else chunk.retries - 1
        again.append(Chunk([chunk.places[index]], [chunk.items[index]], retries))
    kept = [index for index in range(len(chunk.items)) if index not in back]
    errors = {new: ended.errors[index] for new, index in enumerate(kept) if index in ended.errors}
    return Ended([ended.places[index] for index in kept], [ended.values[index] for index in kept], errors)


def _collect(client: TaskClient, ids: Iterable[int], return_exceptions: bool, gathered: Gathered) -> list[Any]:
    values: list[Any] = []
    for place, task_id in enumerate(ids):
        try:
            values.append(_value(client, task_id, place, gathered))
        except Exception as error:
            if not return_exceptions:
                raise
            values.append(error)
    return values


def _value(client: TaskClient, task_id: int, place: int, gathered: Gathered) -> Any:
    result: TaskResult = client.get_task_result(task_id, raw=False)
    if result.stdout or result.stderr:
        gathered.add(place, result.stdout, result.stderr)
    # A recovery task's result is of its own kind; for a map its value is what counts.
    return result.result


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
