"""Chunks of maps: which ids their items have, and which of the items are tasks of their own.

A chunk of n items takes n + 1 ids in a row: its own, which people never see, and those of its items.  An item is
*separate* when it has become a task of its own, or was cleared; the others are *silent* and cost nothing here.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class ChunkRegistry:
    """The chunks that were not cleared."""

    items: dict[int, int] = field(default_factory=dict)
    """Chunk -> number of its items, separate ones included."""
    separate: dict[int, set[int]] = field(default_factory=dict)
    """Chunk -> indexes of its separate items.  Chunks without any are not there."""
    parts: dict[int, int] = field(default_factory=dict)
    """Chunk -> how many tasks that were not cleared run an item of its payload."""
    _order: list[int] = field(default_factory=list)

    def add(self, chunk: int, items: int) -> None:
        """Note a chunk."""
        self.items[chunk] = items
        insort(self._order, chunk)

    def forget(self, chunks: Iterable[int]) -> None:
        """Forget chunks that were cleared."""
        gone = {chunk for chunk in chunks if chunk in self.items}
        if gone:
            for chunk in gone:
                del self.items[chunk]
                self.separate.pop(chunk, None)
            self._order = [chunk for chunk in self._order if chunk not in gone]

    def of(self, task_id: int) -> int | None:
        """Return the chunk of a silent item.  None: no silent item has this id."""
        place = bisect_right(self._order, task_id) - 1
        if place < 0:
            return None
        chunk = self._order[place]
        index = task_id - chunk - 1
        if not 0 <= index < self.items[chunk] or index in self.separate.get(chunk, ()):
            return None
        return chunk

    def size(self, task_id: int) -> int:
        """Return how many tasks an entry stands for: the silent items of a chunk, one for any other task."""
        items = self.items.get(task_id)
        return 1 if items is None else items - len(self.separate.get(task_id, ()))

    def ids(self, chunk: int) -> Iterator[int]:
        """Yield the ids of a chunk's silent items."""
        separate = self.separate.get(chunk, ())
        return (chunk + 1 + index for index in range(self.items[chunk]) if index not in separate)

    def first(self, chunk: int) -> int:
        """Return the id of a chunk's first silent item; the chunk's own id if it has none."""
        return next(self.ids(chunk), chunk)

    def add_part(self, chunk: int) -> None:
        """Count one more task that runs an item of the chunk's payload."""
        self.parts[chunk] = self.parts.get(chunk, 0) + 1

    def remove_part(self, chunk: int) -> None:
        """Count one task less."""
        left = self.parts.get(chunk, 0) - 1
        if left > 0:
            self.parts[chunk] = left
        else:
            self.parts.pop(chunk, None)
