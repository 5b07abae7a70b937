"""Runs a chunk of a map: one attempt with many calls, each of which has its own value or error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from typing import Any, TypeAlias

from ..core.errors import TaskRejectError, UnpickleableException
from ..core.messages.payload import FailureBody
from ..serialization.pack import for_many, pack
from ..storage.blobs import BlobWriter
from .baseline import Baseline
from .change_hooks import CHANGES
from .failures import described
from .sinks import SINK

Error: TypeAlias = tuple[int, bool, FailureBody]
"""(index, whether it rejected the engine, the error)."""


SINGLY = 100
"""The number of items that run one by one after an item changed its surroundings unseen by `CHANGES`."""
TRUSTED = 64
"""The number of calls in a row without any change after which the surroundings are examined only rarely."""
SEGMENT_S = 0.002
"""Seconds of calls between two examinations. One takes 12 µs, or 70 µs while the caches are cold."""


class Known:
    """A function that was unpacked, and the observations about its calls so far."""

    __slots__ = ("bundles", "function", "reaches", "segment", "singly", "trusted", "unseen_s")

    def __init__(self, function: Callable[..., Any], reaches: bool, bundles: frozenset[int]) -> None:
        self.function = function
        self.bundles = bundles
        """The bundles of modules by value that it uses, see `serialization.modules.bundles_of`."""
        self.reaches = reaches
        """Whether its code mentions state that belongs to the whole process, see `side_effects`."""
        self.segment = 1
        """The number of calls in the next segment."""
        self.singly = 0
        """The number of calls that still run one by one, since a call changed something without a note."""
        self.trusted = False
        """Whether a look every `SEGMENT_S` is enough, since `TRUSTED` calls changed nothing."""
        self.unseen_s = 0.0
        """Seconds that its calls have run since the last look."""


def call_each(
    known: Known, baseline: Baseline, items: Sequence[Any], star: bool, begin: Sequence[Callable[[], None]] = ()
) -> tuple[list[Any], list[Error]]:
    """Call the function with each item, or with `star` with the parts of each item. An interrupt ends the whole chunk.

    The functions in `begin` are called before each item.

    Each item begins in the surroundings of a task. If the chunk has only one item, its error is raised, so that the
    task is retried or rejected like any other.
    """
    calls = _Calls(known, _after(begin, for_many(known.function)), items, star, baseline)
    sink = SINK.get()
    if sink is not None:
        sink.begin_items(calls.values, len(items))
    while len(calls.values) < len(items):
        if known.reaches or known.singly or known.segment == 1:
            calls.run_one()
        else:
            calls.run_segment()
    return calls.values, calls.errors


def _after(begin: Sequence[Callable[[], None]], function: Callable[..., Any]) -> Callable[..., Any]:
    if not begin:
        return function

    def call(*args: Any) -> Any:
        for each in begin:
            each()
        return function(*args)

    return call


class _Calls:
    """One chunk that is running."""

    def __init__(
        self, known: Known, function: Callable[..., Any], items: Sequence[Any], star: bool, baseline: Baseline
    ) -> None:
        self._known = known
        self._function = function
        self._items = items
        self._star = star
        self._baseline = baseline
        self.values: list[Any] = []
        """The values so far, one per finished item. Output belongs to the item of this number, in C loops too."""
        self.errors: list[Error] = []

    def run_one(self) -> None:
        """Run one item in a context of its own."""
        item = self._items[len(self.values)]
        began = time.perf_counter()
        try:
            try:
                value = self._baseline.for_item(self._function, *(item if self._star else (item,)))
            except StopIteration as stop:
                raise _stopped() from stop
            self._baseline.disarm()
            self.values.append(value)
        except (Exception, SystemExit) as error:
            if len(self._items) == 1:
                raise
            self._failed(error)
        self._look(began, 1)

    def run_segment(self) -> None:
        """Run the number of items in `Known.segment`, in a loop in C.

        An item that changes watched state is the last of its segment: its note moves the loop's iterator to the end.
        """
        values = self.values
        begin = len(values)
        taken = self._items[begin : begin + self._known.segment]
        count = len(taken)
        end = begin + count
        left: Any = iter(taken if type(taken) in (list, tuple, range) else list(taken))
        calls: Iterator[Any] = starmap(self._function, left) if self._star else map(self._function, left)
        changed: list[int] = []

        def told() -> None:
            changed.append(len(values))
            left.__setstate__(count)

        began = time.perf_counter()
        CHANGES.told = told
        try:
            while len(values) < end and not changed:
                try:
                    values.extend(calls)  # values that were computed before an error stay
                    self._baseline.disarm()
                    if len(values) < (changed[0] + 1 if changed else end):
                        raise _stopped()
                except (Exception, SystemExit) as error:
                    if len(self._items) == 1:
                        raise
                    self._failed(error)
        finally:
            CHANGES.told = None
        self._look(began, len(values) - begin)

    def _failed(self, error: BaseException) -> None:
        rejects = issubclass(type(error), TaskRejectError)  # isinstance would ask the error itself, which may raise
        self.errors.append((len(self.values), rejects, described(error)[1]))
        self.values.append(None)

    def _look(self, began: float, count: int) -> None:
        """Restore the surroundings, and decide how many calls may run before the next examination."""
        run_s = time.perf_counter() - began
        known = self._known
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


def pack_each(ended: tuple[list[Any], list[Error]], writer: BlobWriter | None) -> bytes:
    """Pack the result of `call_each`. A value that cannot travel becomes an error of its item."""
    try:
        return pack(ended, "value", writer)
    except UnpickleableException:
        values, errors = ended
        failed = [(index, error) for index, value in enumerate(values) if (error := _refusal(value)) is not None]
        if not failed or len(values) == 1:
            raise
        for index, refusal in failed:
            values[index] = None
            errors.append((index, False, described(refusal)[1]))
        return pack((values, errors), "value", writer)


def _refusal(value: Any) -> Exception | None:
    try:
        pack(value)
    except UnpickleableException as error:
        return error
    return None
