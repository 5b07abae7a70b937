"""What is known of tasks that ended, and who waits for them.

No IO, no lock of its own: `session.Session` calls it under its lock, except for `finals`, which
callers may read without it (one dict lookup).

Everything here works on whole batches with set and dict operations, because it runs in the IO thread
while the caller wants the interpreter: a waiter counts down, nobody looks through all ids at each wake-up.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable

from ..core.messages.task_types import FailureSummary, Final
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

    def _end(self, batch: dict[int, Final] | dict[int, None]) -> None:
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

    def forget(self, ids: Iterable[int] | None) -> None:
        """These results were cleared (None: all that are known to have ended)."""
        self._drop_cached(list(self.finals) if ids is None else [i for i in ids if i in self.finals])

    def live(self, ids: set[int]) -> set[int]:
        """Those that have not ended."""
        return (ids & self.handed_in) | (ids & self.watched)

    def is_live(self, task_id: int) -> bool:
        """Return whether its end is still to come."""
        return task_id in self.handed_in or task_id in self.watched

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
