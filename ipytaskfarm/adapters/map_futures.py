"""The items of a map of an `Executor` or a `Pool`: how they become tasks, and the values that their futures stand for.

Items of quick functions share tasks, as calls do (`adapters.call_chunks`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ipytaskfarm.adapters.call_chunks import LEAST_CALLS, REFUSED, KnownFunction
from ipytaskfarm.core.chunk_sizes import ITEMS_MAX
from ipytaskfarm.system.deadlines import left_s

if TYPE_CHECKING:
    from ipytaskfarm.client.map_items import Items
    from ipytaskfarm.client.packing import PackedOnce, ReusedPack

Futures: TypeAlias = Iterator[Future[Any]]
Cancel: TypeAlias = Callable[[list[Any]], None]

SHARES = 4
"""The least number of tasks for each worker over which the last items of a map are spread."""


class Apart(NamedTuple):
    """Stands among the values of items that shared a task for one of which there is more to tell."""

    future: Future[Any]


class Together(list[Any]):
    """The values of items that shared a task, in order."""

    has_apart = False
    """Whether `Apart` stands for some of them."""


@dataclass
class ItemsToSubmit:
    """The items of one map that are not submitted yet."""

    function: Callable[..., Any]
    items: Items
    star: bool
    """An item is a tuple of arguments.  False: it is the only argument."""
    chunksize: int
    """The number of items that share a task, if that is possible."""
    grows: bool
    """More items share a task, as many as take some milliseconds, once it is known that items are quick."""
    known: KnownFunction
    workers: int
    is_busy: Callable[[], bool]
    """Returns whether the workers have enough to do for now."""
    room: Callable[[], int]
    """Returns how many calls the next task may have, for their ids follow one another."""
    pack: ReusedPack | None
    """Packs the function once for all items; None: each task packs it, as code of the user may run between them."""
    alone: int = 0
    """The number of the next items that become tasks of their own, because one of them cannot share a task."""
    fit: int = ITEMS_MAX
    """The number of items that fit into the next task."""

    def packed_function(self) -> PackedOnce | None:
        """Return the function as it is packed for all items; None: each task packs it."""
        if self.pack is None:
            return None
        try:
            return self.pack.get()
        except Exception:  # each call has this error
            self.pack = None
            return None

    def futures(self, submit: Callable[[ItemsToSubmit, Sequence[Any], int], Future[Any] | int]) -> Futures:
        """Submit the items as the futures are asked for.

        submit: submits items as one task, the first of which has the given place in the map.  Returns their future, or
        `REFUSED` or `TOO_MANY`.

        Raises what the iterable of the items raises.
        """
        while taken := self.items.take(self._size()):
            found = submit(self, taken, self.items.taken - len(taken))
            if isinstance(found, Future):
                self.alone = max(0, self.alone - 1)
                self.fit = ITEMS_MAX
                yield found
                continue
            self.items.put_back(taken)
            if found == REFUSED:
                self.alone = len(taken)
            else:
                self.fit = len(taken) // 2
        if self.items.error is not None:
            raise self.items.error

    def must_stay_apart(self, items: Sequence[Any]) -> bool:
        """Return whether these items are too many for a task, as they may change an object that several of them have.

        As many as the given number share it in a process pool too.
        """
        from ipytaskfarm.client.packing import items_may_change_shared

        if len(items) <= self.chunksize or not items_may_change_shared(self.function, items, self.star):
            return False
        self.grows = False
        return True

    def _size(self) -> int:
        """Return how many items share the next task."""
        wanted = 1 if self.alone else min(self._wanted(), self.fit)
        return max(1, min(wanted, self.room())) if wanted > 1 else 1

    def _wanted(self) -> int:
        """Return how many items would be worth a task."""
        given = min(self.chunksize, self.known.room)
        if not self.grows or self.known.most < LEAST_CALLS:
            return given
        left = self.items.left
        if left is None:
            return max(given, self.known.most) if self.is_busy() else given
        return max(given, min(self.known.most, -(-left // (SHARES * self.workers))))


def values(futures: Futures, end_s: float | None, buffersize: int | None, cancel: Cancel) -> Iterator[Any]:
    """Submit tasks as far as `buffersize` allows; return an iterator over their values in order."""
    waiting = deque(itertools.islice(futures, buffersize))
    return _taken(waiting, futures, end_s, cancel)


def _taken(waiting: deque[Future[Any]], futures: Futures, end_s: float | None, cancel: Cancel) -> Iterator[Any]:
    try:
        while waiting:
            # No local name for a future or a value: the caller must hold the only reference.
            found = [waiting.popleft().result(left_s(end_s))]
            has_apart = False
            if type(found[0]) is Together:
                has_apart = found[0].has_apart
                found = found[0]
                found.reverse()
            while found:
                if has_apart and type(found[-1]) is Apart:
                    yield found.pop().future.result(left_s(end_s))
                else:
                    yield found.pop()
            waiting.extend(itertools.islice(futures, 1))
    finally:
        # All at once: each cancellation asks the controller.
        if unread := [future for future in waiting if not future.done()]:
            cancel(unread)


def whole(future: Future[Any]) -> Future[list[Any]]:
    """Return a future of the list of the values for which a future stands, or of the first error among them."""
    found: Future[list[Any]] = Future()
    left: list[Future[Any]] = [future]

    def ended(_: Future[Any]) -> None:
        """Wait for what stands apart, if all before it has ended."""
        while left and left[-1].done():
            each = left.pop()
            if each is future and not each.cancelled() and not each.exception():
                values = each.result()
                if type(values) is Together and values.has_apart:
                    left.extend(value.future for value in values if type(value) is Apart)
        if not left:
            _resolve(found, future)
        else:
            left[-1].add_done_callback(ended)

    future.add_done_callback(ended)
    return found


def _resolve(found: Future[list[Any]], future: Future[Any]) -> None:
    """Resolve a future with the values for which another one stands, all of which have ended."""
    try:
        values = future.result()
        if type(values) is not Together:
            values = [values]
        elif values.has_apart:
            values = [value.future.result() if type(value) is Apart else value for value in values]
    except CancelledError:
        found.cancel()
        found.set_running_or_notify_cancel()
    except BaseException as error:
        found.set_exception(error)
    else:
        found.set_result(values)


def flattened(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    """Yield the values of chunks."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
