"""How many items of a map form one task: few enough to spread and to repeat, enough to be worth a task."""

from __future__ import annotations

CHUNK_S = 0.015
"""How long a chunk should take: below the 20 ms after which work that was sent ahead may be recalled, far above what a
task costs.
"""

GROWTH = 32
"""The largest factor by which a chunk grows beyond the last ones: the first items may have been the quick ones."""

COST_SHARE = 4
"""A chunk takes at least this multiple of what it costs in addition to its items."""

FIXED_SHARE = 0.75
"""The share of the first item's run that is taken for the chunk's own, if chunks are costly, until more is known."""

CHUNK_S_MAX = 1.0
"""How long a chunk should take at most, whatever it costs: one that runs for long leaves items to other engines."""

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
        self.chunk_s = CHUNK_S
        """How long a chunk should take."""
        self._single_s: float | None = None
        """How long the quickest chunk of one item took, if chunks are costly."""
        self._fixed_s = 0.0
        """How long a costly chunk takes whatever its items: its engine may unpack the function anew."""

    def costs(self, chunk_s: float) -> None:
        """Note what a chunk costs in addition to its items, in seconds."""
        self.chunk_s = min(max(CHUNK_S, COST_SHARE * chunk_s), CHUNK_S_MAX)

    @property
    def known(self) -> bool:
        """Return whether any item was measured."""
        return self._item_s is not None

    @property
    def is_steady(self) -> bool:
        """Return whether chunks have reached the size that the items' pace asks for."""
        if self._item_s is None or self._is_of_singles:
            return False
        return self._largest * 2 >= min(int(self.chunk_s / self._item_s), self._items_max)

    @property
    def _is_of_singles(self) -> bool:
        """Return whether only single items were measured, although a costly chunk takes long for itself, too."""
        return self._largest == 1 and self.chunk_s > CHUNK_S

    @property
    def window(self) -> int:
        """Return how many chunks to have under way at once.

        Before the first has ended, costly ones are made for each engine once: they may be far too small.
        """
        is_guess = self._item_s is None and self.chunk_s > CHUNK_S
        return self._engines * (1 if is_guess else CHUNKS_PER_ENGINE)

    def size(self, left: int | None) -> int:
        """Return how many items the next chunk has.

        `left` is the number of items that are left; None if it is not known.
        """
        if self._item_s is None:
            return 1
        size = self._wanted = max(1, min(int(self.chunk_s / self._item_s), self._largest * GROWTH, self._items_max))
        if self._is_of_singles:
            size = self._wanted = max(size, 2)
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
        measured = max(self._own_s(items, run_s) / items, 1e-8)
        # A slow item counts at once: a chunk that takes too long is worse than one too small.
        known = self._item_s
        self._item_s = measured if known is None or measured > known else (known + measured) / 2
        if large and items > 1:
            self._items_max = max(1, items // 2)

    def _own_s(self, items: int, run_s: float) -> float:
        """Return how long the items themselves took."""
        if self.chunk_s <= CHUNK_S:
            return run_s
        if items == 1 and self._single_s is None:
            self._single_s, self._fixed_s = run_s, FIXED_SHARE * run_s
        elif items == 1 and self._single_s is not None:
            self._single_s = min(self._single_s, run_s)
        elif self._single_s is not None:
            item_s = max(0.0, run_s - self._single_s) / (items - 1)
            self._fixed_s = max(0.0, self._single_s - item_s)
        return max(0.0, run_s - self._fixed_s)
