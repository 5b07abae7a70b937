"""Quick calls of an `Executor`: many of one function share a task, as the items of a map do.

A task costs the client, the controller and the engine about 150 us together; a call that takes less spends most of its
time on that.  So an executor measures how long the calls of each function take.  While many calls wait, those of a
quick function are gathered until they are worth a task, or for a moment.  Each of them has an id of its own: what
fails, prints or loses its engine is told by itself (docs/decisions/0034, 0068).
"""

from __future__ import annotations

import inspect
import threading
import time
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

from ipytaskfarm.core import errors
from ipytaskfarm.core.chunk_sizes import ITEMS_MAX, Pace
from ipytaskfarm.core.messages.task_types import Final

if TYPE_CHECKING:
    from ipytaskfarm.client import TaskClient
    from ipytaskfarm.client.map_items import EachTask

Call: TypeAlias = tuple[Any, ...]
"""The arguments of a call: ``(args,)``, ``(args, kwargs)`` if there are any by keyword, or ``(args, kwargs, values)``
if the function is a template, see `serialization.function_templates`."""

LEAST_CALLS = 4
"""Calls are gathered only if at least this number of them is worth a task."""
MOST_CALLS = 256
"""The most calls that share a task: they end together, also for a caller that waits for one of them."""
BACKLOG = 8
"""The unfinished calls per worker from which on calls are gathered: the engines have work meanwhile."""
GATHER_S = 0.001
"""Gathered calls are submitted when no more has come for this time in seconds, or for twice this time at most."""
IDLE_LOOKS = 50
"""The thread that submits gathered calls ends after this number of looks at which there were none."""
BYTES_MAX = 128 * 1024
"""The most bytes, approximately, of the arguments of calls that share a task, as with the items of a map."""

UNNUMBERED = -1
"""The number of the first call, for the engine: calls have no places in a map."""

SINGLY = ("time_limit", "warn_after", "recovery_task", "clear_before", "clear_after", "unique", "after")
"""Rules that hold for the run of one call."""


def may_share(rules: Mapping[str, Any]) -> bool:
    """Return whether calls with these rules may share a task.

    When an engine is lost, the calls that had begun in its task run again: those must be allowed to run twice.
    """
    environment = rules.get("environment")
    recycles = environment is not None and environment.recycle.after_tasks is not None
    return not recycles and bool(rules.get("retries")) and not any(rules.get(name) for name in SINGLY)


class KnownFunction:
    """The durations of a function's calls, and how many of its calls share the next task."""

    __slots__ = ("_bytes", "_changes", "_is_refused", "_pace", "most", "room", "size")

    def __init__(self, function: Callable[..., Any]) -> None:
        from ipytaskfarm.client.packing import changes_itself

        self._pace = Pace(1)
        self._bytes = 0.0
        """Bytes of the arguments of a call."""
        self._is_refused = inspect.iscoroutinefunction(function)
        self._changes = changes_itself(function)
        """Calls change what belongs to the function: each begins with it as it was sent, or each chunk of a map."""
        self.size = 1
        """How many calls share the next task."""
        self.most = 1
        """How many items of a map share its next task: its values are used in order, so they may end together."""
        self.room = 1 if self._is_refused else ITEMS_MAX
        """How many calls may share a task, however short they are."""

    def ended(self, calls: int, final: Final) -> None:
        """Note how long calls took that have ended well."""
        if calls and not final.reason:
            self._pace.ended(calls, final.run_s, bool(final.blobs))
            self._decide()

    def took(self, calls: int, size: int) -> None:
        """Note how many bytes the arguments of calls take."""
        self._bytes = size / calls
        self._decide()

    def costs(self, pack_s: float) -> None:
        """Note how long the function took to pack, as it is packed for each task."""
        self._pace.costs(pack_s)
        self._decide()

    def changes(self) -> None:
        """Submit calls of this function one by one from now on, and as many items of a map as the program says."""
        self._changes = True
        self._decide()

    def refuses(self) -> None:
        """Submit calls of this function one by one from now on."""
        self._is_refused = True
        self._decide()

    def _decide(self) -> None:
        room = max(1, int(BYTES_MAX / self._bytes)) if self._bytes else ITEMS_MAX
        self.room = 1 if self._is_refused else min(room, ITEMS_MAX)
        self.most = 1 if self._changes else min(self._pace.size(None), self.room)
        self.size = min(self.most, MOST_CALLS)


class KnownFunctions:
    """What is known of the functions that an executor has called, by their identity, as long as they exist.

    Closures and lambdas of one code are one function here, and so are partials of one.
    """

    def __init__(self) -> None:
        from ipytaskfarm.client.packing import alike

        self._alike = alike
        self._known: dict[Hashable, tuple[weakref.ref[Any], KnownFunction]] = {}

    def of(self, function: Callable[..., Any]) -> KnownFunction:
        """Return what is known of a function; nothing is remembered of one without weak references."""
        found = self._known.get(id(function))  # of most
        if found is not None and found[0]() is function:
            return found[1]
        lasts = self._alike(function)
        key = lasts.key
        found = self._known.get(key)
        if found is not None and lasts.is_of(found[0]):
            return found[1]
        known = KnownFunction(function)
        try:
            self._known[key] = lasts.reference(lambda _: self._known.pop(key, None)), known
        except TypeError:
            pass
        return known


class ChunkFuture(Protocol):
    """The future of one of the calls that share a task, as an `ExecutorFuture` is."""

    task_id: int
    chunk: CallChunk[Any] | None

    @property
    def id(self) -> int: ...
    def done(self) -> bool: ...
    def settle(self, final: Final) -> None: ...
    def end(self, value: Any, error: BaseException | None = None) -> None: ...


F = TypeVar("F", bound=ChunkFuture)


class CallChunk(Generic[F]):
    """Calls that were submitted as one task."""

    def __init__(
        self,
        task_id: int,
        known: KnownFunction,
        futures: list[F],
        on_end: Callable[[CallChunk[F], Final], None],
    ) -> None:
        self._on_end = on_end
        self.id = task_id
        self.known = known
        self.futures = futures
        for index, future in enumerate(futures):
            future.task_id = task_id + 1 + index
            future.chunk = self

    def settle(self, final: Final) -> None:
        """Resolve the futures; the client's thread for futures calls this."""
        self._on_end(self, final)

    def settle_item(self, final: Final) -> None:
        """Resolve the future of a call that has ended while another one waits: such functions share no tasks."""
        self.known.refuses()
        index = final.id - self.id - 1
        if index < len(self.futures):  # else the chunk has ended meanwhile
            self.futures[index].settle(final)

    def take(self) -> list[F]:
        """Return the futures, and hold them no longer: each holds a value from now on."""
        futures, self.futures = self.futures, []
        for future in futures:
            future.chunk = None
        return futures

    def unfinished(self) -> list[F]:
        """Return the futures that are not resolved."""
        return [future for future in self.futures if not future.done()]


def values_of(client: TaskClient, final: Final) -> list[Any]:
    """Return the values of calls that shared a task; None stands for each call with an end of its own."""
    from ipytaskfarm.client.map_items import chunk_values

    whole = final if final.body is not None else client.session.fetch(final.id)
    if whole is None or whole.body is None:
        raise errors.ConnectionError(f"the values of tasks {final.id + 1} to {final.id + final.items} did not come")
    return chunk_values(whole)


REFUSED, TOO_MANY = -1, -2
"""What `submit_together` returns for calls that cannot share a task, and for more calls than fit into one."""


def submit_together(client: TaskClient, task: EachTask, known: KnownFunction) -> int:
    """Submit calls as one task; return its id, which the ids of the calls follow, or `REFUSED` or `TOO_MANY`.

    Raises what the farm answers.
    """
    from ipytaskfarm.client.packing import pack_task

    session = client.session
    try:
        began_s = time.monotonic()
        task.pack_function(session.blobs)
        known.costs(time.monotonic() - began_s)
        packed = pack_task(task, session.blobs, farm=client.farm)
    except Exception:  # one call that cannot travel keeps the others from it
        return REFUSED
    if packed.needs is not None:  # what one call waits for would keep the others waiting
        return REFUSED
    known.took(packed.items, len(packed.payload))
    if len(packed.payload) > 2 * BYTES_MAX or packed.items > session.items_room():
        return TOO_MANY
    task_id = session.submit(packed)
    return task_id if task_id >= 0 else TOO_MANY


def _arguments_of(call: Call) -> Iterable[Any]:
    return (*call[0], *call[1].values()) if len(call) > 1 else call[0]


class _Open(Generic[F]):
    """Calls of one function that are still gathered."""

    __slots__ = ("calls", "function", "futures", "known")

    def __init__(self, function: Callable[..., Any], known: KnownFunction) -> None:
        self.function = function
        self.known = known
        self.calls: list[Call] = []
        self.futures: list[F] = []


class GatheredCalls(Generic[F]):
    """Gathers calls of one function after another, and submits them.

    Args:
        on_end: called with a chunk and its final state in the client's thread for futures.
        on_failure: called with futures of calls that could not be submitted, after these are resolved.
        original_of: returns the error that the user sees for one that came of submitting a call.
    """

    def __init__(
        self,
        client: TaskClient,
        rules: Mapping[str, Any],
        on_end: Callable[[CallChunk[F], Final], None],
        on_failure: Callable[[list[F]], None],
        original_of: Callable[[BaseException], BaseException],
    ) -> None:
        from ipytaskfarm.client.packing import lasting, split_for_many

        self._split = partial(split_for_many, blobs=client.session.blobs)
        self._lasting = lasting
        self._client = client
        self._rules = rules
        self._on_end = on_end
        self._on_failure = on_failure
        self._original_of = original_of
        self._lock = threading.Lock()
        self._open: _Open[F] | None = None
        self._seen: _Open[F] | None = None
        """What was open when the thread looked last."""
        self._submitting = threading.RLock()
        """Held while calls are submitted: later ones stay behind them.  A pickled argument may submit a call."""
        self._has_thread = False

    def add(self, function: Callable[..., Any], call: Call, future: F, known: KnownFunction) -> None:
        """Gather a call; submit what is enough for a task, and calls of another function before it."""
        split = self._split(function)
        if split is not None:
            function = split.template
            call = (call[0], call[1] if len(call) > 1 else {}, split.values)
        while (is_enough := self._added(function, call, future, known)) is None:
            self.submit_gathered()
        if is_enough:
            self.submit_gathered()

    def _added(self, function: Callable[..., Any], call: Call, future: F, known: KnownFunction) -> bool | None:
        """Add a call; return whether there are enough.  None: those of another function are gathered now."""
        with self._lock:
            opened = self._open
            if opened is None:
                opened = self._open = _Open(function, known)
                if not self._has_thread:
                    self._has_thread = True
                    threading.Thread(target=self._submit_late, name="ipytaskfarm executor", daemon=True).start()
            elif opened.function is not function and not self._is_same(opened.function, function):
                return None
            opened.calls.append(call)
            opened.futures.append(future)
            return len(opened.calls) >= known.size

    def _is_same(self, some: Callable[..., Any], other: Callable[..., Any]) -> bool:
        """Return whether two methods, or templates of partials, are the same."""
        return self._lasting(some).key == self._lasting(other).key

    def remove(self, futures: Collection[F]) -> list[F]:
        """Drop those calls that are still gathered, and return their futures."""
        with self._lock:
            opened = self._open
            if opened is None:
                return []
            removed = [future for future in opened.futures if future in futures]
            kept = [
                (call, future)
                for call, future in zip(opened.calls, opened.futures, strict=True)
                if future not in futures
            ]
            opened.calls = [call for call, _ in kept]
            opened.futures = [future for _, future in kept]
        return removed

    def submit_gathered(self) -> None:
        """Submit the calls that are gathered."""
        if self._open is None and not self._has_thread:
            return
        with self._submitting:
            with self._lock:
                opened, self._open = self._open, None
            if opened is not None and opened.calls:
                self._together(opened.function, opened.calls, opened.futures, opened.known)

    def _submit_late(self) -> None:
        looks = 0
        while looks < IDLE_LOOKS:
            time.sleep(GATHER_S)
            with self._lock:
                opened, seen = self._open, self._seen
                self._seen = opened
                looks = looks + 1 if opened is None else 0
                if looks == IDLE_LOOKS:
                    self._has_thread = False
            if opened is not None and opened is seen:
                self.submit_gathered()

    def _together(
        self,
        function: Callable[..., Any],
        calls: list[Call],
        futures: list[F],
        known: KnownFunction,
    ) -> None:
        """Submit calls as one task, or as several if they are too large for one."""
        from ipytaskfarm.client.futures import Settler
        from ipytaskfarm.client.map_items import EachTask
        from ipytaskfarm.client.packing import may_change_shared

        if len(calls) == 1:
            self._alone(function, calls[0], futures[0])
            return
        try:
            if may_change_shared(function, [each for call in calls for each in _arguments_of(call)]):
                known.changes()
                task_id = REFUSED
            else:
                task = EachTask(function, calls, True, UNNUMBERED, None, **self._rules)
                task_id = submit_together(self._client, task, known)
        except Exception as error:
            self._fail(futures, error)
            return
        if task_id == REFUSED:
            for call, future in zip(calls, futures, strict=True):
                self._alone(function, call, future)
        elif task_id == TOO_MANY:
            half = len(calls) // 2
            self._together(function, calls[:half], futures[:half], known)
            self._together(function, calls[half:], futures[half:], known)
        else:
            Settler.of(self._client.session).add_chunk(CallChunk(task_id, known, futures, self._on_end))

    def _alone(self, function: Callable[..., Any], call: Call, future: F) -> None:
        from ipytaskfarm.client.futures import Settler
        from ipytaskfarm.client.packing import filled
        from ipytaskfarm.client.tasks import CallTask

        try:
            args, kwargs = call[0], call[1] if len(call) > 1 else {}
            if len(call) > 2:
                function = filled(function, call[2])
            future.task_id = self._client.run(CallTask(function, args=args, kwargs=kwargs, **self._rules))
        except Exception as error:
            self._fail([future], error)
            return
        Settler.of(self._client.session).add(future)

    def _fail(self, futures: list[F], error: BaseException) -> None:
        for future in futures:
            future.end(None, self._original_of(error))
        self._on_failure(futures)
