"""Maps over tasks: `tc.map`, `tc.imap`, `tc.mapper(…).map` and the `tc.parallel` decorator.

A blocking map whose items need no rules of their own runs in *chunks*: one task calls the function with as many items
as take some milliseconds (`core.chunk_sizes`), and every item still succeeds or fails alone.  Otherwise each item is a
task.  The engine's side of a chunk is ``engine/map_chunks.py``.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing, suppress
from itertools import islice
from operator import length_hint
from typing import Any, NamedTuple

from ..core import messages
from ..core.chunk_sizes import Pace
from ..core.messages import tables
from ..serialization.pack import unpack_error
from .map_values import Gathered, Values
from .progress import ProgressDisplay
from .results import TaskResult, sign
from .session import Session
from .task_calls import TaskCalls
from .task_work import MapWork
from .tasks import EachTask, MapTask, Task

LOOK_AHEAD = 4
"""While an early chunk takes long, `imap` keeps at most this multiple of the running items for later."""

CLEARED_AT_ONCE = 64

LEAVE_S = 5.0
"""Seconds for each question that aborts and clears the tasks of an abandoned map."""

_MAPPER_RULES = ("clear_before", "clear_after", "retries", "recovery_task", "depend")

ENDLESS = (itertools.repeat, itertools.count, itertools.cycle)


class Items:
    """The arguments of a map, handed out in chunks."""

    def __init__(self, sequences: Sequence[Iterable[Any]]) -> None:
        if not sequences:
            raise ValueError("map needs at least one sequence")
        self.star = len(sequences) > 1
        first = sequences[0]
        # A slice of a range is a range, which is pickled as three numbers.
        self._sliced = first if not self.star and isinstance(first, range | list | tuple) else None
        self._rest: Iterator[Any] = zip(*sequences, strict=False) if self.star else iter(first)
        self.total = common_length(sequences)
        self.taken = 0
        self.ended = 0
        self.error: Exception | None = None
        """The exception that an iterable raised instead of its next item."""

    @property
    def left(self) -> int | None:
        """Return the number of items that were not taken yet; None: not known."""
        return None if self.total is None else self.total - self.taken

    def take(self, count: int) -> Sequence[Any]:
        """Return the next `count` items, or fewer at the end."""
        if self._sliced is not None:
            chunk: Sequence[Any] = self._sliced[self.taken : self.taken + count]
        else:
            chunk = self._read(count)
        self.taken += len(chunk)
        return chunk

    def _read(self, count: int) -> list[Any]:
        chunk: list[Any] = []
        if self.error is None:
            try:
                chunk.extend(islice(self._rest, count))
            except Exception as error:  # the user's generator: the items before the error still run
                self.error = error
        return chunk


class MapChunk(NamedTuple):
    """The items of one task, with their places in the map."""

    places: Sequence[int]
    items: Sequence[Any]
    retries: int


class EndedChunk(NamedTuple):
    """The outcome of a chunk: values, and for items that failed an error by index."""

    places: Sequence[int]
    values: Sequence[Any]
    errors: dict[int, BaseException]
    run_s: float = 0.0
    """Seconds that all of its items took together."""


def common_length(sequences: Sequence[Iterable[Any]]) -> int | None:
    """Return the common length of the sequences that have a length; None: none of them has one.

    Generators and endless iterators have no length: as in the builtin `map`, the shortest sequence decides.

    Raises ValueError if lengths differ.
    """
    lengths = [length for sequence in sequences if (length := _length(sequence)) is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"the sequences of a map must have equal lengths, not {lengths}: one is shorter than another")
    return lengths[0] if lengths else None


def _length(sequence: Iterable[Any]) -> int | None:
    if isinstance(sequence, Sized):
        return len(sequence)
    # Iterators of builtin types know how many items are left; other length hints are guesses.
    left = length_hint(sequence, -1) if type(sequence).__module__ == "builtins" else -1
    return left if left >= 0 else None


def read_whole(sequences: Sequence[Iterable[Any]]) -> list[Sequence[Any]]:
    """Read the sequences as far as the shortest, so that errors are found before any task is submitted.

    Raises ValueError if lengths differ, or if all sequences are endless.
    """
    common_length(sequences)
    if sequences and all(isinstance(s, ENDLESS) and length_hint(s, -1) < 0 for s in sequences):
        raise ValueError("the sequences of this map never end: tc.imap takes them, and reads only a little ahead")
    if len(sequences) == 1 or all(isinstance(sequence, Sized) for sequence in sequences):
        return [s if isinstance(s, range | list | tuple) else list(s) for s in sequences]
    rows = list(zip(*sequences, strict=False))
    return [[row[i] for row in rows] for i in range(len(sequences))]


def hand_in_map(
    client: TaskCalls, function: Callable[..., Any], sequences: Sequence[Iterable[Any]], attributes: dict[str, Any]
) -> list[int]:
    """Check all lengths, submit a MapTask for each tuple of arguments, and return the ids in order."""
    if not sequences:
        raise ValueError("map needs at least one sequence")
    tasks = [MapTask(function, arguments, **attributes) for arguments in zip(*read_whole(sequences), strict=True)]
    ids: list[int] = []
    try:
        for task in tasks:
            ids.append(client.run(task))
    except BaseException:
        # A task could not be pickled; the caller would never learn the ids of the tasks before it.
        _leave(client, ids, [])
        raise
    return ids


def map_tasks(
    client: TaskCalls,
    function: Callable[..., Any],
    sequences: Sequence[Iterable[Any]],
    attributes: dict[str, Any],
    return_exceptions: bool = False,
    stream: bool = False,
) -> Values:
    """Submit, wait, and return the values in order; raise the error of the lowest index."""
    gathered = Gathered(stream)
    if not _may_chunk(function, attributes):
        return _map_one_by_one(client, function, sequences, attributes, return_exceptions, gathered)
    items = Items(read_whole(sequences))
    values = Values((), gathered.printed)
    errors: dict[int, BaseException] = {}
    under_way: dict[int, MapChunk] = {}
    work = MapWork(client.session, lambda: items.total or items.taken, under_way, lambda chunk: len(chunk.items))
    with ProgressDisplay(work, "items", bool(client.progress)) as display:
        for ended in _run_chunks(
            client, function, items, gathered, attributes.get("retries", 0), under_way, display.tick
        ):
            _put(values, errors, ended, items.taken)
            work.ended(len(ended.places), len(ended.errors), ended.run_s)
            display.tick()
    if errors and not return_exceptions:
        raise errors[min(errors)]
    for place, error in errors.items():
        values[place] = error
    return values


def _map_one_by_one(
    client: TaskCalls,
    function: Callable[..., Any],
    sequences: Sequence[Iterable[Any]],
    attributes: dict[str, Any],
    return_exceptions: bool,
    gathered: Gathered,
) -> Values:
    """Run a task for each item."""
    ids = hand_in_map(client, function, sequences, attributes)
    client.barrier(ids)
    try:
        return Values(_collect(client, ids, return_exceptions, gathered), gathered.printed)
    finally:
        _leave(client, [], ids)


def _put(values: list[Any], errors: dict[int, BaseException], ended: EndedChunk, taken: int) -> None:
    """Store the outcome of a chunk at its places in the results of the map."""
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
    client: TaskCalls,
    function: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    ordered: bool,
    stream: bool = False,
) -> Iterator[Any]:
    """Yield the values in order, or as they arrive; read only as many items ahead as the engines need."""
    items = Items(iterables)
    waiting: dict[int, Any] = {}
    """Place -> a value, or a _Raise, that arrived before its turn."""
    turn = 0
    printed = Gathered(True) if stream else None
    # `closing` ends the chunks when the caller leaves early: a traceback could keep the generator alive for long.
    with closing(_run_chunks(client, function, items, printed, 0, {}, None, lambda: len(waiting))) as chunks:
        for ended in chunks:
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


def _values(ended: EndedChunk) -> Iterator[Any]:
    for index, value in enumerate(ended.values):
        if index in ended.errors:
            raise ended.errors[index]
        yield value


def _may_chunk(function: Callable[..., Any], attributes: dict[str, Any]) -> bool:
    if inspect.iscoroutinefunction(function):
        return False  # each item runs in the engine's event loop
    return not any(attributes.get(name) for name in ("clear_before", "clear_after", "recovery_task", "depend"))


def _run_chunks(
    client: TaskCalls,
    function: Callable[..., Any],
    items: Items,
    gathered: Gathered | None,
    retries: int,
    under_way: dict[int, MapChunk],
    tick: Callable[[], None] | None = None,
    held: Callable[[], int] = lambda: 0,
) -> Generator[EndedChunk]:
    """Yield chunks as they end.

    Args:
        client: submits the tasks.
        function: is called with each item.
        items: the items.
        gathered: receives the output of the items.
        retries: retries of each item.
        under_way: is kept up to date with the unfinished tasks.
        tick: called a few times a second.
        held: returns how many values the consumer cannot pass on yet.

    Items that fail and have retries left, and items that rejected the engine, run again in tasks of their own, to which
    the farm's rules apply.  When the caller leaves early, or an error ends the map, no result is kept.
    """
    finished: list[int] = []
    key = object()
    _open_maps[key] = client.session, under_way, finished
    try:
        yield from _chunks_as_they_end(client, function, items, gathered, retries, held, under_way, finished, tick)
    except KeyboardInterrupt:
        # The wait has printed the ids of the tasks that go on, and how to wait for them or abort them.
        _leave(client, [], finished)
        raise
    except BaseException:
        _leave(client, list(under_way), finished)
        raise
    finally:
        _open_maps.pop(key, None)


def _leave(client: TaskCalls, unwanted: list[int], finished: list[int]) -> None:
    """Abort tasks that only the map knew, and clear their results, in a thread.

    The garbage collector may close a generator anywhere, and must not wait there.  Running tasks run to their end, and
    their results are dropped.
    """
    if unwanted or finished:
        session, ids = client.session, (list(unwanted), list(finished))
        with suppress(RuntimeError):  # the interpreter is ending, and `_leave_all` has done this
            threading.Thread(target=_leave_at_once, args=(session, *ids), name="ipytaskfarm map").start()


def _leave_at_once(session: Session, unwanted: list[int], finished: list[int]) -> None:
    # If the farm has ended, does not answer or refuses, the tasks stay there: there is no caller for an error.
    with suppress(Exception):
        if unwanted:
            session.ask(messages.AbortTasks(unwanted, False, "nobody waits for this map any more"), timeout_s=LEAVE_S)
        session.ask(messages.Clear([*unwanted, *finished]), timeout_s=LEAVE_S)
        session.forget_results([*unwanted, *finished])


def _leave_all() -> None:
    """Abort and clear the tasks of maps that were not closed, at the end of the interpreter."""
    for session, under_way, finished in list(_open_maps.values()):
        unwanted = list(under_way)
        if unwanted or finished:
            _leave_at_once(session, unwanted, finished)
    _open_maps.clear()


_open_maps: dict[object, tuple[Session, dict[int, MapChunk], list[int]]] = {}
atexit.register(_leave_all)
os.register_at_fork(after_in_child=_open_maps.clear)


def _chunks_as_they_end(
    client: TaskCalls,
    function: Callable[..., Any],
    items: Items,
    gathered: Gathered | None,
    retries: int,
    held: Callable[[], int],
    under_way: dict[int, MapChunk],
    finished: list[int],
    tick: Callable[[], None] | None,
) -> Iterator[EndedChunk]:
    """Yield chunks as they end; keep `under_way` (unfinished) and `finished` (not yet cleared) up to date."""
    engines = client.session.ask_for(messages.ListEngines(), tables.EngineTable).rows
    pace = Pace(len(engines))
    again: deque[MapChunk] = deque()
    largest = 1
    while True:
        while len(under_way) < pace.window and held() < LOOK_AHEAD * pace.window * largest:
            chunk = again.popleft() if again else _next_chunk(items, pace, retries)
            if not chunk.items:
                break
            largest = max(largest, len(chunk.items))
            task = EachTask(function, (chunk.items, items.star), retries=chunk.retries)
            under_way[client.run(task)] = chunk
        if not under_way or len(finished) >= CLEARED_AT_ONCE:
            # Only the map knows these ids, and the caller has the values now.
            if finished:
                client.clear(finished)
            finished.clear()
        if not under_way:
            if items.error is not None:
                raise items.error
            return
        session = client.session
        session.wait(set(under_way), on_tick=tick, first=True)
        for task_id in [i for i in under_way if not session.arrivals.is_live(i)]:
            result = client.get_task_result(task_id, raw=False)
            chunk = under_way.pop(task_id)
            finished.append(task_id)
            ended = _open(chunk, result)
            if gathered is not None:
                gathered.take(result._contents(), chunk.places)
            if result.failure is None:
                pace.ended(len(chunk.items), result.duration, result._is_large)
                ended = _set_aside(ended, chunk, result.result[1], again)._replace(run_s=result.duration)
            items.ended += len(ended.places)
            yield ended


def _next_chunk(items: Items, pace: Pace, retries: int) -> MapChunk:
    start = items.taken
    taken = items.take(pace.size(items.left))
    return MapChunk(range(start, start + len(taken)), taken, retries)


def _open(chunk: MapChunk, result: TaskResult) -> EndedChunk:
    """Return the outcome of a chunk.  If the whole chunk failed (its engine was lost), each item has failed."""
    if result.failure is not None:
        every = range(len(chunk.items))
        return EndedChunk(chunk.places, [None for _ in every], dict.fromkeys(every, result.failure.value))
    values, failed = result.result
    errors = {}
    for index, _, body in failed:
        error = unpack_error(body, result.engineid)
        sign(error, result.engineid, body.traceback)
        errors[index] = error
    return EndedChunk(chunk.places, values, errors)


def _set_aside(
    ended: EndedChunk, chunk: MapChunk, failed: list[tuple[int, bool, Any]], again: deque[MapChunk]
) -> EndedChunk:
    """Queue the items that run again, and return the outcome without them."""
    back = {index: rejected for index, rejected, _ in failed if rejected or chunk.retries > 0}
    if not back:
        return ended
    for index, rejected in back.items():
        retries = chunk.retries if rejected else chunk.retries - 1
        again.append(MapChunk([chunk.places[index]], [chunk.items[index]], retries))
    kept = [index for index in range(len(chunk.items)) if index not in back]
    errors = {new: ended.errors[index] for new, index in enumerate(kept) if index in ended.errors}
    return EndedChunk([ended.places[index] for index in kept], [ended.values[index] for index in kept], errors)


def _collect(client: TaskCalls, ids: Iterable[int], return_exceptions: bool, gathered: Gathered) -> list[Any]:
    values: list[Any] = []
    for place, task_id in enumerate(ids):
        try:
            values.append(_value(client, task_id, place, gathered))
        except Exception as error:
            if not return_exceptions:
                raise
            values.append(error)
    return values


def _value(client: TaskCalls, task_id: int, place: int, gathered: Gathered) -> Any:
    result: TaskResult = client.get_task_result(task_id, raw=False)
    if result.stdout or result.stderr:
        gathered.add(place, result.stdout, result.stderr)
    # A recovery task may have another kind of result; a map takes its value.
    return result.result


class Mapper:
    """`map` with rules for its tasks; made by ``tc.mapper``.

    Attributes, which may be set later too: `task_controller` (the client), `block` (False: `map` returns ids), and the
    rules `clear_before`, `clear_after`, `retries`, `recovery_task`, `depend`.
    """

    def __init__(
        self,
        task_controller: TaskCalls,
        clear_before: bool = False,
        clear_after: bool = False,
        retries: int = 0,
        recovery_task: Task | None = None,
        depend: Any = None,
        block: bool = True,
    ) -> None:
        self.task_controller = task_controller
        self.clear_before = clear_before
        self.clear_after = clear_after
        self.retries = retries
        self.recovery_task = recovery_task
        self.depend = depend
        self.block = block

    def map(self, function: Callable[..., Any], *sequences: Iterable[Any]) -> list[Any]:
        """Return the results in order, or with block=False the ids.  See ``TaskClient.map``."""
        rules = {name: getattr(self, name) for name in _MAPPER_RULES}
        if self.block:
            return map_tasks(self.task_controller, function, sequences, rules)
        return hand_in_map(self.task_controller, function, sequences, rules)


class ParallelFunction:
    """The decorator that ``tc.parallel`` makes; it may decorate any number of functions."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __call__(self, function: Callable[..., Any]) -> Callable[..., list[Any]]:
        @functools.wraps(function)
        def call(*sequences: Iterable[Any]) -> list[Any]:
            return self.mapper.map(function, *sequences)

        return call
