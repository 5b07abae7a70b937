"""Keep the final states of tasks that have arrived in this process, and the waiters for tasks that have not ended.

The module does no IO and has no lock.  `session.Session` calls it under the session's lock; callers may read `finals`
and end their waits without the lock, because one operation of a dict is atomic.

All operations work on whole batches with sets and dicts: they run in the IO thread and compete with the user's code for
the GIL.  A waiter keeps the set of its remaining ids, so a wake-up costs nothing for ids that did not end.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..core.messages.task_types import FailureSummary, Final
from ..core.scheduler.chunks import ChunkRegistry
from ..core.states import Reason

CACHE_BYTES = 256 * 1024 * 1024
"""Bytes of results that are kept; the oldest are dropped, and fetched again when a caller asks for them."""

_FINAL_BYTES = 400
"""Estimated bytes of a final state without its body."""


class WakeFlag:
    """A ``threading.Event`` whose `set` never waits.

    While a wait on an Event begins, or ends, its thread holds a lock of the Event. A signal handler that runs then, and
    waits for the farm too, would wait for the IO thread, and this one for that lock.
    """

    __slots__ = ("_gate", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._is_set

    def set(self) -> None:
        """Set the flag, and wake the waiting threads."""
        self._is_set = True
        self._open()

    def clear(self) -> None:
        """Take the flag back; called by the only thread that waits."""
        self._is_set = False
        self._gate.acquire(blocking=False)

    def wait(self, timeout: float) -> bool:
        """Wait until the flag is set; return False after `timeout` seconds."""
        if not self._is_set and self._gate.acquire(timeout=timeout):
            self._open()
        return self._is_set

    def _open(self) -> None:
        try:
            self._gate.release()
        except RuntimeError:  # it is open
            return


class Waiter:
    """Wait for a set of tasks to end.

    `event` is set when `remaining` is empty or when the session has failed.  For an `eager` waiter it is set each time
    tasks end, and `ended` lists these tasks.
    """

    __slots__ = ("remaining", "items", "ended", "eager", "event", "finals", "kept", "on_wake")

    def __init__(
        self,
        ids: set[int],
        eager: bool = False,
        on_wake: Callable[[], None] | None = None,
        items: dict[int, set[int]] | None = None,
    ) -> None:
        self.remaining = ids
        self.items = items or {}
        """Chunk of `remaining` -> those of its items that are waited for; not there: all of them are."""
        self.ended: list[int] = []
        self.eager = eager
        self.event = WakeFlag()
        self.finals: list[Final] | None = None
        """The final states of the tasks that ended, for a caller that counts them; None: not collected."""
        self.kept: list[Final] | None = None
        """Kept results that the cache had for the tasks, whose ends are not on disk yet; None: not waited for."""
        self.on_wake = on_wake
        """Function that is called whenever `event` is set: in the IO thread, with the session's lock held."""
        if not ids:
            self.wake()

    def open_ids(self) -> set[int]:
        """Return the tasks and the items of chunks that have not ended, and the chunks of these items."""
        return self.remaining.union(*self.items.values())

    def end_items(
        self, before: Mapping[int, set[int]], chunks: Iterable[int], apart: Mapping[int, set[int]]
    ) -> set[int]:
        """Note the ends of items that are waited for, and return these.

        Args:
            before: chunk that runs on -> its items that have ended.
            chunks: chunks that have ended, among others.
            apart: ended chunk -> its items that are tasks of their own, and have not ended.
        """
        ended: set[int] = set()
        for chunk in before.keys() & self.items.keys():
            ended |= self.items[chunk] & before[chunk]
            self.items[chunk] -= before[chunk]
            if not self.items[chunk]:
                del self.items[chunk]
                self.remaining.discard(chunk)
        for chunk in [chunk for chunk in chunks if chunk in self.items]:
            items = self.items.pop(chunk)
            live = items & apart.get(chunk, set())
            self.remaining.discard(chunk)
            self.remaining |= live
            ended |= items - live
        return ended

    def wake(self) -> None:
        """Set the event and call `on_wake`."""
        self.event.set()
        if self.on_wake is not None:
            self.on_wake()


class Arrivals:
    """Hold the final states of ended tasks, the ids of unfinished tasks, and the waiters of one session."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.finals: dict[int, Final] = {}
        self.submitted: set[int] = set()
        """Unfinished tasks that this session submitted: `barrier()` without ids waits for them."""
        self.chunks = ChunkRegistry()
        """The chunks of this session and of maps that it follows: an item's end is its chunk's, or its own."""
        self.watched: set[int] = set()
        """Unfinished tasks of other sessions, of which the controller will report the end."""
        self.refused: list[Final] = []
        """Refused tasks for which `flush` has not raised an error yet."""
        self.on_end: dict[int, list[Callable[[Final], object]]] = {}
        """Task id -> functions to call when the task ends.  They run in the IO thread, so they must be quick."""
        self.on_item_end: dict[int, Callable[[Final], object]] = {}
        """Chunk -> function to call with the ends of items that come before the chunk's own, as `on_end`."""
        self.followers: dict[str, deque[Final]] = {}
        """Accumulator -> tasks of this session that have succeeded and may have added to it, as far as it has not
        taken them.  Accumulators are added and removed without the lock.
        """
        self._waiters: dict[int, Waiter] = {}
        """Waiters by identity."""
        self._cache_bytes_max = cache_bytes
        self._cache_bytes = 0

    def take(self, finals: list[Final]) -> None:
        """Record the final states of tasks that ended, or of tasks that were fetched."""
        batch = {final.id: final for final in finals}
        for task_id in batch.keys() & self.finals.keys():
            known = self.finals[task_id]
            if known.body is not None and batch[task_id].body is None:
                batch[task_id] = known  # repeated without a body: keep the full one
            self._drop_cached((task_id,))
        self.finals.update(batch)
        self._cache_bytes += sum([len(f.body) + _FINAL_BYTES if f.body else _FINAL_BYTES for f in batch.values()])
        self.refused += [f for f in finals if f.reason == Reason.REFUSED and f.id in self.submitted]
        if self.followers:
            # A body names the accumulators to which its task added.  A result without a body is fetched later, so it
            # counts too.
            added = [
                f for f in finals
                if not f.reason and f.id in self.submitted and (f.body is None or b"accumulated" in f.body)
            ]  # fmt: skip
            for followed in list(self.followers.values()):
                followed.extend(added)
        self._end(batch)
        if self._cache_bytes > self._cache_bytes_max:
            self._evict()

    def found(self, finals: list[Final]) -> None:
        """Wake those that wait for the values of tasks and not for their ends, which come in `take`."""
        for waiter in list(self._waiters.values()):
            if waiter.kept is not None:
                waiter.kept += [final for final in finals if final.id in waiter.remaining]
                if waiter.kept:
                    waiter.wake()

    def reopened(self, ids: Iterable[int]) -> None:
        """Treat these ended tasks as unfinished, because the controller runs them again."""
        again = list(ids)
        self.forget(again)
        self.submitted.update(again)

    def unknown(self, ids: Iterable[int]) -> None:
        """End all waits for these tasks, because the controller does not know them."""
        self._end(dict.fromkeys(i for i in ids if i not in self.finals))

    def _separate(self, batch: dict[int, Final] | dict[int, None]) -> dict[int, set[int]]:
        """Note which items of ended chunks are tasks of their own.  Returns chunk -> those that have not ended."""
        unfinished: dict[int, set[int]] = {}
        for chunk in batch.values():
            if chunk is None or not chunk.items or chunk.id not in self.chunks.items:
                continue
            known = self.chunks.separate.setdefault(chunk.id, set()) if chunk.separate else set()
            fresh = {chunk.id + 1 + index for index in chunk.separate if index not in known}
            known.update(chunk.separate)
            live = fresh - self.finals.keys() if chunk.id in self.submitted else set()
            self.submitted |= live  # of another client's chunk: waits ask for the ends of its items
            if live:
                unfinished[chunk.id] = live
        return unfinished

    def _end(self, batch: dict[int, Final] | dict[int, None]) -> None:
        before = self._end_items_before(batch) if self.chunks.items else {}
        unfinished = self._separate(batch) if self.chunks.items else {}
        self.watched.difference_update(batch)
        self.submitted.difference_update(batch)
        if self.on_end:
            for task_id in batch.keys() & self.on_end.keys():
                final = batch[task_id]
                if final is not None:
                    for then in self.on_end.pop(task_id):
                        _call(then, final)
            self._end_items(batch)
        if not self._waiters:
            return
        for waiter in list(self._waiters.values()):
            if waiter.finals is not None:
                remaining = waiter.remaining
                waiter.finals += [final for i, final in batch.items() if i in remaining and final is not None]
            items = waiter.end_items(before, batch, unfinished) if waiter.items else set()
            if waiter.eager:
                ended = [*items, *(i for i in batch if i in waiter.remaining)]
                if not ended:
                    continue
                waiter.ended += ended
                waiter.wake()
            for chunk, items in unfinished.items():
                if chunk in waiter.remaining:
                    waiter.remaining |= items
            waiter.remaining.difference_update(batch)
            if not waiter.remaining:
                waiter.wake()
                self.end_wait(waiter)

    def _end_items_before(self, batch: dict[int, Final] | dict[int, None]) -> dict[int, set[int]]:
        """Note which items have ended although their chunks run on, and call the functions of these chunks.

        Returns chunk -> ids of these items."""
        found: dict[int, set[int]] = {}
        for task_id, final in batch.items():
            chunk = self.chunks.of(task_id)
            if chunk is None or final is None or chunk in batch:
                continue
            if chunk not in self.submitted and chunk not in self.watched:
                continue
            self.chunks.separate.setdefault(chunk, set()).add(task_id - chunk - 1)
            found.setdefault(chunk, set()).add(task_id)
            if (then := self.on_item_end.get(chunk)) is not None:
                _call(then, final)
        for task_id in batch.keys() & self.on_item_end.keys():
            del self.on_item_end[task_id]
        return found

    def _end_items(self, batch: dict[int, Final] | dict[int, None]) -> None:
        """Call the functions of silent items with the final states of their chunks."""
        for chunk in batch.values():
            if chunk is not None and chunk.items:
                separate = set(chunk.separate)
                for index in range(chunk.items):
                    item = chunk.id + 1 + index
                    for then in self.on_end.pop(item, ()) if index not in separate else ():
                        _call(then, chunk)

    def _evict(self) -> None:
        """Drop the oldest final states until a tenth of the cache is free: not every batch must evict."""
        for task_id in list(self.finals):
            if self._cache_bytes <= self._cache_bytes_max * 9 // 10 or len(self.finals) == 1:
                return
            self._drop_cached((task_id,))

    def _drop_cached(self, ids: Iterable[int]) -> None:
        for task_id in ids:
            final = self.finals.pop(task_id)
            self._cache_bytes -= _FINAL_BYTES + len(final.body or b"")

    def forget(self, ids: Sequence[int] | None) -> None:
        """Drop these final states, because the results were cleared (None: drop all)."""
        self._drop_cached(list(self.finals) if ids is None else [i for i in ids if i in self.finals])
        if not self.chunks.items:
            return
        if ids is None:
            self.chunks.forget([i for i in self.chunks.items if i not in self.submitted and i not in self.watched])
            return
        self.chunks.forget(ids)
        touched: set[int] = set()
        for task_id in ids:
            chunk = self.chunks.of(task_id)
            if chunk is not None:
                self.chunks.separate.setdefault(chunk, set()).add(task_id - chunk - 1)
                touched.add(chunk)
        # A chunk without silent items has nothing more to tell.
        empty = [chunk for chunk in touched if not self.chunks.size(chunk) and chunk in self.finals]
        self._drop_cached(empty)
        self.chunks.forget(empty)

    def live(self, ids: set[int]) -> set[int]:
        """Return the given tasks that have not ended; for items of an unfinished chunk, the id of the chunk."""
        live = (ids & self.submitted) | (ids & self.watched)
        if self.chunks.items:
            held = {self.chunks.of(i) for i in ids - live - self.finals.keys()} - {None}
            live |= {chunk for chunk in held if chunk in self.submitted or chunk in self.watched}
        return live

    def _items_of(self, ids: set[int]) -> dict[int, set[int]]:
        """Return chunk that has not ended -> its items among these tasks.  Chunks among them are left out."""
        found: dict[int, set[int]] = {}
        for task_id in ids - self.submitted - self.watched - self.finals.keys():
            chunk = self.chunks.of(task_id)
            if chunk is not None and chunk not in ids and (chunk in self.submitted or chunk in self.watched):
                found.setdefault(chunk, set()).add(task_id)
        return found

    def is_live(self, task_id: int) -> bool:
        """Return whether the end of a task is still to come."""
        if task_id in self.submitted or task_id in self.watched:
            return True
        chunk = self.chunks.of(task_id) if self.chunks.items else None
        return chunk is not None and (chunk in self.submitted or chunk in self.watched)

    def follow(self, chunks: Mapping[int, int]) -> None:
        """Note chunks of another client's map: chunk -> number of its items."""
        for chunk, count in chunks.items():
            if chunk not in self.chunks.items:
                self.chunks.add(chunk, count)

    def ended_of(self, waiting: set[int], changed: list[int] | None = None) -> list[int]:
        """Remove the tasks that have ended from `waiting`, and return them.

        changed: only these, or items of these chunks, may have ended since the last time; None: any."""
        if changed is not None and not self.chunks.items:
            looked = [i for i in changed if i in waiting]
        else:
            looked = sorted(waiting)
        ended = [i for i in looked if not self.is_live(i)]
        waiting.difference_update(ended)
        return ended

    def wait_for(self, ids: set[int], eager: bool = False, on_wake: Callable[[], None] | None = None) -> Waiter:
        """Return a waiter for the unfinished tasks among `ids`; the caller ends the wait with `end_wait`."""
        waiter = Waiter(self.live(ids), eager, on_wake, self._items_of(ids) if self.chunks.items else None)
        if waiter.remaining:
            self._waiters[id(waiter)] = waiter
        return waiter

    def end_wait(self, waiter: Waiter) -> None:
        """Remove a waiter.

        It needs no lock: the garbage collector may close a generator that waits, in a thread that holds the lock.
        """
        self._waiters.pop(id(waiter), None)

    def end_all(self, why: BaseException) -> None:
        """Call all `on_end` functions with a ConnectionError as the final state, because the session has failed."""
        for task_id, waiting in self.on_end.items():
            for then in waiting:
                _call(then, unheard_of(task_id, why))
        self.on_end.clear()
        self.on_item_end.clear()

    def wake_all(self) -> None:
        """Wake all waiters."""
        for waiter in list(self._waiters.values()):
            waiter.wake()


def unheard_of(task_id: int, why: BaseException) -> Final:
    """Return the final state for users of a task whose session has failed."""
    text = f"nothing more is heard of this task: {type(why).__name__}: {why}"
    failure = FailureSummary("ConnectionError", text)
    return Final(task_id, Reason.REFUSED, -1, "", 0, 0.0, 0.0, 0.0, 0.0, failure, b"")


def _call(then: Callable[[Final], object], final: Final) -> None:
    try:
        then(final)
    except Exception:  # an error of one function must not keep the others from being called
        traceback.print_exc()
