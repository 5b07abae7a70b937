"""What is known of tasks that ended, and who waits for them.

No IO, no lock of its own: `session.Session` calls it under its lock, except for `finals`, which
callers may read without it (one dict lookup).

Everything here works on whole batches with set and dict operations, because it runs in the IO thread
while the caller wants the interpreter: a waiter counts down, nobody looks through all ids at each wake-up.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..core.messages.task_types import FailureSummary, Final
from ..core.scheduler.chunks import ChunkRegistry
from ..core.states import Reason

CACHE_BYTES = 256 * 1024 * 1024
"""Results are kept up to this much; older ones are fetched again when they are asked for."""

_FINAL_BYTES = 400
"""What a final state costs beside its body."""


class Waiter:
    """Somebody who waits for ids to end.

    `remaining` shrinks as they do; `event` is set when it is empty, or at each change for an `eager` one
    (which finds the ids that ended since in `ended`), or when the session failed.
    """

    __slots__ = ("remaining", "ended", "eager", "event", "finals", "on_wake")

    def __init__(self, ids: set[int], eager: bool = False, on_wake: Callable[[], None] | None = None) -> None:
        self.remaining = ids
        self.ended: list[int] = []
        self.eager = eager
        self.event = threading.Event()
        self.finals: list[Final] | None = None
        """Gathers the ends, for somebody who counts them; None: nobody does."""
        self.on_wake = on_wake
        """Called in the IO thread, with the lock held, whenever `event` is set."""
        if not ids:
            self.wake()

    def wake(self) -> None:
        """There is something to look at."""
        self.event.set()
        if self.on_wake is not None:
            self.on_wake()


class Arrivals:
    """Final states that arrived, ids that have not ended yet, and waiters."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.finals: dict[int, Final] = {}
        self.handed_in: set[int] = set()
        """Ids handed in by this session that have not ended: what a bare `barrier()` waits for."""
        self.chunks = ChunkRegistry()
        """The chunks of this session and of maps that it follows: an item's end is its chunk's, or its own."""
        self.watched: set[int] = set()
        """Ids of others that have not ended, whose end the controller will tell us."""
        self.refused: list[Final] = []
        """Refusals that `flush` has not raised yet."""
        self.on_end: dict[int, list[Callable[[Final], object]]] = {}
        """What is to be called when a task has ended; quick, and in the IO thread."""
        self.followers: dict[str, list[Final]] = {}
        """Accumulator -> tasks of this session that have succeeded since it looked, and perhaps added to it."""
        self._waiters: list[Waiter] = []
        self._cache_bytes_max = cache_bytes
        self._cache_bytes = 0

    def take(self, finals: list[Final]) -> None:
        """Tasks ended (or their results were fetched)."""
        batch = {final.id: final for final in finals}
        for task_id in batch.keys() & self.finals.keys():
            known = self.finals[task_id]
            if known.body is not None and batch[task_id].body is None:
                batch[task_id] = known  # told again in short: keep what we have
            self._drop_cached((task_id,))
        self.finals.update(batch)
        self._cache_bytes += sum([len(f.body) + _FINAL_BYTES if f.body else _FINAL_BYTES for f in batch.values()])
        self.refused += [f for f in finals if f.reason == Reason.REFUSED and f.id in self.handed_in]
        if self.followers:
            # What a result added to accumulators stands in its body by name; results without a body are fetched later.
            added = [
                f for f in finals
                if not f.reason and f.id in self.handed_in and (f.body is None or b"accumulated" in f.body)
            ]  # fmt: skip
            for followed in self.followers.values():
                followed += added
        self._end(batch)
        if self._cache_bytes > self._cache_bytes_max:
            self._evict()

    def reopened(self, ids: Iterable[int]) -> None:
        """These had ended, and run again: their ends are yet to come."""
        again = list(ids)
        self.forget(again)
        self.handed_in.update(again)

    def unknown(self, ids: Iterable[int]) -> None:
        """The controller knows nothing of these: nobody should wait for them any longer."""
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
            live = fresh - self.finals.keys() if chunk.id in self.handed_in else set()
            self.handed_in |= live  # of another client's chunk, who waits for the items asks for their ends
            if live:
                unfinished[chunk.id] = live
        return unfinished

    def _end(self, batch: dict[int, Final] | dict[int, None]) -> None:
        unfinished = self._separate(batch) if self.chunks.items else {}
        self.watched.difference_update(batch)
        self.handed_in.difference_update(batch)
        if self.on_end:
            for task_id in batch.keys() & self.on_end.keys():
                final = batch[task_id]
                if final is not None:
                    for then in self.on_end.pop(task_id):
                        _call(then, final)
        if not self._waiters:
            return
        for waiter in self._waiters:
            if waiter.finals is not None:
                remaining = waiter.remaining
                waiter.finals += [final for i, final in batch.items() if i in remaining and final is not None]
            if waiter.eager:
                ended = [i for i in batch if i in waiter.remaining]
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

    def _evict(self) -> None:
        """Make room, oldest first, down to nine tenths, so that it is not done for each batch."""
        for task_id in list(self.finals):
            if self._cache_bytes <= self._cache_bytes_max * 9 // 10 or len(self.finals) == 1:
                return
            self._drop_cached((task_id,))

    def _drop_cached(self, ids: Iterable[int]) -> None:
        for task_id in ids:
            final = self.finals.pop(task_id)
            self._cache_bytes -= _FINAL_BYTES + len(final.body or b"")

    def forget(self, ids: Sequence[int] | None) -> None:
        """These results were cleared (None: all that are known to have ended)."""
        self._drop_cached(list(self.finals) if ids is None else [i for i in ids if i in self.finals])
        if not self.chunks.items:
            return
        if ids is None:
            self.chunks.forget([i for i in self.chunks.items if i not in self.handed_in and i not in self.watched])
            return
        self.chunks.forget(ids)
        for task_id in ids:
            chunk = self.chunks.of(task_id)
            if chunk is not None:
                self.chunks.separate.setdefault(chunk, set()).add(task_id - chunk - 1)

    def live(self, ids: set[int]) -> set[int]:
        """Those that have not ended; in the place of items of a chunk that has not ended, the chunk."""
        live = (ids & self.handed_in) | (ids & self.watched)
        if self.chunks.items:
            held = {self.chunks.of(i) for i in ids - live - self.finals.keys()} - {None}
            live |= {chunk for chunk in held if chunk in self.handed_in or chunk in self.watched}
        return live

    def is_live(self, task_id: int) -> bool:
        """Return whether its end is still to come."""
        if task_id in self.handed_in or task_id in self.watched:
            return True
        chunk = self.chunks.of(task_id) if self.chunks.items else None
        return chunk is not None and (chunk in self.handed_in or chunk in self.watched)

    def follow(self, chunks: Mapping[int, int]) -> None:
        """Note chunks of another client's map: chunk -> number of its items."""
        for chunk, count in chunks.items():
            if chunk not in self.chunks.items:
                self.chunks.add(chunk, count)

    def ended_of(self, waiting: set[int], changed: list[int] | None = None) -> list[int]:
        """Take those out of `waiting` that have ended, and return them.

        changed: only these, or items of these chunks, may have ended since the last time; None: any."""
        if changed is not None and not self.chunks.items:
            looked = [i for i in changed if i in waiting]
        else:
            looked = sorted(waiting)
        ended = [i for i in looked if not self.is_live(i)]
        waiting.difference_update(ended)
        return ended

    def wait_for(self, ids: set[int], eager: bool = False, on_wake: Callable[[], None] | None = None) -> Waiter:
        """Return a waiter for those of `ids` that are live; `end_wait` takes it out again."""
        waiter = Waiter(self.live(ids), eager, on_wake)
        if waiter.remaining:
            self._waiters.append(waiter)
        return waiter

    def end_wait(self, waiter: Waiter) -> None:
        """Nobody waits there any longer."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def end_all(self, why: str) -> None:
        """The session has failed: nothing more will be heard of those whose ends are waited for with `on_end`."""
        failure = FailureSummary("ConnectionError", f"nothing more is heard of this task: {why}")
        for task_id, waiting in self.on_end.items():
            for then in waiting:
                _call(then, Final(task_id, Reason.REFUSED, -1, "", 0, 0.0, 0.0, 0.0, 0.0, failure, b""))
        self.on_end.clear()

    def wake_all(self) -> None:
        """Something happened that every waiter has to see."""
        for waiter in self._waiters:
            waiter.wake()


def _call(then: Callable[[Final], object], final: Final) -> None:
    try:
        then(final)
    except Exception:  # whoever wanted to know: the others are told all the same
        traceback.print_exc()
