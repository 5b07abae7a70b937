"""Runs a chunk of a map: one attempt with many calls, each of which has its own value or error."""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import starmap
from types import MappingProxyType
from typing import Any, NamedTuple

from ..core.errors import InputsLost, TaskRejectError, UnpickleableException
from ..core.messages.payload import FailureBody, ResultBody
from ..core.messages.task_types import Deferral, FailureSummary, ItemEnd, LostInputs
from ..core.signatures import called_name, signature_of
from ..core.states import DEFERS, LOSES_INPUTS, Reason
from ..serialization.function_templates import fill_template
from ..serialization.modules import bundles_of
from ..serialization.pack import for_many, pack, unpack
from ..serialization.tracebacks import argument_texts
from ..storage.blobs import BlobWriter
from .baseline import Baseline
from .change_hooks import CHANGES
from .child_processes import leave_fork
from .current import Deferred, details_of
from .failures import described
from .plain import function_reaches
from .sinks import SINK, Sink, WrittenByItem

SINGLY = 100
"""The number of items that run one by one after an item changed its surroundings unseen by `CHANGES`."""
TRUSTED = 64
"""The number of calls in a row without any change after which the surroundings are examined only rarely."""
SEGMENT_S = 0.002
"""Seconds of calls between two looks at the surroundings: a look takes 12 us, and 70 us while the caches are cold."""
YIELD_S = 0.1
"""A chunk that has run for this many seconds, and would for as many more, ends early: others take its other items."""
FIRST_S = 2.0
"""A first item that took less says little of the others: it may have imported what all of them need."""
SLOW_S = 0.05
"""The seconds of an item after which its duration is told."""
YIELD_BYTES = 4 * 1024 * 1024
"""A chunk whose values take about this many bytes ends early, since its result is one message."""
FAILED_MAX = 4096
"""A chunk with so many failed items ends early: its end, which tells of each, is one message of at most a million
values."""
ARGUMENT_CHARS = 60


_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (Deferred, DEFERS),
    (InputsLost, LOSES_INPUTS),
    (TaskRejectError, Reason.REJECTED),
)
_SILENT = WrittenByItem("", "", [])
_NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


_NO_BUNDLES: frozenset[int] = frozenset()


class Known:
    """A function that was unpacked, and the observations about its calls so far."""

    __slots__ = ("brought", "bundles", "function", "kept", "reaches", "segment", "singly", "trusted", "unseen_s")

    def __init__(self, function: Callable[..., Any], reaches: bool, bundles: frozenset[int]) -> None:
        self.function = function
        self.bundles = bundles
        """The bundles of modules by value that it uses, see `serialization.modules.bundles_of`."""
        self.brought = _NO_BUNDLES
        """Those that the arguments of its last call have brought: they stay in place for the next one."""
        self.kept: list[object] = []
        """Keeps them alive."""
        self.reaches = reaches
        """Whether its code mentions state that belongs to the whole process, see `function_reaches`."""
        self.segment = 1
        """The number of calls in the next segment."""
        self.singly = 0
        """The number of calls that still run one by one, since a call changed something without a note."""
        self.trusted = False
        """Whether a look every `SEGMENT_S` is enough, since `TRUSTED` calls changed nothing."""
        self.unseen_s = 0.0
        """Seconds that its calls have run since the last look."""

    def note_brought(self, used: set[int], active: Mapping[int, object]) -> bool:
        """Record which bundles arguments have used. Return whether some of the last call's are not among them."""
        before, self.brought = self.brought, frozenset(used - self.bundles)
        if before != self.brought:
            self.kept = [active[each] for each in self.brought if each in active]
        return not before <= self.brought


class FailedItem(NamedTuple):
    """An item that failed, rejected its engine, has found its inputs lost, or is to run again later."""

    outcome: str
    summary: FailureSummary
    failure: FailureBody
    detail: Deferral | LostInputs | None = None


class ItemNames(NamedTuple):
    """What the items of a run are called in a map."""

    function: Callable[..., Any]
    items: Sequence[Any]
    star: bool
    first: int
    """The place of the first item in the map, counted from 0.  -1: the items are calls of an executor, without places:
    ``(args,)``, ``(args, kwargs)`` or ``(args, kwargs, values)``."""
    total: int | None
    """The number of the map's items.  None: nobody knows."""

    @property
    def are_calls(self) -> bool:
        """Return whether the items are calls of an executor."""
        return self.first < 0

    def call(self, index: int) -> Any:
        """Call the function with one item."""
        if self.are_calls:
            return called_with(self.function)(*self.items[index])
        return self.function(*self.arguments(index))

    def arguments(self, index: int) -> tuple[Any, ...]:
        """Return the arguments of an item."""
        return tuple(self.items[index]) if self.star else (self.items[index],)

    def name(self, index: int) -> str:
        """Return an item's name: ``item 37 of 60: f(x=0.3)``."""
        of = "" if self.total is None else f" of {self.total}"
        return f"item {self.first + index}{of}: {called_name(self.function)}({self._arguments(index)})"

    def _arguments(self, index: int) -> str:
        arguments = self.arguments(index)
        names = [""] * len(arguments)
        with contextlib.suppress(Exception):  # many builtins tell nothing of their parameters
            bound = list(signature_of(self.function).bind(*arguments).arguments)
            names = bound if len(bound) == len(arguments) else names
        return ", ".join(argument_texts(list(zip(names, arguments, strict=True)), ARGUMENT_CHARS))

    def note_on(self, error: BaseException, index: int) -> None:
        """Add the item's name to an error, as a note; a call of an executor has none."""
        if self.are_calls:
            return
        with contextlib.suppress(Exception):  # the error's class, or an argument's, may do anything
            name = self.name(index)
            if name not in getattr(error, "__notes__", ()):
                BaseException.add_note(error, name)


_chunk: ChunkCalls | None = None
"""The chunk that runs."""


def _after_fork_in_child() -> None:
    if _chunk is not None:
        _chunk.note_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def call_each(calls: ChunkCalls) -> None:
    """Call the function with each item, as far as the chunk's time allows.  An interrupt ends the chunk.

    Each item begins in the surroundings in which a task does.
    """
    global _chunk
    _chunk = calls
    sink = SINK.get()
    if sink is not None:
        sink.begin_items(calls.values, len(calls.items))
    try:
        while len(calls.values) < len(calls.items) and not calls.is_over(sink):
            if calls.known.reaches or calls.known.singly or calls.known.segment == 1:
                calls.run_one()
            else:
                calls.run_segment()
    finally:
        _chunk = None


def _after(begin: Sequence[Callable[[], None]], function: Callable[..., Any]) -> Callable[..., Any]:
    if not begin:
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        for each in begin:
            each()
        return function(*args, **kwargs)

    return call


def called_with(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes the arguments of a call as a tuple and a dict, and the values of a template."""

    def call(args: tuple[Any, ...], kwargs: Mapping[str, Any] = _NO_KWARGS, values: bytes | None = None) -> Any:
        called = function if values is None else fill_template(function, unpack(values))
        return called(*args, **kwargs)

    return call


class ChunkCalls:
    """One chunk while it runs, with the values and failures of its items so far."""

    def __init__(
        self,
        known: Known,
        baseline: Baseline,
        names: ItemNames,
        begin: Callable[[int, int], None],
        before_each: Sequence[Callable[[], None]] = (),
        freeze: Callable[[int, BaseException], None] | None = None,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare the calls.

        begin: is called with the items that begin: (first index, index behind the last).
        before_each: functions that are called before each item.
        freeze: is called with the index and the error of the first item that fails, which ends the chunk.
        is_interrupted: returns whether the farm has interrupted the chunk.
        """
        self.known = known
        self.items = names.items
        function = for_many(known.function)
        self._function = _after(before_each, called_with(function) if names.are_calls else function)
        self._names = names
        self._star = names.star
        self._baseline = baseline
        self._begin = begin
        self._freeze = freeze
        self._is_interrupted = is_interrupted
        self._left: Any = None
        """Yields the items of the present segment that are not begun."""
        self.is_left = False
        """Whether the items behind the one that runs are left to other engines, see `ItemWatch`."""
        self._is_forked = False
        """Whether this is a copy in a forked child of an item."""
        self.frozen = False
        """Whether an item has failed and ended the chunk: what it has left stays as it is."""
        self._began = time.perf_counter()
        self._item_s = 0.0
        """Seconds of an item, according to the last ones."""
        self._bytes = 0
        self.values: list[Any] = []
        """The values so far, one for each ended item; output belongs to the item of this number, in C loops too."""
        self.failed: dict[int, FailedItem] = {}
        self.slow_s: dict[int, float] = {}
        """Items that were slow -> their seconds."""

    def told(
        self,
        written: Mapping[int, WrittenByItem],
        run_s: float,
        encode: Callable[[ResultBody], bytes],
        keeper: BlobWriter | None,
    ) -> list[ItemEnd]:
        """Return the ends of the items that failed, were slow or have written something, and drop their values.

        written: what items have written and displayed, by index.  run_s: seconds of the whole chunk.
        """
        told = []
        for index in sorted({*written, *self.failed, *self.slow_s}):
            if index >= len(self.values):
                continue  # it was not begun: what was written is not its own
            of_item: WrittenByItem = written.get(index, _SILENT)
            failed = self.failed.get(index)
            item_s = self.slow_s.get(index, run_s / len(self.values))
            if failed is not None:
                body = encode(ResultBody(None, failed.failure, *of_item, kind="call"))
                told.append(ItemEnd(index, failed.outcome, item_s, failed.summary, body, failed.detail))
            else:
                value = pack(self.values[index], "value", keeper)
                told.append(ItemEnd(index, "", item_s, None, encode(ResultBody(value, None, *of_item, kind="call"))))
                self.values[index] = None
        return told

    def leave_rest(self) -> list[Any]:
        """Let no further item begin, and return the values before the one that runs.  Another thread calls this."""
        self.is_left = True
        if self._left is not None:
            self._left.__setstate__(len(self.items))
        return self.values.copy()

    def note_fork(self) -> None:
        """Let a forked child end with the item that has forked it; called in the child."""
        self._is_forked = True
        self.leave_rest()

    def tell_before(
        self,
        values: list[Any],
        written: Mapping[int, WrittenByItem],
        encode: Callable[[ResultBody], bytes],
        told: list[ItemEnd],
    ) -> None:
        """Append the ends of the first items, which have these values, to `told`.  Another thread calls this.

        The chunk's end tells of them again, and tells alone of large values and of those that cannot travel.
        """
        run_s = time.perf_counter() - self._began
        size = 0
        for index, found in enumerate(values):
            of_item = written.get(index, _SILENT)
            failed = self.failed.get(index)
            value = None
            try:
                if failed is None:
                    value = pack(found)
                failure = None if failed is None else failed.failure
                body = encode(ResultBody(value, failure, *of_item, kind="call"))
            except Exception:
                continue
            size += len(body)
            if size > YIELD_BYTES:
                return
            item_s = self.slow_s.get(index, run_s / len(values))
            if failed is None:
                told.append(ItemEnd(index, "", item_s, None, body))
            else:
                told.append(ItemEnd(index, failed.outcome, item_s, failed.summary, body, failed.detail))

    def is_over(self, sink: Sink | None) -> bool:
        """Return whether the rest of the chunk is left to others: it takes long, its values or texts are large, or the
        engine is frozen.
        """
        if self.frozen or self.is_left:
            return True
        if len(self.failed) >= FAILED_MAX:
            return True
        if self._bytes > YIELD_BYTES or (sink is not None and sink.is_half_full()):
            return bool(self.values)
        left_s = self._item_s * (len(self.items) - len(self.values))
        run_s = time.perf_counter() - self._began
        if len(self.values) == 1 and run_s < FIRST_S:
            return False
        return left_s >= YIELD_S and run_s >= YIELD_S

    def interrupted(self, error: BaseException) -> None:
        """Note that the item that ran was interrupted."""
        if len(self.values) < len(self.items):
            self.failed[len(self.values)] = FailedItem(Reason.ABORTED, *described(error))
            self.values.append(None)

    def run_one(self) -> None:
        """Run one item in a context of its own."""
        index = len(self.values)
        item = self.items[index]
        self._begin(index, index + 1)
        began = time.perf_counter()
        try:
            try:
                value = self._baseline.for_item(self._function, *(item if self._star else (item,)))
            except StopIteration as stop:
                raise _stopped() from stop
            self._baseline.disarm()
            self.values.append(value)
        except BaseException as error:
            if self._ends(error):
                raise
            self._failed(error)
        self._item_s = time.perf_counter() - began
        if self._item_s >= SLOW_S:
            self.slow_s[index] = self._item_s
        self._look(began, 1)

    def run_segment(self) -> None:
        """Run the number of items in `Known.segment`, in a loop in C.

        An item that changes watched state is the last of its segment: its note moves the loop's iterator to the end.
        """
        values = self.values
        begin = len(values)
        taken = self.items[begin : begin + self.known.segment]
        count = len(taken)
        end = begin + count
        self._begin(begin, end)
        left: Any = iter(taken if type(taken) in (list, tuple, range) else list(taken))
        calls: Iterator[Any] = starmap(self._function, left) if self._star else map(self._function, left)
        changed: list[int] = []
        self._left = left
        if self.is_left:  # since the last look at it, and the other thread did not see this iterator
            left.__setstate__(count)

        def told() -> None:
            changed.append(len(values))
            left.__setstate__(count)

        began = time.perf_counter()
        CHANGES.told = told
        try:
            while len(values) < end and not changed and not self.frozen and not self.is_left:
                try:
                    values.extend(calls)  # values that were computed before an error stay
                    self._baseline.disarm()
                    if len(values) < (changed[0] + 1 if changed else end) and not self.is_left:
                        raise _stopped()
                except BaseException as error:
                    if self._ends(error):
                        raise
                    self._failed(error)
        finally:
            CHANGES.told = None
        self._item_s = (time.perf_counter() - began) / max(1, len(values) - begin)
        self._look(began, len(values) - begin)

    def _ends(self, error: BaseException) -> bool:
        """Return whether an error ends the chunk: the farm's interrupt.

        Any other is the item's own: a library's KeyboardInterrupt, a CancelledError, pytest's `Failed`.
        """
        return self._is_interrupted() and not issubclass(type(error), (Exception, SystemExit, Deferred))

    def _failed(self, error: BaseException) -> None:
        if self._is_forked:
            leave_fork(error)
        kind = type(error)  # isinstance would ask the error itself, which may raise
        index = len(self.values)
        outcome = next((word for base, word in _OUTCOMES if issubclass(kind, base)), Reason.ERROR)
        self._names.note_on(error, index)
        if self._freeze is not None and outcome == Reason.ERROR:
            self._freeze(index, error)
            self.frozen = True
        try:
            detail = details_of(error, outcome)
        except Exception as problem:  # what the error says is not what it must say
            error, outcome, detail = problem, Reason.ERROR, None
        self.failed[index] = FailedItem(outcome, *described(error), detail)
        self.values.append(None)

    def refuse(self, index: int, error: Exception) -> None:
        """Put an error into the place of a value that cannot travel."""
        self._names.note_on(error, index)
        self.failed[index] = FailedItem(Reason.ERROR, *described(error))
        self.values[index] = None

    def _look(self, began: float, count: int) -> None:
        """Restore the surroundings, and decide how many calls may run before the next examination."""
        if self._is_forked:
            leave_fork(None)
        if self.frozen:
            return
        run_s = time.perf_counter() - began
        known = self.known
        self._bytes += count * _size_of(self.values[-1])
        if self._baseline.end_items():
            known.singly = SINGLY + 1  # C code prints: its output can be told apart only between items
        known.unseen_s += run_s
        noted = bool(CHANGES.kinds)
        trusted = known.trusted and not known.singly and not known.reaches
        if noted or not trusted or known.unseen_s >= SEGMENT_S:
            changed = self._baseline.restore(thoroughly=True)
            known.unseen_s = 0.0
            if changed and not noted:
                known.singly = SINGLY
            elif known.singly:
                known.singly -= 1
            known.trusted = not changed and count >= TRUSTED
        usual = int(SEGMENT_S * count / run_s) if run_s > 0 else 1
        # A run that other processes have slowed down says little about the items, so the number decreases slowly.
        known.segment = max(1, count // 8, min(usual, count if noted else 2 * count + 1))


def _stopped() -> RuntimeError:
    return RuntimeError("the function raised StopIteration")


def _size_of(value: Any) -> int:
    """Return about how many bytes a value takes, where that is known at once."""
    kind = type(value)
    if kind is bytes or kind is str or kind is bytearray:
        return len(value)
    size = getattr(value, "nbytes", 0) if kind.__module__ in ("numpy", "pandas", "torch") else 0
    return size if type(size) is int else 0


def pack_values(calls: ChunkCalls, keeper: BlobWriter | None) -> bytes:
    """Pack the values of a chunk.  A value that cannot travel becomes an error of its item."""
    try:
        return pack(calls.values, "value", keeper)
    except UnpickleableException:
        refusals = {index: error for index, value in enumerate(calls.values) if (error := _refusal(value)) is not None}
        if not refusals:
            raise
        for index, refusal in refusals.items():
            calls.refuse(index, refusal)
        return pack(calls.values, "value", keeper)


def _refusal(value: Any) -> Exception | None:
    try:
        pack(value)
    except UnpickleableException as error:
        return error
    return None


CALLABLES_KEPT = 512
CALLABLES_BYTES_MAX = 256 * 1024 * 1024


class Callables:
    """Unpacked functions by digest. The least recently used one is dropped first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[Known, int]] = OrderedDict()
        self._bytes = 0

    def get(self, digest: str) -> Known | None:
        """Return the function if it is kept, else None."""
        found = self._kept.get(digest)
        if found is None:
            return None
        self._kept.move_to_end(digest)
        return found[0]

    def clear(self) -> None:
        """Forget all functions."""
        self._kept.clear()
        self._bytes = 0

    def add(self, digest: str, function: Callable[..., Any], size_bytes: int) -> Known:
        """Keep a function and return its entry.

        `size_bytes` is the size of its code, including the data that it carries.
        """
        known = Known(function, function_reaches(function), bundles_of(getattr(function, "brought", ((), ()))[1]))
        self._bytes -= self._kept.pop(digest, (known, 0))[1]
        self._kept[digest] = known, size_bytes
        self._bytes += size_bytes
        while len(self._kept) > CALLABLES_KEPT or (self._bytes > CALLABLES_BYTES_MAX and len(self._kept) > 1):
            _, (_, gone) = self._kept.popitem(last=False)
            self._bytes -= gone
        return known
