"""Keep the final states of tasks that have arrived in this process, and the waiters for tasks that have not ended.

The module does no IO and has no lock.  `session.Session` calls it under the session's lock; callers may read `finals`
without the lock, because one dict lookup is atomic.

All operations work on whole batches with sets and dicts: they run in the IO thread and compete with the user's code for
the GIL.  A waiter keeps the set of its remaining ids, so a wake-up costs nothing for ids that did not end.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable

from ..core.messages.task_types import FailureSummary, Final
from ..core.states import Reason

CACHE_BYTES = 256 * 1024 * 1024
"""Bytes of results that are kept; the oldest are dropped, and fetched again when a caller asks for them."""

_FINAL_BYTES = 400
"""Estimated bytes of a final state without its body."""


class Waiter:
    """Wait for a set of tasks to end.

    `event` is set when `remaining` is empty or when the session has failed.  For an `eager` waiter it is set each time
    tasks end, and `ended` lists these tasks.
    """

    __slots__ = ("remaining", "ended", "eager", "event", "finals", "on_wake")

    def __init__(self, ids: set[int], eager: bool = False, on_wake: Callable[[], None] | None = None) -> None:
        self.remaining = ids
        self.ended: list[int] = []
        self.eager = eager
        self.event = threading.Event()
        self.finals: list[Final] | None = None
        """The final states of the tasks that ended, for a caller that counts them; None: not collected."""
        self.on_wake = on_wake
        """Function that is called whenever `event` is set: in the IO thread, with the session's lock held."""
        if not ids:
            self.wake()

    def wake(self) -> None:
        """Set the event and call `on_wake`."""
        self.event.set()
        if self.on_wake is not None:
            self.on_wake()


class Arrivals:
    """Hold the final states of ended tasks, the ids of unfinished tasks, and the waiters of one session."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.finals: dict[int, Final] = {}
        self.handed_in: set[int] = set()
        """Unfinished tasks that this session submitted: `barrier()` without ids waits for them."""
        self.watched: set[int] = set()
        """Unfinished tasks of other sessions, of which the controller will report the end."""
        self.refused: list[Final] = []
        """Refused tasks for which `flush` has not raised an error yet."""
        self.on_end: dict[int, list[Callable[[Final], object]]] = {}
        """Task id -> functions to call when the task ends.  They run in the IO thread, so they must be quick."""
        self.followers: dict[str, list[Final]] = {}
        """Accumulator -> tasks of this session that have succeeded since its last look and may have added to it."""
        self._waiters: list[Waiter] = []
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
        self.refused += [f for f in finals if f.reason == Reason.REFUSED and f.id in self.handed_in]
        if self.followers:
            # A body names the accumulators to which its task added.  A result without a body is fetched later, so it
            # counts too.
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
        """Treat these ended tasks as unfinished, because the controller runs them again."""
        again = list(ids)
        self.forget(again)
        self.handed_in.update(again)

    def unknown(self, ids: Iterable[int]) -> None:
        """End all waits for these tasks, because the controller does not know them."""
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
        """Drop the oldest final states until a tenth of the cache is free: not every batch must evict."""
        for task_id in list(self.finals):
            if self._cache_bytes <= self._cache_bytes_max * 9 // 10 or len(self.finals) == 1:
                return
            self._drop_cached((task_id,))

    def _drop_cached(self, ids: Iterable[int]) -> None:
        for task_id in ids:
            final = self.finals.pop(task_id)
            self._cache_bytes -= _FINAL_BYTES + len(final.body or b"")

    def forget(self, ids: Iterable[int] | None) -> None:
        """Drop these final states, because the results were cleared (None: drop all)."""
        self._drop_cached(list(self.finals) if ids is None else [i for i in ids if i in self.finals])

    def live(self, ids: set[int]) -> set[int]:
        """Return those of `ids` that are unfinished."""
        return (ids & self.handed_in) | (ids & self.watched)

    def is_live(self, task_id: int) -> bool:
        """Return whether the task is unfinished."""
        return task_id in self.handed_in or task_id in self.watched

    def wait_for(self, ids: set[int], eager: bool = False, on_wake: Callable[[], None] | None = None) -> Waiter:
        """Return a waiter for the unfinished tasks among `ids`; the caller ends the wait with `end_wait`."""
        waiter = Waiter(self.live(ids), eager, on_wake)
        if waiter.remaining:
            self._waiters.append(waiter)
        return waiter

    def end_wait(self, waiter: Waiter) -> None:
        """Remove a waiter."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def end_all(self, why: str) -> None:
        """Call all `on_end` functions with a ConnectionError as the final state, because the session has failed."""
        failure = FailureSummary("ConnectionError", f"nothing more is heard of this task: {why}")
        for task_id, waiting in self.on_end.items():
            for then in waiting:
                _call(then, Final(task_id, Reason.REFUSED, -1, "", 0, 0.0, 0.0, 0.0, 0.0, failure, b""))
        self.on_end.clear()

    def wake_all(self) -> None:
        """Wake all waiters."""
        for waiter in self._waiters:
            waiter.wake()


def _call(then: Callable[[Final], object], final: Final) -> None:
    try:
        then(final)
    except Exception:  # an error of one function must not keep the others from being called
        traceback.print_exc()
