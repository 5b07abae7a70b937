"""Gives the room that cleared tasks have left in the store back to the disk, a little in each turn.

A VACUUM of the whole file would hold one turn for as long as the disk needs for all of it, and nobody else would be
answered meanwhile.
"""

from __future__ import annotations

import time

from ..core.errors import StoreFull
from ..core.messages import Answer, Refusal, TextReply
from ..storage.store import Store

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
        """Whether the next turn has a step to do."""
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
