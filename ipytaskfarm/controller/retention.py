"""Removal of old results, by age and by the size of the store (both off by default), and of unused blobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from ..storage.backup import needed_blobs
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


class Retention:
    """Selects the ended tasks that are cleared now."""

    def __init__(self, store: Store, blobs: Path, keep_s: float | None, keep_bytes: int | None) -> None:
        """Create it.

        Args:
            keep_s: clear a task this many seconds after its end.
            keep_bytes: clear the oldest tasks when store and blobs have more bytes.
        """
        self._store = store
        self._blobs = blobs
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._due_s = self._size_due_s = 0.0
        self._looked_at = -1

    def due(self, mono_s: float, wall_s: float) -> list[int]:
        """Return ids of ended tasks to clear now; usually []."""
        if (self._keep_s is None and self._keep_bytes is None) or mono_s < self._due_s:
            return []
        self._due_s = mono_s + LOOK_S
        old = self._old(wall_s)
        if old or mono_s < self._size_due_s:
            return old
        going = self._too_many()
        # Blobs of tasks that are cleared now are gone from the tables at the next check, which may find more to do.
        self._size_due_s = mono_s + (LOOK_S if len(going) == CHUNK else SIZE_LOOK_S)
        return going

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
        self._thread = threading.Thread(target=self._sweep, name="sweep of blobs", daemon=True)
        self._thread.start()

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
