"""What is done now and then beside the loop's turns, in a thread of its own: sweeping blobs."""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path

from ..storage.blobs import KEPT_S, Blobs
from ..storage.store import needed_blobs

log = logging.getLogger(__name__)

SWEEP_S = 300.0


class Upkeep:
    """Removes blobs that no task and no result needs."""

    def __init__(self, blobs: Blobs, store: Path) -> None:
        self._blobs = blobs
        self._store = store
        self._due_s: float | None = None
        self._thread: threading.Thread | None = None

    def turn(self, now_s: float) -> None:
        """Called each turn; costs nothing.  The first sweep comes late enough for all who hold blobs to have said so:
        clients touch what they have not handed over, agents deliver the results that lay with them meanwhile."""
        if self._due_s is None:
            self._due_s = now_s + KEPT_S
        if now_s < self._due_s or (self._thread is not None and self._thread.is_alive()):
            return
        self._due_s = now_s + SWEEP_S
        self._thread = threading.Thread(target=self._sweep, name="sweep of blobs", daemon=True)
        self._thread.start()

    def _sweep(self) -> None:
        try:
            removed = self._blobs.sweep(partial(needed_blobs, self._store))
        except Exception:  # of a thread nobody waits for; the next sweep is in five minutes
            log.exception("blobs could not be swept")
        else:
            if removed:
                log.info("removed %s blobs that nothing needs", removed)
