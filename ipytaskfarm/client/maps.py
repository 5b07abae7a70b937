"""Maps over tasks: `tc.map`, `tc.imap`, `tc.mapper(…).map` and the `tc.parallel` decorator.

A map is a job whose tasks are its items.  Quick items share tasks on their way to the engines (`map_submission`); the
controller knows every item by an id of its own all the same (docs/decisions/0034).
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

from ..core import messages
from ..core.arguments import check_count, check_text, one_of, wrong
from ..core.messages.task_types import Final, JobSpec
from ..core.signatures import signature_of
from ..core.text import did_you_mean
from .copied_tasks import note_functions
from .jobs import Job, Values, outcome
from .map_items import Items, chunk_values, read_whole
from .map_jobs import Gathered, MapMembers, add_item, collect
from .map_submission import MapSubmission
from .old_names import ARGUMENTS
from .operate import clear_results
from .results import decode_body, error_of
from .rules import CHECKS, DEFAULTS, flag
from .session import Session
from .tables import TaskCalls
from .tasks import MapTask, Task
from .wait_notices import say
from .waits import followed, stream_of_map, wait_for_map

LOOK_AHEAD = 4
"""While an early chunk runs long, `imap` keeps at most this multiple of the items under way for later."""

CLEARED_AT_ONCE = 64

LEAVE_S = 5.0
"""Seconds for each question that aborts and clears the tasks of a map for which no caller waits any more."""

ON_ERROR = ("raise", "return", "collect")

_MAPPER_RULES = ("clear_before", "clear_after", "retries", "recovery_task", "depend")
_OWN_RULES = {"clear_before": flag, "clear_after": flag}
_KNOWN = frozenset(DEFAULTS) - {"name", "on_duplicate"} | _OWN_RULES.keys()
_OF_MAPS = frozenset({"name", "on_error", "chunksize", "stream", "return_exceptions", "block"})
"""Arguments of `map` that are no rules of its tasks."""


class MapOptions(NamedTuple):
    """What a caller of a map asks beside its items."""

    name: str | None = None
    on_error: str = "raise"
    chunksize: int | None = None
    """How many items share a task.  None: as many as take some milliseconds."""
    stream: bool = False


def options(
    name: str | None, on_error: str, return_exceptions: bool, chunksize: int | str, stream: bool = False
) -> MapOptions:
    """Check what a caller asks of a map."""
    chosen = one_of("on_error", ON_ERROR, on_error)
    size = None if chunksize == "auto" else check_count("chunksize", chunksize, least=1)
    if flag("return_exceptions", return_exceptions):
        chosen = "return"
    return MapOptions(check_text("name", name), chosen, size, flag("stream", stream))


def checked_rules(rules: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Check the names of the rules of a map.  Raises TypeError that names an unknown one."""
    for rule in rules:
        if rule not in _KNOWN:
            raise TypeError(f"a map has no argument {rule!r}{_in_place_of(rule, function)}")
    checks: dict[str, Callable[[Any], Any]] = {
        rule: functools.partial(check, rule) for rule, check in _OWN_RULES.items()
    }
    checks["unique"] = CHECKS["unique"]
    return {rule: checks[rule](value) if rule in checks else value for rule, value in rules.items()}


def _in_place_of(rule: str, function: Callable[..., Any]) -> str:
    """Return the remedy for an argument that no map has, as the end of a sentence."""
    if rule == "timeout":
        return "; time_limit is for each run, and tc.map(…, block=False).results(timeout) waits no longer"
    if rule == "block":
        return "; imap yields results as they come, and tc.map(…, block=False) returns the job at once"
    if rule in ARGUMENTS:
        return f"; instead: {ARGUMENTS[rule]}"
    with suppress(TypeError, ValueError):  # a builtin may have no signature
        if rule in signature_of(function).parameters:
            name = getattr(function, "__name__", type(function).__name__)
            return f"; for all items it is functools.partial({name}, {rule}=…)"
    near = did_you_mean(rule, _KNOWN | _OF_MAPS)
    return near or f"; the rules of its tasks are {', '.join(sorted(_KNOWN))}"


def begin_map(
    client: TaskCalls,
    function: Callable[..., Any],
    sequences: Sequence[Iterable[Any]],
    rules: Mapping[str, Any],
    asked: MapOptions,
) -> tuple[Job, MapMembers]:
    """Submit a map, and return its job and its tasks at once.

    When an item cannot travel, nothing of the map runs: the error names the item.
    """
    if not callable(function):
        raise TypeError(f"map needs a function first, not {type(function).__name__}")
    items = Items(read_whole(sequences))
    rules = {**client.defaults, **checked_rules(rules, function)}
    job = Job(client, asked.name or f"map {getattr(function, '__name__', type(function).__name__)}")
    spec = job.spec_of_map(items.total or 0, rules.get("unique"))
    submission = MapSubmission(client.session, spec, function, items, {**rules, "name": asked.name}, asked.chunksize)
    try:
        submission.submit_all()
    except KeyboardInterrupt:
        say(job.text_of_going_on())
        raise
    except BaseException:
        _leave(client.session, [task_id for task_id, _ in submission.members], [])
        raise
    note_functions(job.id, [function])
    members = MapMembers(submission.members)
    job.begin_map(members)
    return job, members


def map_tasks(
    client: TaskCalls,
    function: Callable[..., Any],
    sequences: Sequence[Iterable[Any]],
    rules: Mapping[str, Any],
    asked: MapOptions,
) -> Values[Any]:
    """Submit a map, wait for it, and return its values in order."""
    job, members = begin_map(client, function, sequences, rules, asked)
    wait_for_map(
        client.session, members, None, bool(client.progress), asked.stream, asked.name or "", job.text_of_going_on()
    )
    return outcome(job, collect(client, members), asked.on_error)


def submit_map(
    client: TaskCalls, function: Callable[..., Any], sequences: Sequence[Iterable[Any]], attributes: dict[str, Any]
) -> list[int]:
    """Submit a MapTask for each tuple of arguments and return the ids in order; all lengths are checked first."""
    if not sequences:
        raise ValueError("map needs at least one sequence")
    tasks = [MapTask(function, arguments, **attributes) for arguments in zip(*read_whole(sequences), strict=True)]
    ids: list[int] = []
    try:
        for task in tasks:
            ids.append(client.run(task))
    except BaseException:
        # One task cannot travel: nobody would know the ids of the tasks before it.
        _leave(client.session, ids, [])
        raise
    return ids


def imap(
    client: TaskCalls,
    function: Callable[..., Any],
    iterables: Sequence[Iterable[Any]],
    ordered: bool,
    rules: Mapping[str, Any],
    asked: MapOptions,
) -> Iterator[Any]:
    """Yield the values, as they come or in order; read items no further ahead than the engines need."""
    items = Items(iterables)
    name = asked.name or f"imap {getattr(function, '__name__', type(function).__name__)}"
    spec = JobSpec(uuid.uuid4().hex, name, 0, opened_s=time.time(), is_map=True)
    named = {**client.defaults, **checked_rules(rules, function), "name": asked.name}
    submission = MapSubmission(client.session, spec, function, items, named, asked.chunksize, grows=True)
    return _imap(client, submission, ordered, asked)


def _imap(client: TaskCalls, submission: MapSubmission, ordered: bool, asked: MapOptions) -> Iterator[Any]:
    waiting: dict[int, Any] = {}
    """Place -> a value, or a _Raise, that came before its turn."""
    turn = 0
    # Closed when the caller leaves early: a traceback could keep it alive for long.
    with closing(_ends(client, submission, lambda: len(waiting), asked.stream)) as ends:
        for place, value in ends:
            if ordered:
                waiting[place] = value
                while turn in waiting:
                    yield _given(waiting.pop(turn), asked)
                    turn += 1
            else:
                yield _given(value, asked)


class _Raise(NamedTuple):
    error: BaseException


def _given(value: Any, asked: MapOptions) -> Any:
    if type(value) is not _Raise:
        return value
    if asked.on_error == "return":
        return value.error
    raise value.error


def _ends(
    client: TaskCalls, submission: MapSubmission, held: Callable[[], int], stream: bool
) -> Generator[tuple[int, Any]]:
    """Yield (place, value or _Raise) as items end.

    held: returns how many values the consumer cannot pass on yet.  stream: show what the items print.

    When the caller leaves early, or an error ends the map, waiting items never run, and no value is kept.
    """
    under_way: dict[int, int] = {}
    """A task -> the place of its (first) item."""
    finished: list[int] = []
    key = object()
    _open_maps[key] = client.session, under_way, finished
    try:
        if not stream:
            yield from _ends_as_they_come(client, submission, held, under_way, finished)
            return
        shown = stream_of_map(client.session, lambda: set(under_way), _PlacesUnderWay(under_way).of)
        with followed(client.session, shown) as tick:
            yield from _ends_as_they_come(client, submission, held, under_way, finished, tick)
    except BaseException:
        _leave(client.session, list(under_way), finished)
        raise
    finally:
        _open_maps.pop(key, None)


def _ends_as_they_come(
    client: TaskCalls,
    submission: MapSubmission,
    held: Callable[[], int],
    under_way: dict[int, int],
    finished: list[int],
    tick: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Keep `under_way` (unfinished) and `finished` (not cleared yet) up to date.

    tick: called a few times a second, and when tasks have ended, before their values are yielded.
    """
    session, items, pace = client.session, submission.items, submission.pace
    largest = 1
    while True:
        while len(under_way) < pace.window and held() < LOOK_AHEAD * pace.window * largest:
            place = items.taken
            task_id = submission.submit(submission.next_size())
            if task_id is None:
                break
            largest = max(largest, submission.members[-1][1])
            submission.members.clear()
            under_way[task_id] = place
        if not under_way or len(finished) >= CLEARED_AT_ONCE:
            if finished:
                clear_results(client.session, finished, chunks=True)
            finished.clear()
        if not under_way:
            if items.error is not None:
                raise items.error
            return
        session.watch(under_way)
        session.wait(set(under_way), None, tick, first=True, go_on_text=_OVER)
        ended = [i for i in under_way if not session.arrivals.is_live(i)]
        if tick is not None:
            tick()  # after that look: what ends later is yielded, cleared and shown in the next round
        for task_id in ended:
            place = under_way.pop(task_id)
            end = session.fetch(task_id)
            if end is None or not end.items:
                finished.append(task_id)
                submission.ended(end)
                yield _single_end(client, task_id, place)
                continue
            submission.ended(end)
            for index in end.separate:
                under_way[task_id + 1 + index] = place + index
            finished.append(task_id)
            yield from _chunk_ends(end, place)


_OVER = "this imap is over: items that have not begun never run; a tc.map continues after Ctrl-C"


def _single_end(client: TaskCalls, task_id: int, place: int) -> tuple[int, Any]:
    found = Gathered()
    add_item(client, task_id, found)
    value = _Raise(found.errors[0]) if found.errors else found.values[0]
    return place, value


def _chunk_ends(end: Final, place: int) -> Iterator[tuple[int, Any]]:
    separate = set(end.separate)
    failed = _Raise(error_of(end, decode_body(end))) if end.reason else None
    values = [failed] * end.items if failed is not None else chunk_values(end)
    for index, value in enumerate(values):
        if index not in separate:
            yield place + index, value


class _PlacesUnderWay:
    """The places of the items of an `imap`, by their ids."""

    def __init__(self, under_way: Mapping[int, int]) -> None:
        """Create it; `under_way` has for each task the place of its first item."""
        self._under_way = under_way
        self._known: dict[int, int] = {}

    def of(self, task_id: int) -> int:
        """Return the place of an item that runs, or has just ended."""
        self._known = {i: place for i, place in self._known.items() if i >= min(self._under_way, default=0)}
        self._known |= self._under_way
        nearest = max((i for i in self._known if i <= task_id), default=task_id)
        return self._known.get(nearest, 0) + max(0, task_id - nearest - 1)


def _leave(session: Session, unwanted: list[int], finished: list[int]) -> None:
    """Abort tasks of which only the map knew, and clear their results.

    This happens in a thread: the garbage collector may close a generator anywhere, and must not wait there.  Running
    tasks go on to their end, and their results are dropped.
    """
    if sys.is_finalizing():  # `_leave_all` has done it; before Python 3.12 the start of a thread would wait for ever
        return
    if unwanted or finished:
        ids = (list(unwanted), list(finished))
        with suppress(RuntimeError):  # the interpreter is ending
            threading.Thread(target=_leave_at_once, args=(session, *ids), name="ipytaskfarm map").start()


def _leave_at_once(session: Session, unwanted: list[int], finished: list[int]) -> None:
    # A farm that has ended, does not answer or refuses keeps the tasks; nobody waits for an error.
    with suppress(Exception):
        if unwanted:
            why = "no caller waits for this map any more"
            session.ask(messages.AbortTasks(unwanted, False, why, chunks=True), timeout_s=LEAVE_S)
        session.ask(messages.Clear([*unwanted, *finished], chunks=True), timeout_s=LEAVE_S)
        session.forget_results([*unwanted, *finished])


def _leave_all() -> None:
    """Abort and clear, at the interpreter's end, the tasks of maps that were not closed."""
    for session, under_way, finished in list(_open_maps.values()):
        unwanted = list(under_way)
        if unwanted or finished:
            _leave_at_once(session, unwanted, finished)
    _open_maps.clear()


_open_maps: dict[object, tuple[Session, dict[int, int], list[int]]] = {}
atexit.register(_leave_all)
os.register_at_fork(after_in_child=_open_maps.clear)


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
            return map_tasks(self.task_controller, function, sequences, rules, MapOptions())
        return submit_map(self.task_controller, function, sequences, rules)


class ParallelFunction:
    """The decorator that ``tc.parallel`` makes; it may decorate any number of functions."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __call__(self, function: Callable[..., Any]) -> Callable[..., list[Any]]:
        if not callable(function):
            raise TypeError(f"{wrong('function', 'a callable', function)}; the decorator is @tc.parallel(), with ()")

        @functools.wraps(function)
        def call(*sequences: Iterable[Any]) -> list[Any]:
            return self.mapper.map(function, *sequences)

        return call
