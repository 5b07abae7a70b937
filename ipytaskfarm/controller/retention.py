"""Removal of old results, by age and by the size of the store (both off by default), and of unused code and blobs.

The room that they leave in the store is given back to the disk when somebody asks for it (`Compaction`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from ..core.errors import StoreFull
from ..core.messages import Answer, Refusal, TextReply
from ..core.messages.task_types import SENT_AGAIN_BYTES, code_of
from ..core.saves import Save, SaveTask
from ..storage.backup import needed_blobs, unused_code
from ..storage.blobs import KEPT_S, Blobs
from ..storage.result_cache import cache_file, needed_by_cache
from ..storage.store import Store

log = logging.getLogger(__name__)

LOOK_S = 1.0
SIZE_LOOK_S = 10.0
"""The interval between checks of the size, which look at all large values in use: thousands of small system calls."""
ROW_BYTES = 300
"""The approximate size of a task in the store, in addition to its payload and its result."""
CHUNK = 2_000
"""The number of ended tasks examined or cleared at a time: the loop must not stop for a million of them."""

SWEEP_S = 300.0
CODE_LOOK_S = 10.0
CODE_LOOK_SHARE = 0.02
"""The most of the time that is spent on looking for unused code: the rows of all tasks are read for it."""


class Retention:
    """Selects the ended tasks that are cleared now."""

    def __init__(
        self,
        store: Store,
        blobs: Path,
        keep_s: float | None,
        keep_bytes: int | None,
        since_boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        """Create it.

        Args:
            keep_s: clear a task this many seconds after its end.
            keep_bytes: clear the oldest tasks when store and blobs have more bytes.
            since_boot: a clock that nobody sets, and which goes on while the machine is suspended.
        """
        self._store = store
        self._blobs = blobs
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._since_boot = since_boot
        self._clock_s: float | None = None
        self._due_s = self._size_due_s = 0.0
        self._looked_at = -1

    def due(self, mono_s: float, wall_s: float) -> list[int]:
        """Return ids of ended tasks to clear now; usually []."""
        if (self._keep_s is None and self._keep_bytes is None) or mono_s < self._due_s:
            return []
        self._due_s = mono_s + LOOK_S
        old = self._old(wall_s - self._set_ahead_s(wall_s))
        if old or mono_s < self._size_due_s:
            return old
        going = self._too_many()
        # Blobs of tasks that are cleared now are gone from the tables at the next check, which may find more to do.
        self._size_due_s = mono_s + (LOOK_S if len(going) == CHUNK else SIZE_LOOK_S)
        return going

    def _set_ahead_s(self, wall_s: float) -> float:
        """Return by how much the wall clock was set ahead since the controller's start.

        What ended before that is not so much older, and what is cleared is gone, so nothing counts as older.
        """
        clock_s = wall_s - self._since_boot()
        if self._clock_s is None:
            self._clock_s = clock_s
        return max(0.0, clock_s - self._clock_s)

    def _old(self, wall_s: float) -> list[int]:
        # In the order of ids, which is nearly that of age, a part at each check: no index is kept for this.
        if self._keep_s is None:
            return []
        found = self._store.final_ids(self._looked_at, CHUNK)
        self._looked_at = found[-1][0] if len(found) == CHUNK else -1
        return [task for task, completed_s in found if completed_s < wall_s - self._keep_s]

    def _too_many(self) -> list[int]:
        if self._keep_bytes is None:
            return []
        used = self._store.used_bytes() + sum(map(self._blob_bytes, self._store.blobs_in_use()))
        excess = used - self._keep_bytes
        going = []
        for task, size_bytes, digests in self._store.oldest_finals(CHUNK) if excess > 0 else ():
            going.append(task)
            excess -= ROW_BYTES + size_bytes + sum(map(self._blob_bytes, digests))
            if excess <= 0:
                break
        return going

    def _blob_bytes(self, digest: str) -> int:
        try:
            return (self._blobs / digest[:2] / digest).stat().st_size
        except OSError:
            return 0


class BlobSweeper:
    """Removes blobs that no task and no result needs."""

    def __init__(self, blobs: Blobs, store: Path) -> None:
        self._blobs = blobs
        self._store = store
        self._due_s: float | None = None
        self._thread: threading.Thread | None = None

    def turn(self, now_s: float) -> None:
        """Start a sweep in a thread if one is due. Called each turn.

        The first sweep comes late enough for peers to claim their blobs: clients touch blobs that they have not
        submitted yet, and agents deliver the results that they hold.
        """
        if self._due_s is None:
            self._due_s = now_s + KEPT_S
        if now_s < self._due_s or (self._thread is not None and self._thread.is_alive()):
            return
        self._due_s = now_s + SWEEP_S
        self._thread = _started(self._sweep, "sweep of blobs")

    def _sweep(self) -> None:
        try:
            removed = self._blobs.sweep(self._needed)
        except Exception:  # an error in a thread that nobody waits for; the next sweep is in five minutes
            log.exception("blobs could not be swept")
        else:
            if removed:
                log.info("removed %s blobs that nothing needs", removed)

    def _needed(self, digests: Sequence[str]) -> set[str]:
        return needed_blobs(self._store, digests) | needed_by_cache(cache_file(self._store), digests)


def _started(work: Callable[[], None], name: str) -> threading.Thread | None:
    """Do work in a thread. None: there is no room for one now, so it is left for the next time."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        log.warning("the %s is left out: %s", name, error)
        return None
    return thread


class FunctionSweeper:
    """Finds code that no task needs any more, in a thread; the scheduler drops it."""

    def __init__(self, store: Path, now_s: float) -> None:
        self._store = store
        self._due_s = now_s + CODE_LOOK_S
        self._all_from_s = now_s + KEPT_S
        """When large code is looked for too: by then, clients have sent again what they think is here."""
        self._needed: set[str] | None = None
        """The code of tasks that have come since the look began.  None: nothing is looked for."""
        self._found: set[str] = set()
        self._took_s = 0.0
        self._thread: threading.Thread | None = None
        self.is_worth_it = True
        """Whether tasks were cleared since the last look."""

    def turn(self, now_s: float) -> list[str]:
        """Begin to look if it is time for it, and return what was found.  Called at the beginning of a turn."""
        if self._needed is not None:
            if self._thread is not None and self._thread.is_alive():
                return []
            unused, self._needed = sorted(self._found - self._needed), None
            self._due_s = now_s + max(CODE_LOOK_S, self._took_s / CODE_LOOK_SHARE)
            return unused
        if self.is_worth_it and now_s >= self._due_s:
            self.is_worth_it = False
            self._needed, self._found = set(), set()
            bytes_max = SENT_AGAIN_BYTES if now_s < self._all_from_s else 2**62
            self._thread = _started(partial(self._look, bytes_max), "sweep of code")
        return []

    def note(self, saves: Iterable[Save]) -> None:
        """Keep the code that new tasks need."""
        if self._needed is None:
            return
        for save in saves:
            if type(save) is SaveTask:
                self._needed.update(code_of(save.function, save.rules))
                if save.cache is not None:
                    self._needed.add(save.cache.recipe)

    def _look(self, bytes_max: int) -> None:
        began_s = time.monotonic()
        try:
            self._found = unused_code(self._store, bytes_max)
        except Exception:  # an error in a thread that nobody waits for
            log.exception("unused code could not be found")
        self._took_s = time.monotonic() - began_s


PAGES = 500
"""The most pages of the store (4 KiB each) that are given back in one turn."""
PAGES_LEAST = 10
STEP_S = 0.05
"""Steps become smaller if they take longer: on a busy disk, or while the list of free pages, in which SQLite looks for
each page that it gives back, is long."""

AT_ONCE_BYTES = 16 * 2**20
"""A file of an earlier version is written again in one turn up to this size."""


class Compaction:
    """The compaction that is under way, and who waits for its end."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: list[tuple[str, int]] = []
        self._before_bytes = 0
        self._began_s = 0.0
        self._pages = PAGES_LEAST

    @property
    def under_way(self) -> bool:
        """Return whether the next turn has a step to do."""
        return bool(self._asked)

    def ask(self, session: str, n: int) -> None:
        """Begin, or wait for the end of the compaction that is under way."""
        if not self._asked:
            self._before_bytes, self._began_s = self._store.size_bytes(), time.monotonic()
            self._pages = PAGES_LEAST
        self._asked.append((session, n))

    def step(self) -> list[tuple[str, Answer]]:
        """Make a step. Return (session, answer) for everybody who waits if it was the last one.

        Raises:
            StoreError: the store is broken.
        """
        if not self._asked:
            return []
        try:
            reply = self._step()
        except StoreFull as error:
            reply = Refusal("StoreFull", str(error))
        if reply is None:
            return []
        asked, self._asked = self._asked, []
        return [(session, Answer(n, reply)) for session, n in asked]

    def _step(self) -> TextReply | Refusal | None:
        began_s = time.monotonic()
        left = self._store.give_back(self._pages)
        faster = STEP_S / max(time.monotonic() - began_s, 1e-6)
        self._pages = max(PAGES_LEAST, min(PAGES, int(self._pages * min(2.0, faster))))
        if left:
            return None
        if left is None and self._before_bytes <= AT_ONCE_BYTES:
            self._store.compact()
        elif left is None:
            return Refusal(
                "TaskError",
                "the store was made by an earlier version, and can only be compacted as a whole: stop the farm, run "
                "`ipytaskfarm compact` once, and start it again; from then on a running farm does it beside its work",
            )
        now_bytes, taken_s = self._store.size_bytes(), time.monotonic() - self._began_s
        return TextReply(
            f"{self._before_bytes / 2**20:,.1f} MiB before, {now_bytes / 2**20:,.1f} MiB now, in {taken_s:.1f} s"
        )
