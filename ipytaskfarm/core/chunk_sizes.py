"""How many items of a map form one task: few enough to spread and to repeat, enough to be worth a task."""

from __future__ import annotations

CHUNK_S = 0.015
"""How long a chunk should take: below the 20 ms after which work that was sent ahead may be recalled, far above what a
task costs.
"""

GROWTH = 32
"""The largest factor by which a chunk grows beyond the last ones: the first items may have been the quick ones."""

CHUNKS_PER_ENGINE = 4
"""Chunks per engine that are submitted at a time: one runs, the others are sent ahead or on their way."""

ITEMS_MAX = 20_000


class Pace:
    """Measures chunks, and says how many items the next one has."""

    def __init__(self, engines: int) -> None:
        self._engines = max(1, engines)
        self._largest = 0
        self._wanted = 1
        """The intended size of the last chunk, if there had been enough items."""
        self._item_s: float | None = None
        self._items_max = ITEMS_MAX

    @property
    def known(self) -> bool:
        """Return whether any item was measured."""
        return self._item_s is not None

    @property
    def is_steady(self) -> bool:
        """Return whether chunks have reached the size that the items' pace asks for."""
        if self._item_s is None:
            return False
        return self._largest * 2 >= min(int(CHUNK_S / self._item_s), self._items_max)

    @property
    def window(self) -> int:
        """Return how many chunks to have under way at once."""
        return self._engines * CHUNKS_PER_ENGINE

    def size(self, left: int | None) -> int:
        """Return how many items the next chunk has.

        `left` is the number of items that are left; None if it is not known.
        """
        if self._item_s is None:
            return 1
        size = self._wanted = max(1, min(int(CHUNK_S / self._item_s), self._largest * GROWTH, self._items_max))
        if left is not None:
            # Towards the end the chunks shrink, so that all engines end at about the same time.
            size = min(size, -(-left // (2 * self._engines)))
        return max(1, size)

    def ended(self, items: int, run_s: float, large: bool) -> None:
        """Note how long a chunk took.

        large: its values were too many bytes for one message."""
        if items < self._wanted // (GROWTH // 2):
            return  # smaller than most: an early chunk, or one of the last
        self._largest = max(self._largest, items)
        measured = max(run_s / items, 1e-8)
        # A slow item counts at once: a chunk that takes too long is worse than one too small.
        known = self._item_s
        self._item_s = measured if known is None or measured > known else (known + measured) / 2
        if large and items > 1:
            self._items_max = max(1, items // 2)
